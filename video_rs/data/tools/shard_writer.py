"""Write shards: tar files with members named as in WebDataset, and their indexes; see ``data/shards.py``.

The bytes depend only on the files, the labels and the shard size, not on the order of the files.
"""

import csv
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha1
from pathlib import Path

from video_rs.data import storage
from video_rs.data.shards import BLOCK, COLUMNS, INDEX, NAMES_FILE, TAR, index_path
from video_rs.data.sources.lookalikes import folded
from video_rs.data.sources.records import SEPARATOR, SPLITS, Records
from video_rs.errors import UserError
from video_rs.files import atomic_write

FOLDER = "shards"  # of a prepared dataset


@dataclass(frozen=True)
class Sample:
    """A file to pack.

    Attributes:
        file: path of the file.
        name: name of the member, from :func:`member_names`.
        label: class names joined by ";", as in lists.
        target: extension ("cls" or "json") and content of the member that WebDataset reads as the label.
        source: the ``holdout.source_key`` of the source video; None if the list does not name it.
    """

    file: str
    name: str
    label: str
    target: tuple[str, str]
    source: int | None

    @cached_property
    def size(self) -> int:
        """Return the size of the file in bytes when it was planned."""
        return self.stat().st_size

    def stat(self) -> os.stat_result:
        try:
            return os.stat(self.file)
        except FileNotFoundError:
            raise self.changed() from None

    def changed(self) -> UserError:
        return UserError(f"{self.file} was changed or deleted while it was packed; run the command again")


@dataclass(frozen=True)
class Shard:
    """A shard to write.

    Attributes:
        path: of the tar.
        samples: in the order of the tar.
        split: of all samples.
        num_shards: number of shards of the split.
        num_bytes: size of the tar.
        index: content of its index.
    """

    path: Path
    samples: tuple[Sample, ...]
    split: str
    num_shards: int
    num_bytes: int
    index: bytes


def pack(
    out: Path,
    splits: Mapping[str, Records],
    copies: Mapping[str, str],
    shard_bytes: int,
    counter: Callable[[int], Callable[[int], None]],
) -> list[Shard]:
    """Write all splits of a prepared dataset to OUT/shards, with class_names.txt.

    Args:
        out: folder of the prepared dataset.
        splits: records of the source dataset.
        copies: path of each copy relative to `out`, by source file.
        shard_bytes: see :func:`plan`.
        counter: called with the number of samples. Returns a function that is called with the number of samples in each
            finished shard.

    Raises:
        MachineError, UserError: see :func:`require_packable`, :func:`plan` and :func:`write`.
    """
    require_packable(splits)
    folder, names = out / FOLDER, member_names(copies.values())
    names_file = folder / NAMES_FILE
    class_names = "".join(f"{name}\n" for name in next(iter(splits.values())).class_names).encode()
    if not names_file.exists() or names_file.read_bytes() != class_names:
        remove_others(folder, ())  # shards hold class numbers
        with atomic_write(names_file) as handle:
            handle.write(class_names)
    samples: dict[str, list[Sample]] = {}
    for split, records in splits.items():
        copied: dict[str, int] = {}  # a list can name a file twice
        for i in range(len(records)):
            if records.path(i) in copies:
                copied.setdefault(copies[records.path(i)], i)
        samples[split] = [_sample(out, copy, names[copy], records, i) for copy, i in copied.items()]
    shards = plan(folder, samples, shard_bytes)
    remove_others(folder, shards)
    write(shards, counter(sum(len(shard.samples) for shard in shards)))
    return shards


def require_packable(splits: Mapping[str, Records]) -> None:
    """Raise UserError for splits with segments, which the index of a shard does not contain."""
    for split, records in splits.items():
        if records.segments is not None:
            raise UserError(f"the {split} list has segments (start, end), which shards do not support; omit --shards")


def _sample(out: Path, copy: str, name: str, records: Records, i: int) -> Sample:
    labels = records.label_set(i).tolist()
    target = ("json", json.dumps(labels)) if records.multi_label else ("cls", str(labels[0]))
    source = None if records.sources is None else int(records.sources[i])
    return Sample(os.path.join(out, copy), name, SEPARATOR.join(records.label_names(i)), target, source)


