"""Refuse files that would take much more memory or time than their size suggests, before they are read."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from video_rs.errors import UserError

MAX_RATIO = 10  # size of the content divided by the size of the file
_FREE_BYTES = 1 << 20  # content that is accepted from a file of any size
_MAX_DIRECTORY = 8 << 20  # bytes of the directory of a zip file: about 60,000 entries
_MAX_DEPTH = 50  # levels of nested values
_MAX_BITS = 4096  # bits of an integer


def check_size(path: str | Path, content: float) -> None:
    """Raise UserError if a file has too much content.

    Args:
        path: the file.
        content: bytes of its content in memory.
    """
    size = os.path.getsize(path)
    if content > MAX_RATIO * size + _FREE_BYTES:
        raise UserError(f"{path} is not used: its {size:,} bytes would unpack to {content:,.0f}; use another file")


def check_zip(path: str | Path) -> None:
    """Raise UserError for a zip file that would unpack to many times its size. Ignore other files.

    The sizes are read from the directory of the file, as its readers do. Each of several overlapping entries counts.
    """
    if not zipfile.is_zipfile(path):
        return
    if _directory_bytes(path) > _MAX_DIRECTORY:
        raise UserError(f"{path} is not used: it has too many entries; use another file")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [entry.file_size for entry in archive.infolist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # its reader reports it
        return
    check_size(path, sum(sizes))


def _directory_bytes(path: str | Path) -> int:
    """Return the size of the directory of a zip file, from the records at its end."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - (1 << 17)))
        end = file.read()
    place = end.rfind(b"PK\x05\x06")
    size = int.from_bytes(end[place + 12 : place + 16], "little")
    zip64 = end[max(0, place - 76) : max(0, place - 20)]
    return int.from_bytes(zip64[40:48], "little") if size == 0xFFFFFFFF and zip64.startswith(b"PK\x06\x06") else size


def check_values(path: str | Path, values: Any) -> None:
    """Raise UserError if values read from a file are nested too deeply, or are too large when shared ones are repeated.

    Args:
        path: the file.
        values: tensors and plain values.
    """
    try:
        size, _ = _measure(values, _MAX_DEPTH, {})
    except ValueError as error:
        raise UserError(f"{path} is not used: it contains {error}; use another file") from None
    check_size(path, size)


def _measure(value: Any, levels: int, known: dict[Any, Any]) -> tuple[int, int]:
    """Return the size of a value in bytes, 1 for a number, and its depth. Raise ValueError for an extreme value.

    Args:
        levels: the maximum depth.
        known: the results for lists and mappings, by their id, and for tensors, by their address and size.
    """
    if id(value) in known:
        size, depth = known[id(value)]
    elif isinstance(value, (Mapping, list, tuple, set, frozenset)):
        entries = chain.from_iterable(value.items()) if isinstance(value, Mapping) else value
        measured = [_measure(entry, levels - 1, known) for entry in entries] if levels else []
        size, depth = 1 + sum(each[0] for each in measured), 1 + max((each[1] for each in measured), default=0)
        known[id(value)] = size, depth
    else:
        size, depth = _own_size(value, known), 0
    if depth > levels:
        raise ValueError("values that are nested too deeply")
    return size, depth


def _own_size(value: Any, known: dict[Any, Any]) -> int:
    if hasattr(value, "element_size"):
        return _tensor_size(value, known)
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ValueError("a number that is too long")
    return 1 + len(value) if isinstance(value, (str, bytes, bytearray)) else 1


def _tensor_size(tensor: Any, known: dict[Any, Any]) -> int:
    """Return the size of a tensor in bytes. A second name for it takes time and no memory: a hundredth of the size."""
    size = tensor.numel() * tensor.element_size()
    with suppress(RuntimeError):  # a sparse tensor has no address
        place = tensor.data_ptr(), size
        size = size // 100 if place in known else size
        known[place] = size
    return size
