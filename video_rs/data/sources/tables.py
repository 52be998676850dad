"""Read text files of a dataset: lines, csv (RFC 4180) and JSON lines.

Lines end as in ``str.splitlines``. Empty lines, comments ("# text"), blanks around a field and a byte order mark are
skipped. Files are UTF-8, or UTF-16 with a byte order mark, as Excel saves "Unicode text".
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from video_rs.errors import UserError, format_value, printable
from video_rs.files import parse_json

JSON_LINES = (".jsonl", ".ndjson")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_COMMENT = re.compile(r"#([\s#!]|$)|sep=.\s*$")  # Excel names the delimiter in a first line "sep=;"
_BACKSLASH = re.compile(r'\\"[^",;|\s]')  # in a quoted field, where a quote must be doubled
_LFS = b"version https://git-lfs"


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        line: number of its first line, from 1.
        fields: its values.
        text: the row as written.
    """

    line: int
    fields: list[str]
    text: str


def read_lines(file: str) -> Iterator[str]:
    """Yield the lines of a file with their line ends. Raise UserError if it is not text, or a Git LFS pointer."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(len(_LFS))
        if head == _LFS:
            raise UserError(f"{file}: a Git LFS pointer, not the file; run git lfs pull")
        encoding = "utf-16" if head.startswith(_UTF_16) else "utf-8-sig"
        with open(file, encoding=encoding, newline="") as stream:
            for text in stream:
                if "\0" in text:
                    raise UserError(f"{file}: not a text file; save it as csv in UTF-8")
                yield from text.splitlines(keepends=True)
    except UnicodeError:
        raise UserError(f"{file}: not a text file in UTF-8; save it as csv in UTF-8") from None


def read_csv(file: str, delimiter: str = ",") -> Iterator[Row]:
    """Yield the rows of a csv that are not empty. Raise UserError for an unclosed quote."""
    row: list[str] = []  # lines of the current row
    number = 0  # of the lines read so far

    def lines() -> Iterator[str]:
        nonlocal number
        for line in read_lines(file):
            number += 1
            if row or not _COMMENT.match(line):
                row.append(line)
                yield line
        if row:
            raise csv.Error("unexpected end of file")

    try:
        for values in csv.reader(lines(), delimiter=delimiter, skipinitialspace=True):
            fields = [value.strip() for value in values]
            if any(fields):
                text = "".join(row).strip()
                if _BACKSLASH.search(text):
                    problem = f"a quote after a backslash in '{shorten(text)}'"
                    raise UserError(f'{file}:{number - len(row) + 1}: {problem}; write a quote in a field as ""')
                yield Row(number - len(row) + 1, fields, text)
            row.clear()
    except csv.Error as error:
        place = f"{file}:{number - max(len(row), 1) + 1}"
        raise UserError(f"{place}: not csv ({error}); check for an unclosed quote") from None


def read_header(file: str, is_header: Callable[[list[str]], bool] = lambda columns: False) -> tuple[list[str], str]:
    """Return the names of the columns of a csv, and the delimiter.

    The names are those of the first row, as :func:`column_name` writes them. A comment before it is taken for the
    header if `is_header` accepts its names.
    """
    for line in filter(str.strip, read_lines(file)):
        columns, delimiter = _split_header(line.strip().lstrip("# "))
        if not _COMMENT.match(line) or is_header(columns):
            return columns, delimiter
    return [], " "


def _split_header(line: str) -> tuple[list[str], str]:
    delimiter = next((mark for mark in "\t,;|" if mark in line), " ")  # ";" from Excel, where a comma is decimal
    try:
        fields = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # read_csv reports it
        fields = []
    return [column_name(name) for name in fields], delimiter


def column_name(name: str) -> str:
    """Return the name of a column in lower case, with "_" for blanks and punctuation: "Start (s)" is "start_s"."""
    return re.sub(r"[\W_]+", "_", name).strip("_").lower()


def read_json_lines(file: str) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yield the number, the values and the text of each line, a JSON object."""
    for number, line in enumerate(read_lines(file), 1):
        if not (text := line.strip()):
            continue
        try:
            values = parse_json(text)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise bad_line(f"{file}:{number}", "a JSON object", text)
        yield number, {column_name(name): value for name, value in values.items()}, text


def json_text(value: Any, place: str) -> str:
    """Return a value of a JSON object as text. A list is joined by ";". Raise UserError for an object in it."""
    values = value if isinstance(value, list) else [value]
    if wrong := [each for each in values if isinstance(each, (list, dict))]:
        raise bad_line(place, "a text, a number or a list of these as a value", format_value(wrong[0]))
    if isinstance(value, list):
        return ";".join(json_text(each, place) for each in value)
    return "" if value is None else str(value).strip()


def bad_line(place: str, expected: str, found: str) -> UserError:
    """Return the error for a line in the wrong format. `expected` and `found` are truncated."""
    return UserError(f"{place}: expected {expected[:200]}; found '{shorten(found)}'")


def shorten(text: str) -> str:
    """Return the first 100 characters of a text, with single blanks, see :func:`printable`."""
    return printable(" ".join(text[:1000].split()))[:100]


def format_path(path: str) -> str:
    """Return a path for messages, with at most 200 characters, see :func:`printable`."""
    text = printable(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-97:]}"
