"""Mixup (Zhang et al. 2017, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899), on a batch's device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def mix(
    batch: Tensor,
    targets: Tensor,
    rng: np.random.Generator,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Mix each clip with a partner from the batch; with both kinds on, one of them is drawn for the batch.

    All draws are made on the host. The share of a clip is one number for the batch, and so is the box of CutMix, which
    is cut through all frames; the targets get the share of pixels that the box really leaves.

    Args:
        batch: floating point ``[N, C, T, H, W]``.
        targets: floating point ``[N, classes]``, class probabilities.
        rng: decides kind, partners, share and box.
        mixup, cutmix: alphas of the Beta distributions of the shares; 0 turns a kind off.

    Returns:
        the mixed batch and targets; the arguments themselves where both kinds are off.
    """
    if not mixup and not cutmix:
        return batch, targets
    use_cutmix = cutmix > 0 and (not mixup or rng.random() < 0.5)
    share = float(rng.beta(cutmix, cutmix) if use_cutmix else rng.beta(mixup, mixup))
    partners = torch.from_numpy(rng.permutation(len(batch))).to(batch.device)
    if use_cutmix:
        height, width = batch.shape[-2:]
        top, bottom, left, right = random_box(height, width, share, rng)
        share = 1 - (bottom - top) * (right - left) / (height * width)
        box = (..., slice(top, bottom), slice(left, right))
        batch = batch.clone()
        batch[box] = batch[partners][box]
    else:
        batch = torch.lerp(batch[partners], batch, share)
    return batch, torch.lerp(targets[partners], targets, share)


def random_box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box of ``1 - share`` of the area about a uniform centre, cut at the borders: top, bottom, left, right."""
    side = np.sqrt(1 - share)
    h, w = int(height * side), int(width * side)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = np.clip([y - h // 2, y - h // 2 + h], 0, height)
    left, right = np.clip([x - w // 2, x - w // 2 + w], 0, width)
    return int(top), int(bottom), int(left), int(right)
