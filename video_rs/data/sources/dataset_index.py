"""An index of the packets of all files of a dataset, so that a clip can be read without scanning its file.

``video-rs index`` writes it into the cache folder, under a name made from the paths of the files. Files that have
changed since, or whose frames are not evenly spaced, are scanned when they are opened.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from video_rs.data.sources.records import Records
from video_rs.data.video.stream_index import RULES, Keyframe, StreamIndex
from video_rs.errors import UserError, file_error
from video_rs.file_limits import check_zip
from video_rs.files import atomic_write
from video_rs.hub import cache_folder

Version = tuple[int, int]  # size of a file in bytes, and modification time in seconds since 1970; zeros if missing
ROW = np.dtype(
    [("bytes", "<u4"), ("changed", "<u4"), ("num_frames", "<u4"), ("frame_bytes", "<u4"), ("first", "<i4")]
    + [("step", "<f8"), ("fps", "<f8"), ("codec", "u1"), ("problem", "u1")]
)
"""The index of one file: its :data:`Version`, with a size of 0 if the file must be scanned, and its stream index.

The timestamp of frame i is `first` + i * `step`, rounded. `codec` and `problem` are numbers in `VideoIndex.words`.
"""


@dataclass(frozen=True)
class VideoIndex:
    """The stream indexes of N files in NumPy arrays, which workers share.

    Attributes:
        rows: ``[N]`` array of type :data:`ROW`.
        gaps: number of frames from each safe keyframe to the next, for all files, uint16.
        ends: end of each file's gaps, int64 ``[N]``.
        words: names of codecs and reasons why decord is not used.
    """

    rows: np.ndarray
    gaps: np.ndarray
    ends: np.ndarray
    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def stream_index(self, number: int, path: str) -> StreamIndex | None:
        """Return the stream index of one file, or None if the file must be scanned."""
        row = self.rows[number]
        if not row["bytes"] or file_version(path) != (row["bytes"], row["changed"]):
            return None
        if row["num_frames"] > row["bytes"]:  # impossible: a frame has at least one byte
            return None
        start = self.ends[number - 1] if number else 0
        keys = np.cumsum(self.gaps[start : self.ends[number]], dtype=np.int64)
        pts = _even_pts(int(row["first"]), float(row["step"]), int(row["num_frames"]))
        keyframes = [Keyframe(pts[key].item()) for key in keys]
        codec, problem, fps = self.words[row["codec"]], self.words[row["problem"]], float(row["fps"])
        times = (pts - pts[0]) / (row["step"] * fps) if len(pts) > 1 else np.zeros(1)  # step * fps units a second
        return StreamIndex(codec, pts, keyframes, problem, int(row["frame_bytes"]), fps, times)

    def save(self, file: Path) -> None:
        """Write the index to a file atomically."""
        with atomic_write(file) as handle:
            np.savez(handle, rows=self.rows, gaps=self.gaps, ends=self.ends, words=np.array(self.words))


def pack(found: Iterable[tuple[int, Version, StreamIndex]], count: int) -> VideoIndex:
    """Return the index of `count` files.

    Args:
        found: number, version and stream index of files, in any order. Files that do not fit the index, and files that
            are not among them, are scanned when they are opened.
        count: number of files.
    """
    rows, words, gaps = np.zeros(count, ROW), {"": 0}, {}
    for number, version, index in found:
        packed = _pack_file(version, index)
        if packed and len(words) < 255:
            values, gaps[number] = packed
            codec, problem = (words.setdefault(word, len(words)) for word in (index.codec, index.decord_problem))
            rows[number] = *values, codec, problem
    lengths = np.zeros(count, np.int64)
    for number in gaps:
        lengths[number] = len(gaps[number])
    in_order = np.concatenate([np.zeros(0, np.uint16), *(gaps[number] for number in sorted(gaps))])
    return VideoIndex(rows, in_order, np.cumsum(lengths), tuple(words))


def load(file: Path) -> VideoIndex:
    """Load an index. Raise UserError if the file is damaged or cannot be read."""
    try:
        check_zip(file)
        with np.load(file, allow_pickle=False) as arrays:
            index = VideoIndex(arrays["rows"], arrays["gaps"], arrays["ends"], tuple(arrays["words"].tolist()))
        if index.rows.dtype == ROW and len(index.ends) == len(index):
            return index
    except OSError as error:
        raise file_error(f"{file}: {error.strerror}; set VIDEO_RS_CACHE to another folder", error) from None
    except Exception:  # a damaged file can raise any error in NumPy
        pass
    raise UserError(f"{file} is damaged or from another version of video_rs: delete it, or run video-rs index again")


def attach(records: Records) -> None:
    """Load the index of some records if it exists. Raise UserError if it is damaged."""
    try:
        file = index_file(records)
    except UserError:  # no home folder
        return
    # not Path.exists, which raises PermissionError in the home folder of another user
    if os.path.exists(file) and len(index := load(file)) == len(records):
        records.index = index


def index_file(records: Records) -> Path:
    """Return the path of the index of some records. The file may not exist."""
    return cache_folder() / "index" / f"{hashlib.sha1(records.packed_paths() + bytes([RULES])).hexdigest()[:16]}.npz"


def file_version(path: str) -> Version:
    """Return size and modification time of a file; zeros if it is missing."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, int(found.st_mtime) % 2**32


def _even_pts(first: int, step: float, count: int) -> np.ndarray:
    return np.rint(first + step * np.arange(count)).astype(np.int64)


def _pack_file(version: Version, index: StreamIndex) -> tuple[tuple, np.ndarray] | None:
    """Return the numeric fields of a row and the keyframe gaps, or None if the index does not fit them."""
    if index.pts is None or not index.keyframes:
        return None
    first, last, count = int(index.pts[0]), int(index.pts[-1]), len(index.pts)
    step = (last - first) / max(1, count - 1)
    keys = np.array([key.pts for key in index.keyframes], np.int64)
    numbers = np.searchsorted(index.pts, keys)
    gaps = np.diff(numbers, prepend=0)
    fits = max(version[0], index.frame_bytes, count) < 2**32 and abs(first) < 2**31 and gaps.max(initial=0) < 2**16
    is_even = np.array_equal(_even_pts(first, step, count), index.pts)
    if not fits or not is_even or not np.array_equal(index.pts[numbers % count], keys):
        return None
    return (*version, count, index.frame_bytes, first, step, index.fps), gaps.astype(np.uint16)
