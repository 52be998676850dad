"""The splits of a dataset that lies in shards."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from video_rs.data import storage
from video_rs.data.shards import INDEX, TAR, Entry, Members, ShardIndex, expand, index_path, read_index
from video_rs.data.sources.read_split import RawSplit
from video_rs.errors import UserError

_AT_ONCE = 16  # indexes read at a time


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


def read_shards(root: str, given: Mapping[str, str], multi_label: bool) -> dict[str, RawSplit]:
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
    splits: dict[str, RawSplit] = {}
    split_of: dict[str, str] = {}
    for split, value in given.items():
        if _is_pattern(value, root):
            shards = _given(root, value)
            if twice := next(filter(split_of.__contains__, shards), None):
                raise UserError(f"data.{split}={value}: {twice} is also in data.{split_of[twice]}")
            split_of |= dict.fromkeys(shards, split)
            indexes = _indexes(shards, f"data.{split}")
            splits[split] = _parts(value, indexes, multi_label, split)[split]
        elif storage.is_remote(value):
            raise UserError(f"data.{split}={value}: only shards ({TAR}) are read from there")
    asked = {split for split, value in given.items() if not value}
    if asked and are_shards(root):
        for split, part in _parts(root, _indexes(_listed(root), "data.root"), multi_label).items():
            if split in asked:
                _refuse_incomplete(root, split, part)
                splits[split] = part
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


def _indexes(shards: list[str], key: str) -> Iterator[ShardIndex]:
    """Yield the indexes of shards, in order; threads read a few at a time, since each takes two requests."""
    if len(set(shards)) < len(shards):
        raise UserError(f"{key}: {next(shard for shard in shards if shards.count(shard) > 1)} is in it twice")
    sizes: dict[str, int] = {}
    for folder in {os.path.dirname(shard) for shard in shards}:
        try:
            sizes |= {os.path.join(folder, name): size for name, size in storage.sizes(folder).items()}
        except FileNotFoundError:
            raise UserError(f"{key}: no such folder or bucket: {folder or '.'}") from None
    if missing := next((shard for shard in shards if shard not in sizes), None):
        beside = "; its index is there" if index_path(missing) in sizes else ""
        raise UserError(f"{key}: no such shard: {missing}{beside}")
    first: ShardIndex | None = None
    for start in range(0, len(shards), _AT_ONCE):
        some = shards[start : start + _AT_ONCE]
        with ThreadPoolExecutor(_AT_ONCE, "shard indexes") as pool:
            indexes = list(pool.map(read_index, some, map(sizes.get, some)))
        for index in indexes:
            first = first or index
            if index.packing != first.packing:
                both = f"{index_path(first.shard)} and {index_path(index.shard)}"
                raise UserError(f"{key}: {both} were not packed together: delete the older, or copy the folder anew")
            yield index


def _parts(source: str, indexes: Iterable[ShardIndex], multi_label: bool, split: str = "") -> dict[str, RawSplit]:
    """Return the splits that the indexes name, or `split` with all their members."""
    parts: dict[str, RawSplit] = {}
    for index in indexes:
        for name in [split] if split else dict.fromkeys(entry.split for entry in index.entries):
            if name not in ("train", "val", "test"):
                raise UserError(f"{index_path(index.shard)}: '{name}' is not train, val or test")
            part = parts.setdefault(name, RawSplit(source, has_label_sets=multi_label, members=Members()))
            _add(part, index, [entry for entry in index.entries if split or entry.split == name])
    for part in parts.values():
        if len(part.sources) < len(part.paths):
            part.sources = array("Q")  # names tell them, as of files
    return parts


def _add(part: RawSplit, index: ShardIndex, entries: list[Entry]) -> None:
    """Add members of a shard to a split."""
    file = index_path(index.shard)
    for entry in entries:
        if not entry.label and not part.has_label_sets:
            raise UserError(f"{file}:{entry.line}: a sample without a label needs data.multi_label=true")
        part.add(f"{index.shard}/{entry.name}", entry.label, file, entry.line)
        part.members.add(entry.offset, entry.size, part.num_shards)
        if entry.source is not None:
            part.sources.append(entry.source)
    part.num_shards += 1
    part.listed_shards = max(part.listed_shards, index.num_shards)


def _refuse_incomplete(root: str, split: str, part: RawSplit) -> None:
    """Raise UserError for a split that has other shards than its indexes count; a pattern may leave some out."""
    found, wanted = part.num_shards, part.listed_shards
    if found < wanted and not _is_pattern(root):
        hint = f"copy the missing ones too, or name those wanted: data.{split}=name-{{000000..000123}}{TAR}"
        raise UserError(f"data.root={root}: {found} of the {wanted} shards of the {split} split found: {hint}")
    if found > wanted:
        hint = f"but their indexes count {wanted}: delete the copies"
        raise UserError(f"data.root={root}: {found} shards of the {split} split found, {hint}")
