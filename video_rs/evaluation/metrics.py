"""Accuracy, average precision, loss and the confusion matrix, from class probabilities (NumPy only)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from video_rs.errors import UserError

if TYPE_CHECKING:
    from video_rs.data.sources.records import Records

TOP_K = 5


def ranking(probs: np.ndarray) -> np.ndarray:
    """Return the classes of each row, most probable first: ``[N, C]`` -> ``[N, C]``. Ties go to the lower index.

    All predictions and top-k accuracies use this order.
    """
    return np.argsort(-probs, axis=1, kind="stable")


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return ``[C, C]`` counts; rows are true classes, columns predicted ones."""
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def summarize(
    probs: np.ndarray, labels: np.ndarray, scored: np.ndarray, class_names: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the metrics of one evaluation.

    A video that could not be scored is excluded from ``top1``, ``top5``, ``mean_class`` and ``loss``, and counts as
    wrong in ``top1_all``, ``top5_all`` and ``mean_class_all``. Accuracies are in [0, 1], or NaN if there are no videos.

    Args:
        probs: ``[N, C]``; rows of videos that were not scored are ignored.
        labels: ``[N]`` integers in [0, C); or ``[N, C]`` bool, for :func:`summarize_multi_label`.
        scored: ``[N]`` bool.
        class_names: C names; empty: the class numbers.

    Returns:
        ``num_videos``, ``num_scored``, ``top_k`` (5, or C if there are fewer classes), ``top1``, ``top5``,
        ``mean_class`` (mean over the classes with videos), their ``_all`` variants, ``loss`` (mean negative
        log-likelihood), ``per_class`` (a dict per class: name, videos, scored, correct, accuracy) and ``confusion``
        (``[C, C]`` array, rows = true class).
    """
    if np.ndim(labels) == 2:
        return summarize_multi_label(probs, labels, scored, class_names)
    num_classes = probs.shape[1]
    labels, scored = np.asarray(labels, dtype=np.int64), np.asarray(scored, dtype=bool)
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(f"labels must lie in [0, {num_classes}), got {labels.min()} to {labels.max()}")
    names = _names(class_names, num_classes)

    true, kept = labels[scored], probs[scored].astype(np.float64)
    top_k = min(TOP_K, num_classes)
    order = ranking(kept)
    is_correct = order[:, :top_k] == true[:, None]
    confusion = confusion_matrix(true, order[:, 0], num_classes)
    correct, per_scored = np.diag(confusion), confusion.sum(axis=1)
    accuracy = [_ratio(*pair) for pair in zip(correct, per_scored, strict=True)]
    per_class = np.bincount(labels, minlength=num_classes)
    likelihood = np.maximum(kept[np.arange(len(true)), true], np.finfo(np.float32).tiny)  # keeps -log finite
    return {
        "num_videos": len(labels),
        "num_scored": len(true),
        "top_k": top_k,
        "top1": _ratio(is_correct[:, 0].sum(), len(true)),
        "top5": _ratio(is_correct.sum(), len(true)),
        "mean_class": _mean_ratio(correct, per_scored),
        "top1_all": _ratio(is_correct[:, 0].sum(), len(labels)),
        "top5_all": _ratio(is_correct.sum(), len(labels)),
        "mean_class_all": _mean_ratio(correct, per_class),
        "loss": float(-np.log(likelihood).mean()) if len(true) else float("nan"),
        "per_class": _per_class(names, videos=per_class, scored=per_scored, correct=correct, accuracy=accuracy),
        "confusion": confusion,
    }


def validation_metrics(probs: np.ndarray, labels: np.ndarray, scored: np.ndarray) -> dict[str, float]:
    """Return top-1, top-5 and loss (mAP, hit@1 and loss with several labels) of a validation.

    Samples that were not scored count as wrong; otherwise weights that fail on many samples could be the best ones.
    """
    metrics = summarize(probs, labels, scored)
    keys = ("map", "hit1") if "map" in metrics else ("top1", "top5")
    return {**{key: metrics[f"{key}_all"] for key in keys}, "loss": metrics["loss"]}


def check_labels(records: Records, split: str) -> None:
    """Raise UserError if no file of a multi-label split has a label, because the mAP would be undefined."""
    if records.multi_label and not records.label_sets.values.size:
        raise UserError(f"no file of the {split} split has a label: mAP is undefined")


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the average precision, the area under the step-wise precision-recall curve.

    Samples with equal scores are ranked together, so their order does not matter. Matches scikit-learn's
    ``average_precision_score`` and, without ties, the AP in the official scripts of Charades and AudioSet.

    Args:
        scores: ``[N]``, on any scale.
        positive: ``[N]`` bool.

    Returns:
        A number in [0, 1]; NaN without positives.
    """
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # last index of each group of equal scores
    found = np.cumsum(positive[order])[last]
    return float(np.sum(np.diff(found, prepend=0) * found / (last + 1)) / found[-1])


def summarize_multi_label(
    probs: np.ndarray, labels: np.ndarray, scored: np.ndarray, class_names: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the metrics of one evaluation of videos with any number of labels.

    A video that could not be scored is excluded from ``map``, ``hit1`` and ``loss``. Its labels count as missed in
    ``map_all``, and it counts as wrong in ``hit1_all``.

    Args:
        probs: ``[N, C]``, one sigmoid per class; rows of videos that were not scored are ignored.
        labels: ``[N, C]`` bool.
        scored: ``[N]`` bool.
        class_names: C names; empty: the class numbers.

    Returns:
        ``num_videos``, ``num_scored``, ``map`` (mean :func:`average_precision` of the classes with scored videos),
        ``hit1`` (fraction of videos whose most probable class is one of their labels), their ``_all`` variants,
        ``loss`` (mean binary cross-entropy over videos and classes) and ``per_class`` (a dict per class: name, videos,
        scored, average_precision).
    """
    num_classes = probs.shape[1]
    labels, scored = np.asarray(labels, dtype=bool), np.asarray(scored, dtype=bool)
    if labels.shape != probs.shape:
        raise ValueError(f"labels must be [N, C] like the probabilities, {probs.shape}, got {labels.shape}")
    names = _names(class_names, num_classes)
    true, kept = labels[scored], probs[scored].astype(np.float64)
    precisions = np.array([average_precision(kept[:, c], true[:, c]) for c in range(num_classes)])
    videos, videos_scored = labels.sum(axis=0), true.sum(axis=0)
    precision_sums = np.where(videos_scored > 0, precisions, 0.0) * videos_scored
    correct = true[np.arange(len(true)), ranking(kept)[:, 0]].sum()
    likelihood = np.where(true, kept, 1 - kept).clip(np.finfo(np.float32).eps)  # keeps -log finite
    return {
        "num_videos": len(labels),
        "num_scored": len(true),
        "map": _mean_ratio(precision_sums, videos_scored),
        "hit1": _ratio(correct, len(true)),
        "map_all": _mean_ratio(precision_sums, videos),
        "hit1_all": _ratio(correct, len(labels)),
        "loss": float(-np.log(likelihood).mean()) if len(true) else float("nan"),
        "per_class": _per_class(names, videos=videos, scored=videos_scored, average_precision=precisions),
    }


def metric_names(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the display names of the metrics that are fractions; each also has an ``_all`` variant."""
    if "map" in metrics:
        return {"map": "mAP", "hit1": "hit@1"}
    return {"top1": "top-1", "top5": "top-5", "mean_class": "mean class accuracy"}


def most_confused(confusion: np.ndarray, count: int = 10) -> list[tuple[int, int, int]]:
    """Return the most frequent mistakes as (true class, predicted class, videos), most frequent first."""
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(int(t), int(p), int(wrong[t, p])) for t, p in pairs if wrong[t, p] > 0]


def _names(class_names: Sequence[str], num_classes: int) -> list[str]:
    names = list(class_names) or [str(c) for c in range(num_classes)]
    if len(names) != num_classes:
        raise ValueError(f"{len(names)} class names for {num_classes} classes")
    return names


def _per_class(names: Sequence[str], **columns: Any) -> list[dict[str, Any]]:
    """Return a dict per class, from a column of numbers per key."""
    rows = zip(names, *(np.asarray(column).tolist() for column in columns.values()), strict=True)
    return [dict(zip(("name", *columns), row)) for row in rows]


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else float("nan")


def _mean_ratio(parts: np.ndarray, wholes: np.ndarray) -> float:
    present = wholes > 0
    return float((parts[present] / wholes[present]).mean()) if present.any() else float("nan")
