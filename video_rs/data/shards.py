"""Samples in tar files ("shards") named as WebDataset names them, each with an index that tells where its members lie.

Beside ``train-000000.tar`` lies ``train-000000.tar.csv``: a row ``name,offset,size,label,split,source`` for each
sample, where offset and size are those of its bytes in the tar, and source stands for the video that it was cut from
where a list named it. In a last row without a name the offset is the size of the tar, the size the number of shards of
the split, and the label stands for all shards of all splits that were packed with it. So a member is one range of bytes
away, and a tar or an index that is cut off or left of another time is noticed before the first of them is read.

A member is named by a path like any other file: ``train-000000.tar/train/juggling/abc.mp4``.
"""

from __future__ import annotations

import csv
import io
import os
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from video_rs.data import storage
from video_rs.errors import MachineError, MediaError, UserError

TAR, INDEX = ".tar", ".tar.csv"
COLUMNS = ("name", "offset", "size", "label", "split", "source")
BLOCK = 512  # bytes; a tar's headers and the starts of its members are multiples of it
_MOST_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Entry(NamedTuple):
    """One row of an index, and its line, from 1. The label is as written; the source is a ``holdout.source_key``, None
    where the list that was packed names no sources."""

    name: str
    offset: int
    size: int
    label: str
    split: str
    source: int | None
    line: int


@dataclass(frozen=True)
class ShardIndex:
    """What an index says.

    Attributes:
        shard: path of the tar.
        entries: in the order of the tar.
        num_bytes: of the tar.
        num_shards: of the split.
        packing: the same in the indexes of all shards that were packed together, and in no others.
    """

    shard: str
    entries: tuple[Entry, ...]
    num_bytes: int
    num_shards: int
    packing: str


@dataclass(frozen=True)
class Member:
    """Where one file lies in a shard: it starts at byte `offset` and has `size` bytes. ``str()`` is its path."""

    path: str
    offset: int
    size: int

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Blob:
    """A file that has been read whole. ``str()`` is its path."""

    path: str
    data: bytes

    def __str__(self) -> str:
        return self.path

    def open(self) -> io.BytesIO:
        """To be read from its start; it has a `name`, by which FFmpeg guesses the format, as of a file."""
        stream = _Named(self.data)
        stream.name = self.path
        return stream


class _Named(io.BytesIO):
    name = ""


File = str | Path | Member | Blob


class Members:
    """Where N files lie in shards, in three arrays that forked workers share.

    Args:
        offsets, sizes: of their bytes, int64 ``[N]``.
        shards: a number for the shard of each, int32 ``[N]``, ascending.
    """

    def __init__(self, offsets: Sequence[int] = (), sizes: Sequence[int] = (), shards: Sequence[int] = ()) -> None:
        self.offsets, self.sizes, self.shards = array("q", offsets), array("q", sizes), array("i", shards)

    def add(self, offset: int, size: int, shard: int) -> None:
        """Add one more."""
        self.offsets.append(offset)
        self.sizes.append(size)
        self.shards.append(shard)

    def member(self, index: int, path: str) -> Member:
        """Return one of them, whose path is known elsewhere."""
        return Member(path, self.offsets[index], self.sizes[index])

    def take(self, indices: np.ndarray) -> Members:
        """Return some of them; `indices` ascend."""
        return Members(*(np.asarray(each)[indices].tolist() for each in (self.offsets, self.sizes, self.shards)))

    def starts(self) -> np.ndarray:
        """Return the first file of each shard, int64."""
        return np.flatnonzero(np.diff(self.shards, prepend=-1))


def is_member(path: str) -> bool:
    """Whether a path is that of a file in a shard. A folder may be called "x.tar" too."""
    return f"{TAR}/" in path and (storage.is_remote(path) or not os.path.exists(path))


def split_member(path: str) -> tuple[str, str]:
    """The shard, and the name in it."""
    shard, _, name = path.rpartition(f"{TAR}/")
    return shard + TAR, name


def in_memory(file: File) -> str | Path | Blob:
    """Read a member of a shard whole; return any other path as it is.

    Raises:
        MediaError: there is no such member, the shard ends before it does, or another one is in its place.
        UserError, MachineError: as of :func:`storage.read`; a shard that has gone is a ``MachineError``.
    """
    if isinstance(file, Blob) or not (isinstance(file, Member) or is_member(os.fspath(file))):
        return file
    member = file if isinstance(file, Member) else _look_up(os.fspath(file))
    shard, name = split_member(member.path)
    try:
        data = storage.read(shard, member.offset - BLOCK, member.offset + member.size)
    except FileNotFoundError:
        raise MachineError(f"{shard} has gone: check the storage") from None
    if len(data) < BLOCK + member.size:
        raise MediaError(f"{member.path}: the shard ends before it does")
    if not _is_header_of(data, name, member.size):
        raise MediaError(f"{member.path}: something else is in its place: the index is of another tar")
    return Blob(member.path, data[BLOCK:])


def _is_header_of(data: bytes, name: str, size: int) -> bool:
    """Of a long name, a tar's header has the first 100 bytes."""
    try:
        return data[:100].rstrip(b"\0") == os.fsencode(name)[:100] and tarfile.nti(data[124:136]) == size
    except tarfile.HeaderError:  # no number
        return False


