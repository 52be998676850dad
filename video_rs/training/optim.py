"""SGD as the ResNet-RS recipes use it: which weights decay, and the learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from video_rs.models.layers import SelfGating


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weights of convolutions and linear layers decay; biases, batch norm and self-gating do not.

    By module type, squeeze-and-excitation and the head included, as the published video recipe does (its L2 term is on
    the kernels that have a regulariser; the self-gating kernel has none). In networks of other packages, parameters
    that lie in no layer of torch's do not decay either: class tokens, position embeddings, but also the kernels of
    their own convolutions (timm's ``CondConv2d``). Nor does what ``no_weight_decay()`` names.

    Args:
        model: as built: names of ``no_weight_decay()`` are without the prefixes of DistributedDataParallel or
            ``torch.compile``.
        weight_decay: of the first group.
    """
    spared = getattr(model, "no_weight_decay", set)()
    kept = {id(p) for name, p in model.named_parameters() if name in spared}
    chosen = {
        id(module.weight)
        for module in _modules_outside(model, SelfGating)
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
    }
    decayed = [p for p in model.parameters() if id(p) in chosen - kept]
    others = [p for p in model.parameters() if id(p) not in chosen - kept]
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
        warmup_steps: may be fractional, as epochs seldom are whole numbers of steps. A run shorter than twice that
            warms up for half of its steps, or it would never leave small learning rates.
        schedule: ``cosine`` or ``constant``.
    """
    warmup_steps = min(warmup_steps, num_steps / 2)

    def curve(step: float) -> float:
        return base * 0.5 * (1 + math.cos(math.pi * step / num_steps)) if schedule == "cosine" else base

    def at(step: int) -> float:
        return step / warmup_steps * curve(warmup_steps) if step < warmup_steps else curve(step)

    return at


def num_steps(num_samples: int, batch_size: int, epochs: float) -> int:
    """Optimizer steps of ``epochs`` passes: samples run on over epoch ends, so only the last step is rounded up."""
    return max(1, math.ceil(epochs * num_samples / batch_size))
