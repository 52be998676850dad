"""Frames of a video or an image file, by number.

Frame ``i`` is the ``i``-th frame in presentation order of a full sequential decode of the file's best video stream,
upright (rotation applied), with edit lists honoured, whichever backend delivers it. An image is a video of one frame.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import torch
from torch import Tensor

from video_rs.data.decode_decord import DecordReader, Unsuitable
from video_rs.data.decode_pyav import PyAVReader, VideoInfo, header_rate, probe_video, scan
from video_rs.data.transforms import resize, short_side_size
from video_rs.errors import MediaError, UserError

BACKENDS = ("auto", "decord", "pyav")
IMAGE_EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"])
VIDEO_EXTENSIONS = frozenset(
    [".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".ogv"]
    + [".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts"]
)


class Backend(Protocol):
    """What a decoder has to offer to :class:`Video`."""

    num_frames: int

    def frames(self, indices: np.ndarray) -> Iterator[Tensor]:
        """uint8 ``[n, H, W, 3]`` pieces that follow `indices` (ascending, without repeats)."""

    def close(self) -> None: ...


class Video:
    """An open file; close it or use it in a ``with`` block.

    Attributes:
        path: of the file.
        num_frames: that can be read.
        backend: "decord", "pyav" or "pil".
    """

    def __init__(
        self, path: str | Path, backend: str, reader: Backend, spare: Callable[[], Backend] | None = None
    ) -> None:
        self.path, self.backend, self._reader, self._spare = path, backend, reader, spare
        self.num_frames = reader.num_frames

    def read(self, indices: Sequence[int] | np.ndarray, *, short_side: int | None = None, filter: str = "bilinear"):
        """Frames by number, in any order, with repeats.

        Args:
            indices: ``[T]`` integers in ``[0, num_frames)``.
            short_side: resize each frame as it is decoded, so that few large ones are in memory at a time.
            filter: of the resize, one of ``contract.FILTERS``.

        Returns:
            uint8 ``[T, H, W, 3]``, RGB.

        Raises:
            IndexError: for an index out of range.
            MediaError: if the file breaks off or cannot be decoded.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size == 0 or indices.min() < 0 or indices.max() >= self.num_frames:
            raise IndexError(f"{self.path}: frame indices {indices.tolist()} outside 0..{self.num_frames - 1}")
        unique, places = np.unique(indices, return_inverse=True)
        with _media_errors(self.path):
            try:
                frames = self._frames(unique, short_side, filter)
            except Unsuitable:
                self._fall_back()
                frames = self._frames(unique, short_side, filter)
        if len(frames) != len(unique):
            raise MediaError(f"{self.path}: ends after {len(frames)} of the {len(unique)} frames asked for")
        return frames if np.array_equal(unique, indices) else frames[torch.from_numpy(places)]

    def stream(self, indices: np.ndarray, *, short_side: int, filter: str = "bilinear") -> Iterator[Tensor]:
        """As :meth:`read`, but frame by frame ``[H, W, 3]`` and in one pass; `indices` ascend without repeats."""
        done = 0
        with _media_errors(self.path):
            while done < len(indices):
                try:
                    for piece in self._reader.frames(indices[done:]):
                        for frame in resize(piece, *short_side_size(*piece.shape[1:3], short_side), filter):
                            done += 1
                            yield frame
                    if done < len(indices):
                        raise MediaError(f"{self.path}: ends after {done} of the {len(indices)} frames asked for")
                except Unsuitable:
                    self._fall_back()

    def _fall_back(self) -> None:
        """Goes on with PyAV; only where an Unsuitable is being handled."""
        if self._spare is None:
            raise
        self.close()
        self.backend, self._reader, self._spare = "pyav", self._spare(), None

    def _frames(self, indices: np.ndarray, short_side: int | None, filter: str) -> Tensor:
        frames, done = torch.empty(0), 0
        for piece in self._reader.frames(indices):
            if short_side is not None:
                piece = resize(piece, *short_side_size(*piece.shape[1:3], short_side), filter)
            if len(piece) == len(indices):
                return piece
            if not done:  # gathered in place: a clip of large frames would else be in memory twice
                frames = piece.new_empty(len(indices), *piece.shape[1:])
            frames[done : done + len(piece)] = piece
            done += len(piece)
        return frames[:done]

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_video(path: str | Path, backend: str = "auto") -> Video:
    """Open a video or an image.

    ``auto`` takes decord. Where it is not installed, where it fails, or where a look at the packets (no decoding) says
    that it would deliver other frames than asked for, it takes PyAV.

    Raises:
        MediaError: the file is missing, empty, damaged, has no video stream, or is not for the backend that was named.
    """
    if backend not in BACKENDS:
        raise UserError(f"unknown decoder {backend!r}: use one of {', '.join(BACKENDS)}")
    with _media_errors(path):
        if is_image(path):
            return Video(path, "pil", _ImageReader(path))
        packets = scan(path)
        problem = packets.decord_problem
        if backend != "pyav" and not problem:
            try:
                spare = partial(PyAVReader, path, packets) if backend == "auto" else None
                return Video(path, "decord", DecordReader(path, packets.num_frames, packets.frame_bytes), spare)
            except Unsuitable as error:
                problem = str(error)
        if backend == "decord":
            raise MediaError(f"{path}: decord cannot be trusted with this file ({problem}): set data.decoder=auto")
        return Video(path, "pyav", PyAVReader(path, packets))


