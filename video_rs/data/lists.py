"""Dataset lists: lines "path label", csv files with named columns, and the official Kinetics csv."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np

from video_rs.data.labels import SEPARATOR
from video_rs.data.media import MEDIA_EXTENSIONS, VIDEO_EXTENSIONS, is_media
from video_rs.data.paths import Paths
from video_rs.errors import UserError

_EXTENSIONS = "|".join(re.escape(e) for e in sorted(MEDIA_EXTENSIONS))
_MEDIA = re.compile(rf"(?:{_EXTENSIONS})\b", re.IGNORECASE)
# up to the last extension a path may hold spaces and commas; without one, the last field is the label
_WITH_EXTENSION = re.compile(rf'(?P<path>.*(?:{_EXTENSIONS}))"?(?:\s*[,\t]\s*|\s+)(?P<label>.+)', re.IGNORECASE)
_LAST_FIELD = re.compile(r"(?P<path>.*[^\s,])(?:\s*,\s*|\s+)(?P<label>[^\s,]+)")
# a file without labels, where there may be several: "path," or a path with an extension alone
_UNLABELLED = re.compile(rf'(?P<path>.*(?:{_EXTENSIONS})"?|.*[^\s,](?=\s*,))\s*,?(?P<label>)', re.IGNORECASE)
_HEADER = re.compile(
    r"\W*(path|file|filename|file_name|video|video_path|image)\W+(label|class|class_name)\W*", re.IGNORECASE
)

_NUMBERS = re.compile(r"[-+]?\d+(?:[\s,]+[-+]?\d+)+")  # of frames, and the class: VideoMAE, MMAction2
# TSN's lists of folders of frames, also MMAction2's: "folder frames class"
_RAWFRAMES = re.compile(r"(?P<path>.*[^\s,])(?:\s*,\s*|\s+)(?P<frames>\d{1,9})(?:\s*,\s*|\s+)(?P<label>\d+(?:;\d+)*)")
_NO_CLASS = re.compile(r"[-+]\d+|[-+]?\d*\.\d+")

Row = TypeVar("Row")

_PATH_COLUMNS = ("path", "file", "filename", "file_name", "video", "video_path", "image")
_LABEL_COLUMNS = ("label", "class", "class_name", "labels")
_SOURCE_COLUMNS = ("source", "group", "video_id")
_FRAMES_COLUMNS = ("num_frames", "frames", "total_frames")  # of folders of frames


class Entry(NamedTuple):
    """One file of a list.

    Attributes:
        path: it may be missing.
        label: as written.
        line: its number, from 1.
        source: the video that the file was cut from, where the list says so, else None.
        file: the one that the line is in, where it is not the list itself.
        frames: of a folder of frames, how many the list says it has, else 0.
    """

    path: str
    label: str
    line: int
    source: str | None = None
    file: str = ""
    frames: int = 0


def read_list(file: str, root: str = "", multi_label: bool = False) -> Iterator[Entry]:
    """The entries of a list, one by one; their files may be missing.

    Args:
        file: the list.
        root: what paths are relative to; the folder of the list if empty.
        multi_label: whether a label may be any number of labels with ";" between them, also none.

    Raises:
        UserError: for a line that cannot be read, naming file and line.
    """
    base = root or os.path.dirname(file)
    lines = _lines(file)
    first = next(lines, "")
    header = _fields(first)
    if "youtube_id" in header:
        yield from _kinetics_entries(file, header, lines, base)
        return
    second = next(lines, "")
    lines = chain([second], lines)
    _refuse_unknown_header(file, first, second, base)
    if _columns(first):
        entries = _column_entries(file, first, lines, multi_label)
    else:
        entries = _entries(file, chain([first], lines), base, multi_label)
    for entry in entries:
        path = entry.path.rstrip("/") or entry.path  # that of a folder may end in one
        yield entry._replace(path=os.path.join(base, path))


def _refuse_unknown_header(file: str, first: str, second: str, base: str) -> None:
    """Raises UserError for one: as a line it would be a file that is missing, and its label a class."""
    match = _LAST_FIELD.fullmatch(first.strip())
    if not match or _columns(first) or _HEADER.fullmatch(first.strip()) or _MEDIA.search(first):
        return
    if _MEDIA.search(second) and not os.path.exists(os.path.join(base, match["path"])):
        hint = "if it is a header, call its columns path and label"
        raise UserError(f"{file}:1: '{first.strip()[:80]}' names no video or image, as the line after it does; {hint}")


def is_kinetics(file: str) -> bool:
    """Whether a list is an official csv of Kinetics."""
    return "youtube_id" in _fields(next(_lines(file), ""))


def conflict(paths: Paths, labels: Sequence[int], same: Callable[[int, int], bool]) -> tuple[int, int] | None:
    """The first two entries of one path with two labels, if there are any.

    Args:
        paths: of the entries.
        labels: one per path.
        same: whether two labels that differ mean the same.
    """
    hashes = np.fromiter(map(hash, paths), np.int64, len(paths))
    order = np.argsort(hashes, kind="stable")
    hashes, numbers = hashes[order], np.asarray(labels)[order]
    second = 1 + np.flatnonzero((hashes[1:] == hashes[:-1]) & (numbers[1:] != numbers[:-1]))
    pairs = sorted((int(order[at]), int(order[at - 1])) for at in second)
    return next(((b, a) for a, b in pairs if paths[a] == paths[b] and not same(int(labels[a]), int(labels[b]))), None)


def rows(file: str, reader: Iterable[Row]) -> Iterator[Row]:
    """Of a csv reader. Raises UserError for what is no csv."""
    try:
        yield from reader
    except csv.Error as error:
        raise UserError(f"{file}: not a csv: {error}; is there a quote that is not closed?") from None


def text_of(file: str) -> str:
    """All of a small file. Raises UserError for what is not UTF-8."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            return stream.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a text file in UTF-8") from error


