"""Files of videos and images: what they are called, and how errors with them are told."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Container, Iterator
from contextlib import contextmanager

import av

from video_rs.data.shards import TAR, Blob, File
from video_rs.errors import LIMIT_ERRNOS, MachineError, MediaError, VideoRSError, first_line

IMAGE_EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"])
VIDEO_EXTENSIONS = frozenset(
    [".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".ogv"]
    + [".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts"]
)

MEDIA_EXTENSIONS = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS


def is_image(path: File) -> bool:
    """Whether the extension is an image's."""
    return os.path.splitext(str(path))[1].lower() in IMAGE_EXTENSIONS


def is_media(path: str) -> bool:
    """Whether the extension is a video's or an image's."""
    return os.path.splitext(path)[1].lower() in MEDIA_EXTENSIONS


def media_below(folder: str, extensions: Container[str]) -> Iterator[str]:
    """Yield the files below a folder with one of the extensions (lower case, with the dot), folder by folder, sorted.

    Links are followed, but no folder is entered twice; names that start with a dot are left out.
    """
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions:
                yield os.path.join(place, name)


class Unsuitable(Exception):
    """Decord is missing, cannot open or decode the file, or numbers its frames differently: PyAV takes over."""


class CallerError(Exception):
    """Carries an error of the caller's past those that are the file's."""


def require_file(path: File) -> None:
    """Raises ``MediaError`` for what is not there, is no file, or is empty."""
    if isinstance(path, Blob):
        if not path.data:
            raise MediaError(f"{path}: the file is empty")
        return
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise MediaError(f"{path}: {'no such file' if found is None else 'not a file'}")
    if str(path).endswith(TAR):
        raise MediaError(f"{path}: a shard, not a video: name a video in it, {path}/NAME, by its index")
    if not found.st_size:
        raise MediaError(f"{path}: the file is empty")


@contextmanager
def media_errors(path: File, *kinds: type[Exception], action: str = "decoded") -> Iterator[None]:
    """Turn what a decoder raises, and `kinds`, into a ``MediaError`` that names the file, or a ``MachineError``.

    FFmpeg's "Cannot allocate memory" is the file's fault: a damaged header asks for more than there can be.
    """
    try:
        yield
    except VideoRSError:
        raise
    except CallerError as error:
        raise error.__cause__ from None
    except (av.FFmpegError, OSError, ValueError, *kinds) as error:
        number = getattr(error, "errno", None)
        if number in LIMIT_ERRNOS and not (number == errno.ENOMEM and isinstance(error, av.FFmpegError)):
            raise MachineError(f"{path}: {os.strerror(number)}: lower data.workers, or raise the limit") from error
        raise MediaError(f"{path}: cannot be {action} ({first_line(error)})") from error
