"""Writes shards: tar files as WebDataset names their members, and their indexes; see shards.py.

The same files, labels and size give the same bytes, in whatever order the files are named.
"""

from __future__ import annotations

import csv
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha1
from pathlib import Path

from video_rs.data import storage
from video_rs.data.shards import BLOCK, COLUMNS, INDEX, TAR, index_path
from video_rs.errors import UserError
from video_rs.files import atomic_write


@dataclass(frozen=True)
class Sample:
    """A file to be packed.

    Attributes:
        file: where it lies.
        name: of the member, as :func:`member_names` makes them.
        label: as lists have it: names of classes, joined by ";" where there are several.
        target: what WebDataset reads for it: its extension, "cls" or "json", and content.
        source: the ``holdout.source_key`` of the video that it was cut from; None where names tell it, or nothing does.
    """

    file: str
    name: str
    label: str
    target: tuple[str, str]
    source: int | None


@dataclass(frozen=True)
class Shard:
    """A shard to be written.

    Attributes:
        path: of the tar.
        samples: in its order.
        sizes: of the files.
        split: which all samples are of.
        num_shards: of the split.
        num_bytes: of the tar.
        index: the content of its index.
    """

    path: Path
    samples: tuple[Sample, ...]
    sizes: tuple[int, ...]
    split: str
    num_shards: int
    num_bytes: int
    index: bytes


