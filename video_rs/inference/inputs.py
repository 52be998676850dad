"""The inputs of a classifier: files in a folder, and frames in memory."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from video_rs.data.shards import is_member
from video_rs.data.storage import is_remote
from video_rs.data.video.images import image_pixels
from video_rs.data.video.media import MEDIA_EXTENSIONS, VIDEO_EXTENSIONS, is_image
from video_rs.data.video.search import LeftOut, folders_of_frames, has_frames, media_below
from video_rs.errors import NO_SUCH_FILE, MediaError, UserError

ACCEPTED = "a path, uint8 frames, a PIL image, or a list of these"


def existing(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the paths that exist, with patterns such as ``*.mp4`` expanded, and a line about each missing one.

    Paths that cannot be read, on remote storage or in shards count as existing.
    """
    found: list[str] = []
    missing: list[str] = []
    for path in inputs:
        if not _is_missing(path):
            found.append(path)
        elif not glob.has_magic(path):
            missing.append(f"{path}: {NO_SUCH_FILE}")
        elif paths := sorted(glob.glob(path, recursive=True)):
            found += paths
        else:
            missing.append(f"{path}: no file matches this pattern")
    return found, missing


def _is_missing(path: str) -> bool:
    if is_remote(path) or is_member(path):
        return False
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def find_files(folder: str | Path, images: bool, left_out: LeftOut | None = None) -> list[str]:
    """List the files in a folder and its subfolders that a network can classify, sorted by name.

    For a video network, a folder with images is one video, unless it or a subfolder contains videos. A folder of frames
    with the extension of a video (``v0.avi/``) is one too.

    Args:
        folder: folder to search. Links are followed. Hidden files and files of systems and tools are skipped.
        images: True for an image network.
        left_out: counts the files that are not used.

    Returns:
        Paths of videos, also of images if `images`. If there are none, paths of folders with frames; only `folder` if
        it directly contains images.

    Raises:
        MediaError: there is nothing to classify.
    """
    folder = str(Path(folder))
    others = LeftOut()
    extensions = MEDIA_EXTENSIONS if images else VIDEO_EXTENSIONS
    found = list(media_below(folder, extensions, others, video_folders=not images))
    if not found:
        others = LeftOut()
        found = [folder] if has_frames(folder) else folders_of_frames(folder, others)
    if left_out is not None:
        left_out.count, left_out.first = left_out.count + others.count, left_out.first or others.first
    if not found:
        raise MediaError(f"{folder}: no {'videos or images' if images else 'videos'} in this folder")
    return found


def find_all(inputs: Sequence[str], images: bool, report: Callable[[str], Any]) -> tuple[list[str], int]:
    """Return the files of all inputs, including those in folders, and the number of folders without files.

    Args:
        images: True for an image network.
        report: called with one line for each folder without files, and one line about files that are not used.
    """
    files: list[str] = []
    left_out, empty = LeftOut(), 0
    for entry in inputs:
        try:
            files += find_files(entry, images, left_out) if Path(entry).is_dir() else [entry]
        except MediaError as error:
            empty += 1
            report(f"error: {error}")
    if left_out.count:
        report(f"note: {left_out.describe()}")
    return files, empty


def output_files(
    out: str | Path, files: Sequence[str], suffixes: Sequence[str], *, overwrite: bool = False
) -> list[Path]:
    """Return the file to write for each input: `out`, or files of different names in a folder `out`.

    Args:
        out: a path with one of `suffixes`, for a single input; or a folder.
        suffixes: of the files that can be written. In a folder, an image has ``.png``, and a video the first one.
        overwrite: allow files that exist, but not those of `files`.

    Raises:
        UserError: a file exists, the suffix is another one, or several inputs need a folder.
    """
    out, paths = Path(out), {}  # a dict for its order
    if out.is_dir() or not out.suffix:
        for file in files:
            stem, suffix = Path(file).stem, ".png" if is_image(file) else suffixes[0]
            names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
            paths[next(path for name in names if (path := out / f"{name}{suffix}") not in paths)] = None
    elif out.suffix.lower() not in suffixes:
        raise UserError(f"{out}: cannot write {out.suffix}; use {', '.join(suffixes)}, or a folder")
    elif len(files) > 1:
        raise UserError(f"{out}: {len(files)} files need a folder; leave out {out.suffix}")
    else:
        paths[out] = None
    for path in paths:
        if path.exists() and any(os.path.exists(file) and path.samefile(file) for file in files):
            raise UserError(f"{path} is one of the inputs; choose another output")
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists; give another --out, or add --overwrite")
    return list(paths)


def frames_of(source: Any, channels: int) -> Tensor:
    """Convert frames in memory to uint8 ``[T, H, W, C]``, or an image to ``[H, W, C]``.

    Args:
        source: an array, a tensor, or a PIL image, which is rotated according to its EXIF tag.
        channels: number of input channels of the network.

    Raises:
        UserError: the source has an unsupported type, dtype or shape.
    """
    if isinstance(source, Image.Image):
        source = image_pixels(source, "the image")
    if not isinstance(source, (np.ndarray, Tensor)):
        raise UserError(f"cannot classify {type(source).__name__}: give {ACCEPTED}")
    if str(source.dtype).removeprefix("torch.") != "uint8" or source.ndim not in (3, 4) or source.shape[-1] != channels:
        given = f"{source.dtype} {list(source.shape)}"
        raise UserError(f"frames must be uint8 [T, H, W, {channels}] or [H, W, {channels}], got {given}")
    if 0 in source.shape:
        raise UserError(f"no frames: got an array of shape {list(source.shape)}")
    if isinstance(source, np.ndarray):  # torch does not support negative strides, as in BGR frames flipped to RGB
        source = torch.from_numpy(np.require(source, requirements="CW"))
    return source.cpu()
