"""Read frames with decord (https://github.com/dmlc/decord), for files that it decodes correctly."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from video_rs.data.shards import Blob, File
from video_rs.data.transforms.crops import Box
from video_rs.data.video.media import Unsuitable
from video_rs.data.video.stream_index import StreamIndex
from video_rs.errors import first_line

CHUNK_BYTES = 16 * 2**20  # maximum size of the frames decoded at a time, before they are resized


def import_problem() -> str:
    """Return the reason why decord cannot be imported, or ""."""
    try:
        import decord  # noqa: F401
    except (ImportError, OSError) as error:
        return first_line(error)
    return ""


def describe_decoder(decoder: str) -> str:
    """Return a note if PyAV is used because decord cannot be imported, or ""."""
    if decoder == "decord" and (problem := import_problem()):
        return f"PyAV, since decord cannot be imported: {problem}"
    return ""


class DecordReader:
    """Read frames of a video with decord. See ``decode.FrameReader``.

    Create it in the process that reads from it. A reader created before a fork can hang (decord issues 76, 294).

    Args:
        path: path of the file, or the file in memory.
        index: the stream index of the file.

    Raises:
        Unsuitable: decord is missing, cannot open the file, or would return frames that differ from a sequential
            decode.
    """

    damage = ""

    def __init__(self, path: File, index: StreamIndex) -> None:
        if index.decord_problem:
            raise Unsuitable
        self._path = path if isinstance(path, Blob) else os.path.abspath(path)  # for decord "10:30.mp4" is a URL
        self._reader = self._open()
        self.num_frames, self.fps, self.times = len(self._reader), index.fps, index.times
        self._chunk = max(1, CHUNK_BYTES // max(1, index.frame_bytes))
        if self.num_frames != index.num_frames:
            raise Unsuitable

    def frames(self, indices: np.ndarray, crop: Callable[[int, int], Box]) -> Iterator[Tensor]:
        """Yield frames. Raise ``Unsuitable`` if decord fails."""
        self._reader = self._reader or self._open()
        for first in range(0, len(indices), self._chunk):
            try:
                batch = self._reader.get_batch(indices[first : first + self._chunk].tolist())
            except Exception as error:  # RuntimeError, DECORDError, ...
                raise Unsuitable from error
            if first + self._chunk >= len(indices):
                self.close()  # otherwise decord decodes ahead while the frames are resized
            # other packages may set decord's global bridge to torch
            frames = batch if isinstance(batch, Tensor) else from_dlpack(batch.to_dlpack())
            top, left, height, width = crop(*frames.shape[1:3])
            yield frames[:, top : top + height, left : left + width].contiguous()  # torchvision resizes row by row

    def _open(self) -> Any:
        if import_problem():
            raise Unsuitable
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        try:
            file = self._path.open() if isinstance(self._path, Blob) else self._path
            return decord.VideoReader(file, num_threads=1)
        except Exception as error:  # RuntimeError, DECORDError, UnicodeEncodeError for names that are not UTF-8, ...
            raise Unsuitable from error

    def close(self) -> None:
        self._reader = None
