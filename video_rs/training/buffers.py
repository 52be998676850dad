"""The buffers of a network in training, mainly the running statistics of batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def trained_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norm layers in training mode that update running statistics with a momentum."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if norm.training and norm.track_running_stats and norm.momentum]


class Buffers:
    """The buffers of a network as one flat float64 tensor.

    A network has hundreds of buffers; a flat tensor is saved, restored and reduced with few kernels. float64 represents
    the counts of batch norm exactly.

    Args:
        model: the network in training, on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [buffer for buffer in model.buffers() if buffer.numel()]
        self._sizes = [buffer.numel() for buffer in self._buffers]
        device = next(model.parameters()).device
        self._empty = torch.zeros(0, dtype=torch.float64, device=device)  # makes the concatenation float64
        norms = [norm for norm in trained_norms(model) if norm.momentum == 1]
        averaged = {id(buffer) for norm in norms for buffer in (norm.running_mean, norm.running_var)}
        masks = [torch.full((buffer.numel(),), id(buffer) in averaged) for buffer in self._buffers]
        self._is_averaged = torch.cat([self._empty.bool(), *(mask.to(device) for mask in masks)])

    def read(self) -> Tensor:
        """Return a copy: float64 ``[n]``."""
        return torch.cat([self._empty, *(buffer.flatten() for buffer in self._buffers)])

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """Set all buffers from the result of :meth:`read`."""
        values = zip(self._buffers, flat.split(self._sizes), strict=True)
        if self._buffers:
            torch._foreach_copy_(self._buffers, [value.view_as(buffer) for buffer, value in values])

    def after_step(self, seen: Tensor, micro_batches: int) -> Tensor:
        """Return the buffers after a step.

        Statistics with momentum 1 are averaged over its micro-batches, as over ranks. Otherwise they would be those of
        the last micro-batch.

        Args:
            seen: sum of the buffers after each micro-batch; unused if there is one.
            micro_batches: number of micro-batches in the step.
        """
        after = self.read()
        return torch.where(self._is_averaged, seen / micro_batches, after) if micro_batches > 1 else after
