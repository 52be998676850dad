"""The splits of a dataset that lies in shards."""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Collection, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

from video_rs.data import storage
from video_rs.data.holdout import source_key
from video_rs.data.read_split import ReadSplit
from video_rs.data.shards import INDEX, TAR, Members, ShardIndex, expand, index_path, read_index
from video_rs.errors import UserError

_AT_ONCE = 16  # shards looked at
_WINDOW = 32  # indexes that may be held at a time


def are_shards(root: str) -> bool:
    """Whether a ``data.root`` means shards: an address, a tar or a pattern of them, a folder with an index in it,
    or one with nothing but tars."""
    if not root or storage.is_remote(root) or _is_pattern(root):
        return bool(root)
    names = [name for name in os.listdir(root) if not name.startswith(".")] if os.path.isdir(root) else []
    if any(name.endswith(INDEX) for name in names):
        return True
    others = {name for name in names if not name.endswith(TAR)}
    return len(others) < len(names) and others <= {"class_names.txt"}  # all indexes are missing, as will be said


def _is_pattern(value: str, root: str = "") -> bool:
    """Whether it is a tar or a pattern of them. A folder may be called "x.tar" too."""
    return value.endswith(TAR) and not any(map(os.path.isdir, (value, os.path.join(root, value))))


def read_shards(root: str, given: Mapping[str, str], multi_label: bool) -> dict[str, ReadSplit]:
    """The splits that lie in shards; none for a dataset of files.

    Args:
        root: a folder of shards, a pattern or a tar: the indexes tell the splits of its members. Else only a folder
            that patterns in `given` may be relative to.
        given: by split, a pattern or a tar, all of whose members are of that split. What is no tar is left alone.
        multi_label: as for ``splits.load_splits``.

    Raises:
        UserError: a shard or an index is missing, damaged or not of the other, or cannot be reached.
        MachineError: the storage does not answer.
    """
    splits: dict[str, ReadSplit] = {}
    split_of: dict[str, str] = {}
    for split, value in given.items():
        if _is_pattern(value, root):
            shards = _given(root, value)
            if twice := next(filter(split_of.__contains__, shards), None):
                raise UserError(f"data.{split}={value}: {twice} is also in data.{split_of[twice]}")
            split_of |= dict.fromkeys(shards, split)
            with closing(_looked_at(shards, f"data.{split}")) as indexes:
                splits[split] = _one_split(value, multi_label, indexes)
        elif storage.is_remote(value):
            raise UserError(f"data.{split}={value}: only shards ({TAR}) are read from there")
    asked = {split for split, value in given.items() if not value}
    if asked and are_shards(root):
        whole = () if _is_pattern(root) else asked
        with closing(_looked_at(_listed(root), "data.root")) as indexes:
            found = _splits(root, indexes, multi_label, whole)
        splits |= {split: part for split, part in found.items() if split in asked}
    return splits


def _given(root: str, pattern: str) -> list[str]:
    """The shards of a pattern, which may be relative to the root."""
    shards = expand(pattern)
    if storage.is_remote(pattern) or os.path.isabs(pattern) or not root or os.path.exists(shards[0]):
        return shards
    folder = os.path.dirname(root) if _is_pattern(root) else root
    return [os.path.join(folder, shard) for shard in shards]


def _listed(root: str) -> list[str]:
    """The shards of a root, in order."""
    if _is_pattern(root):
        return expand(root)
    try:
        names = storage.sizes(root.rstrip("/"))
    except FileNotFoundError:
        raise UserError(f"data.root={root}: no such folder") from None
    tars = {name for name in names if name.endswith(TAR)} | {
        name.removesuffix(INDEX) + TAR for name in names if name.endswith(INDEX)
    }
    if not tars:
        raise UserError(f"data.root={root}: no shards (*{TAR} with an index *{INDEX}) in it")
    return [f"{root.rstrip('/')}/{name}" for name in sorted(tars)]


