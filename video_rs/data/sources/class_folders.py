"""Class folders: the classes of a folder and their files."""

import errno
import os
from collections.abc import Iterator

import numpy as np

from video_rs.data import storage
from video_rs.data.sources.records import Paths
from video_rs.data.video.media import MEDIA_EXTENSIONS, is_image, is_media
from video_rs.data.video.search import (
    LeftOut,
    folders_of_frames,
    has_frames,
    is_video_folder,
    listing,
    media_below,
)
from video_rs.errors import PathError, UserError

_MANY = 1000  # folders of images in a class without videos


def class_folders(folder: str, frame_folders: bool, left_out: LeftOut) -> Iterator[tuple[str, list[str]]]:
    """Yield each class and its files, relative to its folder, sorted within each subfolder.

    The files in subfolders of a class belong to the class. Images in subfolders count only if there are images directly
    in the folder of the class; the subfolders may be folders of frames.

    Args:
        folder: the folder of the class folders.
        frame_folders: True to yield folders of frames instead of files.
        left_out: counts what is not used.

    Raises:
        UserError: with `frame_folders`, a file is not in a folder of frames; without, there are many folders of images
            and no videos.
    """
    names, loose = listing(folder, left_out)
    for name in loose:
        left_out.add(os.path.join(folder, name))
    find = _frame_folders if frame_folders else _files
    for name in names:
        place = os.path.join(folder, name)
        yield name, [path[len(place) + 1 :] for path in find(place, left_out)]


def _files(folder: str, left_out: LeftOut) -> list[str]:
    """Return the paths of the videos and images of a class."""
    files: list[str] = []
    nested: dict[str, list[str]] = {}  # images by their folder
    for path in media_below(folder, MEDIA_EXTENSIONS, left_out):
        place = os.path.dirname(path)
        if is_image(path) and place != folder:
            nested.setdefault(place, []).append(path)
        else:
            files.append(path)
        if len(nested) > _MANY and not files:
            hint = "set data.frame_folders=true if each of them is one video"
            raise UserError(f"{folder}: more than {_MANY} folders of images and no video in it; {hint}")
    if any(map(is_image, files)):
        return files + [path for paths in nested.values() for path in paths]
    for place in nested:
        left_out.add(place)
    return files


def _frame_folders(folder: str, left_out: LeftOut) -> list[str]:
    """Return the folders of frames of a class. If the first subfolder has images, all subfolders are returned."""
    names, loose = listing(folder, left_out)
    for name in loose:
        if is_media(name):
            raise UserError(f"data.frame_folders=true: {os.path.join(folder, name)} is not in a folder of its own")
        left_out.add(os.path.join(folder, name))
    places = [os.path.join(folder, name) for name in names]
    if not places or has_frames(places[0]):  # listing all would take long
        return places
    found: list[str] = []
    for place in places:
        inner = folders_of_frames(place)
        found += inner
        if not inner:
            left_out.add(place)
    return found


def folders_with_files(folder: str, frame_folders: bool = False) -> Iterator[str]:
    """Yield the subfolders with a file of a class directly in them."""
    for name in listing(folder)[0]:
        place = os.path.join(folder, name)
        inner, files = listing(place)
        has_files = any(map(is_media, files)) or any(is_video_folder(os.path.join(place, each)) for each in inner)
        if has_files or (frame_folders and inner):
            yield place


def describe_no_classes(folder: str, split: str = "train") -> str:
    """Return a message that explains why a folder has no class folders."""
    names, files = listing(folder)
    loose = list(filter(is_media, files))
    text = "no class folders with videos or images in it"
    if loose:
        is_imagenet = loose[0].startswith("ILSVRC2012_val_")
        kaggle = ", or put LOC_val_solution.csv into data.root" if is_imagenet else ""
        name = os.path.basename(folder)
        root = f", or data.{split}={os.path.dirname(folder)} if '{name}' is a class" if name == split else ""
        return f"{text}; {len(loose)} files are directly in it: set data.{split}=LIST{kaggle}{root}"
    for name in names:
        for inner in listing(os.path.join(folder, name))[0][:1]:
            place = os.path.join(folder, name, inner)
            if has_frames(place):
                return (
                    f"{text}, but there are folders of images: set data.frame_folders=true if each of them is one video"
                )
            if any(map(is_media, listing(place)[1])):
                below = f"but there are some one level below: set data.{split}={folder} if {name} is a class"
                return f"{text}, {below}, or data.root={os.path.join(folder, name)}"
    return text


def present(paths: Paths) -> np.ndarray:
    """Return which files exist, bool ``[N]``.

    Each folder is listed once, because checking 240,000 files one by one takes minutes on network storage. Only 64-bit
    hashes of names are kept. With a million files, the probability of a collision for a missing file is 1e-7.
    """
    folders = dict.fromkeys(path[: path.rfind("/") + 1] for path in paths)
    listed = (hash(folder + name) for folder in folders for name in _names(folder or "."))
    return np.isin(np.fromiter(map(hash, paths), np.int64, len(paths)), np.fromiter(listed, np.int64))


def _names(folder: str) -> list[str]:
    """Return the names in a folder; none if it does not exist."""
    try:
        return [entry.name for entry in storage.entries(folder)]
    except PathError as error:
        if error.is_missing or error.__cause__.errno == errno.ENAMETOOLONG:
            return []
        raise
