"""A folder of images, in the order of their names, as a video: what tools that extract frames leave of one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from video_rs.data.shards import File
from video_rs.data.transforms.crops import Box
from video_rs.data.video.images import read_image
from video_rs.data.video.media import IMAGE_EXTENSIONS, is_image, media_below
from video_rs.errors import MediaError

_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)", re.DOTALL)
_FLOW = re.compile(r"flow_[xy]_")  # optical flow, which TSN's tools write beside the frames


class ImagesReader:
    """A ``decode.Backend`` whose frames are image files. Only those asked for are read, one at a time.

    Args:
        paths: of the images, in order.
    """

    def __init__(self, paths: Sequence[File]) -> None:
        self.paths, self.num_frames = paths, len(paths)
        self._size: tuple[int, int] | None = None  # of the first frame that was read

    def frames(self, indices: np.ndarray, plan: Callable[[int, int], Box]) -> Iterator[Tensor]:
        """See ``decode.Backend``. Raise ``MediaError`` for an image that is damaged or not of the first one's size."""
        for number in indices:
            path = self.paths[int(number)]
            image = read_image(path)
            height, width = image.shape[1:3]
            self._size = self._size or (height, width)
            if (height, width) != self._size:
                size = "x".join(map(str, self._size))
                raise MediaError(f"{path}: is of {height}x{width} pixels, other frames of its folder of {size}")
            top, left, height, width = plan(height, width)
            yield image[:, top : top + height, left : left + width]

    def close(self) -> None:
        """Nothing is open between two frames."""


def frame_paths(folder: str | Path, listed: int = 0) -> list[str]:
    """Return the images that are a folder's frames; the first `listed`, unless that is 0.

    Raises:
        MediaError: as :func:`frame_names`; or there are fewer images than `listed`.
    """
    names = frame_names(folder)
    if listed > len(names):
        raise MediaError(f"{folder}: has {len(names)} images, its list says {listed} frames")
    return [os.path.join(folder, name) for name in names[: listed or None]]


def codec_of(path: str) -> str:
    """Return what FFmpeg calls the codec of an image, by its extension."""
    extension = os.path.splitext(path)[1][1:].lower()
    return {"jpg": "jpeg", "tif": "tiff"}.get(extension, extension)


def frame_names(folder: str | Path) -> list[str]:
    """The images directly in a folder, in natural order (``img_2`` before ``img_10``), without hidden ones; nor is
    optical flow beside them (``flow_x_00001.jpg``) any of the frames.

    Raises:
        MediaError: there are none; or most of their names are numbered, not all, or a number is missing or there twice,
            or there are several series of numbers, as where ``thumb_00001.jpg`` lies beside ``img_00001.jpg``.
    """
    names = [name for name in os.listdir(folder) if is_image(name) and not name.startswith(".")]
    if not names:
        raise MediaError(f"{folder}: no images in it")
    names = [name for name in names if not _FLOW.match(name)] or names
    names.sort(key=_natural)
    numbered = [_NUMBERED.fullmatch(os.path.splitext(name)[0]) for name in names]
    if 2 * sum(map(bool, numbered)) > len(names):
        if not all(numbered):
            odd = names[numbered.index(None)]
            raise MediaError(f"{folder}: {odd} has no number, as other images in it have: take it out")
        _refuse_series(folder, names, [re.sub(r"\d+", "0", match["stem"]) for match in numbered])
        if len({match["stem"] for match in numbered}) == 1:
            _refuse_gaps(folder, names, [int(match["number"]) for match in numbered])
    return names


def has_frames(folder: str | Path) -> bool:
    """Whether there are images directly in a folder."""
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) and not entry.name.startswith(".") for entry in entries)


def folders_of_frames(folder: str) -> list[str]:
    """The folders that have images directly in them: this one and those below it."""
    return list(dict.fromkeys(os.path.dirname(path) for path in media_below(folder, IMAGE_EXTENSIONS)))


def _natural(name: str) -> tuple:
    stem, extension = os.path.splitext(name)
    parts = re.split(r"(\d+)", stem)  # text and digits take turns
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], name, extension


def _refuse_series(folder: str | Path, names: list[str], series: list[str]) -> None:
    """Stems may differ in their digits, as times do, but ``img_`` and ``thumb_`` are not one video."""
    other = next((name for name, each in zip(names, series, strict=True) if each != series[0]), None)
    if other is not None:
        raise MediaError(f"{folder}: {names[0]} and {other} are frames of two series: keep one in a folder")


def _refuse_gaps(folder: str | Path, names: list[str], numbers: list[int]) -> None:
    for at in range(1, len(names)):
        before, number = numbers[at - 1 : at + 1]
        if number == before:
            raise MediaError(f"{folder}: {names[at - 1]} and {names[at]} are the same frame twice: keep one")
        if number != before + 1:
            missing = _named_like(names[at - 1], before + 1)
            raise MediaError(f"{folder}: {missing} is missing, between {names[at - 1]} and {names[at]}")


def _named_like(name: str, number: int) -> str:
    stem, extension = os.path.splitext(name)
    match = _NUMBERED.fullmatch(stem)
    return f"{match['stem']}{number:0{len(match['number'])}d}{extension}"