def _looked_at(shards: Iterable[str], key: str) -> Generator[ShardIndex, None, None]:
    """Their indexes, in order, several read at a time."""
    shards = list(shards)
    if len(set(shards)) < len(shards):
        raise UserError(f"{key}: {next(shard for shard in shards if shards.count(shard) > 1)} is in it twice")
    folders = {os.path.dirname(shard) for shard in shards}
    there: dict[str, int] = {}
    for folder in folders:
        try:
            there |= {os.path.join(folder, name): size for name, size in storage.sizes(folder).items()}
        except FileNotFoundError:
            raise UserError(f"{key}: no such folder or bucket: {folder or '.'}") from None
    for shard in shards:
        if shard not in there:
            beside = "; its index is there" if index_path(shard) in there else ""
            raise UserError(f"{key}: no such shard: {shard}{beside}")
    first: ShardIndex | None = None
    for index in _read(shards, there):
        first = first or index
        if index.packing != first.packing:
            raise UserError(
                f"{key}: {index_path(first.shard)} and {index_path(index.shard)} were not packed together, so that "
                "files may be in both: delete the older shards, or copy the whole folder anew"
            )
        yield index


def _read(shards: list[str], sizes: Mapping[str, int]) -> Generator[ShardIndex, None, None]:
    """The indexes in order. One has a thousand objects or more: they are not all read before the first is packed.

    To be closed by whoever reads them: it waits for its threads, which must not come to pass in another that is in the
    midst of something, as where the garbage collector closes it.
    """
    waiting: deque[Future[ShardIndex]] = deque()
    with ThreadPoolExecutor(_AT_ONCE, "shard indexes") as pool:
        try:
            for shard in shards:
                if len(waiting) == _WINDOW:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(read_index, shard, sizes[shard]))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _one_split(source: str, multi_label: bool, indexes: Iterable[ShardIndex]) -> ReadSplit:
    """One, which has all the members."""
    part = _Part(source, multi_label)
    for index in indexes:
        part.add(index)
    return part.finished()


def _splits(
    source: str, indexes: Iterable[ShardIndex], multi_label: bool, whole: Collection[str]
) -> dict[str, ReadSplit]:
    """Those that the indexes tell; `whole`: of which all shards should be there."""
    parts: dict[str, _Part] = {}
    wanted: dict[str, int] = {}
    for index in indexes:
        for split in dict.fromkeys(entry.split for entry in index.entries):
            if split not in ("train", "val", "test"):
                raise UserError(f"{index_path(index.shard)}: '{split}' is not train, val or test")
            parts.setdefault(split, _Part(source, multi_label)).add(index, split)
            wanted[split] = max(wanted.get(split, 0), index.num_shards)
    for split, part in parts.items():
        if split in whole and part.num_shards < wanted[split]:
            raise UserError(
                f"data.root={source}: {part.num_shards} of the {wanted[split]} shards of the {split} split "
                f"are there: copy the others too, or name those wanted: data.{split}=name-{{000000..000123}}{TAR}"
            )
        if part.num_shards > wanted[split]:
            raise UserError(
                f"data.root={source}: {part.num_shards} shards of the {split} split are there, where their indexes "
                f"tell of {wanted[split]}: delete the copies"
            )
    return {split: part.finished() for split, part in parts.items()}


class _Part:
    """One split as it is read."""

    def __init__(self, source: str, multi_label: bool) -> None:
        self._read = ReadSplit(source, joined=multi_label)
        self._offsets, self._sizes, self._shards = array("q"), array("q"), array("i")
        self.num_shards, self._are_sources_listed = 0, False

    def add(self, index: ShardIndex, split: str = "") -> None:
        """The members of a shard, or those of one split."""
        part, file = self._read, index_path(index.shard)
        for entry in index.entries:
            if split and entry.split != split:
                continue
            if not entry.label and not part.joined:
                hint = "a sample without a label needs data.multi_label=true"
                raise UserError(f"{file}:{entry.line}: {hint}")
            path = f"{index.shard}/{entry.name}"
            part.add(path, entry.label, file, entry.line)
            part.sources.append(entry.source if entry.source is not None else source_key(path))
            self._are_sources_listed |= entry.source is not None
            self._offsets.append(entry.offset)
            self._sizes.append(entry.size)
            self._shards.append(self.num_shards)
        self.num_shards += 1

    def finished(self) -> ReadSplit:
        """With the places of the members."""
        if not self._are_sources_listed:
            self._read.sources = array("Q")  # names tell them, as of files
        self._read.members = Members(self._offsets, self._sizes, self._shards)
        return self._read
