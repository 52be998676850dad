"""Read one split: class folders, a list, or the annotation file of a known layout. Labels stay as written."""

import os
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from video_rs.data.shards import Members
from video_rs.data.sources import layouts
from video_rs.data.sources.class_folders import class_folders, present
from video_rs.data.sources.holdout import source_key
from video_rs.data.sources.lists import base_folder, list_splits, read_columns, read_list
from video_rs.data.sources.records import SEPARATOR, Paths
from video_rs.data.sources.tables import shorten
from video_rs.data.sources.written_paths import WrittenPaths
from video_rs.data.video.search import LeftOut
from video_rs.errors import UserError, truncate

_NOT_UTF8 = "the name is not UTF-8"
_SURROGATES = re.compile("[\ud800-\udfff]")  # stand for bytes that are not UTF-8, or come from JSON


@dataclass
class RawSplit:
    """The files of one split with their labels as written.

    Attributes:
        source: the folder, list, annotation file or shards that were read.
        paths: paths of the files.
        labels: index of the label of each path among the keys of `first_place`.
        lines: line number of each path in a list, for messages.
        first_place: the place where each label was first found, by the label as written; includes missing files.
        other_rows: number of rows of other splits, by split.
        num_missing, missing: number of listed files that do not exist, and the first three.
        empty_folders: class folders without files.
        notes: phrases for the log about entries that are left out, not used or resolved.
        class_names: class names in the official order, if the layout has one.
        sources: the ``source_key`` of each path; empty if unknown.
        frames: number of frames of each path; empty if unknown.
        segments: start and end of each path in seconds, one after the other; empty if all files are whole.
        has_label_sets: True if a label can be several labels joined by ";".
        repeats: True if a file may be listed with two labels; see ``Layout``.
        members: positions of the files in shards; None for separate files.
        num_shards, listed_shards: number of shards that were read, and number of shards according to the indexes.
    """

    source: str
    paths: Paths = field(default_factory=Paths)
    labels: array = field(default_factory=lambda: array("i"))
    lines: array = field(default_factory=lambda: array("i"))
    first_place: dict[str, str] = field(default_factory=dict)
    other_rows: Counter = field(default_factory=Counter)
    num_missing: int = 0
    missing: list[str] = field(default_factory=list)
    empty_folders: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    class_names: Sequence[str] = ()
    sources: array = field(default_factory=lambda: array("Q"))
    frames: array = field(default_factory=lambda: array("i"))
    segments: array = field(default_factory=lambda: array("d"))
    has_label_sets: bool = False
    repeats: bool = False
    members: Members | None = None
    num_shards: int = 0
    listed_shards: int = 0
    _numbers: dict[str, int] = field(default_factory=dict)  # of the keys of `first_place`

    def add(self, path: str, label: str, file: str, line: int) -> None:
        """Add a path and its label, as written in a line of a file."""
        number = self._numbers.setdefault(label, len(self._numbers))
        if number == len(self.first_place):
            self.first_place[label] = f"{file}{self.mark}{line}"
        self.paths.append(path)
        self.labels.append(number)
        self.lines.append(line)

    @property
    def mark(self) -> str:
        """Separator between file and line number in messages. JSON files have entries instead of lines."""
        return ": entry " if self.source.lower().endswith(".json") else ":"

    @property
    def is_list(self) -> bool:
        """True for all sources except class folders."""
        return self.members is not None or not os.path.isdir(self.source)

    def split_label(self, written: str) -> tuple[str, ...]:
        """Return the labels in one key of `first_place`, such as "run;jump". Raise UserError for an empty one."""
        if not self.has_label_sets:
            return (written,)
        labels = tuple(label.strip() for label in written.split(SEPARATOR)) if written.strip() else ()
        if "" in labels:
            place = self.first_place[written]
            raise UserError(f"{place}: '{written}' has an empty label before or after a ';': write label1;label2")
        return labels

    def label_places(self) -> dict[str, str]:
        """Return where each label was first found."""
        places: dict[str, str] = {}
        for written, place in self.first_place.items():
            for label in self.split_label(written):
                places.setdefault(label, place)
        return places

    def place(self, index: int) -> str:
        """Return where one path was found, for messages."""
        in_list = self.is_list and self.members is None
        return f"{self.source}{self.mark}{self.lines[index]}" if in_list else self.paths[index]

    def segment(self, index: int) -> tuple[float, ...]:
        """Return start and end of one path in seconds; empty if all files are whole."""
        return tuple(self.segments[2 * index : 2 * index + 2])

    def keep(self, mask: np.ndarray) -> None:
        """Keep the files where a mask, bool ``[N]``, is True. Count the rest as missing."""
        gone = np.flatnonzero(~mask)
        self.num_missing, self.missing = len(gone), [self.paths[i] for i in gone[:3]]
        self.paths = Paths(self.paths[i] for i in np.flatnonzero(mask))
        for name in ("labels", "lines", "sources", "frames", "segments"):
            if column := getattr(self, name):
                rows = np.asarray(column).reshape(len(mask), -1)
                setattr(self, name, array(column.typecode, rows[mask].tobytes()))


