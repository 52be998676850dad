"""Random Erasing (Zhong et al. 2017, arXiv 1708.04896) of clips."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

AREA = (0.02, 1 / 3)
"""Of the box, as a share of the frame's: timm's."""

ASPECT = (0.3, 1 / 0.3)
"""Height by width of the box, drawn log-uniformly: timm's and the paper's."""

ATTEMPTS = 10


class RandomErasing:
    """Fills one box through all frames of a clip.

    Args:
        probability: that there is one.
        pixel: what fills it, three values from 0 to 255; None: noise, uniform in each value of each frame (the paper's
            RE-R).
    """

    def __init__(self, probability: float, pixel: Sequence[float] | None = None) -> None:
        self.probability = probability
        self.pixel = None if pixel is None else torch.tensor(pixel).round().to(torch.uint8)

    def __call__(self, clip_THWC: Tensor, rng: np.random.Generator) -> Tensor:
        """uint8 ``[T, H, W, C]`` to the same; the clip itself where nothing is erased."""
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
            if clip.is_cuda:  # else the host would wait until what is queued on the device is done
                fill = fill.pin_memory()
        part.copy_(fill.to(clip.device, non_blocking=True))
        return clip


def random_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of a box smaller than the frame; None where ten draws do not fit."""
    for _ in range(ATTEMPTS):
        area = rng.uniform(*AREA) * height * width
        aspect = math.exp(rng.uniform(*map(math.log, ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return None
