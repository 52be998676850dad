"""Classification losses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_rs.errors import UserError

_REGISTERED: dict[str, Callable[..., nn.Module]] = {}


def register_loss(loss: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Register a loss class under its name for ``train.loss`` (a decorator).

    The class is called with ``label_smoothing``. Its ``forward`` takes logits ``[N, C]`` and targets, int64 ``[N]`` or
    probabilities ``[N, C]``, and returns losses ``[N]``. With several labels per sample, targets are 0 to 1 per class.
    """
    _REGISTERED[loss.__name__] = loss
    return loss


def registered_loss(name: str, label_smoothing: float) -> nn.Module:
    """Return a loss by its registered name. Raise UserError if there is none."""
    if name not in _REGISTERED:
        known = ", ".join(["cross_entropy", "bce", *_REGISTERED])
        raise UserError(f"train.loss={name}: no such loss; known losses: {known}")
    return _REGISTERED[name](label_smoothing=label_smoothing)


class CrossEntropy(nn.Module):
    """Cross entropy with label smoothing for hard or soft targets. Returns one loss per sample.

    The whole loss of a sample, smoothing included, is multiplied by the weight of its own class. With soft targets t,
    it is the sum over k of ``t[k] * weight[k] * loss(class k)``. torch multiplies each entry of the smoothed target by
    the weight of that entry's class instead. With a smoothing of 0.1, balanced weights then make the network predict
    the rare class for every sample if classes are more unequal than 9 C + 1 : 1.

    Args:
        label_smoothing: fraction of the target that is spread over all classes (0.1 in ResNet-RS).
        class_weights: ``[classes]``, weights of the classes; None for equal weights. The loss is not divided by the sum
            of the weights, because it must not depend on the size of the micro-batches.
    """

    class_weights: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return losses ``[N]`` for logits ``[N, C]`` and targets, int64 ``[N]`` or probabilities ``[N, C]``."""
        logits = _wide(logits)
        if targets.is_floating_point():
            targets = targets.to(logits.dtype)  # before they are smoothed
        if self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction="none")
        if targets.ndim == 1:
            targets = F.one_hot(targets, logits.shape[1])
        weighted = targets * self.class_weights
        smoothed = torch.lerp(weighted, weighted.mean(1, keepdim=True), self.label_smoothing)
        return F.cross_entropy(logits, smoothed.to(logits.dtype), reduction="none")


class BinaryCrossEntropy(nn.Module):
    """Binary cross entropy of the sigmoid, averaged over the classes. Returns one loss per sample.

    Because of the mean, the learning rate does not depend on the number of classes. With several labels per sample, it
    is the loss of SlowFast on Charades (``LOSS_FUNC: bce_logit``, torch's ``BCEWithLogitsLoss``). With one label, it is
    timm's ``BinaryCrossEntropy`` (Wightman et al. 2021, "ResNet strikes back", arXiv 2110.00476).

    Args:
        label_smoothing: smoothing s: a target t becomes ``(1 - s) * t + s * towards``. The effect is large with few
            positives among many classes; 0 is common for several labels per sample.
        towards: 0.5 for several labels per sample, as in Keras's binary cross entropy. None for 1 / number of classes,
            for one label. Soft targets are smoothed too, whereas timm's mixup smooths before mixing.
    """

    def __init__(self, label_smoothing: float = 0.0, *, towards: float | None) -> None:
        super().__init__()
        self.label_smoothing, self.towards = label_smoothing, towards

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return losses ``[N]`` for logits ``[N, C]`` and targets, int64 ``[N]`` or ``[N, C]`` in [0, 1]."""
        logits = _wide(logits)
        if targets.ndim == 1:
            targets = F.one_hot(targets, logits.shape[1])
        towards = 1 / logits.shape[1] if self.towards is None else self.towards
        targets = torch.lerp(targets.to(logits.dtype), torch.full_like(logits, towards), self.label_smoothing)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """Return inverse class frequencies, float64 ``[classes]``, with mean 1 over the samples; 0 for absent classes."""
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights)
