"""The classification losses."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        return F.cross_entropy(
            logits, targets, self.class_weights, label_smoothing=self.label_smoothing, reduction="none"
        )


class BinaryCrossEntropy(nn.Module):
    """Sigmoid and binary cross entropy for samples of any number of classes, one loss per sample.

    The mean over the classes, as SlowFast trains on Charades (``LOSS_FUNC: bce_logit`` is torch's ``BCEWithLogitsLoss``
    with its mean), so that a learning rate does not depend on how many there are.

    Args:
        label_smoothing: a target t becomes ``(1 - s) * t + s / 2``, as Keras defines it for binary cross entropy. Where
            few of many classes are positive, it weighs in heavily: 0 is usual.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """``[N]`` losses of logits ``[N, C]`` and targets ``[N, C]`` in [0, 1]."""
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        targets = torch.lerp(targets.to(logits.dtype), torch.full_like(logits, 0.5), self.label_smoothing)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


class OneVersusRest(nn.Module):
    """Sigmoid and binary cross entropy for samples of one class, one loss per sample: each class against the rest.

    As timm's ``BinaryCrossEntropy`` (Wightman et al. 2021, "ResNet strikes back", arXiv 2110.00476): the mean over the
    classes. Soft targets are smoothed as hard ones are, timm's mixup does so beforehand.

    Args:
        label_smoothing: the part of the target that is spread over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """``[N]`` losses of logits ``[N, C]`` and targets, int64 ``[N]`` or probabilities ``[N, C]``."""
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        if targets.ndim == 1:
            targets = F.one_hot(targets, logits.shape[1])
        targets = torch.lerp(
            targets.to(logits.dtype), torch.full_like(logits, 1 / logits.shape[1]), self.label_smoothing
        )
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """Inverse class frequencies, float64 ``[classes]``: their mean over the samples is 1; absent classes get 0."""
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights)
