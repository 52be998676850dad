"""Read lines "path label" of lists without a header; see ``lists`` for the grammar."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from video_rs.data.sources.entries import Entry, check_label, has_extension, parse_count, refuse_columns
from video_rs.data.sources.records import SEPARATOR
from video_rs.data.sources.tables import Row, read_csv, read_header, shorten
from video_rs.data.video.media import MEDIA_EXTENSIONS
from video_rs.errors import UserError

_MARKS = re.compile(r"[\s,]+")  # between a path and its label
_LONGEST = 2 + max(map(len, MEDIA_EXTENSIONS))  # characters of an extension and quotes
_TOO_LONG = 5000  # characters of a line; a path has at most 4096


def read_label_lines(file: str, base: str, multi_label: bool, *, names_columns: bool) -> Iterator[Entry]:
    """Yield the entries of a list. For `base` see ``lists.base_folder``, for other arguments ``lists.read_list``.

    `names_columns` is True if there are names of columns in the first line.
    """
    mark = read_header(file)[1]
    is_csv = None if mark in "\t," else False  # True if "a,b c" means the path "a"; None until needed
    delimiter = mark if mark in "\t," else ","
    good: set[str] = set()  # labels that were checked
    with_frames = None  # True if "a/b 12 3" means the folder a/b; the first unambiguous line decides
    rows = read_csv(file, delimiter)
    first_two = list(islice(rows, 2))
    if len(first_two) == 2:
        _refuse_unknown_header(file, first_two[0], first_two[1], base, names_columns)
    for line, fields, text in chain(first_two, rows):
        place, swapped = f"{file}:{line}", None
        path, label = split_line(text)
        counted = None if with_frames is False else _split_frames(text)
        is_quoted = _is_quoted(text, delimiter)
        if is_quoted and len(fields) == 2:
            path, label, counted = *fields, None
        elif other := _other_split(fields, (path, label)):
            if is_csv is None:
                is_csv = _is_csv(read_csv(file, delimiter), base)
            if is_csv:
                path, label, counted = *other, None
        if counted and with_frames is None:
            with_frames = _has_frames_column(os.path.join(base, counted[0]), os.path.join(base, path))
        if counted and with_frames is not False:
            path, frames, label = counted
            yield Entry(path, label, line, frames=parse_count(frames, place))
            continue
        if not label and (swapped := _swapped(fields, text, base)):
            path, label = swapped
        if not path or not (label or multi_label):
            hint = "; data.multi_label=true allows files without labels" if path else ""
            hint = "; put a comma, a tab or a space between them" if ";" in text else hint
            raise UserError(f"{place}: '{shorten(text)}' is not a line 'path label'{hint}")
        if label not in good:
            if not is_quoted or len(fields) > 2:
                refuse_columns(label, place)
            words = label.replace(",", " ").split()
            if len(words) > 1 and all(word.lstrip("+-").isdecimal() for word in words):  # VideoMAE, MMAction2
                keep = "write 1;2 for two labels" if multi_label else "keep only the label"
                raise UserError(f"{place}: several numbers after the path, '{shorten(label)}': {keep}")
            check_label(label, place, multi_label)
            good.add(label)
        yield Entry(path, label, line, swapped=swapped is not None)


def _refuse_unknown_header(file: str, first: Row, second: Row, base: str, names_columns: bool) -> None:
    """Raise UserError for a header with unknown names. It would otherwise be read as a file and its label."""
    path, label = split_line(first.text)
    names_media = [any(each in row.text.lower() for each in MEDIA_EXTENSIONS) for row in (first, second)]
    is_header = names_media == [False, True] or (names_columns and not names_media[0])
    if path and label and is_header and not any(os.path.exists(os.path.join(base, each)) for each in (path, label)):
        hint = "if it is a header, name its columns path and label"
        found = f"'{shorten(first.text)}' is not the path of a video or image, unlike the next line"
        raise UserError(f"{file}:{first.line}: {found}; {hint}")


def _swapped(fields: Sequence[str], text: str, base: str) -> tuple[str, str] | None:
    """Return path and label of a line "label path" whose file exists; None if no or several files exist."""
    if len(text) > _TOO_LONG:
        return None
    pairs = [_split_at(text, mark)[::-1] for mark in _MARKS.finditer(text)]
    if len(fields) == 2:
        pairs = [(fields[1], fields[0])]
    found = [(path, label) for path, label in pairs if label and os.path.isfile(os.path.join(base, path))]
    return found[0] if len(found) == 1 else None


def split_line(text: str) -> tuple[str, str]:
    """Split "path label" into path and label; both may be empty. See ``lists`` for the grammar."""
    marks = list(_MARKS.finditer(text))
    for mark in reversed(marks):
        if has_extension(text[max(0, mark.start() - _LONGEST) : mark.start()].rstrip('"')):
            split = _split_at(text, mark)
            if has_extension(split[0]):
                return split
    whole = _unquoted(text)
    if has_extension(whole) or not marks:
        return (whole, "") if has_extension(whole) else ("", whole)
    return _split_at(text, marks[-1])


def _split_at(text: str, mark: re.Match) -> tuple[str, str]:
    return _unquoted(text[: mark.start()]), _unquoted(text[mark.end() :])


def _other_split(fields: list[str], split: tuple[str, str]) -> tuple[str, str] | None:
    """Return the two csv fields of a line if they are valid and differ from the result of :func:`_split`."""
    if len(fields) != 2 or (has_extension(split[0]) and not has_extension(fields[0])):
        return None
    return (fields[0], fields[1]) if (fields[0], fields[1]) != split else None


def _is_csv(rows: Iterator[Row], base: str) -> bool:
    """Return True if "a,b c" means the path "a" in a list, False if it means "a,b". See ``lists``."""
    all_two = True
    for _, fields, text in rows:
        all_two = all_two and len(fields) == 2
        split = split_line(text)
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
    return False if has_extension(path) or os.path.exists(path) else None
