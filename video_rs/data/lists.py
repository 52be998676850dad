"""Dataset lists: lines "path label", and the official Kinetics csv."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator

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

Entry = tuple[str, str, int]  # path, label as written, line number


def read_list(file: str, root: str = "") -> tuple[list[Entry], list[str]]:
    """The entries of a list whose files are there, and the paths of those that are not.

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
    if lines and "youtube_id" in lines[0].split(","):
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
        yield path, label, number


def _kinetics_entries(file: str, lines: list[str], root: str) -> Iterator[Entry]:
    reader = csv.DictReader(lines)
    if "label" not in reader.fieldnames:
        raise UserError(f"{file}:1: this Kinetics csv has no column 'label', so it cannot be trained or tested on")
    by_stem = _files_below(root)
    for row in reader:
        try:
            label = row["label"].strip()
            start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
            stem = f"{row['youtube_id'].strip()}_{start:06d}_{end:06d}"
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(
                f"{file}:{reader.line_num}: '{lines[reader.line_num - 1][:80]}' is not a line "
                "'label,youtube_id,time_start,time_end,split'"
            ) from None
        yield by_stem.get(stem) or os.path.join(root, stem + ".mp4"), label, reader.line_num


def _files_below(root: str) -> dict[str, str]:
    """``{file name without extension: path}`` of all videos below a folder."""
    files = {}
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension.lower() in VIDEO_EXTENSIONS:
                files[stem] = os.path.join(folder, name)
    return files


def _split_missing(entries: Iterator[Entry]) -> tuple[list[Entry], list[str]]:
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
            missing.append(entry[0])
    return there, missing
