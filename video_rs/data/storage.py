"""Read bytes of local files, and of remote ones through fsspec (https://filesystem-spec.readthedocs.io)."""

import math
import os
import time
from functools import lru_cache
from itertools import count
from typing import Any

from video_rs.errors import PATH_ERRNOS, MachineError, UserError, first_line

TIMEOUT_VARIABLE = "VIDEO_RS_STORAGE_TIMEOUT"
_MAX_PAUSE = 8.0  # seconds between two attempts
_BAD_SETTINGS = (ValueError, TypeError, NotImplementedError)  # not worth a retry
_NO_ACCESS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError", "RefreshError")


def is_remote(path: str) -> bool:
    """Return True for a URL such as ``s3://bucket/name``."""
    return "://" in path


def read(path: str, start: int = 0, end: int | None = None, *, missing: Exception | None = None) -> bytes:
    """Return the bytes from `start` to `end` (default: the end of the file); fewer if the file is shorter.

    Raises:
        FileNotFoundError: there is no such file; or the exception `missing`, if it is given.
        UserError: no permission, a wrong URL or setting, no fsspec driver, or a server without range requests.
        MachineError: the storage fails. Requests to remote storage are retried for ``VIDEO_RS_STORAGE_TIMEOUT`` (60)
            seconds.
    """
    if is_remote(path):
        data = _call(path, "cat_file", missing, start=start or None, end=end)
        if end is not None and len(data) > end - start:
            raise UserError(f"{path}: the server does not support HTTP range requests: copy the shards to a local disk")
        return data
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read() if end is None else file.read(end - start)
    except OSError as error:
        raise _local_error(error, path, missing) from error


def sizes(folder: str, *, missing: Exception | None = None) -> dict[str, int]:
    """Return the size in bytes of each file directly in a folder. Raises the errors of :func:`read`."""
    if not is_remote(folder):
        try:
            with os.scandir(folder or ".") as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except OSError as error:
            raise _local_error(error, error.filename or folder, missing) from error
    found = {}
    for each in _call(folder, "ls", missing, detail=True):
        size, name = each["size"], each["name"]
        if each["type"] == "file" and size is None and name.endswith((".tar", ".csv", ".txt")):
            size = _call(name, "info", missing)["size"]  # listings of web servers have no sizes
        if each["type"] == "file" and size is not None:
            found[os.path.basename(name)] = size
    return found


def timeout() -> float:
    """Return for how many seconds to retry requests to remote storage. Raise UserError for an invalid setting."""
    text = os.environ.get(TIMEOUT_VARIABLE, "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{TIMEOUT_VARIABLE}={text}: not a number of seconds above 0")
    return seconds


def _local_error(error: OSError, path: str, missing: Exception | None) -> Exception:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return missing or FileNotFoundError(path)
    if error.errno in PATH_ERRNOS:
        return UserError(f"{path} cannot be read ({first_line(error)}): check the path and its permissions")
    return MachineError(f"{path} cannot be read ({first_line(error)}): check the storage")


def _call(path: str, method: str, missing: Exception | None = None, **options: Any) -> Any:
    """Call a method of a remote file system, with retries until the timeout."""
    protocol, _, place = path.partition("://")
    fs = _file_system(os.getpid(), f"{protocol}://{place.partition('/')[0]}")
    seconds = timeout()
    end = time.monotonic() + seconds
    for attempt in count():
        if fs.async_impl:
            options["timeout"] = max(1.0, end - time.monotonic())
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
            pause = min(_MAX_PAUSE, 0.5 * 2**attempt)
            if time.monotonic() + pause > end:
                silent = f"{path}: the storage has not responded for {seconds:g} s ({reason})"
                raise MachineError(f"{silent}: check it and the network, or raise {TIMEOUT_VARIABLE}") from error
            time.sleep(pause)
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
