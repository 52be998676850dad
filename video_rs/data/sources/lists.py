"""Read dataset lists: csv files and lines "path label".

Lines are split as by ``str.splitlines``. Empty lines, spaces around a field and a byte order mark are ignored.

* csv: RFC 4180, as written by ``csv.writer``. The delimiter is found in the first line: a tab, else a comma, else, in a
  header, a space. A header names a path column and a label column, in any order. Optional columns are ``source``,
  ``group`` or ``video_id`` (the source video) and ``num_frames``, ``frames`` or ``total_frames`` (the number of frames
  in a folder).
* "path label", without a header or with the header "path,label": the path ends with the last media extension that is
  followed by a space, a tab or a comma, and the rest is the label. Both may contain spaces and commas. Without an
  extension, the last word is the label.
* "folder frames label": a folder of frames and the number of frames.
* A line such as "a,b c" is ambiguous: the path can be "a" or "a,b". A quoted field makes it csv. Otherwise the first
  such line whose file exists decides for the whole list. If no file exists, the list is csv if all lines have two
  fields. A list whose first line has no comma and no tab is never csv.
* Multiple labels of a file are joined by ";". With ``multi_label`` the label can be missing: "path" or "path,".
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import NamedTuple

from video_rs.data.sources.records import SEPARATOR
from video_rs.data.video.media import MEDIA_EXTENSIONS
from video_rs.errors import UserError

_NO_CLASS = re.compile(r"[-+]\d+|[-+]?\d*\.\d+")
_MARKS = re.compile(r"[\s,]+")  # between a path and its label
_EXTENSIONS = tuple(MEDIA_EXTENSIONS)

_PATH_COLUMNS = ("path", "file", "filename", "file_name", "video", "video_path", "image")
_LABEL_COLUMNS = ("label", "class", "class_name", "labels")
_SOURCE_COLUMNS = ("source", "group", "video_id")
_FRAMES_COLUMNS = ("num_frames", "frames", "total_frames")  # of folders of frames
_START_COLUMNS = ("start", "start_time", "time_start", "t_start", "start_sec", "start_seconds", "begin", "begin_time")
_END_COLUMNS = ("end", "end_time", "time_end", "t_end", "end_sec", "end_seconds", "stop", "stop_time")


class Entry(NamedTuple):
    """One file of a list.

    Attributes:
        path: path of a video, an image or a folder of frames, which may not exist.
        label: the label as written.
        line: line number from 1; for a JSON file, the number of the entry.
        source: name of the source video, or None if the list has no such column.
        file: the file of the line, if it is not the list itself.
        frames: number of frames in a folder, or 0 if the list does not give it.
        segment: start and end in seconds; (0, 0) for the whole file, and an end of 0 for its end.
    """

    path: str
    label: str
    line: int
    source: str | None = None
    file: str = ""
    frames: int = 0
    segment: tuple[float, float] = (0.0, 0.0)


Record = tuple[int, list[str], str]  # of a csv: number of the first line, fields, text


def read_list(file: str, root: str = "", multi_label: bool = False) -> Iterator[Entry]:
    """Yield the entries of a list. The files may be missing.

    Args:
        file: the list.
        root: folder that paths are relative to; empty for the folder of the list.
        multi_label: True if a file can have any number of labels, joined by ";".

    Raises:
        UserError: a line cannot be parsed; the message names file and line.
    """
    base = root or os.path.dirname(file)
    columns, delimiter = read_header(file)
    named = any(name in _PATH_COLUMNS for name in columns) and any(name in _LABEL_COLUMNS for name in columns)
    if named and (len(columns) > 2 or columns[0] in _LABEL_COLUMNS):
        entries = _column_entries(file, columns, delimiter, multi_label)
    else:
        entries = _path_label_entries(file, delimiter, base, named, multi_label)
    for entry in entries:
        path = entry.path.rstrip("/") or entry.path  # folders can end in a slash
        yield entry._replace(path=os.path.join(base, path))


def read_csv(file: str, delimiter: str = ",") -> Iterator[Record]:
    """Yield the records of a csv that are not empty. Raise UserError for an unclosed quote."""
    text: list[str] = []  # lines of the current record
    number = 1

    def lines() -> Iterator[str]:
        for line in read_lines(file):
            text.append(line)
            yield line
        if text:
            raise csv.Error("unexpected end of file")

    try:
        for row in csv.reader(lines(), delimiter=delimiter, skipinitialspace=True):
            fields = [field.strip() for field in row]
            if any(fields):
                yield number, fields, "".join(text).strip()
            number += len(text)
            text.clear()
    except csv.Error as error:
        raise UserError(f"{file}:{number}: not csv ({error}); check for an unclosed quote") from None


def read_lines(file: str) -> Iterator[str]:
    """Yield the lines of a file with their line ends, as ``str.splitlines``. Raise UserError if it is not UTF-8."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            for line in stream:
                yield from line.splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a text file in UTF-8") from error


