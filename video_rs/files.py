"""Write files whole or not at all, and numbers so that every JSON reader takes them."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from video_rs.errors import PATH_ERRNOS, MachineError, UserError


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb"):
    """Open a file that appears under ``path`` only when the block ends well: temporary file, fsync, rename.

    It has the permissions of any new file, as the process's umask wants them.

    Raises:
        UserError: when no file can be at that path.
        MachineError: when the disk refuses (full, read-only); what stood under ``path`` before is intact.
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
