"""Shards: tar files of samples, named as WebDataset names them, each with an index of its members.

The index of ``train-000000.tar`` is ``train-000000.tar.csv``, with a row ``name,offset,size,label,split,source`` per
sample. Offset and size locate its bytes in the tar. The source is the ``holdout.source_key`` of its source video, or
empty.
The last row has no name: its offset is the size of the tar, its size is the number of shards of the split, and its
label is the id of the packing, which all shards that were packed together share. A member is read in one range request.
Truncated files, and files of another packing, are detected before the first sample is read.

The path of a member is the path of its shard and its name: ``train-000000.tar/train/juggling/abc.mp4``.
"""

import csv
import io
import os
import re
import tarfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from video_rs.data import storage
from video_rs.errors import MachineError, MediaError, UserError, first_line

TAR, INDEX = ".tar", ".tar.csv"
NAMES_FILE = "class_names.txt"  # in the folder of the shards
COLUMNS = ("name", "offset", "size", "label", "split", "source")
BLOCK = 512  # bytes; tar headers and contents start at multiples of it
_MAX_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


class IndexRow(NamedTuple):
    """One row of an index, with its line number. The label is as written; the source is None if it is empty."""

    name: str
    offset: int
    size: int
    label: str
    split: str
    source: int | None
    line: int


@dataclass(frozen=True)
class ShardIndex:
    """The content of an index.

    Attributes:
        shard: path of the tar.
        rows: the rows, in the order of the tar.
        num_bytes: size of the tar.
        num_shards: number of shards in the split.
        packing: id that all shards of one packing share.
    """

    shard: str
    rows: tuple[IndexRow, ...]
    num_bytes: int
    num_shards: int
    packing: str


@dataclass(frozen=True)
class Member:
    """A file in a shard: it starts at byte `offset` and has `size` bytes. ``str()`` returns its path."""

    path: str
    offset: int
    size: int

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Blob:
    """A file that was read into memory. ``str()`` returns its path."""

    path: str
    data: bytes

    def __str__(self) -> str:
        return self.path

    def open(self) -> io.BytesIO:
        """Return a stream with a `name`, from which FFmpeg guesses the format."""
        stream = _NamedBytesIO(self.data)
        stream.name = self.path
        return stream


class _NamedBytesIO(io.BytesIO):
    name = ""


File = str | Path | Member | Blob


class Members:
    """The positions of N files in shards, in arrays that workers share.

    Args:
        offsets, sizes: position and size of each file in its shard, int64 ``[N]``.
        shards: index of the shard of each file, int32 ``[N]``, ascending.
    """

    def __init__(self, offsets: Sequence[int] = (), sizes: Sequence[int] = (), shards: Sequence[int] = ()) -> None:
        self.offsets, self.sizes, self.shards = array("q", offsets), array("q", sizes), array("i", shards)

    def add(self, offset: int, size: int, shard: int) -> None:
        """Append a file."""
        self.offsets.append(offset)
        self.sizes.append(size)
        self.shards.append(shard)

    def member(self, index: int, path: str) -> Member:
        """Return one file. Its path is stored elsewhere."""
        return Member(path, self.offsets[index], self.sizes[index])

    def take(self, indices: np.ndarray) -> "Members":
        """Return some of the files. `indices` must be ascending."""
        return Members(*(np.asarray(each)[indices].tolist() for each in (self.offsets, self.sizes, self.shards)))

    def starts(self) -> np.ndarray:
        """Return the index of the first file of each shard, int64."""
        return np.flatnonzero(np.diff(self.shards, prepend=-1))


def is_member(path: str) -> bool:
    """Return True for the path of a file in a shard. A folder can be called "x.tar" too."""
    return f"{TAR}/" in path and (storage.is_remote(path) or not os.path.exists(path))


def split_member(path: str) -> tuple[str, str]:
    """Split the path of a member into the path of the shard and the name in it."""
    shard, _, name = path.rpartition(f"{TAR}/")
    return shard + TAR, name


def in_memory(file: File) -> str | Path | Blob:
    """Read a member of a shard into memory; return any other file unchanged.

    Raises:
        MediaError: there is no such member, the shard is truncated, or another file is at its offset.
        UserError, MachineError: see :func:`storage.read`. A missing shard is a ``MachineError``.
    """
    if isinstance(file, Blob) or not (isinstance(file, Member) or is_member(os.fspath(file))):
        return file
    shard, name = split_member(str(file))
    try:
        member = file if isinstance(file, Member) else _members(shard)[str(file)]
    except FileNotFoundError:
        index = os.path.basename(index_path(shard))
        raise MediaError(f"{file}: no such shard, or no index {index} beside it") from None
    except KeyError:
        raise MediaError(f"{file}: no such file in the shard") from None
    missing = MachineError(f"{shard}: the file no longer exists; check the storage")
    data = storage.read(shard, member.offset - BLOCK, member.offset + member.size, missing=missing)
    if len(data) < BLOCK + member.size:
        raise MediaError(f"{member.path}: the shard is truncated")
    if not _is_header_of(data, name, member.size):
        raise MediaError(f"{member.path}: not found at its offset; the index belongs to another tar")
    return Blob(member.path, data[BLOCK:])


