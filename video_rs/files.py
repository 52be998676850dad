"""Write files whole or not at all, lock folders, and bring numbers into the form that every JSON reader takes."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from video_rs.errors import PATH_ERRNOS, MachineError, UserError

LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_warned: set[str] = set()


@contextmanager
def locked(folder: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Make a folder and hold it for this process alone.

    The system frees the lock when this process ends in any way, also while processes that it forked live on. On a file
    system without locks, warn once and continue.

    Args:
        folder: gets a file ``.lock`` as long as it is held.
        wait: for another process that holds it.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the folder cannot be made or written.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(folder)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if str(folder) not in _warned:
            _warned.add(str(folder))
            print(f"warning: {folder}: no locks on this file system; start one process at a time", file=sys.stderr)
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # while it is held, or it would be another process's
                (folder / LOCK).unlink()
        lock.release()


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb"):
    """Open a file that appears under ``path`` only when the block ends well: temporary file, fsync, rename.

    Its permissions are those of any new file, by the process's umask.

    Raises:
        UserError: no file can be at that path.
        MachineError: the disk is full or read-only; the file that was at ``path`` before is intact.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode.replace("w", "x"), **text) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno in PATH_ERRNOS:
            raise UserError(f"{path} cannot be written: {error.strerror}; give another path") from None
        raise MachineError(
            f"{path} cannot be written: {error.strerror or error}; what was there before is intact. Make room first"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write plain values to a file, whole or not at all."""
    with atomic_write(path, "w") as handle:
        handle.write(json.dumps(values, indent=1) + "\n")


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table to a file, whole or not at all."""
    with atomic_write(path, "w") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def json_values(value: Any) -> Any:
    """Return plain values for JSON: tensors and arrays as lists or numbers, None for numbers that are not finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: json_values(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
