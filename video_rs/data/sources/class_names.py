"""The classes of a dataset, in the order of their numbers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from video_rs.data import storage
from video_rs.data.shards import TAR
from video_rs.data.sources.records import SEPARATOR
from video_rs.errors import UserError

if TYPE_CHECKING:
    from video_rs.data.sources.read_split import ReadSplit

NAMES_FILE = "class_names.txt"  # as prepare_dataset calls it


def class_names_of(file: str, num_classes: int, read: dict[str, ReadSplit]) -> tuple[str, ...]:
    """The classes, from the file, else from the training split, else from all.

    Args:
        file: with one name a line; "" for none.
        num_classes: how many numbered labels may name; 0 for as many as there are.
        read: the splits.

    Raises:
        UserError: see :func:`read_class_names`; or labels do not fit together, or are no classes.
    """
    names = read_class_names(file) if file else ()
    _refuse_joined(read, names)
    if file:
        return names
    parts = [read["train"]] if "train" in read and read["train"].first_place else list(read.values())
    if official := next((part.class_names for part in parts if part.class_names), ()):
        return official
    places = {label: place for part in parts for label, place in part.label_places().items()}
    listed = {label: place for part in read.values() if part.is_list for label, place in part.label_places().items()}
    if not any(part.is_list for part in parts) or not any(label.isdecimal() and label in listed for label in places):
        return tuple(sorted(places))
    named = next((label for label in listed if not label.isdecimal()), None)
    if named is not None:
        number = next(label for label in listed if label.isdecimal())
        both = f"label '{named}' is a name, but '{number}' in {listed[number]} is a number"
        raise UserError(f"{listed[named]}: {both}: use one kind, or give data.class_names")
    largest = max(listed, key=int)
    lines = sum(len(part.paths) + part.num_missing for part in read.values())
    if not num_classes and int(largest) >= 10 * lines + 1000:
        raise UserError(f"{listed[largest]}: label '{largest}' is too large for so short a list: set model.num_classes")
    return tuple(str(i) for i in range(num_classes or 1 + int(largest)))


def beside_shards(root: str) -> str:
    """The file of class names that lies with the shards of a ``data.root``; "" for none. Raises as ``storage.read``."""
    is_folder = os.path.isdir(root) or not root.endswith(TAR)
    folder = root.rstrip("/") if is_folder else os.path.dirname(root)
    try:
        there = NAMES_FILE in storage.sizes(folder)
    except FileNotFoundError:
        there = False
    return os.path.join(folder, NAMES_FILE) if there else ""


def _refuse_joined(read: dict[str, ReadSplit], names: tuple[str, ...]) -> None:
    """Where each file has one label, one with ";" in it is one only where the names say so."""
    for part in read.values():
        for label, place in part.first_place.items():
            if SEPARATOR in label and part.is_list and not part.joined and label not in names:
                raise UserError(f"{place}: '{label[:80]}' are several labels of one file: set data.multi_label=true")


def read_class_names(file: str, key: str = "data.class_names") -> tuple[str, ...]:
    """The lines of a text file that aren't empty. Raises UserError, which calls the file what ``key`` is set to."""
    try:
        text = storage.read(file).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{key}={file}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{key}={file}: not a text file in UTF-8") from None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{key}={file}: '{twice}' is in it twice")
    return names
