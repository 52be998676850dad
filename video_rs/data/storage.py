"""Read bytes of local files, and of remote ones through fsspec (https://filesystem-spec.readthedocs.io)."""

import errno
import io
import os
import stat
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import count
from typing import Any, TypeVar

from video_rs.data import limits
from video_rs.errors import (
    LIMIT_ERRNOS,
    NO_SUCH_FILE,
    PATH_ERRNOS,
    MachineError,
    MediaError,
    PathError,
    StorageError,
    UserError,
    first_line,
)

T = TypeVar("T")
REQUEST_SECONDS = 25.0  # timeout of one request to remote storage
_BAD_SETTINGS = (ValueError, TypeError, NotImplementedError)  # not worth a retry
_NO_ACCESS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError", "RefreshError")


def is_remote(path: str) -> bool:
    """Return True for a URL such as ``s3://bucket/name``."""
    return "://" in path


def pause(attempt: int) -> float:
    """Return the seconds to wait after failed attempt number `attempt`: 0.5, 1, 2, ..., at most 8."""
    return min(8.0, 0.5 * 2**attempt)


def longest_wait(path: str) -> float:
    """Return the maximum time in seconds until a request fails, with its retries."""
    pauses = sum(map(pause, range(limits.retries())))
    return pauses + REQUEST_SECONDS * (limits.retries() + 1) if is_remote(path) else pauses


