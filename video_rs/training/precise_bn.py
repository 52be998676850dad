"""Precise batch norm (Wu and Johnson 2021, arXiv 2105.07576, section 3).

The statistics of many samples under one set of weights, instead of a moving average over weights that were changing.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn

from video_rs import runtime
from video_rs.data.transforms import normalize
from video_rs.distributed import World


@torch.no_grad()
def with_precise_statistics(
    model: nn.Module,
    batches: Sized,
    precision: str,
    world: World,
    check: Callable[[], None] = lambda: None,
) -> nn.Module:
    """A copy of a network whose batch norm has the statistics of some batches, all processes together.

    Args:
        model: with ``contract``, on its device. Nothing is dropped meanwhile: only batch norm is in training mode.
        batches: dicts with ``clip``, uint8 ``[N, T, H, W, C]``, of this process; all processes have as many.
        precision: see ``video_rs.runtime``.
        world: the processes.
        check: called before each batch; raises when the run is to stop.
    """
    with warnings.catch_warnings():  # fvcore compiles its losses with torch.jit when it is imported
        warnings.simplefilter("ignore")
        from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.local = True  # the processes' moments are put together at the end: until then none waits in a batch

    def look() -> None:
        world.alive()
        check()

    norms = get_bn_modules(model)
    with world.guard("the statistics of batch norm"):
        autocast = runtime.autocast(next(model.parameters()).device, precision)
        with world.together("the statistics of batch norm", patient=True), autocast:
            update_bn_stats(model, _clips(batches, model, look), num_iters=len(batches))
        for norm in norms:
            moments = torch.stack([norm.running_mean, norm.running_var + norm.running_mean.square()])
            world.sum_(moments, "the statistics of batch norm")
            mean, square = moments / world.size
            norm.running_mean, norm.running_var = mean, square - mean.square()
    return model.eval()


def _clips(batches: Any, model: nn.Module, check: Callable[[], None]) -> Iterator[Tensor]:
    contract, parameter = model.contract, next(model.parameters())
    for batch in batches:
        check()
        yield normalize(batch["clip"].to(parameter.device), contract.mean, contract.std, dtype=parameter.dtype)
        runtime.flush(parameter.device)
