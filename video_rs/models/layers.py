"""Layers of the ResNet-RS family, for clips ``[N, C, T, H, W]``.

All kernels are 5-D. A spatial convolution runs as a 2D convolution over N*T frames, and a purely temporal convolution
runs as a 2D convolution over frames and pixels. In the channels-last memory format, which 2D convolutions preserve,
these reshapes are views.
Dropout and drop path have no state: they are functions of one 64-bit key per sample.

Functions that read shapes are leaves for ``torch.fx`` (``torch.fx.wrap``).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_rs.models.architecture import Architecture

Triple = tuple[int, int, int]


def over_frames(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a 2D ``function`` to every frame of ``x`` ``[N, C, T, H, W]``."""
    frames = function(x.movedim(2, 1).flatten(0, 1))
    return frames.unflatten(0, (x.shape[0], x.shape[2])).movedim(1, 2)


def pad(x: Tensor, kernel: Triple, stride: Triple, mode: str, value: float = 0.0) -> tuple[Tensor, list[int]]:
    """Pad ``x`` in dimensions in which the padding is asymmetric.

    Returns:
        ``x`` and the padding ``[T, H, W]`` that the operation itself must apply. Both modes give ``ceil(n / stride)``
        outputs. "symmetric" pads ``k // 2`` on both sides. "same" pads the minimum, with the odd element at the end.
    """
    totals = [_total(*sizes, mode) for sizes in zip(x.shape[2:], kernel, stride, strict=True)]
    if all(total % 2 == 0 for total in totals):
        return x, [total // 2 for total in totals]
    sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return F.pad(x, sides, value=value), [0, 0, 0]


def _total(length: int, kernel: int, stride: int, mode: str) -> int:
    """Return the total padding of one dimension."""
    if mode == "symmetric":
        return 2 * (kernel // 2)
    return max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)


def replicate_frames(x: Tensor, kernel: int, stride: int, mode: str) -> Tensor:
    """Pad in time by repeating the first and the last frame."""
    total = _total(x.shape[2], kernel, stride, mode)
    before = total // 2
    return torch.cat([x[:, :, :1]] * before + [x] + [x[:, :, -1:]] * (total - before), dim=2)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple, modes: tuple[str, str], as_2d: bool
) -> Tensor:
    """Convolve ``x`` ``[N, C, T, H, W]`` with a 5-D kernel; see :class:`Conv`."""
    kernel = tuple(weight.shape[2:])
    mode, temporal_mode = modes
    if kernel[0] > 1 and temporal_mode == "replicate":
        x = replicate_frames(x, kernel[0], stride[0], mode)
        x, padding = pad(x, (1, *kernel[1:]), (1, *stride[1:]), mode)
    else:
        x, padding = pad(x, kernel, stride, mode)
    if as_2d and kernel[0] == 1:
        frames = x[:, :, :: stride[0]]
        return over_frames(lambda x: F.conv2d(x, weight.squeeze(2), bias, stride[1:], padding[1:]), frames)
    if as_2d and kernel[1:] == stride[1:] == (1, 1):  # purely temporal: [N, C, T, H*W], also a view
        tracks = F.conv2d(x.flatten(3), weight.squeeze(4), bias, (stride[0], 1), (padding[0], 0))
        return tracks.unflatten(3, x.shape[3:])
    return F.conv3d(x, weight, bias, stride, padding)


torch.fx.wrap("convolve")


class Conv(nn.Conv3d):
    """Convolution with a 5-D kernel, the architecture's padding and the initialisation of the paper's code.

    Attributes:
        as_2d: run purely spatial and purely temporal kernels as 2D convolutions; if False, run all as 3D.
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
        """Variance scaling: scale 1, fan-in, a normal distribution truncated at two standard deviations."""
        std = math.sqrt(1 / self.weight[0].numel()) / 0.87962566103423978  # of a standard normal, truncated at 2
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        modes = self.architecture_padding, self.temporal_padding
        return convolve(x, self.weight, self.bias, self.stride, modes, self.as_2d)


class ConvNorm(nn.Module):
    """Convolution, batch normalisation and, unless ``activate`` is False, the architecture's activation."""

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
    """Return the activation called "relu" or "swish"."""
    return {"relu": nn.ReLU(inplace=True), "swish": nn.SiLU()}[name]


def max_pool(x: Tensor, kernel: Triple, stride: Triple, padding_mode: str) -> Tensor:
    """Max pool ``x`` ``[N, C, T, H, W]``, padded as :func:`pad` does."""
    x, padding = pad(x, kernel, stride, padding_mode, value=-math.inf)
    return F.max_pool3d(x, kernel, stride, padding)


torch.fx.wrap("max_pool")


class MaxPool(nn.Module):
    """Max pool with the architecture's padding."""

    def __init__(self, kernel: Triple, stride: Triple, *, padding: str) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return max_pool(x, self.kernel, self.stride, self.padding)


