"""Search folders for videos, images and folders of frames."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from video_rs.data import storage
from video_rs.data.video.media import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, is_image, is_media

_LEFTOVERS = frozenset(
    ["@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx", "__pycache__"]
    + ["$recycle.bin", "recycler", "system volume information", "lost+found", "found.000"]
    + ["network trash folder", "temporary items", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"]
)
"""Lower-case names of files and folders that operating systems, storage servers and tools create in any folder."""


@dataclass
class LeftOut:
    """Files and folders that a search did not use.

    Attributes:
        reason: why they are not used.
        count: number of files and folders.
        first: path of the first one.
    """

    reason: str = "not a known video or image"
    count: int = 0
    first: str = ""

    def add(self, path: str) -> None:
        """Count one file or folder."""
        self.count += 1
        self.first = self.first or path

    def describe(self) -> str:
        """Return a phrase for the log; "" if everything was used."""
        if not self.count:
            return ""
        what = "file or folder is" if self.count == 1 else "files or folders are"
        return f"{self.count} {what} left out: {self.reason}; the first: {self.first}"


def listing(folder: str | Path, left_out: LeftOut | None = None) -> tuple[list[str], list[str]]:
    """Return the sorted names of the subfolders and of the files of a folder.

    Hidden files and files of systems and tools (``@eaDir``, ``Thumbs.db``) are skipped. Links are followed. A folder is
    read once, and its files are not opened.

    Args:
        folder: folder to list.
        left_out: counts hidden videos and images, except AppleDouble files (``._a.mp4``).
    """
    folders, files = [], []
    for entry in storage.entries(folder):
        name = entry.name
        if name[0] != "." and name.lower() not in _LEFTOVERS:
            is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # a link can be a loop
            (folders if is_folder else files).append(name)
        elif left_out is not None and is_media(name) and not name.startswith("._"):
            left_out.add(entry.path)
    return sorted(folders), sorted(files)


def media_below(
    folder: str, extensions: Container[str], left_out: LeftOut | None = None, *, video_folders: bool = True
) -> Iterator[str]:
    """Yield the files below a folder with one of the extensions (lower case, with the dot), sorted within each folder.

    A folder with the extension of a video and with images in it (``v0.avi/``) is a video. Links are followed, but not
    to a folder around this one, which holds the files of others, and no folder is visited twice. Names are skipped as
    in :func:`listing`.

    Args:
        folder: folder to search.
        extensions: extensions of the wanted files.
        left_out: counts the other files.
        video_folders: False to yield the images in ``v0.avi/`` instead.
    """
    around = {*Path(os.path.abspath(folder)).parents, *Path(os.path.realpath(folder)).parents}
    seen = set(map(_identity, around))
    pending = [folder]
    while pending:
        place = pending.pop()
        identity = _identity(place)
        if identity in seen:
            if left_out is not None:
                left_out.add(place)
            continue
        seen.add(identity)
        folders, files = listing(place, left_out)
        for name in files:
            path = os.path.join(place, name)
            if os.path.splitext(name)[1].lower() in extensions:
                yield path
            elif left_out is not None:
                left_out.add(path)
        inner = [os.path.join(place, name) for name in folders]
        videos = dict.fromkeys(filter(is_video_folder, inner)) if video_folders else {}
        yield from videos
        pending += [path for path in reversed(inner) if path not in videos]


def has_frames(folder: str | Path) -> bool:
    """Return True if there are images directly in a folder."""
    return any(is_image(entry.name) and not entry.name.startswith(".") for entry in storage.entries(folder))


def is_video_folder(folder: str) -> bool:
    """Return True for a folder of frames with the extension of a video, such as ``v0.avi/``."""
    return _extension(folder) in VIDEO_EXTENSIONS and has_frames(folder)


def folders_of_frames(folder: str, left_out: LeftOut | None = None) -> list[str]:
    """Return the folders that directly contain images: this folder and its subfolders. See :func:`media_below`."""
    images = media_below(folder, IMAGE_EXTENSIONS, left_out, video_folders=False)
    return list(dict.fromkeys(map(os.path.dirname, images)))


def _identity(folder: str | Path) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()
