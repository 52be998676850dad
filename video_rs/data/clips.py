"""Which frames make a clip: the temporal sampling of the TF Model Garden (``ops/preprocess_ops_3d.py``).

A video that is too short is tiled: frame ``i`` of a video of ``length`` frames is frame ``i % length``.
"""

from __future__ import annotations

import numpy as np


def train_indices(length: int, num_frames: int, stride: int, rng: np.random.Generator) -> np.ndarray:
    """A random clip.

    The start is uniform over all places where the clip ends inside the video, and over the whole video where there is
    no such place.

    Args:
        length: frames in the video, at least 1.
        num_frames: frames in the clip.
        stride: source frames from one frame of the clip to the next.

    Returns:
        ``[num_frames]`` int64 in ``[0, length)``.
    """
    _check(length, num_frames, stride)
    span = (num_frames - 1) * stride
    start = rng.integers(length - span if length > span else length)
    return (start + stride * np.arange(num_frames, dtype=np.int64)) % length


def view_indices(length: int, num_frames: int, stride: int, clips: int) -> np.ndarray:
    """Clips spread evenly over the video; a single one is taken from its middle.

    Args:
        length, num_frames, stride: as in :func:`train_indices`.
        clips: how many.

    Returns:
        ``[clips, num_frames]`` int64 in ``[0, length)``.
    """
    _check(length, num_frames, stride)
    if clips < 1:
        raise ValueError(f"clips must be at least 1, got {clips}")
    room = max(0, length - num_frames * stride)
    # int(linspace(0, room, clips)) in integers: a float may fall just below the whole number it stands for
    starts = np.arange(clips, dtype=np.int64) * room // (clips - 1) if clips > 1 else np.array([room // 2])
    return (starts[:, None] + stride * np.arange(num_frames, dtype=np.int64)) % length


def _check(length: int, num_frames: int, stride: int) -> None:
    if min(length, num_frames, stride) < 1:
        raise ValueError(f"need length, num_frames, stride >= 1, got {length}, {num_frames}, {stride}")
