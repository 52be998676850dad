"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) with the operations of the ResNet-RS recipe.

The operations, their ranges and their quirks match the TPU code that was published with the recipe
(``models/official/efficientnet/autoaugment.py`` in tensorflow/tpu). All frames of a clip get the same operations with
the same parameters. Clips stay on their device, and no operation synchronizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

FILL = 128  # value outside of a transformed frame


class RandAugment:
    """Apply a fixed number of operations, drawn uniformly from :data:`OPERATIONS`, at one magnitude.

    Args:
        layers: number of operations per clip; 0 for none.
        magnitude: strength of the operations. 10 is the maximum of the original search space; the recipe uses 10 to 15.
    """

    def __init__(self, layers: int = 2, magnitude: float = 10.0) -> None:
        self.layers, self.magnitude = layers, magnitude

    def __call__(self, clip_THWC: Tensor, rng: np.random.Generator) -> Tensor:
        """Augment a clip, uint8 RGB ``[T, H, W, 3]``."""
        for _ in range(self.layers):
            operation = OPERATIONS[rng.integers(len(OPERATIONS))]
            clip_THWC = operation(clip_THWC, self.magnitude / 10, rng)
        return clip_THWC


def auto_contrast(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Stretch each channel to 0..255."""
    low, high = (f(clip, dim=(0, 1, 2)).to(torch.float32) for f in (torch.amin, torch.amax))
    scale = torch.where(high > low, 255 / (high - low), 1.0)
    offset = torch.where(high > low, -low * scale, 0.0)
    return _to_uint8(clip * scale + offset)


def equalize(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Flatten the histogram of each channel."""
    return torch.stack([_equalize_channel(clip[..., c]) for c in range(clip.shape[-1])], dim=-1)


def _equalize_channel(channel: Tensor) -> Tensor:
    histogram, values = _histogram(channel) // len(channel), torch.arange(256, device=channel.device)  # per frame
    last = histogram.gather(0, (values * (histogram > 0)).argmax(0, keepdim=True))
    step = (histogram.sum() - last) // 255
    table = (histogram.cumsum(0) + step // 2) // step.clamp(min=1)
    table = torch.cat([table.new_zeros(1), table[:-1]]).clamp(0, 255)
    return torch.where(step > 0, table, values).to(torch.uint8)[channel.int()]


def _histogram(channel: Tensor) -> Tensor:
    """Return the count of each of the 256 values, int64."""
    if not channel.is_cuda:
        return torch.bincount(channel.flatten(), minlength=256)
    places = channel.flatten().long()  # bincount would synchronize
    return places.new_zeros(256).scatter_add_(0, places, places.new_ones(1).expand_as(places))


def invert(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return 255 - clip


def posterize(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Keep the ``4 * level`` highest bits."""
    mask = 0xFF00 >> min(int(4 * level), 8) & 0xFF
    return clip & mask


def solarize(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Invert values of at least ``256 * level``; none at magnitude 10."""
    return torch.where(clip.to(torch.int16) < int(256 * level), clip, 255 - clip)  # as uint8, 256 would be 0


def solarize_add(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Add ``110 * level`` to values below 128."""
    return torch.where(clip < 128, (clip.to(torch.int16) + int(110 * level)).clamp(0, 255).to(torch.uint8), clip)


def color(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return _enhance(_gray(clip), clip, level)


def contrast(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    # the original intends the mean gray, but divides the number of pixels by 256
    gray = min(clip.shape[1] * clip.shape[2] // 256, 255)
    return _enhance(torch.full_like(clip, gray), clip, level)


def brightness(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return _enhance(torch.zeros_like(clip), clip, level)


def sharpness(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Sharpen or smooth all pixels except the outermost ones."""
    smooth = clip.clone()
    if min(clip.shape[1:3]) > 2:
        x = clip.to(torch.float32)
        rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
        box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
        weight = torch.full((), 13.0, device=clip.device)  # a GPU would multiply by the inverse of a number
        smooth[:, 1:-1, 1:-1] = _to_uint8((box + 4 * x[:, 1:-1, 1:-1]) / weight)
    return _enhance(smooth, clip, level)


def rotate(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Rotate by ``30 * level`` degrees in a random direction, about the centre."""
    angle = math.radians(_signed(30 * level, rng))
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = (clip.shape[2] - 1) / 2, (clip.shape[1] - 1) / 2
    return _warp(clip, (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))


def shear_x(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return _warp(clip, (1, _signed(0.3 * level, rng), 0), (0, 1, 0))


def shear_y(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    return _warp(clip, (1, 0, 0), (_signed(0.3 * level, rng), 1, 0))


def translate_x(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Move by ``100 * level`` pixels, whatever the size of the frame."""
    return _warp(clip, (1, 0, _signed(100 * level, rng)), (0, 1, 0))


def translate_y(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Move by ``100 * level`` pixels, whatever the size of the frame."""
    return _warp(clip, (1, 0, 0), (0, 1, _signed(100 * level, rng)))


def cutout(clip: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Blank a square of half side ``40 * level`` pixels about a uniform centre."""
    height, width = clip.shape[1:3]
    half, y, x = int(40 * level), int(rng.integers(height)), int(rng.integers(width))
    clip = clip.clone()
    clip[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = FILL
    return clip


OPERATIONS: tuple[Callable[[Tensor, float, np.random.Generator], Tensor], ...] = (
    auto_contrast,
    equalize,
    invert,
    rotate,
    posterize,
    solarize,
    color,
    contrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    cutout,
    solarize_add,
)


def _enhance(degenerate: Tensor, clip: Tensor, level: float) -> Tensor:
    """Interpolate between a degenerate clip (0) and the clip (1), or extrapolate, to ``1.8 * level + 0.1``."""
    start = degenerate.to(torch.float32)
    return _to_uint8(start + (1.8 * level + 0.1) * (clip - start))


def _gray(clip: Tensor) -> Tensor:
    red, green, blue = clip.unbind(-1)
    gray = 0.2989 * red + 0.587 * green + 0.114 * blue  # TensorFlow's rgb_to_grayscale
    return _to_uint8((gray * (255.5 / 255))[..., None].expand_as(clip))


def _to_uint8(clip: Tensor) -> Tensor:
    return clip.clamp(0, 255).to(torch.uint8)


def _signed(value: float, rng: np.random.Generator) -> float:
    return value if rng.random() < 0.5 else -value


def _warp(clip: Tensor, to_x: tuple[float, float, float], to_y: tuple[float, float, float]) -> Tensor:
    """Sample the nearest pixel at ``x' = a x + b y + c``, and ``y'`` likewise; ``FILL`` outside of the frame."""
    height, width = clip.shape[1:3]
    y = torch.arange(height, dtype=torch.float64, device=clip.device)[:, None]
    x = torch.arange(width, dtype=torch.float64, device=clip.device)[None, :]
    source_x, source_y = (torch.floor(a * x + b * y + c + 0.5).long() for a, b, c in (to_x, to_y))
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    moved = clip[:, source_y.clamp(0, height - 1), source_x.clamp(0, width - 1)]
    return torch.where(inside[..., None], moved, torch.full_like(moved, FILL))
