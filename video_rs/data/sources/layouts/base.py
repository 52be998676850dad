"""The interface of dataset layouts, their registry, and helpers for reading annotation files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from video_rs.data.sources.entries import Entry
from video_rs.data.sources.tables import bad_line, read_header, read_lines
from video_rs.data.video.media import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from video_rs.errors import UserError, first_line, format_value
from video_rs.files import parse_json

_PLACES = ("", "annotations", "labels", "Charades")  # subfolders searched for annotation files


class Layout:
    """Base class of dataset layouts. A subclass defines at least `files` and :meth:`read`.

    Attributes:
        files: name of the annotation file of each split, "train" at least, in the root or one of its usual subfolders.
        columns: csv columns by which :meth:`recognises` identifies a file.
        used_columns: csv columns that :meth:`read` uses; empty for other files. The log names the other columns.
        json_key: key of JSON objects by which :meth:`recognises` identifies a file.
        multi_label: True if a video can have several labels, joined by ";".
        repeats: True if the published lists may contain a video twice with different labels.
    """

    files: Mapping[str, str] = {}
    columns: Sequence[str] = ()
    used_columns: Sequence[str] = ()
    json_key = ""
    multi_label = False
    repeats = False

    def find(self, root: str, fold: int) -> Mapping[str, str]:
        """Return the source of each split, ``{"train": path, ...}``; empty if the dataset has another layout.

        A source is a file, or a folder that :meth:`recognises` accepts; other folders are read as class folders.

        Args:
            root: ``data.root``, an existing folder.
            fold: ``data.fold``, for datasets with several official splits.
        """
        return find_files(root, self.files) if self.files else {}

    def recognises(self, source: str) -> bool:
        """Return True if :meth:`read` can read a file or folder that was given as ``data.train`` (or val, test)."""
        is_json = source.lower().endswith(".json")
        if self.json_key:
            return is_json and has_key(source, self.json_key)
        if self.columns:
            return not is_json and os.path.isfile(source) and {*self.columns} <= {*read_header(source)[0]}
        return os.path.basename(source) in self.files.values()

    def class_names(self, source: str, fold: int) -> Sequence[str]:
        """Return the class names in the official order; empty to sort the labels."""
        return ()

    def read(self, source: str, root: str, split: str, fold: int) -> Iterable[Entry]:
        """Yield the videos of one split. Their files may be missing.

        Args:
            source: from :meth:`find`, or set in the config.
            root: ``data.root``; empty if only `source` is set.
            split: "train", "val" or "test".
            fold: ``data.fold``.

        Raises:
            UserError: a line does not fit the format; the message names file and line.
        """
        raise NotImplementedError


_LAYOUTS: dict[str, Layout] = {}


def register_layout(name: str) -> Callable[[type[Layout]], type[Layout]]:
    """Return a class decorator that registers a layout. Layouts registered later are tried first."""

    def register(layout: type[Layout]) -> type[Layout]:
        _LAYOUTS[name] = layout()
        return layout

    return register


def find(root: str, fold: int = 1) -> dict[str, tuple[str, Layout | None]]:
    """Return the source of each split and its layout, None for class folders; empty if no layout fits the root."""
    for layout in reversed(_LAYOUTS.values()):
        if sources := layout.find(root, fold):
            is_read = {source: not os.path.isdir(source) or layout.recognises(source) for source in sources.values()}
            return {split: (source, layout if is_read[source] else None) for split, source in sources.items()}
    return {}


def recognise(source: str) -> Layout | None:
    """Return the layout of a file or folder; None for class folders and lists.

    Raises:
        UserError: it is a JSON file of an unknown layout.
    """
    layout = next((layout for layout in reversed(_LAYOUTS.values()) if layout.recognises(source)), None)
    if layout is None and source.lower().endswith(".json"):
        known = ", ".join(sorted(_LAYOUTS))
        raise UserError(f"{source}: not an annotation file of a known dataset ({known}); use a csv of paths and labels")
    return layout


# Recognising files ----------------------------------------------------------------------------------------------------


def find_files(root: str, names: Mapping[str, str], beside: str = "") -> dict[str, str]:
    """Return the paths of the annotation files that exist, ``{split: path}``; empty if there is none for training.

    Args:
        root: folder of the dataset; its usual subfolders are searched too.
        names: file names relative to one of those folders.
        beside: another file that must be in the same folder.
    """
    for place in (os.path.join(root, name) for name in _PLACES):
        paths = {split: os.path.join(place, name) for split, name in names.items()}
        if os.path.isfile(paths["train"]) and (not beside or os.path.isfile(os.path.join(place, beside))):
            return {split: path for split, path in paths.items() if os.path.isfile(path)}
    return {}


def has_key(source: str, key: str) -> bool:
    """Return True for a JSON file with this key near the beginning."""
    with open(source, encoding="utf-8", errors="replace") as file:
        return f'"{key}"' in file.read(100_000)


def beside(file: str, *names: str) -> str:
    """Return the path of the file with the class names, next to an annotation file. Raise UserError if missing."""
    folder = os.path.dirname(file)
    paths = [os.path.join(folder, name) for name in names]
    paths += [os.path.join(folder, "labels", names[0]), os.path.join(os.path.dirname(folder), names[0])]
    found = next(filter(os.path.isfile, paths), "")
    if not found:
        raise UserError(f"{file}: {names[0]} with the class names is missing: put it into the same folder")
    return found


# Finding videos -------------------------------------------------------------------------------------------------------


def find_folder(source: str, root: str, names: Sequence[str], classes: Sequence[str] = ("",)) -> str:
    """Return the folder of the videos: the first candidate that exists, else the folder of the dataset.

    Args:
        source: the annotation file, or a folder of annotation files.
        root: the folder of the dataset; if empty, the folder of `source` and its parent are searched.
        names: candidate names of the folder, in order of preference.
        classes: the folder must have a subfolder with one of these names.
    """
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    bases = [root] if root else [folder or ".", os.path.dirname(os.path.abspath(folder))]
    places = [os.path.join(base, name) if name else base for base in bases for name in names]
    return next((p for p in places if any(os.path.isdir(os.path.join(p, c)) for c in classes)), bases[0])


def find_suffix(folder: str, suffix: str) -> str:
    """Return the suffix of the first video (or image, like `suffix`) in a folder: copies may be re-encoded."""
    extensions = IMAGE_EXTENSIONS if suffix.lower() in IMAGE_EXTENSIONS else VIDEO_EXTENSIONS
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = (os.path.splitext(name)[1] for name in names if not name.startswith("."))
    return next((each for each in found if each.lower() in extensions), suffix)


# Parsing files --------------------------------------------------------------------------------------------------------


def read_fields(file: str, max_splits: int = -1) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the words of each line that is not empty."""
    for line, text in enumerate(read_lines(file), 1):
        if text.strip():
            yield line, text.strip().split(None, max_splits)


def read_json(file: str) -> object:
    """Return the content of a JSON file. Raise UserError with the line of the error."""
    text = "".join(read_lines(file))
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise bad_line(f"{file}:{error.lineno}", "JSON", text[error.pos :] or "the end of the file") from None
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {first_line(error)}") from None


def read_objects(file: str) -> list[dict]:
    """Return the objects in a JSON list. Raise UserError if the file contains anything else."""
    objects = read_json(file)
    if not isinstance(objects, list) or not objects or not all(isinstance(each, dict) for each in objects):
        raise bad_line(file, "a JSON list of objects", format_value(objects))
    return objects
