"""Files of class names: plain lines, JSON, or csv with numbers."""

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from video_rs.data import storage
from video_rs.errors import UserError, first_line, format_value
from video_rs.files import parse_json

_MAX_BYTES = 1 << 24
_NUMBER = re.compile(r"\d{1,9}")
_REFUSED = {  # not text, or another format
    **dict.fromkeys([".yaml", ".yml"], "YAML"),
    **dict.fromkeys([".pbtxt", ".prototxt"], "protobuf text"),
    **dict.fromkeys([".xml", ".html", ".htm"], "XML"),
    **dict.fromkeys([".pkl", ".pickle", ".npy", ".npz", ".pt", ".pth", ".xlsx", ".parquet"], "a binary file"),
    **dict.fromkeys([".toml", ".ini", ".jsonl", ".py"], "structured text"),
}
_FIRST_LINES = {  # of the first line that is not empty
    r"<": "XML",
    r"(item|entries|name)\s*:?\s*\{": "protobuf text",
    r"---$|%YAML": "YAML",
    r"version https://git-lfs": "a Git LFS pointer (run git lfs pull)",
    r"\([ld]p\d|c(__builtin__|copy_?reg)": "a pickle",
    r"#\s": "a comment",
    r"\|": "a Markdown table",
    r"([\"']).*\1,$": "part of a program",
}
_NUMBERED = (  # "0 run", "1. run", "[2] run" and "run 0", "run=1"
    re.compile(r"[(\[#]?(?P<number>\d{1,9})(\s*[-.:=>|)\]]+\s*|\s+)(?P<name>.+)"),
    re.compile(r"(?P<name>.+?)(\s*[:=|]\s*|\s+)(?P<number>\d{1,9})"),
)
_YAML_LINE = re.compile(r"\s*(- \S|[^\s:{\[]+:(\s|$))")
_NAME_COLUMNS = ("name", "class_name", "class", "names", "classes", "label", "labels")
_FORMATS = "give one name per line, a JSON list of names, or a csv with the columns id and name"


def read_class_names(file: str, key: str = "data.class_names", *, plain: bool = False) -> tuple[str, ...]:
    """Return the class names in a file, in the order of their numbers.

    The file has one name per non-empty line; or a number and a name per line, in either order, separated by a comma, a
    tab or, for the numbers 0 to N-1, a space or a mark such as "="; or it is JSON: a list of names,
    ``{"run": 0}`` or ``{"0": "run"}``. Double quotes around the names in a JSON object, as in the files of
    PySlowFast, are removed.

    Args:
        file: path or URL of the file.
        key: the option, for messages.
        plain: True to take every line as a name.

    Raises:
        UserError: there is no such file, it is not UTF-8 or has another structure, a name is repeated, or the numbers
            are not 0 to N-1.
    """
    place = f"{key}={file}"
    try:
        end = None if storage.is_remote(file) else _MAX_BYTES + 1
        data = storage.read(file, 0, end, missing=UserError(f"{place}: no such file"))
        if len(data) > _MAX_BYTES:
            raise UserError(f"{place}: larger than {_MAX_BYTES >> 20} MiB: not a file of class names")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{place}: not a text file in UTF-8; {_FORMATS}") from None
    names = tuple(_plain(text) if plain else _parse(text, file, place))
    if not names:
        raise UserError(f"{place}: no names in it; {_FORMATS}")
    if len(set(names)) < len(names):
        first = {name: number for number, name in reversed([*enumerate(names)])}
        number, name = next((number, name) for number, name in enumerate(names) if first[name] != number)
        raise UserError(f"{place}: {format_value(name)} is repeated, as number {first[name]} and {number}; keep one")
    return names


def names_text(names: Sequence[str]) -> str:
    """Return the text of a file that :func:`read_class_names` reads back: a name per line, else JSON."""
    text = "".join(f"{name}\n" for name in names)
    try:
        is_clear = tuple(_parse(text, "", "")) == tuple(names)
    except UserError:
        is_clear = False
    return text if is_clear else json.dumps([*names], ensure_ascii=False) + "\n"


def _plain(text: str) -> list[str]:
    return list(filter(None, map(str.strip, text.splitlines())))


