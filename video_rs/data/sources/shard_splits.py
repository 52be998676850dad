"""The splits of a dataset in shards."""

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from video_rs.data import storage
from video_rs.data.shards import INDEX, NAMES_FILE, TAR, Members, ShardIndex, expand, index_path, read_index
from video_rs.data.sources.read_split import RawSplit
from video_rs.data.sources.records import SPLITS
from video_rs.errors import UserError

_NUM_THREADS = 16  # for reading indexes


def are_shards(root: str) -> bool:
    """Return True if a ``data.root`` refers to shards.

    Shards are a URL, a tar file or a pattern of tar files, a folder with an index, or a folder that has only tar files.
    """
    if not root or storage.is_remote(root) or _is_pattern(root):
        return bool(root)
    names = [name for name in os.listdir(root) if not name.startswith(".")] if os.path.isdir(root) else []
    if any(name.endswith(INDEX) for name in names):
        return True
    others = {name for name in names if not name.endswith(TAR)}
    return len(others) < len(names) and others <= {NAMES_FILE}  # read_index then names the missing indexes


def _is_pattern(value: str, root: str = "") -> bool:
    """Return True for a tar file or a pattern of tar files, but not for a folder called "x.tar"."""
    return value.endswith(TAR) and not any(map(os.path.isdir, (value, os.path.join(root, value))))


def read_shards(root: str, given: Mapping[str, str], multi_label: bool) -> dict[str, RawSplit]:
    """Return the splits in shards; empty for a dataset of files.

    Args:
        root: a folder of shards, a pattern or a tar file. The indexes define the split of each file. Or the folder that
            patterns in `given` are relative to.
        given: a pattern or a tar file for each split. All of its files belong to that split. Other values are ignored.
        multi_label: see ``splits.load_splits``.

    Raises:
        UserError: a shard or an index is missing or damaged, they do not belong together, or the URL is wrong.
        MachineError: the storage does not respond.
    """
    splits: dict[str, RawSplit] = {}
    split_of: dict[str, str] = {}
    for split, value in given.items():
        if _is_pattern(value, root):
            shards = _expand_given(root, value)
            if twice := next(filter(split_of.__contains__, shards), None):
                raise UserError(f"data.{split}={value}: {twice} is also in data.{split_of[twice]}")
            split_of |= dict.fromkeys(shards, split)
            splits |= _read(value, _read_indexes(shards, f"data.{split}"), multi_label, split)
        elif storage.is_remote(value):
            raise UserError(f"data.{split}={value}: remote data must be shards (*{TAR})")
    missing = {split for split, value in given.items() if not value}
    if missing and are_shards(root):
        found = _read(root, _read_indexes(_list_shards(root), "data.root"), multi_label)
        for split, part in found.items():
            if split in missing:
                _check_count(root, split, part)
                splits[split] = part
    return splits


def _expand_given(root: str, pattern: str) -> list[str]:
    """Return the shards that match a pattern, which can be relative to the root."""
    shards = expand(pattern)
    if storage.is_remote(pattern) or os.path.isabs(pattern) or not root or os.path.exists(shards[0]):
        return shards
    folder = os.path.dirname(root) if _is_pattern(root) else root
    return [os.path.join(folder, shard) for shard in shards]


def _list_shards(root: str) -> list[str]:
    """Return the shards in a root, in order."""
    if _is_pattern(root):
        return expand(root)
    names = storage.sizes(root.rstrip("/"), missing=UserError(f"data.root={root}: no such folder"))
    tars = {name.removesuffix(".csv") for name in names if name.endswith((TAR, INDEX))}
    if not tars:
        raise UserError(f"data.root={root}: contains no shards (*{TAR} with an index *{INDEX})")
    return [f"{root.rstrip('/')}/{name}" for name in sorted(tars)]


def _read_indexes(shards: list[str], key: str) -> Iterator[ShardIndex]:
    """Yield the indexes of shards in order. Several threads read them, because each index takes two requests."""
    if len(set(shards)) < len(shards):
        raise UserError(f"{key}: {next(shard for shard in shards if shards.count(shard) > 1)} is listed twice")
    sizes: dict[str, int] = {}
    for folder in {os.path.dirname(shard) for shard in shards}:
        missing = UserError(f"{key}: no such folder or bucket: {folder or '.'}")
        sizes |= {os.path.join(folder, name): n for name, n in storage.sizes(folder, missing=missing).items()}
    if gone := next((shard for shard in shards if shard not in sizes), None):
        beside = "; only its index exists" if index_path(gone) in sizes else ""
        raise UserError(f"{key}: no such shard: {gone}{beside}")
    first: ShardIndex | None = None
    for start in range(0, len(shards), _NUM_THREADS):
        some = shards[start : start + _NUM_THREADS]
        with ThreadPoolExecutor(_NUM_THREADS, "shard indexes") as pool:
            indexes = list(pool.map(read_index, some, map(sizes.get, some)))
        for index in indexes:
            first = first or index
            if index.packing != first.packing:
                both = f"{index_path(first.shard)} and {index_path(index.shard)}"
                raise UserError(f"{key}: {both} are not of one packing: delete the older, or copy the folder again")
            yield index


def _read(source: str, indexes: Iterable[ShardIndex], multi_label: bool, split: str = "") -> dict[str, RawSplit]:
    """Return the splits named by the indexes, or one split with all files."""
    parts: dict[str, RawSplit] = {}
    for index in indexes:
        file = index_path(index.shard)
        for name in [split] if split else dict.fromkeys(row.split for row in index.rows):
            if name not in SPLITS:
                raise UserError(f"{file}: '{name}' is not train, val or test")
            part = parts.setdefault(name, RawSplit(source, has_label_sets=multi_label, members=Members()))
            for row in index.rows:
                if not split and row.split != name:
                    continue
                if not row.label and not multi_label:
                    raise UserError(f"{file}:{row.line}: a sample without a label needs data.multi_label=true")
                part.add(f"{index.shard}/{row.name}", row.label, file, row.line)
                part.members.add(row.offset, row.size, part.num_shards)
                if row.source is not None:
                    part.sources.append(row.source)
            part.num_shards += 1
            part.listed_shards = max(part.listed_shards, index.num_shards)
    for part in parts.values():
        if len(part.sources) < len(part.paths):
            part.sources = array("Q")  # the sources are derived from file names
    return parts


def _check_count(root: str, split: str, part: RawSplit) -> None:
    """Raise UserError if the number of shards of a split is not that in its indexes. A pattern can select fewer."""
    found, listed = part.num_shards, part.listed_shards
    if found < listed and not _is_pattern(root):
        hint = f"copy the missing ones, or select some: data.{split}=name-{{000000..000123}}{TAR}"
        raise UserError(f"data.root={root}: {found} of the {listed} shards of the {split} split found: {hint}")
    if found > listed:
        hint = f"but their indexes count {listed}: delete the copies"
        raise UserError(f"data.root={root}: {found} shards of the {split} split found, {hint}")
