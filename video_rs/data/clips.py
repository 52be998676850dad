"""Temporal sampling: which frames of a video make a clip.

* dense: frames at a constant stride, as in the TF Model Garden (``ops/preprocess_ops_3d.py``). A video that is too
  short is looped: frame ``i`` of a video of ``length`` frames is frame ``i % length``.
* segments: the video is divided into T equal segments and one frame is taken from each, as in Temporal Segment Networks
  (arXiv 1608.00859). A video of fewer than T frames is stretched: each frame is repeated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from video_rs.data_config import SAMPLINGS, DataConfig

ROUNDING = 1e-6  # frames; keeps the exact start of a frame from being rounded down to the previous one
_JITTER = 2e-3  # seconds; Matroska rounds timestamps to 1/1000 s, QuickTime often to 1/600 s


class Timeline:
    """The times at which the frames of a video are shown, in units of the mean interval ("places").

    Place `i` is the start of frame `i` if the frames are evenly spaced. A fractional place is a time within a frame.

    Args:
        length: number of frames, at least 1.
        times: the time of each frame in seconds, strictly ascending from 0; None if unknown.
        rate: frames per second of a video of one frame; 0 if unknown.

    Attributes:
        length, times: as given.
        rate: places per second; 0 if unknown.
        starts: the place of each frame, float64 ``[length]``; None if the frames are evenly spaced.
        interval: the median interval between frames, in places: the duration of the last frame.
    """

    def __init__(self, length: int, times: np.ndarray | None = None, rate: float = 0.0) -> None:
        self.length, self.times, self.rate, self.starts, self.interval = length, times, rate, None, 1.0
        if times is None or length == 1:
            return
        mean = times[-1] / (length - 1)
        rate = float(1 / mean)
        self.rate = round(rate, 6) if math.isclose(rate, round(rate, 6), rel_tol=1e-13) else rate  # undo rounding
        if np.abs(times - np.arange(length) * mean).max() > min(_JITTER, mean / 2):
            last = float(np.median(np.diff(times)))
            self.rate = length / (float(times[-1]) + last)
            self.starts, self.interval = times * self.rate, last * self.rate

    @property
    def duration(self) -> float:
        """The duration in seconds, including the last frame; 0 if unknown."""
        return self.length / self.rate if self.rate else 0.0

    def frames_at(self, places: np.ndarray, *, loop: bool = False) -> np.ndarray:
        """Return the last frame shown at each place from 0 on, int64. Past the end, return the last frame, or loop."""
        places = places + ROUNDING
        places = places % self.length if loop else places
        frames = np.floor(places) if self.starts is None else np.searchsorted(self.starts, places, side="right") - 1
        return np.minimum(frames.astype(np.int64), self.length - 1)


@dataclass(frozen=True)
class TemporalSampling:
    """Choose the frames of a clip.

    With ``fps``, the stride counts frames at that rate, independently of the rate of the file: files of 25, 30 and 60
    frames per second and files of a variable rate are sampled at the same times. Each sampled frame is the last one
    shown at its time. A file of a lower rate repeats frames.

    Attributes:
        num_frames: number of frames in a clip (T).
        stride: distance between the frames of a dense clip; not used for segments.
        kind: "dense" or "segments".
        fps: frame rate for ``stride``; 0 to count the frames of the file. Not used for segments.
    """

    num_frames: int = 32
    stride: int = 2
    kind: str = "dense"
    fps: float = 0.0

    def __post_init__(self) -> None:
        if min(self.num_frames, self.stride) < 1 or self.fps < 0 or self.kind not in SAMPLINGS:
            raise ValueError(f"need num_frames, stride >= 1, fps >= 0 and a kind of {', '.join(SAMPLINGS)}; got {self}")

    @classmethod
    def of(cls, data_config: DataConfig) -> TemporalSampling:
        """Return the sampling of a data config."""
        return cls(data_config.num_frames, data_config.stride, data_config.sampling, data_config.fps)

    def timeline(self, length: int, times: np.ndarray | None = None) -> Timeline:
        """Return the timeline of a video for this sampling. Times are ignored without ``fps``."""
        return Timeline(length, times if self.fps else None)

    def step(self, rate: float = 0.0) -> float:
        """Return the stride of a dense clip in source frames. It can be fractional if ``fps`` is set.

        Args:
            rate: mean frames per second of the file; 0 if unknown, which is treated as ``fps``.
        """
        return self.stride * (rate / self.fps) if self.fps and rate else self.stride

    def span(self, rate: float = 0.0) -> int:
        """Return the number of source frames that a dense clip spans, including the stride after its last frame."""
        return math.ceil(self.num_frames * self.step(rate) - ROUNDING)

    def shortest(self, rate: float = 0.0) -> int:
        """Return the smallest number of source frames for which clips repeat none, except to reach a higher rate."""
        if self.kind == "segments":
            return self.num_frames
        return 1 + math.floor((self.num_frames - 1) * self.step(rate) + ROUNDING)

    def random_clip(self, length: int, rng: np.random.Generator, times: np.ndarray | None = None) -> np.ndarray:
        """Draw a random clip.

        Dense: the start is uniform over all times for which the clip fits in the video, or over the whole video if it
        does not fit. Segments: the frame is uniform within each segment.

        Args:
            length: number of frames in the video, at least 1.
            times: time of each frame in seconds, strictly ascending from 0. None if unknown: the frames then count as
                having the rate ``fps``.

        Returns:
            ``[T]`` int64 in ``[0, length)``.
        """
        if length < 1:
            raise ValueError(f"a video has at least 1 frame, got {length}")
        if self.kind == "segments":
            return self._in_segments(length, rng.random(self.num_frames))
        span = (self.num_frames - 1) * self.step(self.timeline(length, times).rate)
        places = length - span if length > span + ROUNDING else length
        # a single draw, for the same time at any source rate
        start = rng.random() * places if self.fps else rng.integers(places)
        return self.clip_at(start, length, times)

    def even_clips(self, length: int, clips: int, times: np.ndarray | None = None) -> np.ndarray:
        """Return evenly spaced clips, for testing.

        Dense: clips spread over the video; a single clip is taken from the middle. Segments: each clip takes the frame
        at the same position of every segment; a single clip takes the middle frames.

        Args:
            length, times: as for :meth:`random_clip`.
            clips: number of clips, at least 1.

        Returns:
            ``[clips, T]`` int64 in ``[0, length)``.
        """
        if min(length, clips) < 1:
            raise ValueError(f"need at least 1 frame and 1 clip, got {length} frames and {clips} clips")
        if self.kind == "segments":
            return self._in_segments(length, (2 * np.arange(clips)[:, None] + 1) / (2 * clips))
        room = max(0, length - self.num_frames * self.step(self.timeline(length, times).rate))
        starts = np.linspace(0, room, clips) if clips > 1 else np.array([room / 2])
        return self.clip_at(starts, length, times)

    def clip_at(self, start: float | np.ndarray, length: int, times: np.ndarray | None = None) -> np.ndarray:
        """Return the dense clips from the given places on, looped in short videos: ``[...] -> [..., T]`` int64.

        Args:
            start: places of a :class:`Timeline`: numbers of the first frames if the frames are evenly spaced.
            length, times: as for :meth:`random_clip`.
        """
        timeline = self.timeline(length, times)
        step = self.step(timeline.rate)
        places = np.asarray(start)[..., None] + step * np.arange(self.num_frames)
        return timeline.frames_at(places, loop=length <= (self.num_frames - 1) * step + ROUNDING)

    def _in_segments(self, length: int, places: np.ndarray) -> np.ndarray:
        """Return the frame at a position in ``[0, 1)`` of each segment. Positions broadcast to ``[..., T]``."""
        edges = np.arange(self.num_frames + 1) * length // self.num_frames
        sizes = np.maximum(np.diff(edges), 1)
        return edges[:-1] + np.minimum(np.floor(places * sizes + ROUNDING).astype(np.int64), sizes - 1)
