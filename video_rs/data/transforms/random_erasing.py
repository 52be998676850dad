"""Random Erasing (Zhong et al. 2017, arXiv 1708.04896) of clips."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

AREA = (0.02, 1 / 3)  # of the box, as a fraction of the frame: timm's
ASPECT = (0.3, 1 / 0.3)  # height / width of the box, drawn log-uniformly: timm's and the paper's
ATTEMPTS = 10


class RandomErasing:
    """Erase a random box, the same in all frames of a clip.

    Args:
        probability: probability of erasing.
        pixel: three values from 0 to 255 to fill the box with; None for uniform noise, independent in each frame (RE-R
            in the paper).
    """

    def __init__(self, probability: float, pixel: Sequence[float] | None = None) -> None:
        self.probability = probability
        self.pixel = None if pixel is None else torch.tensor(pixel).round().to(torch.uint8)

    def __call__(self, clip_THWC: Tensor, rng: np.random.Generator) -> Tensor:
        """Augment a clip, uint8 ``[T, H, W, C]``. Returns the input itself if nothing is erased."""
        if rng.random() >= self.probability:
            return clip_THWC
        box = random_box(*clip_THWC.shape[1:3], rng)
        if box is None:
            return clip_THWC
        top, left, height, width = box
        clip = clip_THWC.clone()
        part = clip[:, top : top + height, left : left + width]
        fill = self.pixel
        if fill is None:
            fill = torch.from_numpy(rng.integers(0, 256, part.shape, dtype=np.uint8))
            if clip.is_cuda:  # a copy from unpinned memory would synchronize
                fill = fill.pin_memory()
        part.copy_(fill.to(clip.device, non_blocking=True))
        return clip


def random_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    """Draw top, left, height and width of a box smaller than the frame. Return None after ten failed draws."""
    for _ in range(ATTEMPTS):
        area = rng.uniform(*AREA) * height * width
        aspect = math.exp(rng.uniform(*map(math.log, ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return None
