"""Merge the windows of a long video into segments, each with a class, a start and an end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from video_rs.evaluation.metrics import ranking

ROUNDING = 1e-6  # seconds; a window that ends where another starts touches it


class Segment(NamedTuple):
    """A part of a video that shows a class. ``start`` and ``end`` are in seconds, ``score`` is a mean probability."""

    start: float
    end: float
    label: str
    index: int
    score: float


def find_segments(
    times: np.ndarray,
    probs: np.ndarray,
    class_names: Sequence[str],
    threshold: float = 0.5,
    *,
    multi_label: bool = False,
) -> list[Segment]:
    """Merge the windows of a video that show the same class.

    A window shows its most probable class if the probability is at least the threshold, or with `multi_label` every
    such class. Two such windows are merged if they overlap or touch, or if no window starts between
    them: a gap that no window covers does not end a segment.

    Args:
        times: start and end of K windows in seconds ``[K, 2]``, in order.
        probs: class probabilities ``[K, C]``.
        class_names: C names.
        threshold: smallest probability, in [0, 1].
        multi_label: True if a window can show several classes.

    Returns:
        Segments in order of their start. Those of one class are disjoint; those of two classes can overlap, as windows
        do. The score is the mean probability of the class over the windows that show it.
    """
    shown = probs >= threshold
    if not multi_label:
        shown &= np.arange(probs.shape[1]) == ranking(probs)[:, :1]
    segments = []
    for index in np.flatnonzero(shown.any(axis=0)):
        windows = np.flatnonzero(shown[:, index])
        starts, ends = times[windows, 0], np.maximum.accumulate(times[windows, 1])
        apart = (np.diff(windows) > 1) & (starts[1:] > ends[:-1] + ROUNDING)
        for part in np.split(np.arange(len(windows)), np.flatnonzero(apart) + 1):
            score = float(probs[windows[part], index].mean(dtype=np.float64))
            first, last = float(starts[part[0]]), float(ends[part[-1]])
            segments.append(Segment(first, last, class_names[index], int(index), score))
    return sorted(segments, key=lambda segment: (segment.start, segment.index))
