"""What the packets of all files of a dataset tell, packed, so that opening a file for a clip need not read it all.

``video-rs index`` makes it once; it lies in the cache folder and is found again by the paths of the files. A file that
has changed since, and one whose frames do not come at an even pace, is looked at anew whenever it is opened.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from video_rs.errors import MediaError, UserError
from video_rs.files import atomic_write
from video_rs.hub import cache_folder

if TYPE_CHECKING:
    from video_rs.data.sources.records import Records
    from video_rs.data.video.stream_index import StreamIndex

# one row a file; the timestamp of frame i is first + i * step, rounded
ROW = np.dtype(
    [
        ("bytes", "<u4"),  # of the file; 0 for one that has to be looked at anew
        ("changed", "<u4"),  # when it last was, seconds since 1970
        ("num_frames", "<u4"),
        ("frame_bytes", "<u4"),
        ("first", "<i4"),
        ("step", "<f8"),
        ("fps", "<f8"),
        ("codec", "u1"),  # these two into `words`
        ("problem", "u1"),
    ]
)


Version = tuple[int, int]  # see _version


@dataclass(frozen=True)
class VideoIndex:
    """The stream indexes of N files in NumPy arrays, which workers share.

    Attributes:
        rows: ``[N]`` of :data:`ROW`.
        gaps: uint16, for all files one after the other: frames from each safe keyframe to the next.
        ends: int64 ``[N]``, where the gaps of each file end.
        words: the names of codecs, and what keeps decord from a file.
    """

    rows: np.ndarray
    gaps: np.ndarray
    ends: np.ndarray
    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def stream_index(self, number: int, path: str) -> StreamIndex | None:
        """Of one file; None where it has to be looked at."""
        from video_rs.data.video.stream_index import Keyframe, StreamIndex

        row = self.rows[number]
        if not row["bytes"] or _version(path) != (row["bytes"], row["changed"]):
            return None
        start = self.ends[number - 1] if number else 0
        keys = np.cumsum(self.gaps[start : self.ends[number]], dtype=np.int64)
        pts = _even(int(row["first"]), float(row["step"]), int(row["num_frames"]))
        return StreamIndex(
            self.words[row["codec"]],
            pts,
            [Keyframe(pts[key].item()) for key in keys],
            self.words[row["problem"]],
            int(row["frame_bytes"]),
            float(row["fps"]),
        )

    def save(self, file: Path) -> None:
        """Writes it whole or not at all."""
        with atomic_write(file) as handle:
            np.savez(handle, rows=self.rows, gaps=self.gaps, ends=self.ends, words=np.array(self.words))


def pack(indexes: Iterable[tuple[Version, StreamIndex | None]], count: int) -> VideoIndex:
    """The index of `count` files, from the version of each and its index; None for one that cannot be read."""
    rows, ends = np.zeros(count, ROW), np.zeros(count, np.int64)
    gaps, words, end = [np.zeros(0, np.uint16)], {"": 0}, 0
    for number, (version, index) in enumerate(indexes):
        packed = index and _pack(version, index)
        if packed and len(words) < 255:
            values, of_file = packed
            codec, problem = (words.setdefault(word, len(words)) for word in (index.codec, index.decord_problem))
            rows[number] = *values, codec, problem
            gaps.append(of_file)
            end += len(of_file)
        ends[number] = end
    return VideoIndex(rows, np.concatenate(gaps), ends, tuple(words))


def load(file: Path) -> VideoIndex:
    """Raises UserError for a file that is damaged or may not be read."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            rows, gaps, ends = (arrays[name] for name in ("rows", "gaps", "ends"))
            words = tuple(arrays["words"].tolist())
    except PermissionError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; set VIDEO_RS_CACHE to one of yours") from None
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile):
        rows = None
    if rows is None or rows.dtype != ROW or len(ends) != len(rows):
        raise UserError(f"{file} is damaged, or of another version of video_rs: delete it, or run video-rs index again")
    return VideoIndex(rows, gaps, ends, words)


def attach(records: Records) -> None:
    """Gives the records the index of their files, if there is one. Raises UserError for a damaged one."""
    file = index_file(records)
    if file.exists() and len(index := load(file)) == len(records):
        records.index = index


def index_file(records: Records) -> Path:
    """Where the index of these files lies, or would lie."""
    from video_rs.data.video.stream_index import RULES

    return cache_folder() / "index" / f"{hashlib.sha1(records.packed_paths() + bytes([RULES])).hexdigest()[:16]}.npz"


def index_video(path: str) -> tuple[Version, StreamIndex | None, str]:
    """Version, index, and what is wrong with the file: its index is then None."""
    from video_rs.data.video.stream_index import read_stream_index

    version = _version(path)
    try:
        return version, read_stream_index(path), ""
    except MediaError as error:
        return version, None, str(error)


def _version(path: str) -> Version:
    """Of a file, zeros for none: its size in bytes and when it last changed, seconds since 1970."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, int(found.st_mtime) % 2**32


def _even(first: int, step: float, count: int) -> np.ndarray:
    return np.rint(first + step * np.arange(count)).astype(np.int64)


def _pack(version: Version, index: StreamIndex) -> tuple[tuple, np.ndarray] | None:
    """The fields of a row but for the words, and the gaps between keyframes; None where they cannot hold the index."""
    if index.pts is None:
        return None
    first, last, count = int(index.pts[0]), int(index.pts[-1]), len(index.pts)
    step = (last - first) / max(1, count - 1)
    keys = np.array([key.pts for key in index.keyframes], np.int64)
    numbers = np.searchsorted(index.pts, keys)
    gaps = np.diff(numbers, prepend=0)
    fits = max(version[0], index.frame_bytes, count) < 2**32 and abs(first) < 2**31 and gaps.max() < 2**16
    if (
        not fits
        or not np.array_equal(_even(first, step, count), index.pts)
        or not np.array_equal(index.pts[numbers % count], keys)
    ):
        return None
    return (*version, count, index.frame_bytes, first, step, index.fps), gaps.astype(np.uint16)
