"""Measure the lengths of videos, and describe how many are shorter than a clip."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from video_rs.data.clips import TemporalSampling
from video_rs.data.shards import in_memory
from video_rs.data.sources.records import Records
from video_rs.data.storage import is_remote
from video_rs.data.tools.pool import Beat, watched_calls
from video_rs.data.video.images import frame_files
from video_rs.data.video.stream_index import best_stream, header_seconds, open_container
from video_rs.distributed.launcher import START_METHOD, can_start_processes
from video_rs.errors import MachineError

FILES, SECONDS = 100, 2.0  # limits of a sample
TOLERATED = 0.05  # a setting fits if at most this fraction of the videos is shorter than its clips


class Length(NamedTuple):
    """Number of frames of a video, and frames per second; 0 if unknown."""

    frames: int
    rate: float

    def part(self, start: float, end: float) -> Length:
        """Return the approximate length of a segment, given in seconds. An end of 0 is the end of the video."""
        if not self.rate or not (start or end):
            return self
        seconds = self.frames / self.rate
        return Length(max(1, round((min(end or seconds, seconds) - start) * self.rate)), self.rate)


def describe_short(lengths: Iterable[Length], sampling: TemporalSampling) -> str:
    """Describe how many videos are shorter than a clip, and a setting that fits; "" if none is shorter."""
    counts = Counter(lengths)

    def short(sampling: TemporalSampling) -> float:
        few = sum(count for (frames, rate), count in counts.items() if frames < sampling.shortest(rate))
        return few / counts.total()

    now = short(sampling) if counts else 0.0
    if not now:
        return ""
    clip = f"{sampling.num_frames} frames"
    if sampling.kind == "dense":
        clip += f" x stride {sampling.stride}{f' at {sampling.fps:g} per second' if sampling.fps else ''}"
    text = f"{100 * now:.3g} % are shorter than a clip ({clip}) and repeat frames"
    settings = [(short(shorter), key) for key, shorter in _shorter(sampling)]
    best = min(settings, key=lambda setting: setting[0], default=(now, ""))
    rest, key = next((setting for setting in settings if setting[0] <= min(TOLERATED, now / 2)), best)
    return f"{text}; {key} would fit {100 * (1 - rest):.4g} %" if rest < now else text


def _shorter(sampling: TemporalSampling) -> Iterator[tuple[str, TemporalSampling]]:
    """Yield settings and sampling of shorter clips, the longest first: smaller strides, then half of the frames."""
    strides = range(sampling.stride - 1, 0, -1) if sampling.kind == "dense" else ()
    for stride in strides:
        yield f"data.stride={stride}", replace(sampling, stride=stride)
    key = "data.stride=1 " if strides else ""
    num_frames = sampling.num_frames // 2
    while num_frames > 1:
        stride = 1 if strides else sampling.stride
        yield f"{key}data.num_frames={num_frames}", replace(sampling, num_frames=num_frames, stride=stride)
        num_frames //= 2


def sample_lengths(records: Records, files: int = FILES, seconds: float = SECONDS) -> list[Length]:
    """Return the lengths of all videos if they are indexed, or else of a sample, from their headers.

    Headers are read in another process, because a file can hang or crash its reader. Files that cannot be read in the
    given time are omitted; all of them without forked processes, and for shards on remote storage.
    """
    if records.index is not None:
        rows = records.index.rows
        known = [(i, Length(int(rows["num_frames"][i]), float(rows["fps"][i]))) for i in np.flatnonzero(rows["bytes"])]
        return [length.part(*records.segment(i)) for i, length in known]
    lengths: list[Length] = []
    if START_METHOD != "fork" or not can_start_processes() or is_remote(records.path(0)):
        return lengths
    numbers, end = np.unique(np.linspace(0, len(records) - 1, files).astype(int)).tolist(), time.monotonic() + seconds
    calls = watched_calls(partial(_measure, records), numbers, 1, seconds)
    # no descriptor, process or memory is left: the loader reports it
    with contextlib.suppress(OSError, MachineError), contextlib.closing(calls):
        for _, length in calls:
            lengths += [length] if isinstance(length, Length) else []
            if time.monotonic() > end:
                break
    return lengths


def _measure(records: Records, number: int, beat: Beat) -> Length | None:
    with contextlib.suppress(Exception):  # training reports unreadable files
        return _length(records, number).part(*records.segment(number))


def _length(records: Records, number: int) -> Length:
    """Return the length of a file from its header, or the number of images in a folder."""
    file = in_memory(records.file(number))
    if images := frame_files(file, records.listed_frames(number)):
        return Length(len(images), 0.0)
    with open_container(file) as container:
        stream = best_stream(container, file)
        rate = float(stream.average_rate or 0)
        frames = stream.frames or round(rate * header_seconds(container, stream))
    if not frames:
        raise ValueError("the header has no length")
    return Length(frames, rate)
