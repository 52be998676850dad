"""The layers of the ResNet-RS family, on clips ``[N, C, T, H, W]``.

Kernels are 5-D throughout. What does not mix frames runs as its 2D counterpart over N*T frames, and a convolution over
time alone as a 2D one over frames and pixels: on channels-last memory, which is how clips arrive and what 2D
convolutions keep, the change of shape is a view.
Nothing random has a state: dropout and drop path are functions of one 64-bit key per sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_rs.models.architecture import Architecture

Triple = tuple[int, int, int]


def over_frames(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Applies a 2D ``function`` to every frame of ``x`` ``[N, C, T, H, W]``."""
    frames = function(x.movedim(2, 1).flatten(0, 1))
    return frames.unflatten(0, (x.shape[0], x.shape[2])).movedim(1, 2)


def pad(x: Tensor, kernel: Triple, stride: Triple, mode: str, value: float = 0.0) -> tuple[Tensor, list[int]]:
    """Pads ``x`` where one number a dimension cannot say how.

    Returns:
        ``x`` and the padding ``[T, H, W]`` that is left to the operation itself. Either ``mode`` gives
        ``ceil(n / stride)`` outputs; they differ in where the windows lie: "same" takes what it needs and puts the odd
        element at the end.
    """
    totals = [_total(*sizes, mode) for sizes in zip(x.shape[2:], kernel, stride, strict=True)]
    if all(total % 2 == 0 for total in totals):
        return x, [total // 2 for total in totals]
    sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return F.pad(x, sides, value=value), [0, 0, 0]


def _total(length: int, kernel: int, stride: int, mode: str) -> int:
    """Return how much one dimension is padded, on both sides together."""
    if mode == "symmetric":
        return 2 * (kernel // 2)
    return max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)


def replicate_frames(x: Tensor, kernel: int, stride: int, mode: str) -> Tensor:
    """Pads in time alone, with copies of the first and the last frame."""
    total = _total(x.shape[2], kernel, stride, mode)
    before = total // 2
    return torch.cat([x[:, :, :1]] * before + [x] + [x[:, :, -1:]] * (total - before), dim=2)


class Conv(nn.Conv3d):
    """A convolution with a 5-D kernel, padded as the architecture says and initialised as the paper's code does.

    Attributes:
        as_2d: whether kernels of one frame, and of one pixel, run as 2D convolutions; else all are 3D ones.
    """

    as_2d = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Triple = (1, 1, 1),
        stride: Triple = (1, 1, 1),
        *,
        padding: str = "symmetric",
        temporal_padding: str = "zeros",
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, bias=bias)
        self.architecture_padding, self.temporal_padding = padding, temporal_padding

    def reset_parameters(self) -> None:
        """Variance scaling: scale 1, fan-in, a normal distribution cut off at two standard deviations."""
        std = math.sqrt(1 / self.weight[0].numel()) / 0.87962566103423978  # that of a standard normal, cut off at 2
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size, self.stride
        if kernel[0] > 1 and self.temporal_padding == "replicate":
            x = replicate_frames(x, kernel[0], stride[0], self.architecture_padding)
            x, padding = pad(x, (1, *kernel[1:]), (1, *stride[1:]), self.architecture_padding)
        else:
            x, padding = pad(x, kernel, stride, self.architecture_padding)
        if self.as_2d and kernel[0] == 1:
            weight = self.weight.squeeze(2)
            x = x[:, :, :: stride[0]]
            return over_frames(lambda frames: F.conv2d(frames, weight, self.bias, stride[1:], padding[1:]), x)
        if self.as_2d and kernel[1:] == stride[1:] == (1, 1):  # pixels do not mix: [N, C, T, H*W], also a view
            tracks = F.conv2d(x.flatten(3), self.weight.squeeze(4), self.bias, (stride[0], 1), (padding[0], 0))
            return tracks.unflatten(3, x.shape[3:])
        return F.conv3d(x, self.weight, self.bias, stride, padding)


