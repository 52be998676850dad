"""Precise batch norm (Wu and Johnson 2021, arXiv 2105.07576, section 3).

Batch norm statistics are computed from many samples with fixed weights, instead of a moving average during training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sized
from functools import reduce

import torch
from torch import Tensor, nn

from video_rs.data.transforms.crops import normalize
from video_rs.distributed.device import autocast, flush
from video_rs.distributed.world import World


@torch.no_grad()
def with_precise_statistics(
    model: nn.Module,
    batches: Sized,
    precision: str,
    world: World,
    check: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Return a copy of a network with the batch norm statistics of some batches, merged over ranks.

    Args:
        model: a network with ``data_config``, on its device. Only batch norm is run in training mode, without dropout.
        batches: dicts with ``clip``, uint8 ``[N, T, H, W, C]``; the same number on each rank.
        precision: see ``video_rs.distributed.device``.
        world: the ranks of the run.
        check: called before each batch; raises if the run must stop.
    """
    model = copy.deepcopy(model).eval()
    norms = [module.train() for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.training and norm.track_running_stats]  # skip frozen layers
    seen: list[tuple[nn.Module, int, Tensor]] = []
    hooks = [norm.register_forward_hook(lambda *call: seen.append(_of_batch(*call))) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum, norm.local = 1.0, True  # statistics of one batch, on this rank

    moments = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}
    data_config, parameter = model.data_config, next(model.parameters())
    with world.together("the statistics of batch norm", heartbeats=True):
        for batch in batches:
            world.heartbeat()
            check()
            seen.clear()
            clips = normalize(
                batch["clip"].to(parameter.device), data_config.mean, data_config.std, dtype=parameter.dtype
            )
            with autocast(parameter.device, precision):
                model(clips)
            flush(parameter.device)
            for (norm, count, _), values in zip(seen, _on_host([values for *_, values in seen]), strict=True):
                mean, unbiased = values
                var = unbiased * (count - 1) / count
                moments[norm] = _merged(moments[norm], torch.stack([torch.full_like(mean, count), mean, var]))
    by_rank = world.gather(list(moments.values()), "the statistics of batch norm")
    for norm, momentum, of_ranks in zip(norms, momenta, zip(*by_rank), strict=True):
        count, mean, var = reduce(_merged, of_ranks)
        norm.momentum = momentum
        if count.any():
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
    for hook in hooks:
        hook.remove()
    return model.eval()


def _of_batch(norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> tuple[nn.Module, int, Tensor]:
    count = inputs[0].numel() // inputs[0].shape[1]
    return norm, count, torch.stack([norm.running_mean, norm.running_var])


def _on_host(tensors: list[Tensor]) -> list[Tensor]:
    """Copy tensors of one dtype to the host as float64, in one transfer."""
    flat = torch.cat([tensor.flatten() for tensor in tensors]).cpu().double() if tensors else torch.zeros(0)
    return [part.view_as(tensor) for part, tensor in zip(flat.split([t.numel() for t in tensors]), tensors)]


def _merged(a: Tensor, b: Tensor) -> Tensor:
    """Merge counts, means and biased variances, ``[3, C]`` each, without a difference of squares (Chan et al. 1983)."""
    (count, mean, var), (other_count, other_mean, other_var) = a, b
    fraction = other_count / (count + other_count).clamp(min=1)
    step = other_mean - mean
    merged_var = var * (1 - fraction) + other_var * fraction + step.square() * fraction * (1 - fraction)
    return torch.stack([count + other_count, mean + step * fraction, merged_var])
