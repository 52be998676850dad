"""Crops, flips and resizes of decoded clips, uint8 ``[T, H, W, C]``; normalization on the device."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from video_rs.data_config import FILTERS

Box = tuple[int, int, int, int]  # top, left, height, width
Augmentation = Callable[[Tensor, np.random.Generator], Tensor]


def resize(clip_THWC: Tensor, height: int, width: int, filter: str = "bilinear") -> Tensor:
    """Resize every frame.

    Args:
        clip_THWC: uint8 ``[T, H, W, C]``.
        height, width: the new size, in pixels.
        filter: one of ``data_config.FILTERS``.

    Returns:
        uint8 ``[T, height, width, C]``; the input itself if it already has that size.
    """
    if clip_THWC.shape[1:3] == (height, width):
        return clip_THWC
    from torchvision.transforms import InterpolationMode  # not at the top: torchvision may be missing or broken
    from torchvision.transforms.v2 import functional as F

    if filter not in FILTERS:
        raise ValueError(f"unknown resize filter {filter!r}: use one of {', '.join(FILTERS)}")
    name, _, antialias = filter.partition("-")
    clip_TCHW, mode = clip_THWC.permute(0, 3, 1, 2), InterpolationMode(name)
    return F.resize_image(clip_TCHW, [height, width], mode, antialias=bool(antialias)).permute(0, 2, 3, 1)


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return the height and width with a short side of `short_side` pixels. The long side is rounded down."""
    if height <= width:
        return short_side, width * short_side // height
    return height * short_side // width, short_side


