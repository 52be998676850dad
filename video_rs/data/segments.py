"""The frames of a segment of a video."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from video_rs.data.clips import ROUNDING
from video_rs.data.video.decode import Video
from video_rs.errors import MediaError


class FrameRange(NamedTuple):
    """Consecutive frames of a video.

    Attributes:
        first: number of the first frame.
        length: number of frames, at least 1.
        times: the times of the frames in seconds, ascending from 0; None if unknown.
    """

    first: int
    length: int
    times: np.ndarray | None


def frame_range(video: Video, start: float = 0.0, end: float = 0.0) -> FrameRange:
    """Return the frames of a segment: those whose time is in ``[start, end)``.

    A segment within one frame contains that frame.

    Args:
        video: an open video.
        start, end: in seconds, as ``Records.segment`` returns them; an end of 0 is the end of the video.

    Raises:
        MediaError: the segment is outside of the video, or the video has no times.
    """
    if not start and not end:
        return FrameRange(0, video.num_frames, video.times)
    if problem := segment_problem(start, end, video.duration):
        raise MediaError(f"{video.path}: {problem}")
    stop = np.searchsorted(video.times, end - ROUNDING) if end else video.num_frames
    first = min(np.searchsorted(video.times, start - ROUNDING), max(stop, 1) - 1)
    times = video.times[first : max(stop, 1)]
    return FrameRange(int(first), len(times), times - times[0])


def segment_problem(start: float, end: float, duration: float) -> str:
    """Return the reason why a segment cannot be read, or "".

    Args:
        start, end: as for :func:`frame_range`.
        duration: duration of the video in seconds; 0 if unknown.
    """
    if not duration and (start or end):
        return "has no timestamps, which segments require"
    if start and start >= duration - ROUNDING:
        return f"a segment starts at {start:g} s, but the video ends at {duration:g} s"
    return ""
