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
        first = dict(zip(map(id, self._buffers), torch.tensor([0, *self._sizes]).cumsum(0).tolist()))
        momentum = torch.ones(sum(self._sizes), dtype=torch.float64)
        counts = torch.arange(len(momentum))  # for running statistics, the place of the count of their batches
        for norm in trained_norms(model):
            for buffer in (norm.running_mean, norm.running_var):
                place = slice(first[id(buffer)], first[id(buffer)] + buffer.numel())
                momentum[place], counts[place] = norm.momentum, first[id(norm.num_batches_tracked)]
        self._is_statistic = (counts != torch.arange(len(counts))).to(device)
        self._momentum, self._counts = momentum.to(device), counts.to(device)

    def read(self) -> Tensor:
        """Return a copy: float64 ``[n]``."""
        return torch.cat([self._empty, *(buffer.flatten() for buffer in self._buffers)])

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """Set all buffers from the result of :meth:`read`."""
        values = zip(self._buffers, flat.split(self._sizes), strict=True)
        if self._buffers:
            torch._foreach_copy_(self._buffers, [value.view_as(buffer) for buffer, value in values])

    def after_step(self, before: Tensor, seen: Tensor, micro_batches: int) -> Tensor:
        """Return the buffers after a step, with running statistics that do not depend on their initial values.

        With momentum 1, statistics are averaged over the micro-batches, as over ranks; otherwise they would be those of
        the last one. With a smaller momentum m, the first statistics have the weight of a plain average until that is
        less than m. Otherwise a short run would end with the initial mean 0 and variance 1: after 8 steps at momentum
        0.1, they have 43 % of the weight. The EMA of the weights is warmed up for the same reason.

        Args:
            before: the buffers before the step.
            seen: sum of the buffers after each micro-batch; unused if there is one.
            micro_batches: number of micro-batches in the step.
        """
        after = self.read()
        if micro_batches > 1:
            after = torch.where(self._is_statistic & (self._momentum == 1), seen / micro_batches, after)
        weight = 1 - (1 - self._momentum) ** micro_batches  # of this step
        plain = micro_batches / (before[self._counts] + micro_batches)
        is_early = self._is_statistic & (plain > weight)
        return torch.where(is_early, before + plain / weight * (after - before), after)
