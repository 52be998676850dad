"""Sliding windows over a long video: their positions, and reading their frames in a single decode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from video_rs.data.clips import ROUNDING, TemporalSampling, Timeline
from video_rs.data.video.decode import Video
from video_rs.errors import UserError


class Windows(NamedTuple):
    """K windows over a video: their starts and ends in seconds, and the frame numbers of their clips ``[K, T]``."""

    starts: np.ndarray
    ends: np.ndarray
    clips: np.ndarray

    def describe_gaps(self, timeline: Timeline) -> str:
        """Return a warning if frames of the video are in no window, else ""."""
        places = np.arange(timeline.length) if timeline.starts is None else timeline.starts
        edges, later = np.append(places, timeline.length) / timeline.rate, np.append(self.starts[1:], timeline.duration)
        first = np.searchsorted(edges, self.ends - ROUNDING)  # the frame after each window
        missed = np.maximum(np.searchsorted(edges, later + ROUNDING, side="right") - 1 - first, 0).sum()
        if not missed:
            return ""
        part, length = missed / timeline.length, float((self.ends - self.starts).min())
        advice = f"use at most {math.floor(1000 * length + ROUNDING) / 1000:g} s from one window to the next"
        return f"windows of {length:.3g} s leave gaps: {100 * part:.3g} % of the video is in no window; {advice}"


def window_clips(sampling: TemporalSampling, timeline: Timeline, every_seconds: float) -> Windows:
    """Return the windows over a video.

    If the frames are evenly spaced, windows start at the frames that are nearest to the multiples of ``every_seconds``.
    Otherwise they start at these times, with the frame shown at that time.

    Args:
        timeline: the times of the frames; its rate must be known.
        every_seconds: time between the starts of consecutive windows, above 0.
    """
    length, step = timeline.length, every_seconds * timeline.rate
    if timeline.starts is not None:
        return _uneven_windows(sampling, timeline, step)
    if sampling.kind == "segments":
        span = min(length, max(1, round(step)))
        starts = window_starts(length, span, step)
        clips = starts[:, None] + sampling.even_clips(span, 1)
    else:
        span = sampling.span(timeline.rate)
        starts = window_starts(length, span, step)
        clips = sampling.clip_at(starts, length, timeline.times)
    return Windows(starts / timeline.rate, np.minimum(starts + span, length) / timeline.rate, clips)


def _uneven_windows(sampling: TemporalSampling, timeline: Timeline, step: float) -> Windows:
    """Return the windows over a video whose frames are not evenly spaced, `step` places apart."""
    length, edges = timeline.length, np.append(timeline.starts, timeline.length)
    by_frames = sampling.kind == "dense" and not sampling.fps
    span = step if sampling.kind == "segments" else sampling.num_frames * sampling.step(timeline.rate)
    last = edges[max(0, length - int(span))] if by_frames else max(0.0, length - span)
    starts = _places(last, span * timeline.interval if by_frames else span, step, timeline.interval)
    firsts = timeline.frames_at(starts)
    ends = edges[np.minimum(firsts + int(span), length)] if by_frames else np.minimum(starts + span, length)
    if sampling.kind == "segments":
        counts = np.maximum(timeline.frames_at(ends - 2 * ROUNDING) + 1 - firsts, 1)
        clips = np.stack([first + sampling.even_clips(count, 1)[0] for first, count in zip(firsts, counts)])
    else:
        clips = sampling.clip_at(firsts if by_frames else starts, length, timeline.times)
    return Windows(starts / timeline.rate, ends / timeline.rate, clips)


def window_starts(length: int, span: int, step: float) -> np.ndarray:
    """Return the first frames of the windows over a video.

    Args:
        length: number of frames in the video.
        span: number of frames in a window.
        step: distance between windows in frames, above 0. Can be fractional; values below 1 are raised to 1.

    Returns:
        Ascending int64, at least one: multiples of ``step`` for which the window is inside the video. If windows
        overlap or are adjacent, a last window is aligned to the end of the video.
    """
    return np.unique(np.rint(_places(max(0, length - span), span, step, 1.0)).astype(np.int64))


def _places(last: float, span: float, step: float, shortest: float) -> np.ndarray:
    """Return the multiples of ``step``, at least ``shortest``, up to `last`; with `last` if windows leave no gap."""
    if not step > 0:
        raise UserError(f"the time between windows must be above 0, got {step:g} frames")
    step = max(step, shortest)
    places = np.arange(int(last / step) + 1) * step
    return np.append(places, last) if step <= span + ROUNDING and places[-1] < last else places


def read_once(video: Video, clips: np.ndarray, short_side: int, filter: str) -> Callable[..., Tensor]:
    """Return a ``read`` for :func:`video_rs.data.clip_datasets.clip_views` that decodes each frame once.

    Args:
        clips: ``[K, T]`` frame numbers. Groups of clips must be read in order, and no clip may have a frame before the
            first frame of an earlier clip.
    """
    numbers = np.unique(clips)
    stream = zip(numbers.tolist(), video.stream(numbers, short_side=short_side, filter=filter))
    kept: dict[int, Tensor] = {}

    def read(wanted: np.ndarray, **_: Any) -> Tensor:
        for number in [number for number in kept if number < wanted[0]]:
            del kept[number]  # no later clip needs it
        while wanted[-1] not in kept:
            number, frame = next(stream)
            kept[number] = frame
        return torch.stack([kept[number] for number in wanted.tolist()])

    return read
