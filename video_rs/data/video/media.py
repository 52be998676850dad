"""File extensions of videos and images, and errors for unreadable files."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from video_rs.data import limits, storage
from video_rs.data.shards import TAR, Blob, File
from video_rs.errors import LIMIT_ERRNOS, MachineError, MediaError, VideoRSError, first_line, is_out_of_memory

IMAGE_EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"])
VIDEO_EXTENSIONS = frozenset(
    [".mp4", ".m4v", ".mov", ".qt", ".mj2", ".3gp", ".3gpp", ".3g2", ".f4v", ".flv", ".mkv", ".mk3d", ".webm"]
    + [".ogv", ".ogm"]
    + [".avi", ".divx", ".xvid", ".amv", ".wmv", ".asf", ".wtv", ".rm", ".rmvb", ".dv", ".mxf", ".nut", ".ivf", ".y4m"]
    + [".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".mpv", ".vob", ".ts", ".mts", ".m2ts", ".m2t", ".tod"]
    + [".m2p", ".gxf", ".nsv", ".gif", ".apng", ".mjpeg", ".mjpg", ".h264", ".264", ".h265", ".265", ".hevc"]
)

TEXT_EXTENSIONS = (".txt", ".csv", ".tsv", ".json", ".nfo")
INCOMPLETE_EXTENSIONS = (".part", ".partial", ".crdownload", ".download", ".opdownload", ".!ut", ".!qb", ".aria2")
_SPARE_BYTES = 2**28  # memory is short if this much cannot be allocated

MEDIA_EXTENSIONS = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS


def is_image(path: File) -> bool:
    """Return True if a path has the extension of an image."""
    return os.path.splitext(str(path))[1].lower() in IMAGE_EXTENSIONS


def is_media(path: str) -> bool:
    """Return True if a path has the extension of a video or an image."""
    return os.path.splitext(path)[1].lower() in MEDIA_EXTENSIONS


class Unsuitable(Exception):
    """Decord is missing, cannot open or decode the file, or numbers its frames differently; use PyAV."""


class CallerError(Exception):
    """Wrap an exception of the caller's callback, so that `media_errors` does not treat it as a decoding error."""


def require_file(path: File) -> None:
    """Raise ``MediaError`` for a path that does not exist, is not a regular file, or is empty.

    Other errors are those of :func:`video_rs.data.storage.file_size`.
    """
    size = len(path.data) if isinstance(path, Blob) else storage.file_size(path)
    if not isinstance(path, Blob):
        if str(path).endswith(TAR):
            raise MediaError(f"{path}: a shard, not a video; use {path}/NAME for a video in it")
        if str(path).lower().endswith(TEXT_EXTENSIONS):
            raise MediaError(f"{path}: a text file, not a video")
        if str(path).lower().endswith(INCOMPLETE_EXTENSIONS):
            raise MediaError(f"{path}: an incomplete download; complete it, or rename the file if it is complete")
    if not size:
        raise MediaError(f"{path}: the file is empty")


def too_large(path: File, width: int, height: int) -> str:
    """Return the message for a frame with more pixels than the limit."""
    limit = limits.max_pixels()
    return f"{path}: a frame has {width}x{height} pixels; raise data.max_pixels={limit} (or VIDEO_RS_MAX_PIXELS)"


@contextmanager
def media_errors(path: File, action: str = "decoded") -> Iterator[None]:
    """Convert errors of a decoder or library into a ``MediaError`` that names the file, or a ``MachineError``.

    Damaged files can raise errors of any type. Running out of memory is a ``MediaError`` if memory is available: a
    damaged header can request too much.

    Args:
        path: path of the file.
        action: the failed action, for the message.
    """
    try:
        yield
    except VideoRSError:
        raise
    except CallerError as error:
        raise error.__cause__ from None
    except Exception as error:
        number = getattr(error, "errno", None)
        out_of_memory = number == errno.ENOMEM or is_out_of_memory(error)
        if _memory_is_short() if out_of_memory else number in LIMIT_ERRNOS:
            reason = os.strerror(errno.ENOMEM if out_of_memory else number)
            raise MachineError(f"{path}: {reason}: lower data.workers or raise the limit") from error
        raise MediaError(f"{path}: cannot be {action} ({first_line(error)})") from error


def _memory_is_short() -> bool:
    """Return True if the process cannot allocate memory for a few large frames. Limits such as RLIMIT_AS count."""
    try:
        mmap.mmap(-1, _SPARE_BYTES).close()
    except OSError:
        return True
    return False