def read_frames(
    path: str | Path,
    indices: Sequence[int] | np.ndarray,
    *,
    short_side: int | None = None,
    filter: str = "bilinear",
    backend: str = "auto",
) -> Tensor:
    """Open, read and close: see :func:`open_video` and :meth:`Video.read`."""
    with open_video(path, backend) as video:
        return video.read(indices, short_side=short_side, filter=filter)


def read_image(path: str | Path) -> Tensor:
    """An image file, upright by its EXIF tag, as uint8 ``[1, H, W, 3]``. Raises ``MediaError``.

    16 bits are brought to 8; of 32 bits nobody says which values are black and white.
    """
    from PIL import Image, ImageOps

    with _media_errors(path, Exception), Image.open(path) as image:  # a damaged image may raise anything in PIL
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("I", "F"):
            raise MediaError(f"{path}: 32 bits per pixel: convert it to 8 or 16")
        if upright.mode.startswith("I;16"):  # PIL would clip it
            gray = (np.array(upright).astype(np.uint32) + 128) // 257
            upright = Image.fromarray(gray.astype(np.uint8))
        return torch.from_numpy(np.array(upright.convert("RGB")))[None]


def probe(path: str | Path) -> VideoInfo:
    """What a video file holds. Decodes one frame, or all where the timestamps are no guide. Raises ``MediaError``."""
    with _media_errors(path):
        return probe_video(path)


def frame_rate(path: str | Path) -> float:
    """Mean frames per second as the file's header tells; 0 where it does not. Raises ``MediaError``."""
    with _media_errors(path):
        return header_rate(path)


def is_image(path: str | Path) -> bool:
    """Whether the extension is an image's."""
    return os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS


class _ImageReader:
    num_frames = 1

    def __init__(self, path: str | Path) -> None:
        self._image = read_image(path)

    def frames(self, indices: np.ndarray) -> Iterator[Tensor]:
        yield self._image

    def close(self) -> None:
        pass


@contextmanager
def _media_errors(path: str | Path, *kinds: type[Exception]) -> Iterator[None]:
    """Turn what a decoder raises, and `kinds`, into a ``MediaError`` that names the file."""
    try:
        if not Path(path).is_file():
            raise MediaError(f"{path}: no such file")
        if Path(path).stat().st_size == 0:
            raise MediaError(f"{path}: the file is empty")
        yield
    except MediaError:
        raise
    except (av.FFmpegError, Unsuitable, OSError, ValueError, *kinds) as error:
        if isinstance(error, UnicodeEncodeError):  # decoders take names as UTF-8
            raise MediaError(f"{path}: its name is not UTF-8: rename it") from None
        lines = (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip().splitlines()
        raise MediaError(f"{path}: cannot be decoded ({lines[0]})") from error
