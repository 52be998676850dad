"""SGD as the ResNet-RS recipes use it: which weights decay, and the learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from fvcore.common.param_scheduler import ConstantParamScheduler, CosineParamScheduler
from torch import nn

from video_rs.models.layers import SelfGating


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weights of convolutions and linear layers decay; biases, batch norm and self-gating do not.

    By module type, squeeze-and-excitation and the head included, as the published video recipe does (its L2 term is on
    the kernels that have a regulariser; the self-gating kernel has none).
    """
    decayed: list[nn.Parameter] = []
    for module in _modules_outside(model, SelfGating):
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            decayed.append(module.weight)
    chosen = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _modules_outside(module: nn.Module, excluded: type[nn.Module]):
    if not isinstance(module, excluded):
        yield module
        for child in module.children():
            yield from _modules_outside(child, excluded)


def sgd(model: nn.Module, *, momentum: float, nesterov: bool, weight_decay: float) -> torch.optim.SGD:
    """SGD over :func:`parameter_groups`; the loop sets the learning rate before every step."""
    groups = parameter_groups(model, weight_decay)
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov)


def learning_rate(base: float, num_steps: int, warmup_steps: float, schedule: str = "cosine") -> Callable[[int], float]:
    """The learning rate as a function of the optimizer step.

    Linear from 0 over ``warmup_steps`` to the schedule's value there, then the schedule, evaluated at the global step
    and not shifted by the warm-up (TF Model Garden's ``LinearWarmup`` over ``CosineDecay``).

    Args:
        base: the learning rate at the top, already scaled to the batch size.
        num_steps: of the whole run; cosine reaches 0 there.
        warmup_steps: may be fractional (epochs seldom are whole numbers of steps); at most ``num_steps`` count.
        schedule: ``cosine`` or ``constant``.
    """
    curve = CosineParamScheduler(base, 0.0) if schedule == "cosine" else ConstantParamScheduler(base)
    warmup_steps = min(warmup_steps, float(num_steps))

    def at(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps * curve(warmup_steps / num_steps)
        return max(0.0, curve(min(step / num_steps, 1.0)))

    return at


def num_steps(num_samples: int, batch_size: int, epochs: float) -> int:
    """Optimizer steps of ``epochs`` passes: samples run on over epoch ends, so only the last step is rounded up."""
    return max(1, math.ceil(epochs * num_samples / batch_size))