def member_names(paths: Iterable[str]) -> dict[str, str]:
    """A name in a shard for each path: the path, without dots in the last part but before its extension, for
    WebDataset takes all that follows the first dot for the extension. No two are the same, nor the same but for it."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in sorted(paths):
        readable = os.fsencode(path).decode(errors="replace")
        stem, extension = os.path.splitext(readable.replace(f"{TAR}/", "_tar/"))
        folder, _, base = stem.rpartition("/")
        key = wanted = f"{folder}/" * bool(folder) + base.replace(".", "_")
        number = 1
        while key in taken:
            number += 1
            key = f"{wanted}_{number}"
        taken.add(key)
        names[path] = key + extension.lower()
    return names


def plan(folder: Path, splits: Mapping[str, Sequence[Sample]], shard_bytes: int) -> list[Shard]:
    """What goes where: the samples in an order drawn from their names, so that all classes are in all shards.

    Args:
        folder: of the shards.
        splits: the files of each; one without files has no shards.
        shard_bytes: most bytes of the members of a shard, their headers included; a larger file has a shard by itself.

    Raises:
        UserError: a file has gone.
    """
    shards = [
        shard for split, samples in splits.items() if samples for shard in _plan(folder, split, samples, shard_bytes)
    ]
    packing = sha1(b"".join(sha1(shard.index).digest() for shard in shards)).hexdigest()[:16]
    return [replace(shard, index=shard.index + _last_row(shard, packing)) for shard in shards]


def _plan(folder: Path, split: str, samples: Sequence[Sample], shard_bytes: int) -> list[Shard]:
    """The shards of a split, whose indexes have no last row."""
    groups: list[list[tuple[Sample, int]]] = [[]]
    filled = 0
    for sample in sorted(samples, key=lambda sample: sha1(os.fsencode(sample.name)).digest()):
        size = _stat(sample).st_size
        taken = _lengths(sample, size)[1]
        if groups[-1] and filled + taken > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((sample, size))
        filled += taken
    return [
        _laid_out(folder / f"{split}-{number:06d}{TAR}", split, group, len(groups))
        for number, group in enumerate(groups)
    ]


def _last_row(shard: Shard, packing: str) -> bytes:
    return f",{shard.num_bytes},{shard.num_shards},{packing},{shard.split},\n".encode()


def write(shards: Sequence[Shard], done: Callable[[int], None]) -> None:
    """Writes the shards that are not there yet, and calls `done` with the number of samples after each.

    A shard appears whole or not at all, its index after it. An existing one stays if it is as planned and none of its
    files is newer. Raises ``MachineError`` for a disk that is full, and ``UserError`` where no file can
    be, or a sample has changed or gone since it was planned.
    """
    for shard in shards:
        index = Path(index_path(str(shard.path)))
        found = index.read_bytes() if index.is_file() else b""
        if not _is_there(shard, found):
            index.unlink(missing_ok=True)
            with atomic_write(shard.path) as handle:
                _write_tar(shard, handle)
        if found != shard.index or not index.exists():
            with atomic_write(index) as handle:
                handle.write(shard.index)
        done(len(shard.samples))


def remove_others(folder: Path, shards: Iterable[Shard]) -> None:
    """Deletes shards of an earlier plan, and their indexes."""
    kept = {shard.path.name.removesuffix(TAR) for shard in shards}
    ours = re.compile(rf"((?:train|val|test)-\d{{6,}})(?:{re.escape(TAR)}|{re.escape(INDEX)})")
    for file in folder.iterdir() if folder.is_dir() else ():
        if (match := ours.fullmatch(file.name)) and match[1] not in kept:
            file.unlink()


def _laid_out(path: Path, split: str, group: Sequence[tuple[Sample, int]], num_shards: int) -> Shard:
    text, end = io.StringIO(newline=""), 0
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for sample, size in group:
        header, taken = _lengths(sample, size)
        source = "" if sample.source is None else f"{sample.source:016x}"
        rows.writerow((sample.name, end + header, size, sample.label, split, source))
        end += taken
    total = -(-(end + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    samples, sizes = zip(*group)
    return Shard(path, samples, sizes, split, num_shards, total, text.getvalue().encode())


def _is_there(shard: Shard, index: bytes) -> bool:
    """Whether the tar is as planned, by its index, of which the last row does not count: it tells of others too."""
    if _rows(index) != _rows(shard.index) or not shard.path.is_file():
        return False
    found = shard.path.stat()
    newest = max(_stat(sample).st_mtime_ns for sample in shard.samples)
    return found.st_size == shard.num_bytes and newest <= found.st_mtime_ns


def _rows(index: bytes) -> bytes:
    """All but the last."""
    return index[: index.rfind(b"\n", 0, -1)]


def _stat(sample: Sample) -> os.stat_result:
    try:
        return os.stat(sample.file)
    except FileNotFoundError:
        raise _changed(sample) from None


def _changed(sample: Sample) -> UserError:
    return UserError(f"{sample.file} has changed or gone while it was packed: call the command again")


def _content(sample: Sample, size: int) -> bytes:
    try:
        content = storage.read(sample.file)
    except FileNotFoundError:
        raise _changed(sample) from None
    if len(content) != size:
        raise _changed(sample)
    return content


def _write_tar(shard: Shard, handle: io.BufferedIOBase) -> None:
    with tarfile.open(fileobj=handle, mode="w", format=tarfile.GNU_FORMAT) as tar:
        rows = csv.DictReader(io.StringIO(shard.index.decode(), newline=""))
        for sample, size, row in zip(shard.samples, shard.sizes, rows):
            tar.addfile(_info(sample.name, size), io.BytesIO(_content(sample, size)))
            if tar.offset != int(row["offset"]) + _padded(size):
                raise RuntimeError(f"{shard.path}: {sample.name} is not where its index says")
            content = sample.target[1].encode()
            tar.addfile(_info(_target_name(sample), len(content)), io.BytesIO(content))
    if handle.tell() != shard.num_bytes:
        raise RuntimeError(f"{shard.path}: {handle.tell()} bytes, where its index says {shard.num_bytes}")


def _lengths(sample: Sample, size: int) -> tuple[int, int]:
    """Return the bytes of the header of a file, and of all its members: itself and its target, with their headers."""
    target = len(sample.target[1].encode())
    header = len(_info(sample.name, size).tobuf(tarfile.GNU_FORMAT))  # long names have longer ones
    next_header = len(_info(_target_name(sample), target).tobuf(tarfile.GNU_FORMAT))
    return header, header + _padded(size) + next_header + _padded(target)


def _target_name(sample: Sample) -> str:
    return f"{os.path.splitext(sample.name)[0]}.{sample.target[0]}"


def _info(name: str, size: int) -> tarfile.TarInfo:
    """Nothing of the time, the owner or the machine."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
