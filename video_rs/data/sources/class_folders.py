"""Class folders: the classes of a folder and their files."""

import os
from collections.abc import Iterator

import numpy as np

from video_rs.data.sources.records import Paths
from video_rs.data.video.images import has_frames
from video_rs.data.video.media import is_media
from video_rs.errors import UserError


def class_folders(folder: str, frame_folders: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Yield each class and its sorted video and image files or frame folders. Hidden files are skipped."""
    for name in _subfolders(folder):
        place = os.path.join(folder, name)
        files = sorted(filter(_is_visible_media, os.listdir(place)))
        if frame_folders and files:
            raise UserError(f"data.frame_folders=true: {os.path.join(place, files[0])} is not in a folder of its own")
        yield name, _subfolders(place) if frame_folders else files


def describe_no_classes(folder: str, split: str = "train") -> str:
    """Return a message that explains why a folder has no class folders."""
    loose = list(filter(_is_visible_media, os.listdir(folder)))
    text = "no class folders with videos or images in it"
    if loose:
        is_imagenet = loose[0].startswith("ILSVRC2012_val_")
        kaggle = ", or put LOC_val_solution.csv into data.root" if is_imagenet else ""
        return f"{text}; {len(loose)} files are directly in it: set data.{split}=LIST{kaggle}"
    for name in _subfolders(folder):
        for inner in _subfolders(os.path.join(folder, name))[:1]:
            if has_frames(os.path.join(folder, name, inner)):
                return f"{text}, but folders of images: set data.frame_folders=true if each of them is one video"
    return text


def _subfolders(folder: str) -> list[str]:
    """Return the sorted names of the subfolders of a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _is_visible_media(name: str) -> bool:
    return not name.startswith(".") and is_media(name)


def present(paths: Paths) -> np.ndarray:
    """Return which files exist, bool ``[N]``.

    Each folder is listed once, because checking 240,000 files one by one takes minutes on network storage. Only 64-bit
    hashes of names are kept. With a million files, the probability of a collision for a missing file is 1e-7.
    """
    folders = dict.fromkeys(path[: path.rfind("/") + 1] for path in paths)
    found = (folder for folder in folders if os.path.isdir(folder or "."))
    listed = (hash(folder + name) for folder in found for name in os.listdir(folder or "."))
    return np.isin(np.fromiter(map(hash, paths), np.int64, len(paths)), np.fromiter(listed, np.int64))
