"""Dataset lists: lines "path label", and the official Kinetics csv."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Container, Iterable, Iterator
from itertools import chain

import numpy as np

from video_rs.data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from video_rs.data.labels import SEPARATOR
from video_rs.data.paths import Paths
from video_rs.errors import UserError

_EXTENSIONS = "|".join(re.escape(e) for e in sorted(VIDEO_EXTENSIONS | IMAGE_EXTENSIONS))
# up to the last extension a path may hold spaces and commas; without one, the last field is the label
_WITH_EXTENSION = re.compile(rf'(?P<path>.*(?:{_EXTENSIONS}))"?(?:\s*[,\t]\s*|\s+)(?P<label>.+)', re.IGNORECASE)
_LAST_FIELD = re.compile(r"(?P<path>.*[^\s,])(?:\s*,\s*|\s+)(?P<label>[^\s,]+)")
# a file without labels, where there may be several: "path," or a path with an extension alone
_UNLABELLED = re.compile(rf'(?P<path>.*(?:{_EXTENSIONS})"?|.*[^\s,](?=\s*,))\s*,?(?P<label>)', re.IGNORECASE)
_HEADER = re.compile(
    r"\W*(path|file|filename|file_name|video|video_path|image)\W+(label|class|class_name)\W*", re.IGNORECASE
)

_NUMBERS = re.compile(r"[-+]?\d+(?:[\s,]+[-+]?\d+)+")  # of frames, and the class: VideoMAE, MMAction2
_NO_CLASS = re.compile(r"[-+]\d+|[-+]?\d*\.\d+")

Entry = tuple[str, str, int]  # path, label as written, line number


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
    else:
        for path, label, number in _entries(file, chain([first], lines), multi_label):
            yield os.path.join(base, path), label, number


def _lines(file: str) -> Iterator[str]:
    """One by one, ended by whatever `str.splitlines` takes for an end. Raises UserError for what is not UTF-8."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            for line in stream:
                yield from line.splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a text file in UTF-8") from error


def _entries(file: str, lines: Iterable[str], multi_label: bool = False) -> Iterator[Entry]:
    good: set[str] = set()  # labels
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or (number == 1 and _HEADER.fullmatch(line)):
            continue
        match = _WITH_EXTENSION.fullmatch(line) or (multi_label and _UNLABELLED.fullmatch(line))
        match = match or _LAST_FIELD.fullmatch(line)
        path, label = (field.strip().strip('"') for field in match.groups()) if match else ("", "")
        if not path or not (label or multi_label):
            raise UserError(f"{file}:{number}: '{line[:80]}' is not a line 'path label'")
        if label not in good:
            if _NUMBERS.fullmatch(label):
                keep = "write 1;2 for two labels" if multi_label else "keep the label alone"
                raise UserError(f"{file}:{number}: '{label}' are several numbers after the path: {keep}")
            if wrong := next(filter(_NO_CLASS.fullmatch, label.split(SEPARATOR) if multi_label else [label]), None):
                raise UserError(f"{file}:{number}: label '{wrong}' is neither a class number (0, 1, ...) nor a name")
            good.add(label)
        yield path, label, number


def _kinetics_entries(file: str, header: list[str], lines: Iterator[str], root: str) -> Iterator[Entry]:
    line = [""]  # the one read last, for messages
    reader = csv.DictReader((line[0] for line[0] in lines), header, skipinitialspace=True)
    if "label" not in header:
        raise UserError(f"{file}:1: this Kinetics csv has no column 'label', so it cannot be trained or tested on")
    files = Paths(_media_below(root, VIDEO_EXTENSIONS))
    stems = np.fromiter((hash(os.path.splitext(os.path.basename(path))[0]) for path in files), np.int64, len(files))
    order = np.argsort(stems, kind="stable")  # the first of several copies stays the first
    stems = stems[order]
    for row in reader:
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
        yield files[order[at]] if found else os.path.join(root, stem + ".mp4"), label, number


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
