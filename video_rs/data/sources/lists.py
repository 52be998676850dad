"""Read dataset lists: csv, JSON lines, and lines "path label".

* With a header: csv (RFC 4180), with a tab, a comma, ";" or "|" between fields; or JSON lines, whose keys are the
  columns. `COLUMNS` has the names of the columns that are used, in any order; "path" and "label" are required. In a
  list with only these two columns, a row that is not csv is read as a line "path label".
* "path label", without a header: the path ends with the last media extension that is followed by a space, a tab or a
  comma, and the rest is the label. Both may contain spaces and commas. Without an extension, the last word is the
  label. A quoted field makes the line csv.
* "folder frames label": a folder of frames and the number of frames.
* A line such as "a,b c" is ambiguous: the path can be "a" or "a,b". The first such line whose file exists decides for
  the whole list. If no file exists, the list is csv if all lines have two fields. A list whose first line has no comma
  and no tab is never csv.
* If label and path are swapped, the one that exists as a file is the path.
* Multiple labels of a file are joined by ";". With ``multi_label`` the label can be missing: "path" or "path,".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from video_rs.data.sources.entries import (
    ALIASES,
    Entry,
    check_label,
    has_extension,
    parse_count,
    parse_segment,
    parse_split,
    refuse_columns,
)
from video_rs.data.sources.label_lines import read_label_lines, split_line
from video_rs.data.sources.tables import (
    JSON_LINES,
    bad_line,
    column_name,
    json_text,
    read_csv,
    read_header,
    read_json_lines,
    shorten,
)
from video_rs.data.video.search import has_frames
from video_rs.errors import UserError
from video_rs.files import stamp

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "video", "video_path", "video_file")
    + ("video_name", "clip", "clip_path", "image", "image_path"),
    "label": ("label", "labels", "class", "class_name", "classname", "label_name", "category", "action", "target")
    + ("class_id", "label_id", "class_index", "class_idx", "label_idx"),
    "source": ("source", "group", "video_id"),  # the source video
    "frames": ("num_frames", "frames", "total_frames"),  # number of frames in a folder
    "start": ("start", "start_time", "time_start", "t_start", "start_sec", "start_seconds", "start_s", "begin")
    + ("begin_time", "segment_start", "clip_start"),
    "end": ("end", "end_time", "time_end", "t_end", "end_sec", "end_seconds", "end_s", "stop", "stop_time", "t_stop")
    + ("segment_end", "clip_end"),
    "duration": ("duration", "duration_sec", "duration_seconds", "duration_s", "clip_duration"),  # of a segment
    "split": ("split", "subset", "partition"),
}
_METADATA = ("metadata.csv", "metadata.jsonl")  # of Hugging Face; paths are relative to their folder
_SWAP_TRIES = 100  # maximum number of rows whose files are checked to determine if label and path are swapped


def read_list(file: str, root: str = "", multi_label: bool = False) -> Iterator[Entry]:
    """Yield the entries of a list. The files may be missing.

    Args:
        file: the list.
        root: see :func:`base_folder`.
        multi_label: True if a file can have any number of labels, joined by ";".

    Raises:
        UserError: a line cannot be parsed; the message names file and line.
    """
    base, columns = base_folder(file, root), read_columns(file)
    uses = {column.use for column in columns}
    if {"path", "label"} <= uses:
        entries = _column_entries(file, columns, multi_label)
    elif _is_json(file):
        names = shorten(", ".join(column.name for column in columns))
        raise UserError(f"{file}: the keys of its objects are {names}; name the path 'path' and the label 'label'")
    else:
        entries = read_label_lines(file, base, multi_label, names_columns=any(uses))
    yield from _settle_order(entries, file, base)


def _settle_order(entries: Iterator[Entry], file: str, base: str) -> Iterator[Entry]:
    """Swap path and label of entries if only the label is an existing path. Join the paths to the base folder."""
    swapped, tries = None, 0  # of files without an extension: the first one that exists decides
    for entry in entries:
        is_media = has_extension(entry.path), has_extension(entry.label)
        is_swapped = False if is_media == (True, False) else swapped
        if is_media == (False, True) or (is_swapped is None and tries < _SWAP_TRIES):
            there = tuple(_is_sample(os.path.join(base, each)) for each in (entry.path, entry.label))
            tries += 1
            is_swapped = there == (False, True) if any(there) else None
            if is_media == (False, True) and there[0] == there[1]:
                raise bad_line(f"{file}:{entry.line}", "a path and its label", f"{entry.path}, {entry.label}")
            swapped = is_swapped if swapped is None else swapped
        if is_swapped and not entry.swapped:
            entry = entry._replace(path=entry.label, label=entry.path, swapped=True)
        path = entry.path.rstrip("/") or entry.path  # folders can end in a slash
        yield entry._replace(path=os.path.join(base, path))


def _is_sample(path: str) -> bool:
    """Return True for a file or a folder of frames."""
    return os.path.isfile(path) or (os.path.isdir(path) and has_frames(path))


def base_folder(file: str, root: str) -> str:
    """Return the folder that the paths in a list are relative to: `root`, or the folder of the list if it is empty."""
    folder = os.path.dirname(file)
    return folder if os.path.basename(file).lower() in _METADATA else root or folder


class Column(NamedTuple):
    """A column of a list: its name, and its use, which is a key of `COLUMNS`, or "" if it is not used."""

    name: str
    use: str


def read_columns(file: str) -> list[Column]:
    """Return the columns in the header of a list. Columns of a list without a header are not used."""
    if _is_json(file):
        names = _json_keys(file, stamp(file))
    else:
        names, _ = read_header(file, _is_header)
    places = {use: next((names.index(name) for name in known if name in names), -1) for use, known in COLUMNS.items()}
    if places["start"] < 0 or places["end"] >= 0:
        del places["duration"]  # of the file
    uses = {place: use for use, place in places.items()}
    return [Column(name or f"column {i + 1}", uses.get(i, "")) for i, name in enumerate(names)]


def uses_of_columns(file: str) -> set[str]:
    """Return the uses of the columns in the header of a list; empty if the file is no list."""
    try:
        return {column.use for column in read_columns(file)}
    except UserError:
        return set()


def find_metadata(folder: str) -> str:
    """Return the ``metadata.csv`` or ``metadata.jsonl`` of Hugging Face in a folder; "" if there is none.

    In a folder with subfolders, which can be classes, a file without labels is not used.
    """
    for file in (os.path.join(folder, name) for name in _METADATA):
        if os.path.isfile(file):
            has_labels = "label" in uses_of_columns(file)
            return file if has_labels or not any(map(os.DirEntry.is_dir, os.scandir(folder))) else ""
    return ""


def list_splits(file: str) -> list[str]:
    """Return the splits in the column "split" of a list; empty if it has none. Raise UserError for another value."""
    return _splits_in(file, stamp(file))


@lru_cache(maxsize=8)  # read once for all splits
def _splits_in(file: str, stamp: tuple[int, int]) -> list[str]:
    columns = read_columns(file)
    if "split" not in {column.use for column in columns}:
        return []
    found = {parse_split(values["split"], f"{file}:{line}") for line, values, _ in _rows(file, columns)}
    return [split for split in ALIASES if split in found]


@lru_cache(maxsize=8)
def _json_keys(file: str, stamp: tuple[int, int]) -> list[str]:
    return list(dict.fromkeys(name for _, values, _ in read_json_lines(file) for name in values))


def _is_json(file: str) -> bool:
    return file.lower().endswith(JSON_LINES)


def _is_header(names: Sequence[str]) -> bool:
    return all(any(name in names for name in COLUMNS[use]) for use in ("path", "label"))


# Lists with a header --------------------------------------------------------------------------------------------------


def _column_entries(file: str, columns: Sequence[Column], multi_label: bool) -> Iterator[Entry]:
    expected = f"'{','.join(column.name for column in columns)}'"
    good: set[str] = set()  # labels that were checked
    for line, values, text in _rows(file, columns):
        place, path, label = f"{file}:{line}", values["path"], values["label"]
        if not path or not (label or multi_label):
            raise bad_line(place, expected, text)
        if label not in good:
            check_label(label, place, multi_label)
            good.add(label)
        yield Entry(
            path,
            label,
            line,
            source=values["source"] or path if "source" in values else None,  # empty: the file is its own source
            frames=parse_count(values["frames"], place) if "frames" in values and not has_extension(path) else 0,
            segment=parse_segment(*(values.get(use, "") for use in ("start", "end", "duration")), place),
            split=parse_split(values["split"], place) if "split" in values else "",
        )


def _rows(file: str, columns: Sequence[Column]) -> Iterator[tuple[int, dict[str, str], str]]:
    """Yield the line number, the values by their use, and the text of each row below a header."""
    if _is_json(file):
        for line, values, text in read_json_lines(file):
            yield line, {use: json_text(values.get(name), f"{file}:{line}") for name, use in columns if use}, text
        return
    names, delimiter = read_header(file, _is_header)
    is_first = True
    for line, fields, text in read_csv(file, delimiter):
        if is_first and [column_name(field) for field in fields] == names:
            is_first = False
            continue
        if delimiter == ";":  # Excel, where a comma is the decimal mark
            fields = [re.sub(r"^(\d+),(\d+)$", r"\1.\2", field) for field in fields]
        while len(fields) > len(columns) and not fields[-1]:
            fields.pop()
        if len(fields) != len(columns):
            if [column.use for column in columns] != ["path", "label"]:
                raise bad_line(f"{file}:{line}", f"'{delimiter.join(names)}'", text)
            fields = split_line(text)
            refuse_columns(fields[1], f"{file}:{line}")
        yield line, {column.use: field for column, field in zip(columns, fields, strict=True) if column.use}, text
