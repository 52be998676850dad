"""Accuracy, average precision and their relatives, from class probabilities (numpy only)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TOP_K = 5


def ranking(probs: np.ndarray) -> np.ndarray:
    """Classes of each row from the most to the least probable, ``[N, C]`` -> ``[N, C]``; ties go to the lower index.

    Everything that says "predicted" or "top-5" uses this one order, so that the files of a report agree.
    """
    return np.argsort(-probs, axis=1, kind="stable")


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """``[C, C]`` counts: row = true class, column = predicted class."""
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def summarize(
    probs: np.ndarray, labels: np.ndarray, scored: np.ndarray, class_names: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the metrics of one evaluation; of labels ``[N, C]`` those of :func:`summarize_multi_label`.

    A video that could not be scored is left out of ``top1``, ``top5``, ``mean_class`` and ``loss``, and counts as wrong
    in ``top1_all``, ``top5_all`` and ``mean_class_all``. All accuracies are fractions in [0, 1]; NaN where there was
    nothing to average.

    Args:
        probs: ``[N, C]``; rows of videos that were not scored are ignored.
        labels: ``[N]`` integers in [0, C).
        scored: ``[N]`` bool.
        class_names: C names; the class numbers when empty.

    Returns:
        ``num_videos``, ``num_scored``, ``top_k`` (5, or C if there are fewer classes), ``top1``, ``top5``,
        ``mean_class`` (mean over the classes that have videos), their ``_all`` variants, ``loss`` (mean negative log
        likelihood), ``per_class`` (a dict per class: name, videos, scored, correct, accuracy) and ``confusion``
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
    hits = order[:, :top_k] == true[:, None]
    confusion = confusion_matrix(true, order[:, 0], num_classes)
    correct, per_scored = np.diag(confusion), confusion.sum(axis=1)
    per_class = np.bincount(labels, minlength=num_classes)
    likelihood = np.maximum(kept[np.arange(len(true)), true], np.finfo(np.float32).tiny)  # -log(0) would hide the rest
    return {
        "num_videos": len(labels),
        "num_scored": len(true),
        "top_k": top_k,
        "top1": _ratio(hits[:, 0].sum(), len(true)),
        "top5": _ratio(hits.sum(), len(true)),
        "mean_class": _mean_ratio(correct, per_scored),
        "top1_all": _ratio(hits[:, 0].sum(), len(labels)),
        "top5_all": _ratio(hits.sum(), len(labels)),
        "mean_class_all": _mean_ratio(correct, per_class),
        "loss": float(-np.log(likelihood).mean()) if len(true) else float("nan"),
        "per_class": [
            {
                "name": name,
                "videos": int(per_class[c]),
                "scored": int(per_scored[c]),
                "correct": int(correct[c]),
                "accuracy": _ratio(correct[c], per_scored[c]),
            }
            for c, name in enumerate(names)
        ],
        "confusion": confusion,
    }


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """The area under the steps of the precision-recall curve: the mean precision at the positives, by falling score.

    Positives with equal scores are found together, at the precision after all that share the score: the order of the
    samples does not matter. This is scikit-learn's ``average_precision_score``, and the AP of Charades' and AudioSet's
    scripts where there are no ties.

    Args:
        scores: ``[N]``; of any scale.
        positive: ``[N]`` bool.

    Returns:
        in [0, 1]; NaN without positives.
    """
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of those that share a score
    found = np.cumsum(positive[order])[last]
    return float(np.sum(np.diff(found, prepend=0) * found / (last + 1)) / found[-1])


def summarize_multi_label(
    probs: np.ndarray, labels: np.ndarray, scored: np.ndarray, class_names: Sequence[str] = ()
) -> dict[str, Any]:
    """The figures of one evaluation where a video may be of any number of classes.

    A video that could not be scored is left out of ``map``, ``hit1`` and ``loss``; in ``map_all`` its labels are never
    found, which adds nothing to the precisions, and in ``hit1_all`` it is a miss.

    Args:
        probs: ``[N, C]``, each class's own; rows of videos that were not scored are ignored.
        labels: ``[N, C]`` bool.
        scored: ``[N]`` bool.
        class_names: C names; the class numbers when empty.

    Returns:
        ``num_videos``, ``num_scored``, ``map`` (mean of :func:`average_precision` over the classes that have scored
        videos), ``hit1`` (share of the videos whose most probable class is one of theirs; of a video without labels
        none is), their ``_all`` variants, ``loss`` (mean binary cross entropy over videos and classes) and
        ``per_class`` (a dict per class: name, videos, scored, average_precision).
    """
    num_classes = probs.shape[1]
    labels, scored = np.asarray(labels, dtype=bool), np.asarray(scored, dtype=bool)
    if labels.shape != probs.shape:
        raise ValueError(f"labels must be [N, C] as the probabilities, {probs.shape}, got {labels.shape}")
    names = _names(class_names, num_classes)
    true, kept = labels[scored], probs[scored].astype(np.float64)
    precisions = np.array([average_precision(kept[:, c], true[:, c]) for c in range(num_classes)])
    videos, videos_scored = labels.sum(axis=0), true.sum(axis=0)
    found = np.where(videos_scored > 0, precisions, 0.0) * videos_scored  # sums of precisions
    hits = true[np.arange(len(true)), ranking(kept)[:, 0]].sum()
    likelihood = np.where(true, kept, 1 - kept).clip(np.finfo(np.float32).eps)  # -log(0) would hide the rest
    return {
        "num_videos": len(labels),
        "num_scored": len(true),
        "map": _mean_ratio(found, videos_scored),
        "hit1": _ratio(hits, len(true)),
        "map_all": _mean_ratio(found, videos),
        "hit1_all": _ratio(hits, len(labels)),
        "loss": float(-np.log(likelihood).mean()) if len(true) else float("nan"),
        "per_class": [
            {
                "name": name,
                "videos": int(videos[c]),
                "scored": int(videos_scored[c]),
                "average_precision": float(precisions[c]),
            }
            for c, name in enumerate(names)
        ],
    }


def metric_names(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the names, to be read, of the metrics in [0, 1]; each also has an ``_all`` variant."""
    if "map" in metrics:
        return {"map": "mAP", "hit1": "hit@1"}
    return {"top1": "top-1", "top5": f"top-{metrics['top_k']}", "mean_class": "mean of the classes"}


def most_confused(confusion: np.ndarray, count: int = 10) -> list[tuple[int, int, int]]:
    """The largest entries off the diagonal, as (true class, predicted class, videos), largest first."""
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(int(t), int(p), int(wrong[t, p])) for t, p in pairs if wrong[t, p] > 0]


def _names(class_names: Sequence[str], num_classes: int) -> list[str]:
    names = list(class_names) or [str(c) for c in range(num_classes)]
    if len(names) != num_classes:
        raise ValueError(f"{len(names)} class names for {num_classes} classes")
    return names


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else float("nan")


def _mean_ratio(parts: np.ndarray, wholes: np.ndarray) -> float:
    present = wholes > 0
    return float((parts[present] / wholes[present]).mean()) if present.any() else float("nan")
