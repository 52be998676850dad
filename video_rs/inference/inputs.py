"""The inputs of a classifier: the files of a folder, and frames in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from video_rs.data.video.images import folders_of_frames, has_frames, image_pixels
from video_rs.data.video.media import MEDIA_EXTENSIONS, VIDEO_EXTENSIONS, media_below
from video_rs.errors import MediaError, UserError

ACCEPTED = "a path, uint8 frames, a PIL image, or a list of these"


def find_files(folder: str | Path, *, images: bool) -> list[str]:
    """List the files of a folder that a network can classify, in name order, subfolders included.

    To a network of clips, a folder with images in it is one video, unless videos lie in or below it.

    Args:
        folder: links are followed, hidden files are left out.
        images: the network takes single images.

    Returns:
        Paths of videos, or of videos and images if `images`; else of folders with frames, only `folder` if images lie
        directly in it.

    Raises:
        MediaError: there are none.
    """
    folder = str(Path(folder))
    found = list(media_below(folder, MEDIA_EXTENSIONS if images else VIDEO_EXTENSIONS))
    if not found:
        found = [folder] if has_frames(folder) else folders_of_frames(folder)
    if not found:
        raise MediaError(f"{folder}: no {'videos or images' if images else 'videos'} in this folder")
    return found


def frames_of(source: Any, channels: int) -> Tensor:
    """Return the frames in memory as uint8 ``[T, H, W, C]``, or ``[H, W, C]`` of an image.

    Args:
        source: array, tensor or PIL image, which is turned upright by its EXIF tag.
        channels: of the network.

    Raises:
        UserError: it is something else, or of another type or shape.
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
    if isinstance(source, np.ndarray):  # torch refuses negative strides, as of BGR frames turned to RGB
        source = torch.from_numpy(np.require(source, requirements="CW"))
    return source.cpu()
