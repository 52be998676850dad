"""Temporal sampling: which frames of a video make a clip.

* dense: frames at a constant stride, as in the TF Model Garden (``ops/preprocess_ops_3d.py``). A video that is too
  short is tiled: frame ``i`` of a video of ``length`` frames is frame ``i % length``.
* segments: one frame of each of T equal parts of the whole video, as in Temporal Segment Networks (arXiv 1608.00859). A
  video of fewer than T frames is stretched: its frames are repeated in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from video_rs.data_config import SAMPLINGS, DataConfig

ROUNDING = 1e-6  # frames; a time at the exact start of a frame must not be rounded down to the one before


@dataclass(frozen=True)
class TemporalSampling:
    """The choice of frames for a clip.

    With ``fps``, the stride counts frames of that rate, whatever the rate of the file: sources of 25, 30 and 60 frames
    per second give the same times of a scene. Each frame is the one on screen at its time, and its middle is at most
    half a source frame away. A source of a lower rate repeats frames.

    Attributes:
        num_frames: frames of a clip (T).
        stride: frames from one frame of a dense clip to the next; not used for segments.
        kind: "dense" or "segments".
        fps: frames per second that ``stride`` counts in; 0: the rate of the file. Not used for segments.
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
        """Return the source frames from one frame of a dense clip to the next; not always whole if ``fps`` is set.

        Args:
            source_fps: frames per second of the file; 0: unknown, treated as ``fps``.
        """
        return self.stride * (source_fps / self.fps) if self.fps and source_fps else self.stride

    def span(self, source_fps: float = 0.0) -> int:
        """Return the number of source frames that a dense clip spans, its last stride included."""
        return math.ceil(self.num_frames * self.step(source_fps) - ROUNDING)

    def random_clip(self, length: int, rng: np.random.Generator, source_fps: float = 0.0) -> np.ndarray:
        """Draw a random clip.

        Dense: the start is uniform over all places where the clip ends inside the video, or over the whole video if
        there is none. Segments: the frame is uniform in each segment.

        Args:
            length: frames in the video, at least 1.
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
        # one draw: the same time at any source rate
        start = rng.random() * places if self.fps else rng.integers(places)
        return self.clip_at(start, length, source_fps)

    def even_clips(self, length: int, clips: int, source_fps: float = 0.0) -> np.ndarray:
        """Return evenly spaced clips, for a test.

        Dense: spread over the video; a single clip is taken from the middle. Segments: one frame from the middle of
        each segment, or for several clips from as many evenly spaced places in it.

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
        """Return the dense clips from some first frames, tiled in short videos: ``[...] -> [..., T]`` int64."""
        step = self.step(source_fps)
        times = np.asarray(start)[..., None] + step * np.arange(self.num_frames)
        frames = np.floor(times + ROUNDING).astype(np.int64)
        return frames % length if length <= (self.num_frames - 1) * step else np.minimum(frames, length - 1)

    def _in_segments(self, length: int, places: np.ndarray) -> np.ndarray:
        """Return the frame at a place in ``[0, 1)`` of each segment; places broadcast to ``[..., T]``."""
        edges = np.arange(self.num_frames + 1) * length // self.num_frames
        sizes = np.maximum(np.diff(edges), 1)
        return edges[:-1] + np.minimum(np.floor(places * sizes + ROUNDING).astype(np.int64), sizes - 1)
