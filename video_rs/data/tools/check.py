"""What is wrong with the files of a dataset, all of which have been decoded (check_file.py).

:class:`Entries` numbers the files of all splits, :class:`FileTable` packs what was found in them, some hundred bytes a
file, and :func:`find_problems` compares.
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
RATE_FACTOR = ASPECT_FACTOR = 2.0  # a file is odd beyond this many times, or below this part of, the median
SIZE_FACTOR = 3.0  # 360 to 1080 lines is common in collections from the web

ROW = np.dtype(
    [
        ("broken", "?"),
        ("frames", "<u4"),
        ("fps", "<f8"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("rotation", "<i2"),
        ("codec", "<U24"),
        ("decoder", "<U6"),
        ("bytes", "<u8"),
        ("sha1", "u1", (20,)),
        ("pixels", "<u8"),
    ]
)


class Entries:
    """The files of all splits in one numbering: first those of the first split, in its order.

    Args:
        splits: their records.

    Attributes:
        names: of the splits.
        class_names: of the classes.
        split: int8 ``[N]``, which of the names.
        file: int64 ``[N]``: entries of one path are one file.
        first: int64 ``[F]``, the first entry of each file, ascending.
    """

    def __init__(self, splits: Mapping[str, Records]) -> None:
        self.names, self._records = list(splits), list(splits.values())
        self.class_names = self._records[0].class_names
        self._ends = list(accumulate(len(records) for records in self._records))
        self.split = np.repeat(np.arange(len(self.names), dtype=np.int8), [len(each) for each in self._records])
        keys = (source_key(os.path.abspath(records.path(i))) for records in self._records for i in range(len(records)))
        _, first, file = np.unique(np.fromiter(keys, np.uint64, len(self)), return_index=True, return_inverse=True)
        order = np.argsort(first)  # of one folder, or one shard, after the other
        self.first, self.file = first[order], np.argsort(order)[file]

    def __len__(self) -> int:
        return len(self.split)

    def at(self, entry: int) -> tuple[Records, int]:
        """Return the records that an entry is of, and its index there."""
        split = self.split[entry]
        return self._records[split], int(entry) - (self._ends[split - 1] if split else 0)

    def path(self, entry: int) -> str:
        records, index = self.at(entry)
        return records.path(index)

    def source(self, entry: int) -> int | None:
        """The :func:`source_key` of the video that a file was cut from, where its list or its name tells that."""
        records, index = self.at(entry)
        if records.sources is not None:
            return int(records.sources[index])
        path = records.path(index)
        source = source_of(path)
        return None if source == "/".join(Path(path).parts[-2:]) else source_key(source)  # the name tells nothing

    def labels(self, entry: int) -> tuple[int, ...]:
        """Ascending; one, unless the dataset is multi-label."""
        records, index = self.at(entry)
        return tuple(sorted(set(records.label_set(index).tolist())))

    def label_text(self, entry: int) -> str:
        """The names, as lists have them."""
        return ";".join(self.class_names[label] for label in self.labels(entry))

    def class_counts(self) -> dict[str, np.ndarray]:
        """Files of each class, int64 ``[C]``, by split."""
        counts = {name: np.zeros(len(self.class_names), np.int64) for name in self.names}
        for name, records in zip(self.names, self._records, strict=True):
            values = records.label_sets.values if records.multi_label else records.labels
            counts[name] += np.bincount(values, minlength=len(self.class_names))
        return counts


class FileTable:
    """What is known of F files.

    Attributes:
        rows: ``[F]`` of :data:`ROW`.
        problems: why a file is broken, of those that are.
    """

    def __init__(self, count: int) -> None:
        self.rows = np.zeros(count, ROW)
        self.problems: dict[int, str] = {}

    def put(self, file: int, facts: Facts) -> None:
        """What :func:`check_file` found in a file."""
        row = self.rows[file]
        row["broken"] = bool(facts.problem)
        for name in ("frames", "fps", "height", "width", "rotation", "codec", "decoder", "bytes", "pixels"):
            row[name] = getattr(facts, name)
        if facts.sha1:
            row["sha1"] = np.frombuffer(facts.sha1, np.uint8)
        if facts.problem:
            self.problems[file] = facts.problem

    def sha1(self, file: int) -> str:
        """Hexadecimal; "" where the file cannot be read."""
        digest = self.rows[file]["sha1"]
        return digest.tobytes().hex() if digest.any() else ""

    def contents(self) -> np.ndarray:
        """A number for what each file shows, uint64 ``[F]``; broken ones by their bytes, unreadable ones for itself."""
        rows = self.rows
        content = np.where(rows["broken"], rows["sha1"][:, :8].copy().view("<u8")[:, 0], rows["pixels"])
        alone = ~rows["sha1"].any(axis=1) | (rows["bytes"] == 0)
        content[alone] = np.flatnonzero(alone)
        return content


class Problem(NamedTuple):
    """One problem of one entry; `grave` if training on the dataset is wrong or fails."""

    entry: int
    kind: str
    detail: str
    grave: bool = False


def find_problems(entries: Entries, table: FileTable, sampling: TemporalSampling) -> Iterator[Problem]:
    """All problems, kind by kind (:data:`KINDS`), in the order of the entries or of the files that are the same.

    Args:
        entries, table: the dataset.
        sampling: how clips will be taken, which tells what is short.
    """
    for entry, file in enumerate(entries.file):
        if table.rows[file]["broken"]:
            yield Problem(entry, "broken", table.problems[int(file)], grave=True)
    yield from _unlike_the_list(entries, table.rows)
    yield from _short(entries, table.rows, sampling)
    yield from _odd(entries, table.rows)
    leaked = np.zeros(len(entries), bool)
    for problem in _same_content(entries, table):
        leaked[problem.entry] |= problem.kind == "leak"
        yield problem
    yield from _same_source(entries, leaked)


def _unlike_the_list(entries: Entries, rows: np.ndarray) -> Iterator[Problem]:
    """Folders that have not as many frames as their list says."""
    for entry, file in enumerate(entries.file):
        records, index = entries.at(entry)
        frames, listed = int(rows[file]["frames"]), records.listed_frames(index)
        if listed > frames and not rows[file]["broken"]:
            yield Problem(entry, "broken", f"has {frames} images, its list says {listed} frames", grave=True)
        elif 0 < listed < frames:
            yield Problem(entry, "odd", f"{frames} images, of which its list takes the first {listed}")


def _short(entries: Entries, rows: np.ndarray, sampling: TemporalSampling) -> Iterator[Problem]:
    """Files whose frames are repeated to fill one clip."""
    for entry, file in enumerate(entries.file):
        row = rows[file]
        if sampling.kind == "segments":
            needed = sampling.num_frames
        else:
            needed = 1 + int(np.floor((sampling.num_frames - 1) * sampling.step(float(row["fps"])) + 1e-6))
        if row["frames"] < needed and not row["broken"]:
            yield Problem(entry, "short", f"{row['frames']} frames, a clip spans {needed}")


def _odd(entries: Entries, rows: np.ndarray) -> Iterator[Problem]:
    """Files that are far from the usual: from the median, or for the rotation from the most common value."""
    good = rows[~rows["broken"]]
    if not len(good):
        return
    rates = good["fps"][good["fps"] > 0]
    usual_rate = float(np.median(rates)) if len(rates) else 0.0
    usual_side = float(np.median(np.minimum(good["height"], good["width"])))
    usual_aspect = float(np.median(good["width"] / good["height"]))
    turns, counts = np.unique(good["rotation"], return_counts=True)
    usual_turn = turns[counts.argmax()]
    for entry, file in enumerate(entries.file):
        row = rows[file]
        if row["broken"]:
            continue
        height, width = int(row["height"]), int(row["width"])
        if usual_rate and row["fps"] and _far(row["fps"], usual_rate, RATE_FACTOR):
            yield Problem(entry, "odd", f"{row['fps']:.4g} frames a second, usual {usual_rate:.4g}")
        if _far(min(height, width), usual_side, SIZE_FACTOR):
            yield Problem(entry, "odd", f"short side {min(height, width)} pixels, usual {usual_side:g}")
        if _far(width / height, usual_aspect, ASPECT_FACTOR):
            yield Problem(entry, "odd", f"width / height {width / height:.2f}, usual {usual_aspect:.2f}")
        if row["rotation"] != usual_turn:
            yield Problem(entry, "odd", f"rotated by {row['rotation']} degrees, usual {usual_turn}")


def _far(value: float, usual: float, factor: float) -> bool:
    return not usual / factor <= value <= usual * factor


def _same_content(entries: Entries, table: FileTable) -> Iterator[Problem]:
    for group in _groups(table.contents()[entries.file]):
        first_in: dict[int, int] = {}  # split to entry
        labels = entries.labels(group[0])
        for entry in group:
            split = entries.split[entry]
            if split in first_in:
                other = first_in[split]
                yield Problem(entry, "duplicate", f"{_how(entries, table, entry, other)} {entries.path(other)}")
            if split != entries.split[group[0]]:
                other = group[0]
                where = f"in {entries.names[entries.split[other]]}"
                detail = f"{_how(entries, table, entry, other)} {entries.path(other)} {where}"
                yield Problem(entry, "leak", detail, grave=True)
            first_in.setdefault(split, entry)
            if entries.labels(entry) != labels:
                mine, theirs = entries.label_text(entry), entries.label_text(group[0])
                detail = f"'{mine}', but '{theirs}' for {entries.path(group[0])}, which is the same"
                yield Problem(entry, "label conflict", detail, grave=True)


def _how(entries: Entries, table: FileTable, entry: int, other: int) -> str:
    mine, theirs = entries.file[entry], entries.file[other]
    if mine == theirs:
        return "listed again, as"
    same_bytes = np.array_equal(table.rows[mine]["sha1"], table.rows[theirs]["sha1"])
    return "same bytes as" if same_bytes else "same frames as"


def _same_source(entries: Entries, leaked: np.ndarray) -> Iterator[Problem]:
    """Clips of one source video in two splits, where lists or file names tell the source."""
    sources = np.arange(len(entries), dtype=np.uint64)
    for entry in range(len(entries)):
        if (source := entries.source(entry)) is not None:
            sources[entry] = source
    for group in _groups(sources):
        first = group[0]
        for entry in group:
            if entries.split[entry] != entries.split[first] and not leaked[entry]:
                where = f"{entries.path(first)} in {entries.names[entries.split[first]]}"
                yield Problem(entry, "leak", f"same source video as {where}")


def _groups(keys: np.ndarray) -> Iterator[list[int]]:
    """The places of each key that is there more than once, ascending; by the first place."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    ends = np.append(starts[1:], len(keys))
    several = np.flatnonzero(ends - starts > 1)
    for group in several[np.argsort(order[starts[several]])]:
        yield order[starts[group] : ends[group]].tolist()
