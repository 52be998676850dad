"""Exponential moving average (EMA) of a network's weights and buffers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a network, batch norm statistics included.

    The decay is warmed up: ``min(decay, (1 + n) / (10 + n))`` after ``n`` updates, as in both TensorFlow references. A
    constant decay of 0.9999 would leave a short run close to its random initialization. If batch norm has momentum 1,
    its running statistics are those of the last batch, and their average is used for prediction.

    Args:
        model: the network in training. The average is initialized as a copy of it.
        decay: 0 < decay < 1; 0.9999 in ResNet-RS (arXiv 2103.07579, section 4.2).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)

    @torch.no_grad()
    def update(self, model: nn.Module, skip: Tensor | None = None) -> None:
        """Update the average after an optimizer step. Integer buffers are copied.

        Args:
            model: the network in training.
            skip: bool ``[]`` on the device. If true, nothing changes.
        """
        averaged, current = self.model.state_dict(), model.state_dict()
        floating = [name for name, value in current.items() if value.is_floating_point()]
        counts = torch.ones_like(self.updates) if skip is None else (~skip).double()
        weight = (1 - warmed_up(self.updates, self.decay)) * counts
        _lerp([averaged[name] for name in floating], [current[name] for name in floating], weight)
        for name, value in current.items():
            if not value.is_floating_point():
                averaged[name].copy_(value)
        self.updates += counts

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights. The number of updates is a separate entry of a checkpoint."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor], updates: int) -> None:
        """Restore :meth:`state_dict` and the number of updates."""
        self.model.load_state_dict(state)
        self.updates.fill_(updates)


def warmed_up(updates: Tensor, decay: float) -> Tensor:
    """Return the decay after a number of updates."""
    return ((1 + updates) / (10 + updates)).clamp(max=decay)


def _lerp(values: list[Tensor], others: list[Tensor], weight: Tensor) -> None:
    """Interpolate from values to others, in place. ``weight`` stays on the device."""
    if weight.is_cuda:  # three kernels instead of hundreds; on a CPU one pass instead of three
        foreach_lerp_(values, others, weight.to(values[0].dtype))
    else:
        for value, other in zip(values, others, strict=True):
            value.lerp_(other, weight.to(value.dtype))


def foreach_lerp_(values: list[Tensor], others: list[Tensor], weight: Tensor) -> None:
    """Interpolate in place, like ``lerp_``, with a weight on the device and few kernels."""
    steps = torch._foreach_sub(others, values)
    torch._foreach_mul_(steps, weight)
    torch._foreach_add_(values, steps)
