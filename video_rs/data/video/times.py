"""The times of the frames of a video."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

MAX_INTERVAL = 6 * 3600.0  # seconds; a longer one is a wrong timestamp, and would not fit an mp4 file at 90 kHz
_BACK = 1.0  # seconds; a larger step back is a jump, a smaller one a frame out of order


def frame_times(
    pts: Sequence[int | None], time_base: Fraction | None, header_rate: float = 0.0
) -> tuple[np.ndarray | None, float]:
    """Return the times of frames, and their mean rate.

    If a timestamp is missing, does not increase, or increases by more than 6 hours, the frames are treated as evenly
    spaced. Their rate is then that of the header, unless the mean interval without jumps differs by more than 10 %.

    Args:
        pts: timestamps of the frames in presentation order, at least one; None for a frame without one.
        time_base: the unit of the timestamps in seconds.
        header_rate: frames per second according to the header; 0 if unknown.

    Returns:
        float64 ``[N]`` seconds, strictly ascending from 0, and frames per second; None and 0 if both are unknown.
    """
    first, unit = next((time for time in pts if time is not None), 0), time_base or Fraction(0)
    offsets = np.array([np.nan if time is None else time - first for time in pts], np.float64)
    seconds = offsets * unit.numerator / unit.denominator  # the same result in any unit
    intervals = np.diff(seconds)
    if not len(intervals):
        return np.zeros(1), header_rate
    if ((intervals > 0) & (intervals <= MAX_INTERVAL)).all():
        return seconds, float(len(intervals) / ((pts[-1] - first) * unit))
    steady = intervals[(intervals >= -_BACK) & (intervals <= MAX_INTERVAL)]
    interval = float(steady.mean()) if len(steady) else 0.0
    if header_rate and not (interval > 0 and abs(interval * header_rate - 1) > 0.1):
        interval = 1 / header_rate
    return (np.arange(len(pts)) * interval, 1 / interval) if interval > 0 else (None, 0.0)
