"""Bytes of files that lie here, or in a store that fsspec (https://filesystem-spec.readthedocs.io) can reach."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from typing import Any, TypeVar

from video_rs.errors import MachineError, UserError

T = TypeVar("T")
TIMEOUT_VARIABLE = "VIDEO_RS_STORAGE_TIMEOUT"
_LONGEST_PAUSE = 8.0  # seconds between two tries
_WRONG = (ValueError, TypeError, NotImplementedError)  # names and settings that no second try mends
_REFUSED = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError", "RefreshError")


def is_remote(path: str) -> bool:
    """Whether it is an address, as ``s3://bucket/name``."""
    return "://" in path


def read(path: str, start: int = 0, end: int | None = None) -> bytes:
    """The bytes from `start` up to `end`, or to the end of the file; fewer where the file ends before.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it may not be read, the address or the settings are wrong, fsspec has no driver for it, or the server
            sends whole files where it is asked for a part.
        MachineError: the storage fails; one that is remote has then been asked for ``VIDEO_RS_STORAGE_TIMEOUT`` (60)
            seconds.
    """
    if is_remote(path):
        data = _insist(
            path, lambda fs, file, timeout: _call(fs, "cat_file", file, start=start, end=end, timeout=timeout)
        )
        if end is not None and len(data) > end - start:
            raise UserError(f"{path}: the server does not send parts of files (HTTP ranges): copy the shards here")
        return data
    try:
        with open(path, "rb", buffering=0) as file:
            wanted = (os.fstat(file.fileno()).st_size if end is None else end) - start
            pieces: list[bytes] = []
            while wanted > 0 and (piece := os.pread(file.fileno(), wanted, start)):
                pieces.append(piece)
                start, wanted = start + len(piece), wanted - len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    except OSError as error:
        raise _told(error, path) from error


def sizes(folder: str) -> dict[str, int]:
    """The bytes of each file that lies in a folder. Raises as :func:`read`."""
    if is_remote(folder):
        files = [each for each in _insist(folder, _list) if each["type"] == "file"]
        return {os.path.basename(each["name"]): each["size"] for each in files if each["size"] is not None}
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except OSError as error:
        raise _told(error, error.filename or folder) from error


def _told(error: OSError, path: str) -> Exception:
    """What is raised for it."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return FileNotFoundError(path)
    if isinstance(error, PermissionError):
        return UserError(f"{path} cannot be read: change its permissions")
    return MachineError(f"{path} cannot be read ({error.strerror}): check the storage")


def _list(fs: Any, folder: str, timeout: float) -> list[dict[str, Any]]:
    """What lies in a folder now, not when it was last listed. Web servers list no sizes: they are asked one by one."""
    fs.invalidate_cache()
    found = _call(fs, "ls", folder, detail=True, timeout=timeout)
    for each in found:
        if each["type"] == "file" and each["size"] is None and each["name"].endswith((".tar", ".csv", ".txt")):
            each["size"] = _call(fs, "info", each["name"], timeout=timeout)["size"]
    return found


def _insist(path: str, ask: Callable[[Any, str, float], T]) -> T:
    """What the store answers; where it does not, it is asked again until the time is over."""
    protocol, _, place = path.partition("://")
    fs = _file_system(os.getpid(), f"{protocol}://{place.partition('/')[0]}")
    seconds = patience()
    end = time.monotonic() + seconds
    for attempt in count():
        try:
            return ask(fs, fs._strip_protocol(path), max(1.0, end - time.monotonic()))
        except FileNotFoundError:
            raise
        except Exception as error:  # every driver has its own kinds
            if isinstance(error, PermissionError) or type(error).__name__ in _REFUSED:
                raise UserError(f"{path} may not be read ({_line(error)}): check the credentials") from error
            if _is_past_the_end(error):
                return b""
            if isinstance(error, _WRONG) or type(error).__name__ == "ParamValidationError":
                raise UserError(f"{path}: {_line(error)}: check the address and the settings") from error
            pause = min(_LONGEST_PAUSE, 0.5 * 2**attempt)
            if time.monotonic() + pause > end:
                raise MachineError(
                    f"{path}: the storage has not answered for {seconds:g} s{_cause(error)}: check it and the "
                    f"network; {TIMEOUT_VARIABLE} sets the seconds"
                ) from error
            time.sleep(pause)
    raise AssertionError


def patience() -> float:
    """Seconds for which a store that does not answer is asked again. Raises ``UserError``."""
    text = os.environ.get(TIMEOUT_VARIABLE, "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{TIMEOUT_VARIABLE}={text}: not a number of seconds above 0")
    return seconds


@lru_cache(maxsize=64)
def _file_system(process: int, store: str) -> Any:
    """The driver of a protocol and what follows it, as ``s3://bucket``.

    Made in the process that reads: the threads and connections of another do not survive a fork.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(store)[0]
    except ImportError as error:
        protocol = store.partition("://")[0]
        hint = ": pip install 'video-rs[s3]'" if protocol in ("s3", "s3a") else ", with pip"
        raise UserError(f"{store}: {_line(error)}{hint}") from None
    except Exception as error:  # an unknown protocol, or settings of the driver that are wrong
        raise UserError(f"{store}: {_line(error)}") from None


def _call(fs: Any, name: str, *args: Any, timeout: float, **options: Any) -> Any:
    """A method of a file system; one that works asynchronously is waited for as long as `timeout`."""
    if not fs.async_impl:
        return getattr(fs, name)(*args, **options)
    from fsspec.asyn import sync

    return sync(fs.loop, getattr(fs, f"_{name}"), *args, timeout=timeout, **options)


def _is_past_the_end(error: Exception) -> bool:
    """Whether a range was asked for that begins behind the end of the file: HTTP status 416."""
    causes = (error, error.__cause__)
    if getattr(error, "status", None) == 416:
        return True
    codes = [getattr(each, "response", None) or {} for each in causes if each is not None]
    return any(isinstance(code, dict) and code.get("Error", {}).get("Code") == "InvalidRange" for code in codes)


def _cause(error: Exception) -> str:
    return "" if "Timeout" in type(error).__name__ else f" ({_line(error)})"


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())