def random_area_crop(
    height: int,
    width: int,
    area: Sequence[float],
    aspect: Sequence[float],
    rng: np.random.Generator,
    *,
    min_covered: float = 0.1,
    attempts: int = 100,
) -> Box:
    """Draw a crop like TensorFlow's ``sample_distorted_bounding_box``, with the whole image as the object.

    The aspect ratio is uniform, then the height among the heights that keep the area in range, then the position.
    torchvision's ``RandomResizedCrop`` differs: its area is uniform and its aspect ratio log-uniform.

    Args:
        height, width: size of the image, in pixels.
        area: range of the area of the crop, as a fraction of the image.
        aspect: range of width / height.
        min_covered: minimum fraction of the image that a crop must cover.
        attempts: number of draws before falling back to the largest central crop with an allowed aspect ratio.

    Returns:
        Top, left, height and width of the crop, in pixels.
    """
    min_area, max_area = (fraction * height * width for fraction in area)
    for _ in range(attempts):
        ratio = rng.uniform(*aspect)
        size = _random_size(height, width, min_area, max_area, ratio, rng)
        if size is None or size[0] * size[1] < min_covered * height * width:
            continue
        h, w = size
        # TensorFlow's upper bound is exclusive: a crop touches the far border only if it fills the image
        top = int(rng.integers(height - h)) if h < height else 0
        left = int(rng.integers(width - w)) if w < width else 0
        return top, left, h, w
    ratio = min(max(width / height, aspect[0]), aspect[1])
    h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def _random_size(
    height: int, width: int, min_area: float, max_area: float, ratio: float, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Draw height and width of a crop with ``width = round(ratio * height)``; None if no area is allowed."""
    low, high = round(math.sqrt(min_area / ratio)), round(math.sqrt(max_area / ratio))
    if round(high * ratio) > width:
        high = int((width + 0.5 - 1e-7) / ratio)
        high -= round(high * ratio) > width
    high = min(high, height)
    h = int(rng.integers(low, high + 1)) if low < high else high
    if h * round(h * ratio) < min_area:  # tolerate a rounding error
        h += 1
    if h * round(h * ratio) > max_area:
        h -= 1
    w = round(h * ratio)
    fits = 0 < h <= height and 0 < w <= width and min_area <= h * w <= max_area
    return (h, w) if fits else None


@dataclass(eq=False)
class TrainTransform:
    """The training transform: a random crop per clip, resized to the training size, then flip and augmentation.

    Args:
        size: height and width of the output, in pixels.
        area, aspect, min_covered: parameters of :func:`random_area_crop`.
        flip: probability of flipping the whole clip horizontally; 0 if classes differ in direction.
        filter: one of ``data_config.FILTERS``.
        color_jitter, rand_augment, augment, random_erasing: called in this order as ``f(clip, rng)`` on the resized
            clip; ``augment`` is a sequence.
    """

    size: int
    area: Sequence[float] = (0.08, 1.0)
    aspect: Sequence[float] = (0.5, 2.0)
    flip: float = 0.5
    filter: str = "bilinear"
    min_covered: float = 0.1
    color_jitter: Augmentation | None = None
    rand_augment: Augmentation | None = None
    random_erasing: Augmentation | None = None
    augment: Sequence[Augmentation] = ()

    def __call__(self, clip_THWC: Tensor, rng: np.random.Generator) -> Tensor:
        """Transform a clip: uint8 ``[T, H, W, C] -> [T, size, size, C]``."""
        top, left, height, width = self.box(*clip_THWC.shape[1:3], rng)
        clip = clip_THWC[:, top : top + height, left : left + width]
        return self.finish(resize(clip, self.size, self.size, self.filter), rng)

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """Draw the crop. ``Video.read_crops`` applies it while decoding."""
        return random_area_crop(height, width, self.area, self.aspect, rng, min_covered=self.min_covered)

    def finish(self, clip_THWC: Tensor, rng: np.random.Generator) -> Tensor:
        """Flip and augment a resized clip, uint8 ``[T, size, size, C]``."""
        if rng.random() < self.flip:
            clip_THWC = clip_THWC.flip(2)
        for augment in (self.color_jitter, self.rand_augment, *self.augment, self.random_erasing):
            if augment is not None:
                clip_THWC = augment(clip_THWC, rng)
        return clip_THWC.contiguous()

    def finish_batch(self, batch_NTHWC: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        """Apply :meth:`finish` to each clip on its device, without synchronization. Does not advance the generators."""
        return torch.stack([self.finish(clip, copy.deepcopy(rng)) for clip, rng in zip(batch_NTHWC, rngs, strict=True)])


class ViewTransform:
    """The spatial views of a test clip: square crops along the longer side of resized frames.

    ``Video.read(..., short_side=transform.short_side, filter=transform.filter)`` resizes the frames while decoding, to
    avoid holding all frames at full size in memory.

    Args:
        short_side: short side of the resized frames, in pixels.
        size: height and width of a crop, in pixels, at most `short_side`.
        crops: 1 (the centre) or 3 (both ends and the middle of the longer side).
        filter: resize filter, one of ``data_config.FILTERS``.
    """

    def __init__(self, short_side: int, size: int, crops: int = 1, filter: str = "bilinear") -> None:
        if crops not in (1, 3):
            raise ValueError(f"crops must be 1 or 3, got {crops}")
        if size > short_side:
            raise ValueError(f"a crop of {size} pixels does not fit a short side of {short_side}")
        self.short_side, self.size, self.crops, self.filter = short_side, size, crops, filter

    def __call__(self, clip_THWC: Tensor) -> Tensor:
        """Crop a clip, uint8 ``[T, H, W, C] -> [crops, T, size, size, C]``; min(H, W) must be `short_side`."""
        return torch.stack(self.cut(clip_THWC))

    def cut(self, clip_THWC: Tensor) -> list[Tensor]:
        """Return the crops as views of the clip, without a copy."""
        height, width = clip_THWC.shape[1:3]
        if min(height, width) != self.short_side:
            raise ValueError(
                f"frames of {height}x{width} pixels have not been resized to a short side of {self.short_side}"
            )
        size = self.size
        boxes = view_boxes(height, width, size, self.crops)
        return [clip_THWC[:, top : top + size, left : left + size] for top, left in boxes]


def view_boxes(height: int, width: int, size: int, crops: int) -> list[tuple[int, int]]:
    """Return top and left of each square crop, spread along the long side and centred on the short side."""
    along = [0, round(max(height, width) / 2 - size // 2), max(height, width) - size]
    across = round(min(height, width) / 2 - size // 2)
    along = along if crops == 3 else along[1:2]
    return [(across, a) if width >= height else (a, across) for a in along]


def normalize(
    batch_NTHWC: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Normalize a batch to ``(x / 255 - mean) / std`` on its device.

    Args:
        batch_NTHWC: uint8 ``[N, T, H, W, C]``.
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1].

    Returns:
        `dtype` ``[N, C, T, H, W]``, in the memory format ``torch.channels_last_3d``.
    """
    exact = torch.promote_types(dtype, torch.float32)  # round once, at the end
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), exact, batch_NTHWC.device)
    batch = (batch_NTHWC * scale).sub_(shift)
    return batch.to(dtype).permute(0, 4, 1, 2, 3)


@lru_cache(maxsize=16)  # copying to a GPU for every batch would synchronize
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # tensors cached by a test may be used in training later
        mean, std = (torch.tensor(values, dtype=dtype, device=device) for values in (mean, std))
        return 1 / (255 * std), mean / std
