"""Read the frames of a video, an image or a folder of images, by number.

With every backend, frame ``i`` is the ``i``-th frame in presentation order of a full sequential decode of the file's
best video stream, with rotation and edit lists applied. An image is a video of one frame, and a folder of images is a
video (see images.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from video_rs.data import limits
from video_rs.data.clips import Timeline
from video_rs.data.shards import File, in_memory
from video_rs.data.transforms.crops import Box, resize, short_side_size
from video_rs.data.video.decord import DecordReader
from video_rs.data.video.images import ImageReader, frame_files
from video_rs.data.video.media import CallerError, Unsuitable, media_errors, require_file, too_large
from video_rs.data.video.pyav import PyAVReader
from video_rs.data.video.stream_index import StreamIndex, read_stream_index
from video_rs.errors import MediaError, UserError

BACKENDS = ("pyav", "decord")


@dataclass(frozen=True)
class VideoInfo:
    """Metadata of a video.

    Attributes:
        num_frames: number of frames that can be read.
        fps: mean frames per second; 0 if unknown.
        height, width: size of an upright frame, in pixels.
        duration: duration in seconds; 0 if `fps` is unknown.
        codec: FFmpeg's name of the codec.
        rotation: counter-clockwise rotation in degrees that makes the stored frames upright.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    duration: float
    codec: str
    rotation: int


class FrameReader(Protocol):
    """The interface of a decoder, as used by :class:`Video`."""

    num_frames: int
    fps: float
    times: np.ndarray | None
    damage: str

    def frames(self, indices: np.ndarray, crop: Callable[[int, int], Box]) -> Iterator[Tensor]:
        """Yield the frames at `indices` in pieces, uint8 ``[n, h, w, 3]``.

        Args:
            indices: ascending frame numbers, without repeats.
            crop: called with the upright height and width; returns the box to crop.
        """

    def first_frame(self) -> tuple[str, int, int, int]:
        """Return codec, rotation, and upright height and width of the first frame. For PyAV and PIL only."""

    def close(self) -> None: ...