def member_names(paths: Iterable[str]) -> dict[str, str]:
    """Return the member name for each path.

    WebDataset treats everything after the first dot of a base name as the extension, so other dots are replaced by "_".
    Names are unique without their extensions, even on file systems that ignore case or the Unicode form.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in sorted(paths):
        readable = os.fsencode(path).decode(errors="replace")
        stem, extension = os.path.splitext(readable.replace(f"{TAR}/", "_tar/"))
        folder, _, base = stem.rpartition("/")
        key = wanted = os.path.join(folder, base.replace(".", "_"))
        number = 1
        while folded(key) in taken:
            number += 1
            key = f"{wanted}_{number}"
        taken.add(folded(key))
        names[path] = key + extension.lower()
    return names


def plan(folder: Path, splits: Mapping[str, Sequence[Sample]], shard_bytes: int) -> list[Shard]:
    """Assign samples to shards in a pseudo-random order derived from their names, which mixes the classes.

    Args:
        folder: folder of the shards.
        splits: the samples of each split; a split without samples has no shards.
        shard_bytes: maximum size of the members of a shard with their headers; a larger file has a shard of its own.

    Raises:
        UserError: a file no longer exists.
    """
    shards: list[Shard] = []
    for split, samples in splits.items():
        groups = _group(samples, shard_bytes)
        for number, group in enumerate(groups):
            shards.append(_lay_out(folder / f"{split}-{number:06d}{TAR}", split, group, len(groups)))
    packing = sha1(b"".join(sha1(shard.index).digest() for shard in shards)).hexdigest()[:16]
    last_row = ",{0.num_bytes},{0.num_shards},{1},{0.split},\n"
    return [replace(shard, index=shard.index + last_row.format(shard, packing).encode()) for shard in shards]


def _group(samples: Iterable[Sample], shard_bytes: int) -> list[list[Sample]]:
    """Return the samples of each shard."""
    groups: list[list[Sample]] = []
    filled = 0
    for sample in sorted(samples, key=lambda sample: sha1(os.fsencode(sample.name)).digest()):
        taken = _lengths(sample)[1]
        if not groups or filled + taken > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(sample)
        filled += taken
    return groups


def _lay_out(path: Path, split: str, samples: Sequence[Sample], num_shards: int) -> Shard:
    """Return a shard, with an index that still lacks the last row."""
    text, end = io.StringIO(newline=""), 0
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for sample in samples:
        header, taken = _lengths(sample)
        source = "" if sample.source is None else f"{sample.source:016x}"
        rows.writerow((sample.name, end + header, sample.size, sample.label, split, source))
        end += taken
    total = -(-(end + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    return Shard(path, tuple(samples), split, num_shards, total, text.getvalue().encode())


def write(shards: Iterable[Shard], done: Callable[[int], None]) -> None:
    """Write the shards that do not exist yet, each atomically and before its index.

    An existing shard is kept if it matches the plan and none of its files is newer.

    Args:
        shards: from :func:`plan`.
        done: called with the number of samples after each shard.

    Raises:
        MachineError: the disk is full.
        UserError: a path cannot be written, or a sample has changed since it was planned.
    """
    for shard in shards:
        index = Path(index_path(str(shard.path)))
        found = index.read_bytes() if index.is_file() else b""
        if not _is_written(shard, found):
            index.unlink(missing_ok=True)
            with atomic_write(shard.path) as handle:
                _write_tar(shard, handle)
        if found != shard.index or not index.exists():
            with atomic_write(index) as handle:
                handle.write(shard.index)
        done(len(shard.samples))


def remove_others(folder: Path, shards: Iterable[Shard]) -> None:
    """Delete the shards of earlier plans, and their indexes."""
    kept = {shard.path.name.removesuffix(TAR) for shard in shards}
    ours = re.compile(rf"((?:{'|'.join(SPLITS)})-\d{{6,}})(?:{re.escape(TAR)}|{re.escape(INDEX)})")
    for file in folder.iterdir() if folder.is_dir() else ():
        if (match := ours.fullmatch(file.name)) and match[1] not in kept:
            file.unlink()


def _is_written(shard: Shard, index: bytes) -> bool:
    """Return True if the tar matches the plan. The last row of its index depends on other shards and is ignored."""
    own, planned = (each[: each.rfind(b"\n", 0, -1)] for each in (index, shard.index))
    if own != planned or not shard.path.is_file():
        return False
    found = shard.path.stat()
    newest = max(sample.stat().st_mtime_ns for sample in shard.samples)
    return found.st_size == shard.num_bytes and newest <= found.st_mtime_ns


def _write_tar(shard: Shard, handle: io.BufferedIOBase) -> None:
    with tarfile.open(fileobj=handle, mode="w", format=tarfile.GNU_FORMAT) as tar:
        rows = csv.DictReader(io.StringIO(shard.index.decode(), newline=""))
        for sample, row in zip(shard.samples, rows):
            data = storage.read(sample.file, missing=sample.changed())
            if len(data) != sample.size:
                raise sample.changed()
            tar.addfile(_tar_info(sample.name, sample.size), io.BytesIO(data))
            if tar.offset != int(row["offset"]) + _padded(sample.size):
                raise RuntimeError(f"{shard.path}: {sample.name} is not where its index says")
            content = sample.target[1].encode()
            tar.addfile(_tar_info(_target_name(sample), len(content)), io.BytesIO(content))
    if handle.tell() != shard.num_bytes:
        raise RuntimeError(f"{shard.path}: {handle.tell()} bytes; its index says {shard.num_bytes}")


def _lengths(sample: Sample) -> tuple[int, int]:
    """Return the size of the header of a file, and the size of the file and its target with both headers."""
    target = len(sample.target[1].encode())
    header = len(_tar_info(sample.name, sample.size).tobuf(tarfile.GNU_FORMAT))  # longer for long names
    next_header = len(_tar_info(_target_name(sample), target).tobuf(tarfile.GNU_FORMAT))
    return header, header + _padded(sample.size) + next_header + _padded(target)


def _target_name(sample: Sample) -> str:
    return f"{os.path.splitext(sample.name)[0]}.{sample.target[0]}"


def _tar_info(name: str, size: int) -> tarfile.TarInfo:
    """Return a tar header without the time, owner and mode of the file."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
