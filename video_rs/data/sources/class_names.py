"""The classes of a dataset: their names, and the class number of each label."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from video_rs.data import storage
from video_rs.data.shards import NAMES_FILE, TAR
from video_rs.data.sources.lookalikes import difference, folded, group
from video_rs.data.sources.read_split import RawSplit
from video_rs.data.sources.records import SEPARATOR
from video_rs.data.sources.tables import shorten
from video_rs.errors import UserError

_SYNSET = re.compile(r"n\d{8} ")


def find_names_file(root: str) -> str:
    """Return the ``class_names.txt`` beside the shards of a ``data.root``; "" if there is none.

    Raises:
        UserError, MachineError: see ``storage.read``.
    """
    is_folder = os.path.isdir(root) or not root.endswith(TAR)
    folder = root.rstrip("/") if is_folder else os.path.dirname(root)
    try:
        return os.path.join(folder, NAMES_FILE) if NAMES_FILE in storage.sizes(folder) else ""
    except FileNotFoundError:
        return ""


def choose_class_names(names: tuple[str, ...], num_classes: int, splits: Mapping[str, RawSplit]) -> tuple[str, ...]:
    """Return the class names: from a file, else from the training split, else from all splits.

    Args:
        names: the names in a file; empty if there is none.
        num_classes: number of classes if labels are numbers; 0 to derive it from the largest label.
        splits: the splits that were read.

    Raises:
        UserError: some labels are names and others numbers, or a label is invalid.
    """
    _refuse_joined_labels(splits, names)
    if names:
        return names
    is_train_enough = "train" in splits and splits["train"].first_place
    parts = [splits["train"]] if is_train_enough else list(splits.values())
    if official := next((part.class_names for part in parts if part.class_names), ()):
        return tuple(official)
    places = {label: place for part in parts for label, place in part.label_places().items()}
    listed = {label: place for part in splits.values() if part.is_list for label, place in part.label_places().items()}
    if not any(part.is_list for part in parts) or not any(label.isdecimal() and label in listed for label in places):
        names = tuple(sorted(places))
        alike = [ways for ways in group(names).values() if len(ways) > 1]
        if alike:
            more = f", and {len(alike) - 1} more" if len(alike) > 1 else ""
            parts[0].notes.append(f"two classes look alike: {difference(*alike[0][:2])}{more}")
        return names
    named = next((label for label in listed if not label.isdecimal()), None)
    if named is not None:
        number = next(label for label in listed if label.isdecimal())
        both = f"label '{shorten(named)}' is a name, but '{shorten(number)}' in {listed[number]} is a number"
        raise UserError(f"{listed[named]}: {both}: use one kind, or give data.class_names")
    largest = max(listed, key=float)  # int raises for thousands of digits
    lines = sum(len(part.paths) + part.num_missing for part in splits.values())
    if not num_classes and float(largest) >= 10 * lines + 1000:
        raise UserError(
            f"{listed[largest]}: label '{shorten(largest)}' is too large for so short a list: set model.num_classes"
        )
    return tuple(str(i) for i in range(num_classes or 1 + int(largest)))


def _refuse_joined_labels(splits: Mapping[str, RawSplit], names: Sequence[str]) -> None:
    """Raise UserError for a label with ";" in a dataset with one label per file, unless it is a class name."""
    for part in splits.values():
        for label, place in part.first_place.items():
            if SEPARATOR in label and part.is_list and not part.has_label_sets and label not in names:
                raise UserError(f"{place}: '{shorten(label)}' is more than one label: set data.multi_label=true")


def number_labels(part: RawSplit, names: Sequence[str], from_file: bool) -> list[list[int]]:
    """Return the class numbers of each key of ``part.first_place``.

    Args:
        part: a split.
        names: the class names. A label that looks the same as one of them is matched to it, with a note.
        from_file: True if the names were read from ``data.class_names``; labels can then be numbers or names.

    Raises:
        UserError: the label of a file is not a class, or a file is listed with two labels.
    """
    has_numbers = from_file or names == tuple(map(str, range(len(names))))
    number = {name: i for i, name in enumerate(names)}
    if from_file and all(map(_SYNSET.match, names)):
        number |= {name.split(" ")[0]: i for i, name in enumerate(names)}
    for label in part.label_places():
        if label not in number and has_numbers and part.is_list and label.isdecimal() and float(label) < len(names):
            number[label] = int(label)
    similar = _resolve(part, names, number)
    labels = [part.split_label(written) for written in part.first_place]
    numbers = [[number.get(label, -1) for label in each] for each in labels]
    unknown = np.flatnonzero(np.array([-1 in each for each in numbers], bool)[np.asarray(part.labels)])
    if unknown.size:
        label = next(label for label in labels[part.labels[unknown[0]]] if label not in number)
        known = f"0 to {len(names) - 1}" if label.isdecimal() and has_numbers else f"the {len(names)} class names"
        hint = ": give data.class_names, in the order of the numbers" if label.isdecimal() and not has_numbers else ""
        if not label.isdecimal() and (near := difflib.get_close_matches(label, names, n=1)):
            hint = f"; did you mean '{shorten(near[0])}'?"
        if len(ways := similar.get(folded(label), ())) > 1:
            hint = f"; {difference(label, ways[0])}; {difference(label, ways[1])}; use one of these"
        raise UserError(f"{part.place(unknown[0])}: label '{shorten(label)}' is not one of {known}{hint}")
    if part.is_list and not part.repeats:
        _refuse_conflict(part, numbers)
    return numbers


def _resolve(part: RawSplit, names: Sequence[str], number: dict[str, int]) -> dict[str, list[str]]:
    """Number the labels that look the same as one class name. Return all class names by their folded form."""
    unknown = [label for label in part.label_places() if label not in number]
    similar = group(names) if unknown else {}
    resolved = {label: ways[0] for label in unknown if len(ways := similar.get(folded(label), ())) == 1}
    for label, name in resolved.items():
        number[label] = number[name]
    for label, name in [*resolved.items()][:1]:
        more = f", and {len(resolved) - 1} more" if len(resolved) > 1 else ""
        part.notes.append(f"labels matched to class names that look the same: {difference(label, name)}{more}")
    return similar


def _refuse_conflict(part: RawSplit, numbers: list[list[int]]) -> None:
    """Raise UserError for a file that is listed with two labels."""
    hashes = np.fromiter(map(hash, part.paths), np.int64, len(part.paths))
    order = np.argsort(hashes, kind="stable")
    hashes, labels = hashes[order], np.asarray(part.labels)[order]
    changes = np.flatnonzero((hashes[1:] == hashes[:-1]) & (labels[1:] != labels[:-1]))
    written = list(part.first_place)
    for second, first in sorted((int(order[at + 1]), int(order[at])) for at in changes):
        a, b = part.labels[first], part.labels[second]
        same = part.paths[first] == part.paths[second] and part.segment(first) == part.segment(second)
        if same and set(numbers[a]) != set(numbers[b]):
            there = f"'{shorten(written[a])}' in {'line' if part.mark == ':' else 'entry'} {part.lines[first]}"
            place = f"{part.place(second)}: {part.paths[second]}"
            raise UserError(f"{place} has label '{shorten(written[b])}', but {there}: keep one")