class Video(AbstractContextManager):
    """An open video. Close it, or use it in a ``with`` block.

    Attributes:
        path: path of the file.
        num_frames: number of frames that can be read.
        fps: mean frames per second; 0 if unknown, as for an image.
        times: the times at which the frames are shown, float64 ``[num_frames]`` seconds, ascending from 0; None if
            unknown, as for an image. Evenly spaced if the timestamps of the file are wrong, see
            :func:`video_rs.data.video.times.frame_times`.
        backend: "decord", "pyav" or "pil".
    """

    def __init__(self, path: File, backend: str, reader: FrameReader, fallback: Callable | None = None) -> None:
        self.path, self.backend, self._reader, self._fallback = path, backend, reader, fallback
        self.num_frames, self.fps, self.times = reader.num_frames, reader.fps, reader.times

    @property
    def duration(self) -> float:
        """The duration in seconds, with the median interval for the last frame; 0 if unknown."""
        return self.timeline.duration

    @property
    def timeline(self) -> Timeline:
        """The times of the frames, for sampling clips."""
        return Timeline(self.num_frames, self.times, self.fps)

    def read(
        self,
        indices: Sequence[int] | np.ndarray,
        *,
        crop: Box | Callable[[int, int], Box] | None = None,
        size: int | tuple[int, int] | None = None,
        short_side: int | None = None,
        filter: str = "bilinear",
    ) -> Tensor:
        """Read frames by number, in any order, with repeats.

        Frames are resized while decoding, so only a few are in memory at full size.

        Args:
            indices: ``[T]`` integers in ``[0, num_frames)``.
            crop: top, left, height and width of the part to read, in pixels of the upright frame; or a function that
                returns them, called with the height and width of the frame. Only that part is converted to RGB.
            size: height and width to resize to; a single number for a square.
            short_side: length to resize the short side to, instead of `size`.
            filter: resize filter, one of ``data_config.FILTERS``.

        Returns:
            uint8 ``[T, H, W, 3]``, RGB.

        Raises:
            IndexError: an index is out of range, or the crop is not inside the frame.
            ValueError: both `size` and `short_side` are given, or one is not a positive integer.
            MediaError: the file is truncated or cannot be decoded.
            StorageError: the storage cannot read the file.
        """
        if size is not None and short_side is not None:
            raise ValueError("give size or short_side, not both")
        size = (size, size) if isinstance(size, int) else size
        if any(type(side) is not int or side < 1 for side in (*(size or ()), short_side or 1)):
            raise ValueError(f"size and short_side are whole numbers of pixels, got {size or short_side}")

        def resize_frames(frames: Tensor) -> Tensor:
            if short_side is not None:
                return self._with_short_side(frames, short_side, filter)
            return frames if size is None else resize(frames, *size, filter)

        choose_box = crop if callable(crop) else lambda *whole: crop or (0, 0, *whole)
        return self._read(indices, lambda *whole: [choose_box(*whole)], resize_frames, None)[0]

    def read_crops(
        self,
        indices: Sequence[int] | np.ndarray,
        choose_boxes: Callable[[int, int], Sequence[Box]],
        size: int,
        *,
        filter: str = "bilinear",
        out: Tensor | None = None,
    ) -> Tensor:
        """Read several crops of the same frames, decoding once.

        Args:
            indices: see :meth:`read`.
            choose_boxes: called once with the upright height and width of the frames; returns R boxes.
            size: height and width to resize each crop to.
            filter: resize filter, one of ``data_config.FILTERS``.
            out: uint8 ``[R, T, size, size, 3]`` to write into.

        Returns:
            `out`, or a new tensor of that shape.

        Raises:
            IndexError, MediaError: see :meth:`read`.
            ValueError: `out` has another shape.
        """
        return self._read(indices, choose_boxes, lambda frames: resize(frames, size, size, filter), out)

    def stream(
        self, indices: np.ndarray, *, short_side: int | None = None, filter: str = "bilinear"
    ) -> Iterator[Tensor]:
        """Yield frames one by one, uint8 ``[H, W, 3]``, in one pass. `indices` must ascend without repeats."""
        for piece in self._pieces(indices, lambda *size: (0, 0, *size)):
            yield from piece if short_side is None else self._with_short_side(piece, short_side, filter)

    def _with_short_side(self, frames: Tensor, short_side: int, filter: str) -> Tensor:
        height, width = short_side_size(*frames.shape[1:3], short_side)
        if height * width > limits.max_pixels():  # a strip of a few pixels
            raise MediaError(too_large(self.path, width, height))
        return resize(frames, height, width, filter)

    def _read(
        self, indices: Sequence[int] | np.ndarray, choose_boxes: Callable, resize_frames: Callable, out: Tensor | None
    ) -> Tensor:
        """Return crops of the frames at `indices`, cropped and resized in pieces: ``[R, T, H, W, 3]``."""
        unique, places = self._unique(indices)
        boxes: list[Box] = []
        crops, done = None, 0

        def crop_all(height: int, width: int) -> Box:
            if not boxes:
                boxes.extend(choose_boxes(height, width))
            return _bounding_box(boxes)

        for piece in self._pieces(unique, crop_all):
            first_top, first_left, *_ = _bounding_box(boxes)
            for number, (top, left, height, width) in enumerate(boxes):
                top, left = top - first_top, left - first_left
                part = resize_frames(piece[:, top : top + height, left : left + width])
                if crops is None:
                    shape = len(boxes), len(indices), *part.shape[1:]
                    if out is not None and out.shape != shape:
                        raise ValueError(f"out is {list(out.shape)}, the crops are {list(shape)}")
                    in_place = out is not None and places is None
                    crops = out if in_place else part.new_empty(len(boxes), len(unique), *part.shape[1:])
                crops[number, done : done + len(piece)] = part
            done += len(piece)
        return crops if places is None else torch.index_select(crops, 1, places, out=out)

    def _unique(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, Tensor | None]:
        """Return the unique indices in ascending order, and the position of each requested index among them.

        The positions are None if the indices are already ascending. Raise ``IndexError`` for an invalid index.
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or indices.dtype.kind not in "iu" or not len(indices):
            raise IndexError(f"{self.path}: frame indices must be a list of one or more whole numbers")
        worst = indices.max() if indices.max() >= self.num_frames else indices.min()
        if not 0 <= worst < self.num_frames:
            raise IndexError(f"{self.path}: frame {worst} is not one of its {self.num_frames} frames")
        unique, places = np.unique(indices, return_inverse=True)
        return unique, None if np.array_equal(unique, indices) else torch.from_numpy(places)

    def _pieces(self, indices: np.ndarray, crop: Callable[[int, int], Box]) -> Iterator[Tensor]:
        """Yield all frames at `indices`, from the fallback where the backend gives up. Readers call `crop` often."""

        def checked_crop(frame_height: int, frame_width: int) -> Box:
            try:
                top, left, height, width = crop(frame_height, frame_width)
                inside = min(top, left) >= 0 and top + height <= frame_height and left + width <= frame_width
                if not inside or min(height, width) < 1:
                    box, size = (top, left, height, width), f"{frame_height}x{frame_width}"
                    raise IndexError(f"{self.path}: the crop {box} is not inside a frame of {size} pixels")
            except Exception as error:
                raise CallerError from error
            return top, left, height, width

        done = 0
        while done < len(indices):
            with media_errors(self.path):
                try:
                    for piece in self._reader.frames(indices[done:], checked_crop):
                        done += len(piece)
                        yield piece
                    if done < len(indices):
                        raise MediaError(f"{self.path}: ends after {done} of the {len(indices)} requested frames")
                except Unsuitable:
                    fallback = self._fallback()
                    self.close()
                    self.backend, self._reader = "pyav", fallback

    def info(self) -> VideoInfo:
        """Return the metadata. Decode one frame. Not for decord."""
        with media_errors(self.path):
            codec, rotation, height, width = self._reader.first_frame()
        return VideoInfo(self.num_frames, self.fps, height, width, self.duration, codec, rotation)

    @property
    def damage(self) -> str:
        """What is wrong with the frames read so far; "" if nothing. For PyAV."""
        return self._reader.damage

    def close(self) -> None:
        self._reader.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def open_video(path: File, backend: str = "pyav", stream_index: StreamIndex | None = None, listed: int = 0) -> Video:
    """Open a video, an image, or a folder of frames.

    Args:
        path: path of the file, which may be a member of a shard (``x.tar/name``).
        backend: "pyav"; or "decord", which falls back to PyAV if decord is not installed, fails, or would return frames
            or colours that differ from a sequential decode, according to the packets.
        stream_index: the stream index of the file, if already known.
        listed: for a folder of frames, the number of images that belong to the video; 0 for all.

    Raises:
        MediaError: the file is missing or damaged, or has no video stream.
        StorageError: the storage cannot open or read the file. It is also a MediaError if there is no such file.
        UserError: `backend` is unknown.
    """
    if backend not in BACKENDS:
        raise UserError(f"unknown decoder {backend!r}: use one of {', '.join(BACKENDS)}")
    file = in_memory(path)
    with media_errors(path):
        images = frame_files(file, listed)
        if images in ([], [file]):  # not a folder
            require_file(file)
        if images:
            return Video(path, "pil", ImageReader(images))
        if backend == "decord":
            stream_index = stream_index or read_stream_index(file)
            with suppress(Unsuitable):
                return Video(path, "decord", DecordReader(file, stream_index), partial(PyAVReader, file, stream_index))
        return Video(path, "pyav", PyAVReader(file, stream_index))


def read_frames(path: File, indices: Sequence[int] | np.ndarray, *, backend: str = "pyav", **options: Any) -> Tensor:
    """Read frames of a file by number.

    Args:
        path, backend: as for :func:`open_video`.
        indices, options: as for :meth:`Video.read`: ``crop``, ``size`` or ``short_side``, and ``filter``.
    """
    with open_video(path, backend) as video:
        return video.read(indices, **options)


def probe(path: File) -> VideoInfo:
    """Return the metadata of a video file or a folder of frames.

    Decode one frame, or all frames if the timestamps are unreliable.

    Raises:
        MediaError: see :func:`open_video`.
    """
    with open_video(path) as video:
        return video.info()


def _bounding_box(boxes: Sequence[Box]) -> Box:
    top, left = min(box[0] for box in boxes), min(box[1] for box in boxes)
    return top, left, max(box[0] + box[2] for box in boxes) - top, max(box[1] + box[3] for box in boxes) - left