def _is_header_of(data: bytes, name: str, size: int) -> bool:
    """Return True for the tar header of a file, which contains only the first 100 bytes of a long name."""
    try:
        return data[:100].rstrip(b"\0") == os.fsencode(name)[:100] and tarfile.nti(data[124:136]) == size
    except tarfile.HeaderError:  # the size is not a number
        return False


@lru_cache(maxsize=4)
def _members(shard: str) -> dict[str, Member]:
    rows = parse_index(shard, storage.read(index_path(shard))).rows
    members = (Member(f"{shard}/{row.name}", row.offset, row.size) for row in rows)
    return {member.path: member for member in members}


def index_path(shard: str) -> str:
    """Return the path of the index of a shard."""
    return shard.removesuffix(TAR) + INDEX


def parse_index(shard: str, data: bytes) -> ShardIndex:
    """Parse an index. Raise UserError if it is incomplete, inconsistent or of another format."""
    found: list[IndexRow] = []
    try:
        rows = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
        if tuple(next(rows, ())) != COLUMNS:
            raise ValueError(f"the first line is not '{','.join(COLUMNS)}'")
        for name, offset, size, label, split, source in rows:
            if len(source) not in (0, 16):
                raise ValueError(f"line {rows.line_num}: '{source}' is not a source")
            key = int(source, 16) if source else None
            found.append(IndexRow(name, int(offset), int(size), label, split, key, rows.line_num))
        if not found or found[-1].name or not data.endswith(b"\n"):
            raise ValueError("the last row, with the size of the tar, is missing")
        *found, end = found
        for row in found:
            if not row.name or row.offset < BLOCK or row.size < 0 or row.offset + row.size > end.offset:
                raise ValueError(f"line {row.line}: '{row.name}' is outside a tar of {end.offset} bytes")
        if len({row.name for row in found}) < len(found):
            raise ValueError("a name is repeated")
    except (csv.Error, ValueError) as error:
        hint = "copy it again, or make it with prepare_dataset --shards"
        raise UserError(f"{index_path(shard)}: not a complete shard index ({first_line(error)}): {hint}") from None
    return ShardIndex(shard, tuple(found), end.offset, end.size, end.label)


def read_index(shard: str, size: int) -> ShardIndex:
    """Read the index of a shard, and check that it belongs to the shard.

    Args:
        shard: path of the tar.
        size: size of the tar in bytes.

    Raises:
        UserError: a file is missing or truncated, or the two do not belong together; see also :func:`storage.read`.
        MachineError: see :func:`storage.read`.
    """
    beside = f"{shard} has no index {os.path.basename(index_path(shard))} beside it"
    missing = UserError(f"{beside}: copy it too, or make both with prepare_dataset --shards")
    index = parse_index(shard, storage.read(index_path(shard), missing=missing))
    if size < index.num_bytes:
        raise UserError(f"{shard} is truncated: {size} of the {index.num_bytes} bytes in its index; copy it again")
    is_same = size == index.num_bytes
    for last in index.rows[-1:]:
        missing = UserError(f"{shard}: the file no longer exists; copy it again")
        header = storage.read(shard, last.offset - BLOCK, last.offset, missing=missing)
        is_same = is_same and _is_header_of(header, last.name, last.size)
    if not is_same:
        raise UserError(f"{index_path(shard)} does not belong to {shard}; copy both again")
    return index


def expand(pattern: str) -> list[str]:
    """Expand the braces in a pattern such as ``k-{000..002}.tar`` or ``{train,val}-000.tar``. Raise UserError.

    >>> expand("k-{08..10}.tar")
    ['k-08.tar', 'k-09.tar', 'k-10.tar']
    """
    pieces = _BRACES.split(pattern)  # text outside, inside, outside of braces, ...
    if any(mark in piece for piece in pieces[::2] for mark in "{}"):
        raise UserError(f"{pattern}: unclosed brace: write name-{{000000..000123}}.tar")
    parts = [_choices(piece, pattern) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    total = np.prod([len(part) for part in parts], dtype=float)
    if total > _MAX_SHARDS:
        raise UserError(f"{pattern}: these are {total:.0f} shards, more than {_MAX_SHARDS}")
    return ["".join(words) for words in product(*parts)]


def _choices(inside: str, pattern: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if not match:
        return inside.split(",")
    first, last = match.groups()
    if not 0 <= int(last) - int(first) < _MAX_SHARDS:
        raise UserError(f"{pattern}: {{{inside}}} is not a range from a number to a larger one")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