def bad_line(place: str, expected: str, found: str) -> UserError:
    """Return the error for a line in the wrong format. `found` is truncated to 100 characters."""
    return UserError(f"{place}: expected {expected}; found '{_cut(found)}'")


def _cut(text: str) -> str:
    return " ".join(text.split())[:100]


def read_header(file: str) -> tuple[list[str], str]:
    """Return the fields of the first non-empty line, in lower case, and the delimiter."""
    first = next(filter(str.strip, read_lines(file)), "").strip().lstrip("# ")
    delimiter = next((mark for mark in "\t," if mark in first), " ")
    words = re.findall(r"\w+", first)
    try:
        # accept any two names: "<path> <label>", "path;label"
        fields = words if len(words) == 2 else next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # read_csv reports it
        fields = []
    return [name.strip().lower() for name in fields], delimiter


def _path_label_entries(file: str, delimiter: str, base: str, has_header: bool, multi_label: bool) -> Iterator[Entry]:
    good: set[str] = set()  # labels that were checked
    with_frames = None  # True if "a/b 12 3" means the folder a/b; the first unambiguous line decides
    is_csv = False if delimiter == " " else None  # True if "a,b c" means the path "a"; None until needed
    delimiter = delimiter.strip(" ") or ","
    records = read_csv(file, delimiter)
    first_two = list(islice(records, 2))
    if has_header:
        first_two = first_two[1:]
    elif len(first_two) == 2:
        _refuse_unknown_header(file, first_two[0], first_two[1], base)
    for number, fields, text in chain(first_two, records):
        path, label = _split(text)
        counted = None if with_frames is False else _split_frames(text)
        if other := _other_split(fields, (path, label)):
            if is_csv is None:
                is_csv = _is_csv(read_csv(file, delimiter), base)
            if is_csv or _is_quoted(text, delimiter):
                path, label = other
                counted = None
        if counted and with_frames is None:
            with_frames = _has_frames_column(os.path.join(base, counted[0]), os.path.join(base, path))
        if counted and with_frames is not False:
            path, frames, label = counted
            yield Entry(path, label, number, frames=_count(frames, f"{file}:{number}"))
            continue
        if not path or not (label or multi_label):
            hint = "; data.multi_label=true allows files without labels" if path else ""
            hint = "; put a comma, a tab or a space between them" if ";" in text else hint
            raise UserError(f"{file}:{number}: '{_cut(text)}' is not a line 'path label'{hint}")
        if label not in good:
            words = label.replace(",", " ").split()
            if len(words) > 1 and all(word.lstrip("+-").isdecimal() for word in words):  # VideoMAE, MMAction2
                keep = "write 1;2 for two labels" if multi_label else "keep only the label"
                raise UserError(f"{file}:{number}: several numbers after the path, '{_cut(label)}': {keep}")
            _check_label(label, f"{file}:{number}", multi_label)
            good.add(label)
        yield Entry(path, label, number)


def _refuse_unknown_header(file: str, first: Record, second: Record, base: str) -> None:
    """Raise UserError for a header with unknown names. It would otherwise be read as a file and its label."""
    path, label = _split(first[2])
    names_media = [any(each in text.lower() for each in MEDIA_EXTENSIONS) for _, _, text in (first, second)]
    if path and label and names_media == [False, True] and not os.path.exists(os.path.join(base, path)):
        hint = "if it is a header, call its columns path and label"
        found = f"'{_cut(first[2])}' is not the path of a video or image, unlike the next line"
        raise UserError(f"{file}:{first[0]}: {found}; {hint}")


def _split(text: str) -> tuple[str, str]:
    """Split "path label" into path and label; both may be empty. See the grammar above."""
    last = None
    for mark in reversed(list(_MARKS.finditer(text))):
        split = _unquoted(text[: mark.start()]), _unquoted(text[mark.end() :])
        if _has_extension(split[0]):
            return split
        last = last or split
    whole = _unquoted(text)
    return (whole, "") if _has_extension(whole) else last or ("", whole)


