"""Random brightness, contrast, saturation and hue, as torchvision's ``ColorJitter``."""

from __future__ import annotations

import numpy as np
from torch import Tensor

NAMES = ("brightness", "contrast", "saturation", "hue")


class ColorJitter:
    """Change the colours of a clip, with the same factors for all frames. Contrast uses the mean gray of each frame.

    Args:
        brightness, contrast, saturation: strengths; the factor is uniform in ``[max(0, 1 - s), 1 + s]``.
        hue: the shift is uniform in ``[-hue, hue]``, at most 0.5.
    """

    def __init__(
        self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
    ) -> None:
        strengths = dict(zip(NAMES[:3], (brightness, contrast, saturation), strict=True))
        self.ranges = {name: (max(0.0, 1 - s), 1 + s) for name, s in strengths.items() if s}
        if hue:
            self.ranges["hue"] = (-hue, hue)

    def __call__(self, clip_THWC: Tensor, rng: np.random.Generator) -> Tensor:
        """Augment a clip, uint8 ``[T, H, W, 3]``."""
        from torchvision.transforms.v2 import functional as F  # as in transforms.resize

        factors = {name: rng.uniform(*limits) for name, limits in self.ranges.items()}
        clip_TCHW = clip_THWC.permute(0, 3, 1, 2)
        for number in rng.permutation(len(factors)):
            name = list(factors)[number]
            clip_TCHW = getattr(F, f"adjust_{name}_image")(clip_TCHW, factors[name])
        return clip_TCHW.permute(0, 2, 3, 1)