class LocalFile(io.RawIOBase):
    """A file on a local or mounted disk. Failed reads are retried, see ``limits.retries``.

    After the last retry, ``StorageError`` is raised once, and later reads return no data. FFmpeg can read again after
    an error and hide it: PyAV raises the first error of this object only when the call of FFmpeg returns.

    Attributes:
        name: path of the file.
        size: its size in bytes.
    """

    name, _file = "", -1

    def __init__(self, path: str) -> None:
        self.name, self._position, self._failed = path, 0, False
        self._file, self.size = _retried(path, lambda attempt: _open(path))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + (0, self._position, self.size)[whence]
        if position < 0:
            raise ValueError(f"{self.name}: negative position")
        self._position = position
        return position

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes (default: the rest of the file); fewer if the file is shorter."""
        left = max(0, self.size - self._position)
        size = left if size < 0 else min(size, left)
        if self._failed or not size:
            return b""
        try:
            data = _retried(self.name, partial(self._request, size))
        except BaseException:
            self._failed = True
            raise
        self._position += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _request(self, size: int, attempt: int) -> bytes:
        if attempt:  # the handle is stale if the storage was remounted
            file, found = _open(self.name)
            os.close(self._file)
            self._file = file
            if found != self.size:
                raise OSError(errno.ESTALE, "the file has changed")
        return os.pread(self._file, size, self._position)

    def close(self) -> None:
        if not self.closed and self._file >= 0:
            os.close(self._file)
        super().close()


def open_file(path: str | os.PathLike) -> LocalFile:
    """Open a local file. Raise the errors of :func:`file_size`."""
    return LocalFile(os.fspath(path))


def file_size(path: str | os.PathLike) -> int:
    """Return the size of a local file in bytes.

    Raises:
        PathError: there is no such file, or access is denied.
        StorageError: the storage fails.
        MediaError: the path is not that of a regular file.
        MachineError: too many files are open, or there is too little memory.
    """
    return _retried(os.fspath(path), lambda attempt: _size(os.stat(path), path))


def entries(folder: str | os.PathLike) -> list[os.DirEntry]:
    """Return the entries of a local folder. Raise the errors of :func:`file_size`."""

    def read(attempt: int) -> list[os.DirEntry]:
        with os.scandir(folder) as found:
            return list(found)

    return _retried(os.fspath(folder), read)


def diagnose(error: StorageError, others: Sequence[str], root: str = "") -> MediaError | MachineError:
    """Determine if a file or the storage has failed, by reading other files.

    Args:
        error: the error of the file.
        others: other files or folders on the same storage. The first three are read.
        root: folder of the dataset; "" if unknown.

    Returns:
        A ``MediaError`` of the file if another one can be read and the root is not empty, else a ``MachineError``.
    """
    if (not root or _is_readable(root)) and any(map(_is_readable, others[:3])):
        return MediaError(f"{error.path}: {error.reason}")
    same = f"; other files{f' in {root}' if root else ''} cannot be read either" if others else ""
    return MachineError(f"{error.path}: {error.reason}{same}; check that the storage is mounted")


def _is_readable(path: str) -> bool:
    """Return True if a file or a folder with an entry can be read."""
    try:
        if os.path.isdir(path):
            return bool(os.listdir(path))
        file, _ = _open(path)
        try:
            if hasattr(os, "posix_fadvise"):  # the page cache outlives the disk
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.pread(file, 1, 0)
        finally:
            os.close(file)
    except (OSError, MediaError):
        return False
    return True


def _open(path: str) -> tuple[int, int]:
    """Return descriptor and size of a file."""
    size = _size(os.stat(path), path)  # opening a pipe would block
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC), size


def _size(found: os.stat_result, path: str | os.PathLike) -> int:
    if not stat.S_ISREG(found.st_mode):
        raise MediaError(f"{path}: {'a folder, ' if stat.S_ISDIR(found.st_mode) else ''}not a file")
    return found.st_size


def _retried(path: str, request: Callable[[int], T]) -> T:
    """Return the result of ``request(attempt)``. Retry after an ``OSError``."""
    for attempt in count():
        try:
            return request(attempt)
        except OSError as error:
            path = error.filename or path
            if isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise PathError(path, NO_SUCH_FILE) from error
            if error.errno in PATH_ERRNOS:
                raise PathError(path, f"cannot be read ({first_line(error)})") from error
            if error.errno in LIMIT_ERRNOS:
                hint = "lower data.workers or raise the limit"
                raise MachineError(f"{path}: {first_line(error)}; {hint}") from error
            if attempt >= limits.retries():
                raise StorageError(path, f"cannot be read ({first_line(error)})") from error
            time.sleep(pause(attempt))
    raise AssertionError


def read(path: str, start: int = 0, end: int | None = None, *, missing: Exception | None = None) -> bytes:
    """Return the bytes from `start` to `end` (default: the end of the file); fewer if the file is shorter.

    Raises:
        FileNotFoundError: there is no such file; or the exception `missing`, if it is given.
        UserError: no permission, a wrong URL or setting, no fsspec driver, or a server without range requests.
        MachineError: the storage fails. Requests are repeated, see ``limits.retries``.
    """
    if is_remote(path):
        data = _call(path, "cat_file", missing, start=start or None, end=end)
        if end is not None and len(data) > end - start:
            raise UserError(f"{path}: the server does not support HTTP range requests: copy the shards to a local disk")
        return data
    try:
        with io.BufferedReader(open_file(path)) as file:
            file.seek(start)
            return file.read(max(0, (file.raw.size if end is None else end) - start))
    except PathError as error:
        raise _path_error(error, missing) from error


def sizes(folder: str, *, missing: Exception | None = None) -> dict[str, int]:
    """Return the size in bytes of each file directly in a folder. Raises the errors of :func:`read`."""
    if not is_remote(folder):
        try:
            return _retried(folder, lambda attempt: _sizes(folder or "."))
        except PathError as error:
            raise _path_error(error, missing) from error
    found = {}
    for each in _call(folder, "ls", missing, detail=True):
        size, name = each["size"], each["name"]
        if each["type"] == "file" and size is None and name.endswith((".tar", ".csv", ".txt")):
            size = _call(name, "info", missing)["size"]  # listings of web servers have no sizes
        if each["type"] == "file" and size is not None:
            found[os.path.basename(name)] = size
    return found


def _sizes(folder: str) -> dict[str, int]:
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def _path_error(error: PathError, missing: Exception | None) -> Exception:
    if error.is_missing:
        return missing or FileNotFoundError(error.path)
    return UserError(str(error))


def _call(path: str, method: str, missing: Exception | None = None, **options: Any) -> Any:
    """Call a method of a remote file system, with retries."""
    protocol, _, place = path.partition("://")
    fs = _file_system(os.getpid(), f"{protocol}://{place.partition('/')[0]}")
    if fs.async_impl:
        options["timeout"] = REQUEST_SECONDS
    for attempt in count():
        try:
            fs.invalidate_cache()  # of listings
            return getattr(fs, method)(fs._strip_protocol(path), **options)
        except FileNotFoundError as error:
            raise missing or error from None
        except Exception as error:  # drivers raise errors of their own types
            response = getattr(error.__cause__, "response", None) or {}
            if getattr(error, "status", 0) == 416 or response.get("Error", {}).get("Code") == "InvalidRange":
                return b""  # the range starts after the end of the file
            reason, kind = first_line(error), type(error).__name__
            if isinstance(error, PermissionError) or kind in _NO_ACCESS:
                raise UserError(f"{path}: access denied ({reason}): check the credentials") from error
            if isinstance(error, _BAD_SETTINGS) or kind == "ParamValidationError":
                raise UserError(f"{path}: {reason}: check the URL and the settings") from error
            if attempt >= limits.retries():
                silent = f"{path}: the storage does not respond, after {attempt} retries ({reason})"
                raise MachineError(f"{silent}; check it and the network, or raise data.retries") from error
            time.sleep(pause(attempt))
    raise AssertionError


@lru_cache(maxsize=64)
def _file_system(process: int, store: str) -> Any:
    """Return the fsspec driver of a store such as ``s3://bucket``, one per process.

    Threads and connections do not survive a fork, and fsspec's own cache would create one driver per thread.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(store)[0]
    except Exception as error:  # a missing driver, an unknown protocol, or wrong settings
        hint = ": pip install 'video-rs[s3]'" if isinstance(error, ImportError) and store.startswith("s3") else ""
        raise UserError(f"{store}: {first_line(error)}{hint}") from error
