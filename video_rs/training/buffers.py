"""The buffers of a network, batch-norm statistics above all, as one flat tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Buffers:
    """What is not a parameter but changes in training.

    One tensor can be kept, restored and sent to other processes with a handful of kernels, where a network has hundreds
    of buffers. It is of float64, which holds the counts of batch norm as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [buffer for buffer in model.buffers() if buffer.numel()]
        self._sizes = [buffer.numel() for buffer in self._buffers]
        device = next(model.parameters()).device
        self._none = torch.zeros(0, dtype=torch.float64, device=device)  # makes float64 of what it is put together with

    def read(self) -> Tensor:
        """A copy: float64 ``[n]``."""
        return torch.cat([self._none, *(buffer.flatten() for buffer in self._buffers)])

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """Sets all of them to what :meth:`read` gave."""
        values = zip(self._buffers, flat.split(self._sizes), strict=True)
        if self._buffers:
            torch._foreach_copy_(self._buffers, [value.view_as(buffer) for buffer, value in values])
