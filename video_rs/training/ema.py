"""Exponential moving average of a network's weights and buffers."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import nn


class EMA:
    """Keeps a moving average of a network, batch-norm statistics included.

    The decay warms up, ``min(decay, (1 + n) / (10 + n))`` after ``n`` updates, as in both TensorFlow references: a
    constant 0.9999 would leave a short run near its random start. Batch norm with momentum 1 (the last batch's
    statistics only) gets its running statistics from here.

    Args:
        model: the network that is trained; the average starts as a copy of it.
        decay: 0 < decay < 1; 0.9999 in ResNet-RS (arXiv 2103.07579, section 4.2).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One update, after an optimizer step; integer buffers are copied."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged, current = self.model.state_dict(), model.state_dict()
        floating = [name for name, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_([averaged[name] for name in floating], [current[name] for name in floating], 1 - decay)
        for name in current.keys() - set(floating):
            averaged[name].copy_(current[name])
        self.updates += 1

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged weights; ``updates`` is saved beside them."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor], updates: int) -> None:
        """The inverse of :meth:`state_dict`."""
        self.model.load_state_dict(state)
        self.updates = updates


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Replaces floating-point buffers by their means over the processes of ``torch.distributed``, in place.

    Batch norm's statistics are each replica's own in training (``broadcast_buffers=False``); the average that is
    validated and kept is to have seen all replicas, as TensorFlow's, whose moving statistics are the replicas' means.
    Every process must call it. Without a process group, or with one process, nothing happens.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if buffers:
        flat = torch.cat([buffer.flatten() for buffer in buffers])  # one message, not hundreds
        dist.all_reduce(flat)
        means = (flat / dist.get_world_size()).split([buffer.numel() for buffer in buffers])
        for buffer, mean in zip(buffers, means):
            buffer.copy_(mean.view_as(buffer))
