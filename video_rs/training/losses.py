"""The classification losses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_rs.errors import UserError

_REGISTERED: dict[str, Callable[..., nn.Module]] = {}


def register_loss(loss: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Make a loss known to ``train.loss`` by its name: a decorator of its class.

    It is called with ``label_smoothing``. Its ``forward`` takes logits ``[N, C]`` and targets, int64 ``[N]`` or
    probabilities ``[N, C]``, and returns losses ``[N]``.
    """
    _REGISTERED[loss.__name__] = loss
    return loss


def registered_loss(name: str, label_smoothing: float) -> nn.Module:
    """Return a loss by its registered name. Raise UserError if there is none."""
    if name not in _REGISTERED:
        known = ", ".join(["cross_entropy", "bce", *_REGISTERED])
        raise UserError(f"train.loss={name}: no such loss; known are {known}")
    return _REGISTERED[name](label_smoothing=label_smoothing)


class CrossEntropy(nn.Module):
    """Cross entropy with label smoothing, hard or soft targets, one loss per sample.

    Args:
        label_smoothing: the part of the target that is spread over all classes (0.1 in ResNet-RS).
        class_weights: ``[classes]``, multiplied to each class's term; None for equal weights. They are not divided out
            again, so that the mean over a batch does not depend on how it is cut into micro-batches.
    """

    class_weights: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """``[N]`` losses of logits ``[N, C]`` and targets, int64 ``[N]`` or probabilities ``[N, C]``."""
        options = {"label_smoothing": self.label_smoothing, "reduction": "none"}
        return F.cross_entropy(_wide(logits), targets, self.class_weights, **options)


class BinaryCrossEntropy(nn.Module):
    """Sigmoid and binary cross entropy, the mean over the classes: one loss per sample.

    The mean makes a learning rate independent of the number of classes. For samples of several classes this is how
    SlowFast trains on Charades (``LOSS_FUNC: bce_logit``, torch's ``BCEWithLogitsLoss`` with its mean); for samples of
    one class each class against the rest, timm's ``BinaryCrossEntropy`` (Wightman et al. 2021, "ResNet strikes back",
    arXiv 2110.00476).

    Args:
        label_smoothing: s; a target t becomes ``(1 - s) * t + s * towards``. Where few of many classes are positive, it
            weighs in heavily: 0 is usual for several classes a sample.
        towards: 0.5 for samples of several classes, as Keras defines it for binary cross entropy. None: 1 by the
            number of classes, for samples of one; soft targets are smoothed as well, timm's mixup does so beforehand.
    """

    def __init__(self, label_smoothing: float = 0.0, *, towards: float | None) -> None:
        super().__init__()
        self.label_smoothing, self.towards = label_smoothing, towards

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """``[N]`` losses of logits ``[N, C]`` and targets, int64 ``[N]`` or ``[N, C]`` in [0, 1]."""
        logits = _wide(logits)
        if targets.ndim == 1:
            targets = F.one_hot(targets, logits.shape[1])
        towards = 1 / logits.shape[1] if self.towards is None else self.towards
        targets = torch.lerp(targets.to(logits.dtype), torch.full_like(logits, towards), self.label_smoothing)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """Inverse class frequencies, float64 ``[classes]``: their mean over the samples is 1; absent classes get 0."""
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights)
