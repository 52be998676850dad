"""Mixup (Zhang et al. 2017, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899), on the device.

Consecutive samples of a global batch are mixed in pairs; their order is already random. The draws depend only on the
seed, the step and the position in the global batch, not on micro-batches or ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from video_rs.rng import keyed_rng


@dataclass(frozen=True)
class Draws:
    """The random draws for the pairs of consecutive samples of a global batch.

    Attributes:
        own: ``[pairs]`` float64, the fraction of pixels and target that a sample keeps.
        blend: ``[pairs]`` float64, the fraction that a sample keeps outside of the box: ``own`` for mixup, 1 for
            CutMix.
        boxes: ``[pairs, 4]`` int64, the box that CutMix takes from the partner (top, bottom, left, right); empty for
            mixup.
        repeats: number of consecutive copies of a sample, which is the distance between partners.
    """

    own: np.ndarray
    blend: np.ndarray
    boxes: np.ndarray
    repeats: int = 1

    def part(self, first: int, count: int) -> Draws:
        """Return the draws for samples ``first`` to ``first + count``, both multiples of ``2 * repeats``."""
        if first % (2 * self.repeats) or count % (2 * self.repeats):
            raise ValueError(f"{count} samples from number {first} on are not whole pairs with repeats={self.repeats}")
        pairs = slice(first // 2, (first + count) // 2)
        return Draws(self.own[pairs], self.blend[pairs], self.boxes[pairs], self.repeats)


def draw_mix(
    seed: int,
    step: int,
    batch_size: int,
    height: int,
    width: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    repeats: int = 1,
) -> Draws:
    """Draw the kind, fraction and box of each pair of a global batch.

    Args:
        seed, step: seed of the run and optimizer step.
        batch_size: size of the global batch, a multiple of ``2 * repeats``.
        height, width: size of the clips, in pixels.
        mixup, cutmix: alpha of the Beta distribution; 0 turns it off. At least one must be on. If both are, one of them
            is drawn for each pair.
        repeats: number of consecutive copies of a sample in the batch.
    """
    rng, pairs = keyed_rng(seed, "mix", step), batch_size // 2
    is_cut = rng.random(pairs) < (0.5 if mixup and cutmix else float(cutmix > 0))
    blended = rng.beta(mixup, mixup, pairs) if mixup else np.ones(pairs)
    kept = rng.beta(cutmix, cutmix, pairs) if cutmix else np.ones(pairs)
    boxes = random_boxes(height, width, np.where(is_cut, kept, 1.0), rng)
    uncut = 1 - (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (height * width)
    return Draws(np.where(is_cut, uncut, blended), np.where(is_cut, 1.0, blended), boxes, repeats)


def random_boxes(height: int, width: int, kept: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw boxes with an area of ``1 - kept`` and uniform centres, clipped at the borders.

    Returns:
        int64 ``[len(kept), 4]``: top, bottom, left, right.
    """
    sides, ends = np.sqrt(1 - kept), []
    for length in (height, width):
        extent = (length * sides).astype(np.int64)
        first = rng.integers(length, size=len(kept)) - extent // 2
        ends += [np.clip(first, 0, length), np.clip(first + extent, 0, length)]
    return np.stack(ends, axis=1)


def mix(batch: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Mix each clip with its partner, without synchronization. The CutMix box is the same in all frames.

    Args:
        batch: floating point ``[N, C, T, H, W]``.
        targets: floating point ``[N, classes]``, class probabilities.
        draws: draws for these N samples.

    Returns:
        The mixed batch and targets.
    """
    table = torch.from_numpy(np.column_stack([draws.own, draws.blend, draws.boxes]))  # one copy to the device
    exact = torch.promote_types(batch.dtype, torch.float32)  # represents every pixel index exactly
    own, blend, *boxes = table.to(exact).to(batch.device, non_blocking=True).unbind(1)
    weight = torch.where(_inside(boxes, *batch.shape[-2:]), 0.0, blend[:, None, None])[:, None, None]
    mixed = _with_partners(batch, weight.to(batch.dtype), draws.repeats)
    return mixed, _with_partners(targets, own[:, None].to(targets.dtype), draws.repeats)


def _inside(boxes: list[Tensor], height: int, width: int) -> Tensor:
    """Return bool ``[pairs, H, W]``: True for pixels inside the box."""
    top, bottom, left, right = (end[:, None] for end in boxes)
    y, x = (torch.arange(length, device=top.device) for length in (height, width))
    return ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]


def _with_partners(samples: Tensor, weight: Tensor, repeats: int) -> Tensor:
    """Return ``weight * sample + (1 - weight) * partner``, with one weight per pair."""
    pairs = samples.unflatten(0, (-1, 2, repeats))
    weight = weight.unflatten(0, (-1, 1, repeats))
    return torch.lerp(pairs.flip(1), pairs, weight).flatten(0, 2)
