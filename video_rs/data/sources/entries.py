"""One file of a list, and checks of its values."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from video_rs.data.sources.records import SEPARATOR
from video_rs.data.sources.tables import bad_line, shorten
from video_rs.data.video.media import MEDIA_EXTENSIONS
from video_rs.errors import UserError

ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "validate", "validation", "valid"),
    "test": ("test", "testing"),
}
_SPLIT = {alias: split for split, aliases in ALIASES.items() for alias in aliases}
_NO_CLASS = re.compile(r"[-+]\d+|[-+]?\d*\.\d+")
_EXTENSIONS = tuple(MEDIA_EXTENSIONS)


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
        split: the split in the list, or "" if the list has no such column.
        swapped: True if path and label were swapped in the list.
    """

    path: str
    label: str
    line: int
    source: str | None = None
    file: str = ""
    frames: int = 0
    segment: tuple[float, float] = (0.0, 0.0)
    split: str = ""
    swapped: bool = False


def has_extension(path: str) -> bool:
    """Return True if a text ends with the extension of a video or an image."""
    return path.lower().endswith(_EXTENSIONS)


def parse_split(text: str, place: str) -> str:
    """Return the split that an alias stands for. Raise UserError if it is unknown."""
    if text.lower() not in _SPLIT:
        raise UserError(f"{place}: split '{shorten(text)}' is not train, val or test; correct it, or rename the column")
    return _SPLIT[text.lower()]


def parse_segment(start: str, end: str, duration: str, place: str) -> tuple[float, float]:
    """Return start and end in seconds. An end that is empty or not positive is returned as 0, the end of the file."""
    try:
        seconds = float(start or 0), float(start or 0) + float(duration) if duration else float(end or 0)
    except ValueError:
        seconds = (math.nan, math.nan)
    if not all(map(math.isfinite, seconds)) or seconds[0] < 0 or 0 < seconds[1] <= seconds[0]:
        raise bad_line(place, "a start and a later end in seconds", f"{start}, {end or duration}")
    return seconds[0], max(seconds[1], 0.0)


def parse_count(text: str, place: str) -> int:
    """Return a number of frames. Raise UserError if it is not positive."""
    if not text.isdecimal() or not 0 < float(text) < 2**31:
        raise UserError(f"{place}: '{shorten(text)}' is not a valid number of frames")
    return int(text)


def check_label(label: str, place: str, multi_label: bool) -> None:
    """Raise UserError for a negative or fractional number as a label."""
    if wrong := next(filter(_NO_CLASS.fullmatch, label.split(SEPARATOR) if multi_label else [label]), None):
        raise UserError(f"{place}: label '{shorten(wrong)}' is neither a class number (0, 1, ...) nor a name")


def refuse_columns(label: str, place: str) -> None:
    """Raise UserError for a label that ends with start and end, a split, or nothing: columns without a header."""
    *rest, last = re.split(r'"?\s*[,\t]\s*"?', label)
    is_segment = len(rest) > 1 and _is_number(rest[-1]) and _is_number(last) and float(rest[-1]) < float(last)
    if is_segment or (rest and (not last or last.lower() in _SPLIT)):
        hint = "name the columns in a header (path,label,start,end,split), or quote the label"
        raise UserError(f"{place}: several columns after the path, '{shorten(label)}': {hint}")


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\d*\.?\d+", text))
