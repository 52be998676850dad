"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from video_rs.errors import MachineError, UserError

_READING_UMASK = threading.Lock()
_NO_FILE_THERE = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
}


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb"):
    """A file that appears under ``path`` only when the block ended well: temporary file, fsync, rename.

    Raises:
        UserError: when no file can be at that path.
        MachineError: when the disk refuses (full, read-only); what stood under ``path`` before is intact.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle: IO[Any]
        text = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
        with tempfile.NamedTemporaryFile(
            mode, dir=path.parent, prefix=f".{path.name}.", delete=False, **text
        ) as handle:
            temporary = Path(handle.name)
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o666 & ~_umask())  # temporary files are private, results are not
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno in _NO_FILE_THERE:
            raise UserError(f"{path} cannot be written: {error.strerror}; give another path") from None
        raise MachineError(
            f"{path} cannot be written: {error.strerror or error}; what was there before is intact. Make room first"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    with _READING_UMASK:  # which is done by setting it
        mask = os.umask(0)
        os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