def read_split(
    source: str,
    root: str,
    split: str,
    fold: int,
    multi_label: bool,
    frame_folders: bool = False,
    layout: layouts.Layout | None = None,
) -> RawSplit:
    """Read one split. For the other arguments see ``splits.load_splits``.

    Args:
        layout: layout of the source; None to detect it.

    Raises:
        UserError: a line or a folder has an invalid format.
    """
    layout = layout or layouts.recognise(source)
    if layout is None and os.path.isdir(source):
        return _read_class_folders(source, frame_folders)
    raw = RawSplit(source, has_label_sets=multi_label)
    if layout:
        if layout.multi_label and not multi_label:
            raise UserError(f"{source}: videos have several labels: set data.multi_label=true")
        raw.class_names, raw.repeats = tuple(layout.class_names(source, fold)), layout.repeats
        entries = layout.read(source, root, split, fold)
    else:
        entries = read_list(source, root, multi_label)
    wanted, num_swapped, not_utf8 = "", 0, LeftOut(_NOT_UTF8)
    for entry in entries:
        wanted = wanted or (entry.split and _split_in_list(raw, split))
        if entry.split != wanted:
            raw.other_rows[entry.split] += 1
            continue
        if not _is_utf8(entry.path + entry.label):  # from JSON, or from a folder that a layout searches
            not_utf8.add(entry.path)
            continue
        raw.add(entry.path, entry.label, entry.file or source, entry.line)
        raw.frames.append(entry.frames)
        raw.segments.extend(entry.segment)
        num_swapped += entry.swapped
        if entry.source is not None:
            raw.sources.append(source_key(entry.source))
    raw.frames = raw.frames if any(raw.frames) else array("i")
    raw.segments = raw.segments if any(raw.segments) else array("d")
    raw.notes += filter(None, [not_utf8.describe()])
    if num_swapped:
        raw.notes.append(f"path and label are swapped in {num_swapped} rows of {source}")
    _note_columns(raw, layout)
    mask = present(raw.paths)
    if not mask.all() and layout is None:
        mask |= _resolve(raw, np.flatnonzero(~mask), base_folder(source, root))
    if not mask.all():
        raw.keep(mask)
    return raw


def _split_in_list(raw: RawSplit, split: str) -> str:
    """Return the split whose rows are read from a list with a column for it. Raise UserError if there are none.

    A list of only validation or only test rows can be given for both.
    """
    found = list_splits(raw.source)
    if not found or split in found:
        return split
    if split == "train" or "train" in found:
        rows = ", ".join(found)
        raise UserError(f"{raw.source}: the split column has no rows for {split}, only for {rows}")
    raw.notes.append(f"all rows of {raw.source} belong to split {found[0]}")
    return found[0]


def _note_columns(raw: RawSplit, layout: layouts.Layout | None) -> None:
    """Note the columns of a list that are not used."""
    unused: list[str] = []
    columns = [] if layout and not layout.used_columns else read_columns(raw.source)
    if layout:
        unused = [column.name for column in columns if column.name not in layout.used_columns]
    elif {"path", "label"} <= {column.use for column in columns}:
        unused = [column.name for column in columns if not column.use or (column.use == "frames" and not raw.frames)]
    if unused:
        raw.notes.append(f"columns not used: {truncate([*map(shorten, unused)], 20)}")


def _resolve(raw: RawSplit, missing: np.ndarray, base: str) -> np.ndarray:
    """Replace missing paths of a list by those of matching files. Return the mask of replaced ones, bool ``[N]``."""
    finder = WrittenPaths(base, os.path.dirname(raw.source), add_extensions=len(missing) == len(raw.paths))
    found = {int(i): path for i in missing if (path := finder.find(raw.paths[i], raw.place(i)))}
    if found:
        index, path = next(iter(found.items()))
        written = raw.paths[index].removeprefix(os.path.join(base, ""))
        first = f"{ascii(written)} is {ascii(path)}"
        raw.notes.append(f"{len(found)} paths do not exist as written and were resolved; the first: {first}")
        raw.paths = Paths(found.get(i, path) for i, path in enumerate(raw.paths))
    return np.isin(np.arange(len(raw.paths)), list(found))


def _is_utf8(name: str) -> bool:
    return name.isascii() or not _SURROGATES.search(name)


def _read_class_folders(folder: str, frame_folders: bool) -> RawSplit:
    raw, left_out, not_utf8 = RawSplit(folder), LeftOut(), LeftOut(_NOT_UTF8)
    for name, found in class_folders(folder, frame_folders, left_out):
        place = os.path.join(folder, name)
        if not _is_utf8(name):
            not_utf8.add(place)
            continue
        count = len(raw.paths)
        for file in found:
            if _is_utf8(file):
                raw.paths.append(os.path.join(place, file))
            else:
                not_utf8.add(os.path.join(place, file))
        if len(raw.paths) == count:
            raw.empty_folders.append(name)
            continue
        raw.labels.extend(repeat(len(raw.first_place), len(raw.paths) - count))
        raw.first_place[name] = place
    raw.notes += filter(None, [left_out.describe(), not_utf8.describe()])
    return raw