def _look_up(path: str) -> Member:
    shard, name = split_member(path)
    try:
        place = _places(shard).get(name)
    except FileNotFoundError:
        raise MediaError(f"{path}: no such shard, or no index {os.path.basename(shard)}.csv beside it") from None
    if place is None:
        raise MediaError(f"{path}: no such file in the shard")
    return Member(path, *place)


@lru_cache(maxsize=4)
def _places(shard: str) -> dict[str, tuple[int, int]]:
    index = parse_index(shard, storage.read(index_path(shard)))
    return {entry.name: (entry.offset, entry.size) for entry in index.entries}


def index_path(shard: str) -> str:
    """Return the path of the index that belongs to a shard."""
    return shard.removesuffix(TAR) + INDEX


def parse_index(shard: str, data: bytes) -> ShardIndex:
    """Raises UserError for what is no index of a shard, or a part of one."""
    file, found = index_path(shard), []
    again, header = "make it anew with prepare_dataset --shards", ",".join(COLUMNS)
    if not data.startswith(f"{header}\n".encode()):
        raise UserError(f"{file}: not the index of a shard, which begins with '{header}': {again}")
    try:
        rows = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8: copy it again, or {again}") from None
    try:
        next(rows)
        for name, offset, size, label, split, source in rows:
            if len(source) not in (0, 16):
                raise ValueError
            key = int(source, 16) if source else None
            found.append(Entry(name, int(offset), int(size), label, split, key, rows.line_num))
    except (csv.Error, ValueError):
        cut = not data.endswith(b"\n")
        what = "it is cut off: copy it again, or " if cut else f"not a row '{header}': "
        raise UserError(f"{file}:{rows.line_num}: {what}{again}") from None
    if not found or found[-1].name or not data.endswith(b"\n"):
        raise UserError(f"{file} is cut off: its last row, with the size of the tar, is missing: copy it again")
    entries, end = tuple(found[:-1]), found[-1]
    for entry in entries:
        if not entry.name or entry.offset < BLOCK or entry.size < 0 or entry.offset + entry.size > end.offset:
            raise UserError(f"{file}:{entry.line}: '{entry.name}' does not lie in a tar of {end.offset} bytes: {again}")
    if len({entry.name for entry in entries}) < len(entries):
        raise UserError(f"{file}: a name is in it twice: {again}")
    return ShardIndex(shard, entries, end.offset, end.size, end.label)


def read_index(shard: str, size: int) -> ShardIndex:
    """The index of a shard, after a look at the shard.

    Args:
        shard: path of the tar.
        size: of the tar, in bytes.

    Raises:
        UserError: one of the two is missing, cut off, or not of the other; or as of :func:`storage.read`.
        MachineError: as of :func:`storage.read`.
    """
    try:
        index = parse_index(shard, storage.read(index_path(shard)))
    except FileNotFoundError:
        beside = f"{shard} has no index {os.path.basename(index_path(shard))} beside it"
        raise UserError(f"{beside}: copy it too, or make both with prepare_dataset --shards") from None
    if size < index.num_bytes:
        raise UserError(f"{shard} is cut off: it has {size} of the {index.num_bytes} bytes in its index; copy it again")
    is_same = size == index.num_bytes
    for last in index.entries[-1:]:  # the last member lies where the index says
        try:
            header = storage.read(shard, last.offset - BLOCK, last.offset)
        except FileNotFoundError:
            raise UserError(f"{shard} has gone: copy it again") from None
        is_same = is_same and _is_header_of(header, last.name, last.size)
    if not is_same:
        raise UserError(f"{index_path(shard)} is the index of another tar than {shard}: copy both again")
    return index


def expand(pattern: str) -> list[str]:
    """The paths that a pattern with braces stands for: ``k-{000..002}.tar``, ``{train,val}-000.tar``. Raises UserError.

    >>> expand("k-{08..10}.tar")
    ['k-08.tar', 'k-09.tar', 'k-10.tar']
    """
    pieces = _BRACES.split(pattern)  # text, inside of braces, text, ...
    if any(mark in piece for piece in pieces[::2] for mark in "{}"):
        raise UserError(f"{pattern}: a brace is not closed: write name-{{000000..000123}}.tar")
    parts = [list(_choices(piece, pattern)) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    total = np.prod([len(part) for part in parts], dtype=float)
    if total > _MOST_SHARDS:
        raise UserError(f"{pattern}: these are {total:.0f} shards, more than {_MOST_SHARDS}")
    return ["".join(words) for words in product(*parts)]


def _choices(inside: str, pattern: str) -> Iterator[str]:
    if not (match := _RANGE.fullmatch(inside)):
        yield from inside.split(",")
        return
    first, last = match.groups()
    if int(last) < int(first) or int(last) - int(first) >= _MOST_SHARDS:
        raise UserError(f"{pattern}: {{{inside}}} is not a range from a number to a larger one")
    for number in range(int(first), int(last) + 1):
        yield f"{number:0{len(first)}d}"
