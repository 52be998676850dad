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


@dataclass(frozen=True)
class TemporalSampling:
    """Choose the frames of a clip.

    With ``fps``, the stride counts frames at that rate, independently of the rate of the file: files of 25, 30 and 60
    frames per second are sampled at the same times. Each sampled frame is the one on screen at its time. A file of a
    lower rate repeats frames.

    Attributes:
        num_frames: number of frames in a clip (T).
        stride: distance between the frames of a dense clip; not used for segments.
        kind: "dense" or "segments".
        fps: frame rate for ``stride``; 0 for the rate of the file. Not used for segments.
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

    def step(self, source_fps: float = 0.0) -> float:
        """Return the stride of a dense clip in source frames. It can be fractional if ``fps`` is set.

        Args:
            source_fps: frames per second of the file; 0 if unknown, which is treated as ``fps``.
        """
        return self.stride * (source_fps / self.fps) if self.fps and source_fps else self.stride

    def span(self, source_fps: float = 0.0) -> int:
        """Return the number of source frames that a dense clip spans, including the stride after its last frame."""
        return math.ceil(self.num_frames * self.step(source_fps) - ROUNDING)

    def random_clip(self, length: int, rng: np.random.Generator, source_fps: float = 0.0) -> np.ndarray:
        """Draw a random clip.

        Dense: the start is uniform over all positions for which the clip fits in the video, or over the whole video if
        it does not fit. Segments: the frame is uniform within each segment.

        Args:
            length: number of frames in the video, at least 1.
            source_fps: see :meth:`step`.

        Returns:
            ``[T]`` int64 in ``[0, length)``.
        """
        if length < 1:
            raise ValueError(f"a video has at least 1 frame, got {length}")
        if self.kind == "segments":
            return self._in_segments(length, rng.random(self.num_frames))
        span = (self.num_frames - 1) * self.step(source_fps)
        places = length - span if length > span else length
        # a single draw, for the same time at any source rate
        start = rng.random() * places if self.fps else rng.integers(places)
        return self.clip_at(start, length, source_fps)

    def even_clips(self, length: int, clips: int, source_fps: float = 0.0) -> np.ndarray:
        """Return evenly spaced clips, for testing.

        Dense: clips spread over the video; a single clip is taken from the middle. Segments: each clip takes the frame
        at the same position of every segment; a single clip takes the middle frames.

        Args:
            length, source_fps: as for :meth:`random_clip`.
            clips: number of clips, at least 1.

        Returns:
            ``[clips, T]`` int64 in ``[0, length)``.
        """
        if min(length, clips) < 1:
            raise ValueError(f"need at least 1 frame and 1 clip, got {length} frames and {clips} clips")
        if self.kind == "segments":
            return self._in_segments(length, (2 * np.arange(clips)[:, None] + 1) / (2 * clips))
        room = max(0, length - self.num_frames * self.step(source_fps))
        starts = np.linspace(0, room, clips) if clips > 1 else np.array([room / 2])
        return self.clip_at(starts, length, source_fps)

    def clip_at(self, start: float | np.ndarray, length: int, source_fps: float = 0.0) -> np.ndarray:
        """Return the dense clips from the given first frames, looped in short videos: ``[...] -> [..., T]`` int64."""
        step = self.step(source_fps)
        times = np.asarray(start)[..., None] + step * np.arange(self.num_frames)
        frames = np.floor(times + ROUNDING).astype(np.int64)
        return frames % length if length <= (self.num_frames - 1) * step else np.minimum(frames, length - 1)

    def _in_segments(self, length: int, places: np.ndarray) -> np.ndarray:
        """Return the frame at a position in ``[0, 1)`` of each segment. Positions broadcast to ``[..., T]``."""
        edges = np.arange(self.num_frames + 1) * length // self.num_frames
        sizes = np.maximum(np.diff(edges), 1)
        return edges[:-1] + np.minimum(np.floor(places * sizes + ROUNDING).astype(np.int64), sizes - 1)
