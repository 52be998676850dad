"""Sliding windows over a long video: their positions, and reading their frames in a single decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video_rs.data.clips import TemporalSampling
from video_rs.data.video.decode import Video
from video_rs.errors import UserError


def window_clips(
    sampling: TemporalSampling, length: int, fps: float, every_seconds: float
) -> tuple[np.ndarray, int, np.ndarray]:
    """Return the windows over a video of `length` frames.

    Returns:
        First frames ``[K]``, number of frames in a window, and frame numbers of the clips ``[K, T]``.
    """
    step = every_seconds * fps
    if sampling.kind == "segments":
        span = min(length, max(1, round(step)))
        starts = window_starts(length, span, step)
        return starts, span, starts[:, None] + sampling.even_clips(span, 1)
    span = sampling.span(fps)
    starts = window_starts(length, span, step)
    return starts, span, sampling.clip_at(starts, length, fps)


def window_starts(length: int, span: int, step: float) -> np.ndarray:
    """Return the first frames of the windows over a video.

    Args:
        length: number of frames in the video.
        span: number of frames in a window.
        step: distance between windows in frames, above 0. Can be fractional; values below 1 are raised to 1.

    Returns:
        Ascending int64, at least one: multiples of ``step`` for which the window is inside the video. If windows
            overlap
        or are adjacent, a last window is aligned to the end of the video.
    """
    if not step > 0:
        raise UserError(f"the time between windows must be above 0, got {step:g} frames")
    last, step = max(0, length - span), max(1.0, step)
    starts = np.unique(np.rint(np.arange(int(last / step) + 1) * step).astype(np.int64))
    starts = starts[starts <= last]
    return np.append(starts, last) if step <= span and starts[-1] < last else starts


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
