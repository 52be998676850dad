"""Batch norm over the batches of all ranks.

``torch.nn.SyncBatchNorm`` supports only GPUs. This implementation works on every device that ``torch.distributed``
supports, which also allows comparing several CPU ranks with a single one.
"""

from typing import Any

import torch
from torch import Tensor, nn

from video_rs.distributed.device import all_gather, all_reduce, reducing_processes
from video_rs.errors import UserError

ONE_VALUE = "batch norm has one value per channel ({}): raise train.micro_batch or data.train_size"


class _Synced:
    """Mixin that replaces ``forward`` of torch's batch norm in training.

    It is also used with a single rank, because torch's own implementation rounds differently.
    """

    local = False  # True: use only the batches of this rank

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[N, C, ...]``. All ranks must call it. Raise UserError if there is one value per channel."""
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        if x.numel() // x.shape[1] * _processes(x, self.local) == 1:  # no unbiased variance
            raise UserError(ONE_VALUE.format(list(x.shape)))
        y, mean, var, count = _Normalize.apply(x, self.weight, self.bias, self.eps, self.local)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
                unbiased = var * (count / (count - 1))
                for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
                    running.copy_(torch.lerp(running, value.to(running.dtype), momentum))
        return y


class SyncBatchNorm1d(_Synced, nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` over all ranks."""


class SyncBatchNorm2d(_Synced, nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` over all ranks."""


class SyncBatchNorm3d(_Synced, nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d` over all ranks."""


SYNCED = {nn.BatchNorm1d: SyncBatchNorm1d, nn.BatchNorm2d: SyncBatchNorm2d, nn.BatchNorm3d: SyncBatchNorm3d}


def convert_sync_batch_norm(model: nn.Module, *, local: bool = False) -> nn.Module:
    """Replace each batch norm in ``model`` by one over all ranks, in place. Parameters and their names are unchanged.

    Args:
        local: use separate statistics on each rank, for devices on which torch's batch norm stores the biased variance.
    """
    for module in model.modules():
        if type(module) in SYNCED:
            module.__class__, module.local = SYNCED[type(module)], local
    return model


def revert_sync_batch_norm(model: nn.Module) -> None:
    """Undo :func:`convert_sync_batch_norm`, in place."""
    plain = {synced: own for own, synced in SYNCED.items()}
    for module in model.modules():
        module.__class__ = plain.get(type(module), type(module))


class _Normalize(torch.autograd.Function):
    """Normalize ``[N, C, ...]`` per channel over all ranks, then scale and shift.

    Also returns mean, biased variance and count, ``[C]``, ``[C]`` and ``[]``, without gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, local: bool
    ) -> tuple[Tensor, ...]:
        dims = [0, *range(2, x.dim())]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = torch.full((1,), x.numel() / x.shape[1], dtype=wide.dtype, device=x.device)
        var, mean = torch.var_mean(wide, dims, correction=0)
        values = torch.cat([count, mean, var])
        values = values[None] if _processes(values, local) == 1 else all_gather(values)  # [ranks, 1 + 2 * C]
        counts, means, variances = values.split([1, len(mean), len(mean)], dim=1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        # squares about the common mean: stable if the mean is large (Chan et al. 1983)
        var = (counts * (variances + (means - mean).square())).sum(0) / total
        scale = (var + eps).rsqrt()
        y = (wide - _channels(mean, x)) * _channels(scale, x)
        if weight is not None:
            y = y * _channels(weight, x) + _channels(bias, x)
        ctx.local = local
        ctx.save_for_backward(x, weight, mean, scale, total)
        ctx.mark_non_differentiable(mean, var, total)
        return y.to(x.dtype), mean, var, total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, total = ctx.saved_tensors
        dims = [0, *range(2, x.dim())]
        gradient = gradient.to(scale.dtype)
        normalized = (x.to(scale.dtype) - _channels(mean, x)) * _channels(scale, x)
        sums = torch.stack([gradient.sum(dims), (gradient * normalized).sum(dims)])
        of_bias, of_weight = sums.clone() if weight is not None else (None, None)
        if _processes(sums, ctx.local) > 1:
            all_reduce([sums])
        first, second = sums / total
        of_x = gradient - _channels(first, x) - normalized * _channels(second, x)
        of_x *= _channels(scale if weight is None else scale * weight, x)
        if weight is not None:
            of_weight, of_bias = of_weight.to(weight.dtype), of_bias.to(weight.dtype)
        return of_x.to(x.dtype), of_weight, of_bias, None, None


def _processes(values: Tensor, local: bool) -> int:
    """Return the number of ranks that share statistics."""
    return 1 if local else reducing_processes(values.device)


def _channels(values: Tensor, x: Tensor) -> Tensor:
    """Return ``[C]`` in a shape that broadcasts with ``x``."""
    return values.view(1, -1, *[1] * (x.dim() - 2))
