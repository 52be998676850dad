"""Encoded videos of a test run: each is written on first use, once, and shared by all tests and workers."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

_folder: Path | None = None


def set_folder(folder: Path) -> None:
    """Keep the videos of this process in `folder`, which the workers of a run share."""
    global _folder
    _folder = folder
    folder.mkdir(exist_ok=True)


def shared(write: Callable[[Path], object], name: str, *parts: object) -> Path:
    """Return a file that `write(path)` makes, the same for equal parts. Never change it: use `copy` for that.

    Args:
        name: of the file; its suffix chooses the container.
        parts: all that the file depends on besides its name: arrays, or values whose ``repr`` tells them apart.
    """
    digest = hashlib.sha1(name.encode())
    for part in parts:
        array = isinstance(part, np.ndarray)
        digest.update(repr((part.dtype, part.shape) if array else part).encode() + (part.tobytes() if array else b""))
    folder = _folder / digest.hexdigest()
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".part")
            unfinished.mkdir(exist_ok=True)
            write(unfinished / name)
            unfinished.rename(folder)
    return folder / name


def copy(write: Callable[[Path], object], path: Path, *parts: object) -> Path:
    """Put a copy of the `shared` file with the suffix of `path` there."""
    if _folder is None:  # outside of a test run
        write(path)
    else:
        shutil.copyfile(shared(write, f"video{path.suffix}", *parts), path)
    return path
