"""Find the problems of a dataset whose files have all been decoded (see check_file.py).

:class:`Entries` numbers the files of all splits, :class:`FileTable` holds the facts of each file, about a hundred bytes
a file, and :func:`find_problems` compares them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from video_rs.data.clips import TemporalSampling
from video_rs.data.sources.holdout import source_key, source_of
from video_rs.data.sources.records import Records
from video_rs.data.tools.check_file import Facts

KINDS = ("broken", "short", "odd", "duplicate", "leak", "label conflict")
RATE_FACTOR = ASPECT_FACTOR = 2.0  # a file is odd above the median times this, or below it by this factor
SIZE_FACTOR = 3.0  # 360 to 1080 lines is common in collections from the web

ROW = np.dtype(
    [("broken", "?"), ("frames", "<u4"), ("fps", "<f8"), ("height", "<u4"), ("width", "<u4"), ("rotation", "<i2")]
    + [("codec", "<U24"), ("decoder", "<U6"), ("bytes", "<u8"), ("sha1", "u1", (20,)), ("pixels", "<u8")]
)
"""The facts of one file; see ``check_file.Facts``."""


class Entries:
    """The entries of all splits in one numbering: first those of the first split, in its order.

    Args:
        splits: records by name of the split.

    Attributes:
        names: of the splits.
        class_names: of the classes.
        split: index into `names` of each entry, int8 ``[N]``.
        file: number of the file of each entry, int64 ``[N]``. Entries with the same path have the same file.
        first: the first entry of each file, int64 ``[F]``, ascending.
    """

    def __init__(self, splits: Mapping[str, Records]) -> None:
        self.names, self._records = list(splits), list(splits.values())
        self.class_names = self._records[0].class_names
        self._ends = list(accumulate(len(records) for records in self._records))
        self.split = np.repeat(np.arange(len(self.names), dtype=np.int8), [len(each) for each in self._records])
        keys = (source_key(os.path.abspath(records.path(i))) for records in self._records for i in range(len(records)))
        _, first, file = np.unique(np.fromiter(keys, np.uint64, len(self)), return_index=True, return_inverse=True)
        order = np.argsort(first)  # keeps the files of a folder or shard together
        self.first, self.file = first[order], np.argsort(order)[file]

    def __len__(self) -> int:
        return len(self.split)

    def at(self, entry: int) -> tuple[Records, int]:
        """Return the records that hold an entry, and its index there."""
        split = self.split[entry]
        return self._records[split], int(entry) - (self._ends[split - 1] if split else 0)

    def path(self, entry: int) -> str:
        records, index = self.at(entry)
        return records.path(index)

    def source(self, entry: int) -> int | None:
        """Return the :func:`source_key` of the video that a file was cut from; None if unknown."""
        records, index = self.at(entry)
        if records.sources is not None:
            return int(records.sources[index])
        path = records.path(index)
        source = source_of(path)
        return None if source == "/".join(Path(path).parts[-2:]) else source_key(source)  # not in the name

    def labels(self, entry: int) -> tuple[int, ...]:
        """Return the labels of an entry, ascending; one unless the dataset is multi-label."""
        records, index = self.at(entry)
        return tuple(sorted(set(records.label_set(index).tolist())))

    def label_text(self, entry: int) -> str:
        """Return the names of the labels as in lists, joined by ";"."""
        return ";".join(self.class_names[label] for label in self.labels(entry))

    def class_counts(self) -> dict[str, np.ndarray]:
        """Return the number of files of each class, int64 ``[C]``, by split."""
        counts = {name: np.zeros(len(self.class_names), np.int64) for name in self.names}
        for name, records in zip(self.names, self._records, strict=True):
            values = records.label_sets.values if records.multi_label else records.labels
            counts[name] += np.bincount(values, minlength=len(self.class_names))
        return counts


class FileTable:
    """The facts of F files.

    Attributes:
        rows: ``[F]`` of :data:`ROW`.
        problems: why a file is broken, by its number.
    """

    def __init__(self, count: int) -> None:
        self.rows = np.zeros(count, ROW)
        self.problems: dict[int, str] = {}

    def put(self, file: int, facts: Facts) -> None:
        """Store the facts of a file."""
        sha1 = np.frombuffer(facts.sha1 or bytes(20), np.uint8)
        values = vars(facts) | {"broken": bool(facts.problem), "sha1": sha1}
        self.rows[file] = tuple(values[name] for name in ROW.names)
        if facts.problem:
            self.problems[file] = facts.problem

    def sha1(self, file: int) -> str:
        """Return the digest of a file in hexadecimal; "" if it cannot be read."""
        digest = self.rows[file]["sha1"]
        return digest.tobytes().hex() if digest.any() else ""

    def contents(self) -> np.ndarray:
        """Return a number for the content of each file, uint64 ``[F]``.

        Files with the same frames have the same number, broken ones with the same bytes, and unreadable ones none.
        """
        rows = self.rows
        content = np.where(rows["broken"], rows["sha1"][:, :8].copy().view("<u8")[:, 0], rows["pixels"])
        unique = ~rows["sha1"].any(axis=1) | (rows["bytes"] == 0)
        content[unique] = np.flatnonzero(unique)
        return content


class Problem(NamedTuple):
    """One problem of one entry. It is `grave` if training on the dataset would be wrong or fail."""

    entry: int
    kind: str
    detail: str
    grave: bool = False


def find_problems(entries: Entries, table: FileTable, sampling: TemporalSampling) -> list[Problem]:
    """Return all problems: first those of single files, one kind after the other, then those of equal files.

    Args:
        entries: of the dataset.
        table: facts of their files.
        sampling: of clips, which defines what is too short.
    """
    usual = _usual(table.rows)
    single = []
    for entry, file in enumerate(entries.file):
        records, index = entries.at(entry)
        if problem := table.problems.get(int(file)):
            single.append(Problem(entry, "broken", problem, grave=True))
        else:
            single += _of_file(entry, table.rows[file], records.listed_frames(index), sampling, usual)
    single.sort(key=lambda problem: KINDS.index(problem.kind))
    equal = list(_same_content(entries, table))
    leaked = {problem.entry for problem in equal if problem.kind == "leak"}
    return single + equal + list(_same_source(entries, leaked))


def _usual(rows: np.ndarray) -> dict[str, float]:
    """Return the medians over the files that are not broken, and their most common rotation; 0 for no values."""
    good = rows[~rows["broken"]]
    values = {
        "fps": good["fps"][good["fps"] > 0],
        "side": np.minimum(good["height"], good["width"]),
        "aspect": good["width"] / good["height"],
    }
    rotations, counts = np.unique(good["rotation"], return_counts=True)
    usual = {name: float(np.median(of_files)) if len(of_files) else 0.0 for name, of_files in values.items()}
    return usual | {"rotation": int(rotations[counts.argmax()]) if len(good) else 0}


def _of_file(
    entry: int, row: np.void, listed: int, sampling: TemporalSampling, usual: dict[str, float]
) -> Iterator[Problem]:
    """Yield the problems of one file that is not broken. `listed` is its number of frames by its list, 0 if unknown."""
    frames, height, width, fps = int(row["frames"]), int(row["height"]), int(row["width"]), float(row["fps"])
    if listed > frames:
        yield Problem(entry, "broken", f"has {frames} images, its list says {listed} frames", grave=True)
    elif 0 < listed < frames:
        yield Problem(entry, "odd", f"{frames} images, of which its list takes the first {listed}")
    needed = sampling.num_frames
    if sampling.kind != "segments":
        needed = 1 + int(np.floor((sampling.num_frames - 1) * sampling.step(fps) + 1e-6))
    if frames < needed:
        yield Problem(entry, "short", f"{frames} frames, a clip spans {needed}")
    if usual["fps"] and fps and _far(fps, usual["fps"], RATE_FACTOR):
        yield Problem(entry, "odd", f"{fps:.4g} frames a second, usual {usual['fps']:.4g}")
    if _far(min(height, width), usual["side"], SIZE_FACTOR):
        yield Problem(entry, "odd", f"short side {min(height, width)} pixels, usual {usual['side']:g}")
    if _far(width / height, usual["aspect"], ASPECT_FACTOR):
        yield Problem(entry, "odd", f"width / height {width / height:.2f}, usual {usual['aspect']:.2f}")
    if row["rotation"] != usual["rotation"]:
        yield Problem(entry, "odd", f"rotated by {row['rotation']} degrees, usual {usual['rotation']}")


def _far(value: float, usual: float, factor: float) -> bool:
    return not usual / factor <= value <= usual * factor


def _same_content(entries: Entries, table: FileTable) -> Iterator[Problem]:
    """Yield entries that show the same as one before them: duplicates, leaks and label conflicts."""
    for group in _groups(table.contents()[entries.file]):
        first, first_in = group[0], {}  # the first entry of all, and of each split
        for entry in group:
            split = entries.split[entry]
            if split in first_in:
                yield Problem(entry, "duplicate", _describe(entries, table, entry, first_in[split]))
            if split != entries.split[first]:
                detail = f"{_describe(entries, table, entry, first)} in {entries.names[entries.split[first]]}"
                yield Problem(entry, "leak", detail, grave=True)
            first_in.setdefault(split, entry)
            if entries.labels(entry) != entries.labels(first):
                mine, theirs = entries.label_text(entry), entries.label_text(first)
                detail = f"'{mine}', but '{theirs}' for {entries.path(first)}, which is the same"
                yield Problem(entry, "label conflict", detail, grave=True)


def _describe(entries: Entries, table: FileTable, entry: int, other: int) -> str:
    """Return in which respect an entry is the same as another, and the path of that."""
    mine, theirs = entries.file[entry], entries.file[other]
    how = "same frames as"
    if mine == theirs:
        how = "listed again, as"
    elif np.array_equal(table.rows[mine]["sha1"], table.rows[theirs]["sha1"]):
        how = "same bytes as"
    return f"{how} {entries.path(other)}"


def _same_source(entries: Entries, leaked: set[int]) -> Iterator[Problem]:
    """Yield clips of one source video that are in two splits."""
    sources = map(entries.source, range(len(entries)))
    keys = (entry if source is None else source for entry, source in enumerate(sources))
    for group in _groups(np.fromiter(keys, np.uint64, len(entries))):
        first = group[0]
        for entry in group:
            if entries.split[entry] != entries.split[first] and entry not in leaked:
                where = f"{entries.path(first)} in {entries.names[entries.split[first]]}"
                yield Problem(entry, "leak", f"same source video as {where}")


def _groups(keys: np.ndarray) -> Iterator[list[int]]:
    """Yield the positions of each key that occurs more than once, ascending, in the order of the first position."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    ends = np.append(starts[1:], len(keys))
    several = np.flatnonzero(ends - starts > 1)
    for group in several[np.argsort(order[starts[several]])]:
        yield order[starts[group] : ends[group]].tolist()