def _other_split(fields: list[str], split: tuple[str, str]) -> tuple[str, str] | None:
    """Return the two csv fields of a line if they are valid and differ from the result of :func:`_split`."""
    if len(fields) != 2 or (_has_extension(split[0]) and not _has_extension(fields[0])):
        return None
    return (fields[0], fields[1]) if (fields[0], fields[1]) != split else None


def _is_csv(records: Iterator[Record], base: str) -> bool:
    """Return True if "a,b c" means the path "a" in a list, False if it means "a,b". See the grammar above."""
    all_two = True
    for _, fields, text in records:
        all_two = all_two and len(fields) == 2
        split = _split(text)
        if other := _other_split(fields, split):
            counted = _split_frames(text) or split
            if any(os.path.exists(os.path.join(base, path)) for path in (split[0], counted[0])):
                return False
            place = os.path.join(base, other[0])
            if os.path.isfile(place) or next(os.walk(place), ("", [""]))[1] == []:  # not a folder of folders
                return True
    return all_two


def _is_quoted(text: str, delimiter: str) -> bool:
    """Return True if a field of a line is quoted, as by csv.writer."""
    if '"' not in text:
        return False
    try:
        fields = next(csv.reader(text.splitlines(True), delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error:
        return False
    return text.count('"') > sum(field.count('"') for field in fields)


def _has_extension(path: str) -> bool:
    return path.lower().endswith(_EXTENSIONS)


def _unquoted(field: str) -> str:
    is_quoted = len(field) > 1 and field[0] == field[-1] == '"'
    return field[1:-1].replace('""', '"') if is_quoted else field


def _split_frames(text: str) -> tuple[str, str, str] | None:
    """Split "folder frames class", the format of TSN and MMAction2. Return None for other lines."""
    words = text.replace(",", " ").rsplit(None, 2)
    if len(words) < 3 or not words[1].isdecimal() or len(words[1]) > 9:
        return None
    if not all(label.isdecimal() for label in words[2].split(SEPARATOR)):
        return None
    return _unquoted(text[: len(words[0])]), words[1], words[2]


def _has_frames_column(folder: str, path: str) -> bool | None:
    """Return True if a number after a folder counts its frames, False if it belongs to the path, None if unclear."""
    if os.path.isdir(folder):
        return True
    return False if _has_extension(path) or os.path.exists(path) else None


def _count(text: str, place: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UserError(f"{place}: '{_cut(text)}' is not a valid number of frames")
    return int(text)


def _check_label(label: str, place: str, multi_label: bool) -> None:
    if wrong := next(filter(_NO_CLASS.fullmatch, label.split(SEPARATOR) if multi_label else [label]), None):
        raise UserError(f"{place}: label '{_cut(wrong)}' is neither a class number (0, 1, ...) nor a name")


def _column_entries(file: str, columns: list[str], delimiter: str, multi_label: bool) -> Iterator[Entry]:
    """Yield the entries of a csv with named columns. Source video and number of frames are optional."""
    path, label, source, frames, start, end = (
        next((columns.index(name) for name in known if name in columns), None)
        for known in (_PATH_COLUMNS, _LABEL_COLUMNS, _SOURCE_COLUMNS, _FRAMES_COLUMNS, _START_COLUMNS, _END_COLUMNS)
    )
    for number, row, _ in islice(read_csv(file, delimiter), 1, None):
        place = f"{file}:{number}"
        if len(row) != len(columns) or not row[path] or not (row[label] or multi_label):
            raise bad_line(place, f"'{delimiter.join(columns)}'", delimiter.join(row))
        _check_label(row[label], place, multi_label)
        written = None if source is None else row[source] or row[path]  # empty: the file is its own source
        is_folder = frames is not None and not _has_extension(row[path])
        count = _count(row[frames], place) if is_folder else 0
        segment = _segment("" if start is None else row[start], "" if end is None else row[end], place)
        yield Entry(row[path], row[label], number, written, frames=count, segment=segment)


def _segment(start: str, end: str, place: str) -> tuple[float, float]:
    """Return start and end in seconds; an end that is empty or not positive is the end of the file."""
    try:
        seconds = float(start or 0), float(end or 0)
    except ValueError:
        seconds = (math.nan, math.nan)
    if not all(map(math.isfinite, seconds)) or seconds[0] < 0 or 0 < seconds[1] <= seconds[0]:
        raise bad_line(place, "a start and a later end in seconds", f"{start}, {end}")
    return seconds[0], max(seconds[1], 0.0)
