"""Read images and folders of frames with PIL. An image is a video of one frame; a folder of images is one video."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from video_rs.data import limits, storage
from video_rs.data.shards import Blob, File, in_memory
from video_rs.data.transforms.crops import Box
from video_rs.data.video.contents import content_problem
from video_rs.data.video.media import is_image, media_errors, require_file, too_large
from video_rs.errors import MediaError, VideoRSError

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # no PostScript: PIL would run Ghostscript
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)", re.DOTALL)
_FLOW = re.compile(r"flow_[xy]_")  # optical flow, written by TSN's tools to the folder of the frames


def read_image(path: File) -> Tensor:
    """Read an image file as uint8 ``[1, H, W, 3]``, see :func:`image_pixels`.

    Raises:
        MediaError: the file is missing or damaged.
    """
    file = in_memory(path)
    require_file(file)
    with media_errors(path), _bytes(file) as source, _opened(source, file) as image:
        width, height = image.size
        if width * height > limits.max_pixels():
            raise MediaError(too_large(path, width, height))
        return image_pixels(image, path)[None]


def _bytes(file: File) -> io.BufferedIOBase:
    return file.open() if isinstance(file, Blob) else io.BufferedReader(storage.open_file(file), 2**16)


def _opened(source: Any, file: File) -> Image.Image:
    """Open an image with PIL. Raise ``MediaError`` if its first bytes are those of another kind of file."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # data.max_pixels is the limit
    try:
        return Image.open(source, formats=_FORMATS)
    except VideoRSError:
        raise
    except Exception as error:
        reason = content_problem(file, image=True)
        if not reason and isinstance(error, UnidentifiedImageError):
            reason = "cannot be decoded (damaged, or in an unsupported format)"
        if reason:
            raise MediaError(f"{file}: {reason}") from error
        raise
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def image_pixels(image: Image.Image, name: File) -> Tensor:
    """Convert a PIL image to uint8 ``[H, W, 3]``, rotated according to its EXIF tag.

    16-bit channels are scaled to 8 bits. 32-bit images raise ``MediaError``, because their range is not defined.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "F"):
        raise MediaError(f"{name}: 32 bits per pixel; convert it to 8 or 16")
    if upright.mode.startswith("I;16"):  # PIL would clip it
        gray = (np.array(upright).astype(np.uint32) + 128) // 257
        upright = Image.fromarray(gray.astype(np.uint8))
    return torch.from_numpy(np.array(upright.convert("RGB")))


class ImageReader:
    """Read image files as the frames of one video. See ``decode.FrameReader``.

    Only the requested images are read, one at a time.

    Args:
        paths: paths of the images, in order.
    """

    damage = ""

    def __init__(self, paths: Sequence[File]) -> None:
        self.paths, self.num_frames, self.fps, self.times = paths, len(paths), 0.0, None
        self._size: tuple[int, int] | None = None  # size of the first frame that was read

    def frames(self, indices: np.ndarray, crop: Callable[[int, int], Box]) -> Iterator[Tensor]:
        """Yield frames. Raise ``MediaError`` if an image is damaged or differs in size from the first one read."""
        for number in indices:
            path = self.paths[int(number)]
            image = read_image(path)
            height, width = image.shape[1:3]
            self._size = self._size or (height, width)
            if (height, width) != self._size:
                size = "x".join(map(str, self._size))
                raise MediaError(f"{path}: has {height}x{width} pixels, but other frames in the folder have {size}")
            top, left, height, width = crop(height, width)
            yield image[:, top : top + height, left : left + width]

    def first_frame(self) -> tuple[str, int, int, int]:
        """See ``decode.FrameReader``."""
        height, width = read_image(self.paths[0]).shape[1:3]
        return image_codec(self.paths[0]), 0, height, width

    def close(self) -> None:
        """Do nothing: no file is open between two frames."""


def frame_files(file: File, listed: int = 0) -> list[File]:
    """Return the images that are the frames of a file: an image itself, or those of a folder; empty for a video.

    Args:
        file: path of an image, a video or a folder; or the file, in memory.
        listed: number of images that are the video, for a folder; 0 for all.

    Raises:
        MediaError: see :func:`frame_names`; or the folder has fewer images than `listed`.
    """
    if isinstance(file, Blob) or not os.path.isdir(file):
        return [file] if is_image(file) else []
    names = frame_names(file)
    if listed > len(names):
        raise MediaError(f"{file}: has {len(names)} images, but {listed} frames in its list")
    return [os.path.join(file, name) for name in names[: listed or None]]


def image_codec(path: File) -> str:
    """Return FFmpeg's name for the codec of an image file, based on its extension."""
    extension = os.path.splitext(str(path))[1][1:].lower()
    return {"jpg": "jpeg", "tif": "tiff"}.get(extension, extension)


def frame_names(folder: str | Path) -> list[str]:
    """Return the names of the images directly in a folder, in natural order (``img_2`` before ``img_10``).

    Hidden files and optical flow next to frames (``flow_x_00001.jpg``) are skipped.

    Raises:
        MediaError: there are no images; most names are numbered but one is not; a number is missing or repeated; or
            there are several series (``thumb_00001.jpg`` and ``img_00001.jpg``).
    """
    names = [entry.name for entry in storage.entries(folder) if is_image(entry.name) and entry.name[0] != "."]
    if not names:
        raise MediaError(f"{folder}: contains no images")
    names = [name for name in names if not _FLOW.match(name)] or names
    names.sort(key=_natural)
    numbered = [_NUMBERED.fullmatch(os.path.splitext(name)[0]) for name in names]
    if 2 * sum(map(bool, numbered)) > len(names):
        if not all(numbered):
            odd = names[numbered.index(None)]
            raise MediaError(f"{folder}: {odd} has no number, unlike other images in this folder; remove it")
        series = [re.sub(r"\d+", "0", match["stem"]) for match in numbered]  # img_ and thumb_ are two videos
        other = next((name for name, each in zip(names, series, strict=True) if each != series[0]), None)
        if other is not None:
            raise MediaError(f"{folder}: {names[0]} and {other} are from two series of frames; keep one per folder")
        if len({match["stem"] for match in numbered}) == 1:
            _require_consecutive(folder, names, numbered)
    return names


def _natural(name: str) -> tuple:
    stem, extension = os.path.splitext(name)
    parts = re.split(r"(\d+)", stem)  # text and digits alternate
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], name, extension


def _require_consecutive(folder: str | Path, names: list[str], numbered: list[re.Match]) -> None:
    """Raise ``MediaError`` if a frame number is missing or repeated."""
    for at in range(1, len(names)):
        before, number = (int(match["number"]) for match in numbered[at - 1 : at + 1])
        if number == before:
            raise MediaError(f"{folder}: {names[at - 1]} and {names[at]} have the same frame number; keep one")
        if number != before + 1:
            stem, digits = numbered[at - 1].groups()
            missing = f"{stem}{before + 1:0{len(digits)}d}{os.path.splitext(names[at - 1])[1]}"
            raise MediaError(f"{folder}: {missing} is missing, between {names[at - 1]} and {names[at]}")
