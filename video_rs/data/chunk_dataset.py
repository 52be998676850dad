"""Read the clips of files for inference: evenly spaced ones, every frame, or windows, in chunks of limited memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from video_rs.data.clip_datasets import clip_views, even_clips, open_record
from video_rs.data.clips import TemporalSampling, Timeline
from video_rs.data.segments import FrameRange, frame_range
from video_rs.data.sources.records import Records
from video_rs.data.transforms.crops import ViewTransform
from video_rs.data.video.decode import Video
from video_rs.data.video.media import is_image
from video_rs.data.windows import read_once, window_clips
from video_rs.errors import MediaError, StorageError

CHUNK_BYTES = 32 * 2**20  # of the views in a chunk: workers send chunks through /dev/shm, which is 64 MB in docker


class Selection(NamedTuple):
    """The clips of a file, and the rows of the table to which they contribute.

    Attributes:
        clips: frame numbers of the clips, ``[K, T]``, ordered by their first frames.
        groups: the group of each clip, int64 ``[K]``, ascending from 0. The outputs of a group are pooled into one.
        rows: the group of each row of the file, int64 ``[R]``.
        times: start and end of each row in seconds, float64 ``[R, 2]``; None if a row is a whole file.
        gaps: a warning if frames are in no window, else "".
    """

    clips: np.ndarray
    groups: np.ndarray
    rows: np.ndarray
    times: np.ndarray | None = None
    gaps: str = ""


def select_views(frames: FrameRange, sampling: TemporalSampling, views: int) -> Selection:
    """Select evenly spaced clips.

    Args:
        views: number of clips. 0: the fewest that cover all frames; for an image network, every frame.
    """
    if views:
        clips = even_clips(frames, sampling, views if frames.length > 1 else 1)
    elif sampling.num_frames == 1:
        clips = _every_frame(frames)
    else:
        span = sampling.span(sampling.timeline(frames.length, frames.times).rate)
        clips = even_clips(frames, sampling, math.ceil(frames.length / span))
    return Selection(clips, np.zeros(len(clips), np.int64), np.zeros(1, np.int64))


def select_windows(
    video: Video, frames: FrameRange, sampling: TemporalSampling, every: float, every_frame: bool = False
) -> Selection:
    """Select regular windows of one clip each, see :func:`video_rs.data.windows.window_clips`.

    Args:
        every: seconds between the starts of consecutive windows.
        every_frame: for image networks; a window has all frames until the next one.

    Raises:
        MediaError: the video has no times.
    """
    if not video.fps:
        raise MediaError(f"{video.path}: has no frame rate, which windows need")
    timeline = Timeline(frames.length, frames.times, video.fps)
    windows = window_clips(sampling, timeline, every)
    offset = 0.0 if frames.times is None else float(video.times[frames.first])
    if every_frame:
        firsts, kept = np.unique(windows.clips[:, 0], return_index=True)
        starts = windows.starts[kept]
        times = np.stack([starts, np.append(starts[1:], timeline.duration)], axis=1)
        groups = np.maximum(np.searchsorted(firsts, np.arange(frames.length), side="right") - 1, 0)
        return Selection(_every_frame(frames), groups, np.arange(len(firsts)), offset + times)
    is_new = np.append(True, (windows.clips[1:] != windows.clips[:-1]).any(axis=1))  # compute equal clips once
    clips, times = windows.clips[is_new], np.stack([windows.starts, windows.ends], axis=1)
    groups, rows = np.arange(len(clips)), np.cumsum(is_new) - 1
    return Selection(frames.first + clips, groups, rows, offset + times, windows.describe_gaps(timeline))


def _every_frame(frames: FrameRange) -> np.ndarray:
    return frames.first + np.arange(frames.length)[:, None]


@dataclass(eq=False)
class ChunkDataset(IterableDataset):
    """The views of files, in one or more chunks per file. A file is decoded once, in a streaming fashion.

    Args:
        records, sampling, decoder, skip, stamps: as for :class:`video_rs.data.clip_datasets.ViewDataset`.
        transform: returns the crops of a clip.
        views: see :func:`select_views`. With windows: 1, or for an image network 0 for every frame.
        every: seconds between windows, for one row per window, see :func:`select_windows`; 0 for one row per file.
        indices: numbers of the records to read, set by the loader. Each worker reads a part of them.
    """

    records: Records
    _: KW_ONLY
    sampling: TemporalSampling
    transform: ViewTransform
    views: int = 4
    every: float = 0.0
    decoder: str = "pyav"
    skip: Mapping[str, str] = field(default_factory=dict)
    stamps: dict[str, tuple[int, int]] = field(default_factory=dict)
    indices: Sequence[int] = ()

    def heartbeat(self, index: int) -> None:
        """Do nothing; see :class:`video_rs.data.clip_datasets.ClipDataset`."""

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in self.indices[first::step]:
            yield from self.chunks(int(index))

    def chunks(self, index: int) -> Iterator[dict[str, Any]]:
        """Yield the chunks of one file. An error of the file is its last chunk.

        Yields:
            The dicts of :meth:`read` with one more key, error: None, or the reason why the file cannot be read. The
            views are then None.

        Raises:
            MachineError: the storage fails.
        """
        path = self.records.path(index)
        error = self.skip.get(path)
        if error is None:
            self.heartbeat(index)
            try:
                for chunk in self.read(index):
                    self.heartbeat(-1)
                    yield chunk | {"error": None}
                    self.heartbeat(index)
            except (MediaError, StorageError) as failure:
                error = self.records.fault(failure, index)
            self.heartbeat(-1)
        if error is not None:
            yield {"index": index, "views": None, "groups": None, "selection": None, "is_last": True, "error": error}

    def read(self, index: int) -> Iterator[dict[str, Any]]:
        """Yield the chunks of one file.

        Yields:
            Dicts. index: as given; views: uint8 ``[n * crops, T, size, size, C]`` of the next n clips, in clip-major
            order; groups: int64 ``[n]``; selection: the :class:`Selection` of the file in its first chunk, then None;
            is_last: True for the last chunk.

        Raises:
            MediaError, StorageError: the file cannot be read.
        """
        transform, path = self.transform, self.records.path(index)
        if self.sampling.num_frames > 1 and is_image(path):
            raise MediaError(image_for_clips(f"{path}:", self.sampling.num_frames))
        with open_record(self.records, index, self.decoder) as video:
            frames = frame_range(video, *self.records.segment(index))
            if self.every:
                every_frame = self.sampling.num_frames == 1 and not self.views
                selection = select_windows(video, frames, self.sampling, self.every, every_frame)
            else:
                selection = select_views(frames, self.sampling, self.views)
            clips = selection.clips
            size = max(1, CHUNK_BYTES // (clips.shape[1] * transform.crops * transform.size**2 * 3))
            read = video.read if len(clips) <= size else read_once(video, clips, transform.short_side, transform.filter)
            for first in range(0, len(clips), size):
                part = slice(first, first + size)
                yield {
                    "index": index,
                    "views": clip_views(read, clips[part], transform),
                    "groups": selection.groups[part],
                    "selection": None if first else selection,
                    "is_last": first + size >= len(clips),
                }


def image_for_clips(name: str, num_frames: int) -> str:
    """Return the message for an image that was given to a video network."""
    return (
        f"{name} is an image, but this network takes clips of {num_frames} frames; "
        "give it a video or use an image network"
    )
