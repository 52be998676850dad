"""Read bytes of files, here or in a store that fsspec (https://filesystem-spec.readthedocs.io) can reach."""

from __future__ import annotations

import math
import os
import time
from functools import lru_cache
from itertools import count
from typing import Any

from video_rs.errors import PATH_ERRNOS, MachineError, UserError, first_line

TIMEOUT_VARIABLE = "VIDEO_RS_STORAGE_TIMEOUT"
_LONGEST_PAUSE = 8.0  # seconds between two tries
_WRONG = (ValueError, TypeError, NotImplementedError)  # names and settings that no second try mends
_REFUSED = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError", "RefreshError")


def is_remote(path: str) -> bool:
    """Return True for an address, as ``s3://bucket/name``."""
    return "://" in path


def read(path: str, start: int = 0, end: int | None = None) -> bytes:
    """Return the bytes from `start` up to `end`, or to the end of the file; fewer where the file ends before.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it may not be read, the address or the settings are wrong, fsspec has no driver for it, or the server
            sends whole files where it is asked for a part.
        MachineError: the storage fails; one that is remote has then been asked for ``VIDEO_RS_STORAGE_TIMEOUT`` (60)
            seconds.
    """
    if is_remote(path):
        data = _ask(path, "cat_file", start=start or None, end=end)
        if end is not None and len(data) > end - start:
            raise UserError(f"{path}: the server does not send parts of files (HTTP ranges): copy the shards here")
        return data
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read() if end is None else file.read(end - start)
    except OSError as error:
        raise _local_error(error, path) from error


def sizes(folder: str) -> dict[str, int]:
    """Return the bytes of each file directly in a folder. Raise as :func:`read`."""
    if not is_remote(folder):
        try:
            with os.scandir(folder or ".") as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except OSError as error:
            raise _local_error(error, error.filename or folder) from error
    found = {}
    for each in _ask(folder, "ls", detail=True):
        size, name = each["size"], each["name"]
        if each["type"] == "file" and size is None and name.endswith((".tar", ".csv", ".txt")):
            size = _ask(name, "info")["size"]  # web servers list no sizes
        if each["type"] == "file" and size is not None:
            found[os.path.basename(name)] = size
    return found


def timeout() -> float:
    """Return the seconds for which a store that does not answer is asked again. Raise ``UserError``."""
    text = os.environ.get(TIMEOUT_VARIABLE, "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{TIMEOUT_VARIABLE}={text}: not a number of seconds above 0")
    return seconds


def _local_error(error: OSError, path: str) -> Exception:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return FileNotFoundError(path)
    if error.errno in PATH_ERRNOS:
        return UserError(f"{path} cannot be read ({first_line(error)}): check the path and its permissions")
    return MachineError(f"{path} cannot be read ({first_line(error)}): check the storage")


def _ask(path: str, method: str, **options: Any) -> Any:
    """Call a method of the store's file system, again until it answers or the timeout is over."""
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
        except FileNotFoundError:
            raise
        except Exception as error:  # every driver has its own kinds
            response = getattr(error.__cause__, "response", None) or {}
            if getattr(error, "status", 0) == 416 or response.get("Error", {}).get("Code") == "InvalidRange":
                return b""  # the range starts behind the end of the file
            reason, kind = first_line(error), type(error).__name__
            if isinstance(error, PermissionError) or kind in _REFUSED:
                raise UserError(f"{path} may not be read ({reason}): check the credentials") from error
            if isinstance(error, _WRONG) or kind == "ParamValidationError":
                raise UserError(f"{path}: {reason}: check the address and the settings") from error
            pause = min(_LONGEST_PAUSE, 0.5 * 2**attempt)
            if time.monotonic() + pause > end:
                silent = f"{path}: the storage has not answered for {seconds:g} s ({reason})"
                raise MachineError(
                    f"{silent}: check it and the network; {TIMEOUT_VARIABLE} sets the seconds"
                ) from error
            time.sleep(pause)
    raise AssertionError


@lru_cache(maxsize=64)
def _file_system(process: int, store: str) -> Any:
    """Return the driver of a protocol and what follows it, as ``s3://bucket``, made in the process that reads.

    Threads and connections do not survive a fork; fsspec by itself would make one for each thread.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(store)[0]
    except Exception as error:  # a driver that is missing, an unknown protocol, or wrong settings
        hint = ": pip install 'video-rs[s3]'" if isinstance(error, ImportError) and store.startswith("s3") else ""
        raise UserError(f"{store}: {first_line(error)}{hint}") from error