def average_pool(x: Tensor, stride: Triple) -> Tensor:
    """Average over windows of ``stride``, or of 2x2 if it is 1. Padding is not counted at the border."""
    if stride == (1, 1, 1):  # repeating the last row and column is the same as not counting padding
        return over_frames(lambda frames: F.avg_pool2d(F.pad(frames, (0, 1, 0, 1), mode="replicate"), 2, 1), x)
    inside = {"ceil_mode": True, "count_include_pad": False}
    if stride[0] > 1:
        return F.avg_pool3d(x, stride, stride, **inside)
    return over_frames(lambda frames: F.avg_pool2d(frames, stride[1:], stride[1:], **inside), x)


torch.fx.wrap("average_pool")


class Shortcut(ConvNorm):
    """The shortcut of the first block of a stage: average pool and 1x1 (ResNet-D, He et al. 2019), or a strided 1x1."""

    def __init__(self, in_channels: int, out_channels: int, architecture: Architecture, stride: Triple) -> None:
        pooled = architecture.shortcut == "pool"
        conv_stride = (1, 1, 1) if pooled else stride
        super().__init__(in_channels, out_channels, architecture, stride=conv_stride, activate=False)
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
    """Self-gating (Xie et al. 2018, S3D-G). The weight is a plain parameter, so that weight decay skips it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.trunc_normal_(self.weight, std=0.01, a=-0.02, b=0.02)

    def forward(self, x: Tensor) -> Tensor:
        gates = F.linear(x.mean((2, 3, 4)), self.weight.flatten(1), self.bias).sigmoid()
        return x * gates[:, :, None, None, None]


_GOLDEN = -0x61C8864680B583EB  # splitmix64's increment 0x9E3779B97F4A7C15 as a signed integer
_INVERSE = -0xE217C1E66C88CC3  # inverse of _GOLDEN modulo 2**64
_WITHOUT_SIGN = (1 << 63) - 1
_MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift. torch's shift is arithmetic, and XLA's rounds negative numbers towards zero."""
    return ((z & _WITHOUT_SIGN) >> bits) | ((z < 0).to(z.dtype) << (63 - bits))


def _mix(z: Tensor) -> Tensor:
    """Apply splitmix64's finaliser: 64 bits in, 64 bits out, each output bit depends on all input bits."""
    z = (z ^ _shift(z, 30)) * _MULTIPLIERS[0]
    z = (z ^ _shift(z, 27)) * _MULTIPLIERS[1]
    return z ^ _shift(z, 31)


def keyed_uniform(keys: Tensor, stream: int, size: int) -> Tensor:
    """Return numbers in [0, 1) that depend only on (key, stream, element), equal on every device.

    Args:
        keys: ``[N]`` int64, one per sample.
        stream: number of the stream, unique for each layer of a network.
        size: amount of numbers per sample, below 2**32.

    Returns:
        ``[N, size]`` float32, multiples of 2**-24.
    """
    # This is _mix(_mix(keys) + counter * _GOLDEN). torch.compile treats products of an arange as indices, which are
    # assumed not to overflow. Therefore the counter is computed by "or" and multiplied together with the key.
    counter = torch.arange(size, device=keys.device) | (stream << 32)
    bits = _mix(((_mix(keys) * _INVERSE)[:, None] + counter) * _GOLDEN)
    return _shift(bits, 40).float() * 2**-24


def resolve_keys(keys: Tensor | None, x: Tensor) -> Tensor:
    """Return ``keys``, or random keys ``[N]`` int64 from torch's generator if None."""
    if keys is None:
        return torch.randint(-(2**63), 2**63 - 1, (x.shape[0],), device=x.device)
    return keys


torch.fx.wrap("resolve_keys")


def keyed_drop(x: Tensor, keys: Tensor | None, stream: int, rate: float, ndim: int) -> Tensor:
    """Zero random elements of ``x`` ``[N, ...]`` and divide the rest by the keep probability.

    Args:
        rate: probability of zeroing, drawn once for each element of the first ``ndim`` dimensions.
    """
    shape = x.shape[:ndim] + (1,) * (x.ndim - ndim)
    kept = keyed_uniform(resolve_keys(keys, x), stream, math.prod(shape[1:])) >= rate
    return x * (kept.to(x.dtype) / (1 - rate)).view(shape)


torch.fx.wrap("keyed_drop")


class KeyedDrop(nn.Module):
    """Random dropping in training, determined by ``keys`` ``[N]`` int64, which default to torch's generator.

    Args:
        rate: probability of dropping.
        stream: see :func:`keyed_uniform`.
    """

    ndim: int

    def __init__(self, rate: float, stream: int) -> None:
        super().__init__()
        self.rate, self.stream = rate, stream

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        return keyed_drop(x, keys, self.stream, self.rate, self.ndim)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, stream={self.stream}"


class DropPath(KeyedDrop):
    """Stochastic depth (Huang et al. 2016): drop whole samples of ``x`` ``[N, ...]``."""

    ndim = 1


class Dropout(KeyedDrop):
    """Dropout on the elements of ``x`` ``[N, C]``."""

    ndim = 2