def _lines(file: str) -> Iterator[str]:
    """One by one, ended by whatever `str.splitlines` takes for an end. Raises UserError for what is not UTF-8."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            for line in stream:
                yield from line.splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a text file in UTF-8") from error


def _entries(file: str, lines: Iterable[str], base: str, multi_label: bool = False) -> Iterator[Entry]:
    good: set[str] = set()  # labels
    with_frames = None  # whether "a/b 12 3" means the folder a/b; one line that tells speaks for all
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or (number == 1 and _HEADER.fullmatch(line)):
            continue
        raw = None if with_frames is False else _rawframes(line)
        if raw and with_frames is None:
            with_frames = _has_frames_column(base, raw)
        if raw and with_frames is not False:
            frames = _count(raw["frames"], f"{file}:{number}")
            yield Entry(raw["path"].strip('"'), raw["label"], number, frames=frames)
            continue
        match = _WITH_EXTENSION.fullmatch(line) or (multi_label and _UNLABELLED.fullmatch(line))
        match = match or _LAST_FIELD.fullmatch(line)
        path, label = (field.strip().strip('"') for field in match.groups()) if match else ("", "")
        if not path or not (label or multi_label):
            hint = "; data.multi_label=true allows files without labels" if _UNLABELLED.fullmatch(line) else ""
            hint = "; put a comma, a tab or a space between them" if ";" in line else hint
            raise UserError(f"{file}:{number}: '{line[:80]}' is not a line 'path label'{hint}")
        if label not in good:
            if _NUMBERS.fullmatch(label):
                keep = "write 1;2 for two labels" if multi_label else "keep the label alone"
                raise UserError(f"{file}:{number}: '{label}' are several numbers after the path: {keep}")
            _check_label(label, f"{file}:{number}", multi_label)
            good.add(label)
        yield Entry(path, label, number)


def _rawframes(line: str) -> re.Match[str] | None:
    fields = line.replace(",", " ").rsplit(None, 2)  # of long lists of other kinds the pattern would double the time
    return _RAWFRAMES.fullmatch(line) if len(fields) == 3 and fields[1].isdecimal() else None


def _has_frames_column(base: str, line: re.Match[str]) -> bool | None:
    """Whether the number after the path is one of frames, and not the end of a name; None where no file tells."""
    if os.path.isdir(os.path.join(base, line["path"].strip('"'))):
        return True
    if _WITH_EXTENSION.fullmatch(line[0]) or os.path.exists(os.path.join(base, line[0][: line.end("frames")])):
        return False
    return None


def _count(text: str, place: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UserError(f"{place}: '{text}' is not a number of frames, 1 or more")
    return int(text)


def _check_label(label: str, place: str, multi_label: bool) -> None:
    if wrong := next(filter(_NO_CLASS.fullmatch, label.split(SEPARATOR) if multi_label else [label]), None):
        raise UserError(f"{place}: label '{wrong}' is neither a class number (0, 1, ...) nor a name")


def _columns(header: str) -> list[str]:
    """The names of the columns, where the first line has them and they are not just path and label; else none."""
    names = [name.strip().lower() for name in next(csv.reader([header], delimiter=_delimiter(header)), [])]
    named = any(name in _PATH_COLUMNS for name in names) and any(name in _LABEL_COLUMNS for name in names)
    return names if named and (len(names) > 2 or names[0] in _LABEL_COLUMNS) else []


def _delimiter(header: str) -> str:
    return next((mark for mark in "\t," if mark in header), " ")


def _column_entries(file: str, header: str, lines: Iterable[str], multi_label: bool) -> Iterator[Entry]:
    """Of a csv with a header: its columns for path and label, and those for the source video and for the number of
    frames of a folder of them, if there are any."""
    columns, delimiter = _columns(header), _delimiter(header)
    path, label = (next(columns.index(c) for c in known if c in columns) for known in (_PATH_COLUMNS, _LABEL_COLUMNS))
    source, frames = (
        next((columns.index(name) for name in known if name in columns), None)
        for known in (_SOURCE_COLUMNS, _FRAMES_COLUMNS)
    )
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    for row in rows(file, reader):
        number = reader.line_num + 1  # the header came first
        if not any(row):
            continue
        if len(row) != len(columns) or not row[path].strip() or not (row[label].strip() or multi_label):
            expected = delimiter.join(columns)
            raise UserError(f"{file}:{number}: expected '{expected}'; found '{delimiter.join(row)[:80]}'")
        _check_label(row[label].strip(), f"{file}:{number}", multi_label)
        # without a source a file is its own
        written = None if source is None else row[source].strip() or row[path]
        place = row[path].strip()
        is_folder = frames is not None and not is_media(place)
        count = _count(row[frames].strip(), f"{file}:{number}") if is_folder else 0
        yield Entry(place, row[label].strip(), number, written, frames=count)


def _kinetics_entries(file: str, header: list[str], lines: Iterator[str], root: str) -> Iterator[Entry]:
    line = [""]  # the one read last, for messages
    reader = csv.DictReader((line[0] for line[0] in lines), header, skipinitialspace=True)
    if "label" not in header:
        raise UserError(f"{file}:1: this Kinetics csv has no column 'label', so it cannot be trained or tested on")
    files = Paths(_media_below(root, VIDEO_EXTENSIONS))
    stems = np.fromiter((hash(os.path.splitext(os.path.basename(path))[0]) for path in files), np.int64, len(files))
    order = np.argsort(stems, kind="stable")  # the first of several copies stays the first
    stems = stems[order]
    for row in rows(file, reader):
        number = reader.line_num + 1  # the header came first
        try:
            label = row["label"].strip()
            start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
            stem = f"{row['youtube_id'].strip()}_{start:06d}_{end:06d}"
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(
                f"{file}:{number}: '{line[0][:80]}' is not a line 'label,youtube_id,time_start,time_end,split'"
            ) from None
        at = stems.searchsorted(hash(stem))
        found = at < len(stems) and stems[at] == hash(stem)
        yield Entry(files[order[at]] if found else os.path.join(root, stem + ".mp4"), label, number)


def _fields(line: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([line], skipinitialspace=True), [])]


def media_below(folder: str, extensions: Container[str]) -> list[str]:
    """The files below a folder with one of the extensions (lower case, with the dot), folder by folder, each sorted.

    Links are followed, but no folder is entered twice; names that start with a dot are left out.
    """
    return list(_media_below(folder, extensions))


def _media_below(folder: str, extensions: Container[str]) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions:
                yield os.path.join(place, name)
