"""Dataset lists: lines "path label", and the official Kinetics csv."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Container, Iterator

from video_rs.data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from video_rs.errors import UserError

KINETICS_NAME = re.compile(r"(?P<source>.{11})_\d{6}_\d{6}")  # <youtube id>_<start>_<end>, in seconds
UCF_NAME = re.compile(r"(?P<source>.+_g\d+)_c\d+")  # v_<class>_g<group>_c<clip>

_EXTENSIONS = "|".join(re.escape(e) for e in sorted(VIDEO_EXTENSIONS | IMAGE_EXTENSIONS))
# up to the last extension a path may hold spaces and commas; without one, the last field is the label
_WITH_EXTENSION = re.compile(rf'(?P<path>.*(?:{_EXTENSIONS}))"?(?:\s*[,\t]\s*|\s+)(?P<label>.+)', re.IGNORECASE)
_LAST_FIELD = re.compile(r"(?P<path>.*[^\s,])(?:\s*,\s*|\s+)(?P<label>[^\s,]+)")
_HEADER = re.compile(
    r"\W*(path|file|filename|file_name|video|video_path|image)\W+(label|class|class_name)\W*", re.IGNORECASE
)

_NUMBERS = re.compile(r"[-+]?\d+(?:[\s,]+[-+]?\d+)+")  # of frames, and the class: VideoMAE, MMAction2
_NO_CLASS = re.compile(r"[-+]\d+|[-+]?\d*\.\d+")

Entry = tuple[str, str, int]  # path, label as written, line number


def read_list(file: str, root: str = "") -> tuple[list[Entry], list[Entry]]:
    """The entries of a list whose files are there, and those whose files are not.

    Args:
        file: the list.
        root: what paths are relative to; the folder of the list if empty.

    Raises:
        UserError: for a line that cannot be read, naming file and line.
    """
    base = root or os.path.dirname(file)
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            lines = stream.read().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a text file in UTF-8") from error
    if lines and "youtube_id" in _header(lines):
        return _split_missing(_kinetics_entries(file, lines, base))
    return _split_missing((os.path.join(base, path), label, line) for path, label, line in _entries(file, lines))


def _entries(file: str, lines: list[str]) -> Iterator[Entry]:
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or (number == 1 and _HEADER.fullmatch(line)):
            continue
        match = _WITH_EXTENSION.fullmatch(line) or _LAST_FIELD.fullmatch(line)
        path, label = (match[name].strip().strip('"') for name in ("path", "label")) if match else ("", "")
        if not path or not label:
            raise UserError(f"{file}:{number}: '{line[:80]}' is not a line 'path label'")
        if _NUMBERS.fullmatch(label):
            raise UserError(f"{file}:{number}: '{label}' are several numbers after the path: keep the label alone")
        if _NO_CLASS.fullmatch(label):
            raise UserError(f"{file}:{number}: label '{label}' is neither a class number (0, 1, ...) nor a name")
        yield path, label, number


def _kinetics_entries(file: str, lines: list[str], root: str) -> Iterator[Entry]:
    reader = csv.DictReader(lines[1:], _header(lines), skipinitialspace=True)
    if "label" not in reader.fieldnames:
        raise UserError(f"{file}:1: this Kinetics csv has no column 'label', so it cannot be trained or tested on")
    by_stem: dict[str, str] = {}
    for path in media_below(root, VIDEO_EXTENSIONS):
        by_stem.setdefault(os.path.splitext(os.path.basename(path))[0], path)
    for row in reader:
        number = reader.line_num + 1  # the header came first
        try:
            label = row["label"].strip()
            start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
            stem = f"{row['youtube_id'].strip()}_{start:06d}_{end:06d}"
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(
                f"{file}:{number}: '{lines[number - 1][:80]}' is not a line "
                "'label,youtube_id,time_start,time_end,split'"
            ) from None
        yield by_stem.get(stem) or os.path.join(root, stem + ".mp4"), label, number


def _header(lines: list[str]) -> list[str]:
    return [name.strip() for name in next(csv.reader(lines[:1], skipinitialspace=True), [])]


def media_below(folder: str, extensions: Container[str]) -> list[str]:
    """The files below a folder with one of the extensions (lower case, with the dot), folder by folder, each sorted.

    Links are followed, but no folder is entered twice; names that start with a dot are left out.
    """
    files: list[str] = []
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
                files.append(os.path.join(place, name))
    return files


def _split_missing(entries: Iterator[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Look each folder up once: asking for 240,000 files one by one takes minutes on network storage."""
    folders: dict[str, set[str]] = {}
    there, missing = [], []
    for entry in entries:
        folder, name = os.path.split(entry[0])
        if folder not in folders:
            folders[folder] = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
        if name in folders[folder]:
            there.append(entry)
        else:
            missing.append(entry)
    return there, missing