def _parse(text: str, file: str, place: str) -> Iterable[str]:
    lines, extension = _plain(text), os.path.splitext(file)[1].lower()
    known = (format_ for pattern, format_ in _FIRST_LINES.items() if lines and re.match(pattern, lines[0]))
    structure = _REFUSED.get(extension) or next(known, "")
    if "\0" in text:
        structure = "a binary file"
    if len(lines) > 1 and all(_YAML_LINE.match(line) for line in text.splitlines() if line.strip()):
        structure = structure or "YAML"
    if structure:
        raise UserError(f"{place}: {structure}, not a list of names; {_FORMATS}")
    if extension == ".json" or (lines and lines[0][0] in "{["):
        return _from_json(text, place)
    first = lines[0] if lines else ""
    delimiter = next((mark for mark in "\t,;" if mark in first), ",")
    try:
        rows = [*csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)]
        if len(rows) < len(lines):
            raise csv.Error("an unclosed quote")
    except csv.Error as error:
        if extension in (".csv", ".tsv"):
            raise UserError(f"{place}: not csv ({error}); {_FORMATS}") from None
        rows = [[line] for line in lines]
    rows = [[field.strip() for field in row] for row in rows]
    is_table = extension in (".csv", ".tsv") or delimiter == "\t" or len(lines) == 1 < len(rows[0])
    if is_table or (len(rows) > 1 and _number_columns(rows[1:])):
        return _from_table(rows, place)
    has_header = lines and {*re.split(r"\W+", first.lower())} & {*_NAME_COLUMNS}
    if names := _from_words(lines, place) or (has_header and _from_words(lines[1:], place)):
        return names
    return _from_table(rows, place) if all(len(row) == 1 for row in rows) else lines


def _from_words(lines: Sequence[str], place: str) -> Iterable[str]:
    """Return the names in numbered lines; empty if the numbers are not consecutive from 0 or 1."""
    for pattern in _NUMBERED:
        found = {match["name"]: int(match["number"]) for match in map(pattern.fullmatch, lines) if match}
        first = min(found.values(), default=0)
        if 1 < len(found) == len(lines) and first < 2 and sorted(found.values()) == [*range(first, first + len(lines))]:
            return _in_order([(number, name) for name, number in found.items()], place)
    return ()


def _number_columns(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the columns that have a number in each row, if all rows have the same columns, at least two."""
    if len(rows[0]) < 2 or any(len(row) != len(rows[0]) for row in rows):
        return []
    return [column for column in range(len(rows[0])) if all(_NUMBER.fullmatch(row[column]) for row in rows)]


def _from_table(rows: list[list[str]], place: str) -> Iterable[str]:
    """Return the names in the rows of a csv, with or without a header."""
    header = [field.lower() for field in rows[0]] if rows else []
    if all(len(row) == 1 for row in rows):
        return [row[0] for row in (rows[1:] if header and header[0] in _NAME_COLUMNS else rows)]
    body = rows[1:]
    columns = _number_columns(body) if body else []
    is_header = not any(re.fullmatch(r"[-+.\d]+", rows[0][column]) for column in columns if column < len(rows[0]))
    if is_header and len(rows[0]) == len(rows[-1]):
        named = [header.index(name) for name in _NAME_COLUMNS if name in header]
    else:
        body, named = rows, []
        columns = _number_columns(rows)
    name = next((column for column in named if len(columns) > 1 or column not in columns), None)
    if name is None and len(rows[0]) == 2 and columns:
        name = 1 - columns[0]
    number = next((column for column in columns if column != name), None)
    if name is None or number is None:
        raise UserError(f"{place}: not a list of names and their numbers; {_FORMATS}")
    return _in_order([(row[number], row[name]) for row in body], place)


def _from_json(text: str, place: str) -> Iterable[str]:
    try:
        value = parse_json(text, object_pairs_hook=_Pairs)
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({first_line(error)}); {_FORMATS}") from None
    if isinstance(value, _Pairs):
        if value and all(isinstance(entry, str) and _is_number(name) for name, entry in value):
            return _in_order([(number, _unquoted(name)) for number, name in value], place)
        if all(_is_number(entry) for _, entry in value):
            return _in_order([(number, _unquoted(name)) for name, number in value], place)
    elif isinstance(value, list) and all(isinstance(name, str) for name in value):
        return [name.strip() for name in value]
    raise UserError(f"{place}: not a list of names, or names and their numbers; {_FORMATS}")


class _Pairs(list):
    """The pairs of a JSON object, also those with equal keys."""


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | str) and bool(_NUMBER.fullmatch(str(value).strip()))


def _unquoted(name: str) -> str:
    name = name.strip()
    return name[1:-1].strip() if len(name) > 2 and name[0] == name[-1] == '"' else name


def _in_order(pairs: Sequence[tuple[Any, str]], place: str) -> list[str]:
    """Return the names in the order of their numbers. Raise UserError if the numbers are not 0 to N-1."""
    names: dict[int, str] = {}
    for number, name in pairs:
        other = names.setdefault(int(number), name)
        if other is not name:
            both = f"{format_value(other)} and {format_value(name)} both have the number {int(number)}"
            raise UserError(f"{place}: {both}")
    missing = next((number for number in range(len(names)) if number not in names), None)
    if missing is not None:
        hint = "they must start at 0" if missing == 0 else "they must have no gaps"
        raise UserError(f"{place}: no name has the number {missing}; the numbers are {_range(names)}, {hint}")
    if "" in names.values():
        raise UserError(f"{place}: a name is empty")
    return [names[number] for number in range(len(names))]


def _range(numbers: Iterable[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}"