class ConvNorm(nn.Module):
    """Convolution, batch normalisation and, unless ``activate`` is false, the architecture's activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        architecture: Architecture,
        kernel: Triple = (1, 1, 1),
        stride: Triple = (1, 1, 1),
        *,
        activate: bool = True,
    ) -> None:
        super().__init__()
        pads = {"padding": architecture.padding, "temporal_padding": architecture.temporal_padding}
        self.conv = Conv(in_channels, out_channels, kernel, stride, **pads)
        self.norm = nn.BatchNorm3d(out_channels, eps=1e-5)
        self.activation = activation(architecture.activation) if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


def activation(name: str) -> nn.Module:
    return {"relu": nn.ReLU(inplace=True), "swish": nn.SiLU()}[name]


class MaxPool(nn.Module):
    """A max pool padded as the architecture says."""

    def __init__(self, kernel: Triple, stride: Triple, *, padding: str) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        x, padding = pad(x, self.kernel, self.stride, self.padding, value=-math.inf)
        return F.max_pool3d(x, self.kernel, self.stride, padding)


def average_pool(x: Tensor, stride: Triple) -> Tensor:
    """Means over windows of ``stride`` (2x2 where it is 1); those that reach over the end count what is there."""
    if stride == (1, 1, 1):  # one more row and column, repeated, leaves the mean of what is there at the borders
        return over_frames(lambda frames: F.avg_pool2d(F.pad(frames, (0, 1, 0, 1), mode="replicate"), 2, 1), x)
    if stride[0] > 1:
        return F.avg_pool3d(x, stride, stride, ceil_mode=True, count_include_pad=False)
    return over_frames(
        lambda frames: F.avg_pool2d(frames, stride[1:], stride[1:], ceil_mode=True, count_include_pad=False), x
    )


class Shortcut(ConvNorm):
    """The projection of a stage's first block: pooled first (ResNet-D, He et al. 2019), or a strided convolution."""

    def __init__(self, in_channels: int, out_channels: int, architecture: Architecture, stride: Triple) -> None:
        pooled = architecture.shortcut == "pool"
        super().__init__(
            in_channels, out_channels, architecture, stride=(1, 1, 1) if pooled else stride, activate=False
        )
        self.pool_stride = stride if pooled and (stride != (1, 1, 1) or architecture.shortcut_pool_in_stage1) else None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.pool_stride is None else average_pool(x, self.pool_stride))


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018) over time and space."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        reduced = max(1, int(channels * ratio))
        self.reduce = Conv(channels, reduced, bias=True)
        self.expand = Conv(reduced, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3, 4), keepdim=True)
        return x * self.expand(F.relu(self.reduce(squeezed))).sigmoid()


class SelfGating(nn.Module):
    """Self-gating (Xie et al. 2018, S3D-G). It holds its weights itself: those of convolutions decay, these do not."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.trunc_normal_(self.weight, std=0.01, a=-0.02, b=0.02)

    def forward(self, x: Tensor) -> Tensor:
        gates = F.linear(x.mean((2, 3, 4)), self.weight.flatten(1), self.bias).sigmoid()
        return x * gates[:, :, None, None, None]


_GOLDEN = -0x61C8864680B583EB  # splitmix64's increment 0x9E3779B97F4A7C15 as a signed integer
_INVERSE = -0xE217C1E66C88CC3  # of that, modulo 2**64
_WITHOUT_SIGN = (1 << 63) - 1
_MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _shift(z: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's keeps the sign, and XLA's rounds what is negative towards zero."""
    return ((z & _WITHOUT_SIGN) >> bits) | ((z < 0).to(z.dtype) << (63 - bits))


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser: 64 bits in, 64 bits out, each depending on all."""
    z = (z ^ _shift(z, 30)) * _MULTIPLIERS[0]
    z = (z ^ _shift(z, 27)) * _MULTIPLIERS[1]
    return z ^ _shift(z, 31)


def keyed_uniform(keys: Tensor, stream: int, size: int) -> Tensor:
    """Numbers in [0, 1) that depend on (key, stream, element) alone, in integer arithmetic that every device shares.

    Args:
        keys: ``[N]`` int64, one per sample.
        stream: of the layer that draws, so that no two layers of a network draw the same.
        size: numbers per sample, below 2**32.

    Returns:
        ``[N, size]`` float32, multiples of 2**-24.
    """
    # That is _mix(_mix(keys) + counter * _GOLDEN). But torch.compile takes products of an arange for indices, and a C++
    # compiler takes them for numbers that do not overflow: so the counter is made by "or", and multiplied with the key.
    counter = torch.arange(size, device=keys.device) | (stream << 32)
    bits = _mix(((_mix(keys) * _INVERSE)[:, None] + counter) * _GOLDEN)
    return _shift(bits, 40).float() * 2**-24


class _KeyedDrop(nn.Module):
    def __init__(self, rate: float, stream: int) -> None:
        super().__init__()
        self.rate, self.stream = rate, stream

    def _drop(self, x: Tensor, keys: Tensor | None, shape: Sequence[int]) -> Tensor:
        """Zeroes what is drawn, per element of ``shape``, and divides the rest by the chance of being kept."""
        if not self.training or self.rate == 0:
            return x
        kept = keyed_uniform(keys, self.stream, math.prod(shape[1:])) >= self.rate
        return x * (kept.to(x.dtype) / (1 - self.rate)).view(shape)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, stream={self.stream}"


class DropPath(_KeyedDrop):
    """Stochastic depth (Huang et al. 2016): drops all of a sample in ``x`` ``[N, ...]``. ``keys``: ``[N]`` int64."""

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        return self._drop(x, keys, (x.shape[0],) + (1,) * (x.ndim - 1))


class Dropout(_KeyedDrop):
    """Dropout on ``x`` ``[N, C]``. ``keys``: ``[N]`` int64."""

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        return self._drop(x, keys, x.shape)
