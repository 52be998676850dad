"""The splits of a dataset: where they are found, and their records.

Sources, for each split:

* a folder of class folders, ``root/train/<class>/<file>``, or ``root/<class>/<file>`` for a dataset without splits;
* a list ``root/train.csv`` or ``root/train.txt`` of lines "path label", separated by a comma, a tab or spaces; the
  label is a number or a class name, or any number of them with ";" between where files have several;
* the official Kinetics csv (``label,youtube_id,time_start,time_end,split``), whose files are found by their names
  ``<youtube_id>_<start>_<end>`` anywhere below the root;
* the annotation files of UCF101, HMDB51, Something-Something v2, Diving48, Charades and ImageNet (annotations.py);
* shards: tar files with an index beside each (shards.py), here or behind an address as ``s3://bucket/folder``.

A file is a video, an image, or a folder of a video's frames: any folder that a list names, and with ``frame_folders``
those in class folders.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from video_rs.data.sources import layouts as annotations
from video_rs.data.sources.class_names import beside_shards, class_names_of
from video_rs.data.sources.holdout import split_off
from video_rs.data.sources.read_split import ReadSplit, class_folders, no_classes, read_split
from video_rs.data.sources.records import LabelSets, Records
from video_rs.data.sources.shard_splits import are_shards, read_shards
from video_rs.data.video.media import is_image, is_media
from video_rs.errors import UserError

_SYNSET = re.compile(r"n\d{8} ")
SPLITS = ("train", "val", "test")
LIST_SUFFIXES = (".csv", ".txt", ".tsv")
ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "validate", "validation", "valid"),
    "test": ("test", "testing"),
}


def load_splits(
    root: str = "",
    train: str = "",
    val: str = "",
    test: str = "",
    *,
    class_names: str = "",
    num_classes: int = 0,
    val_fraction: float = 0.1,
    max_missing: float = 0.05,
    multi_label: bool = False,
    fold: int = 1,
    frame_folders: bool = False,
    splits: Sequence[str] = SPLITS,
) -> dict[str, Records]:
    """The records of the splits asked for.

    Without a validation split, a share of the training files becomes one: of every class, and never so that clips of
    one source video are on both sides. Without a test split, "test" is the validation split.

    Args:
        root: folder of the dataset; paths in lists are relative to it, or without it to the folder of the list. Or
            shards, as ``read_shards`` takes them.
        train, val, test: a list, an official annotation file, a folder of class folders or shards for one split, if it
            is not found under `root`.
        class_names: a file with one name a line, in the order of the labels; a line "n01440764 tench" also names the
            class n01440764, as in ImageNet's LOC_synset_mapping.txt. Else: class_names.txt in the folder of the shards
            that `root` means; the names of the folders or those in the lists, sorted; for numbered labels "0", "1", ...
            Only with a file may some labels be numbers, some names.
        num_classes: how many the labels may name; 0 for as many as there are.
        val_fraction: of the validation split that is made.
        max_missing: the largest share of listed files that may be missing.
        multi_label: whether a file may have any number of labels, which lists join by ";".
        fold: which of the official splits of UCF101 or HMDB51, 1 to 3.
        frame_folders: whether each folder in a class folder is one video, and its images are the frames.
        splits: which to return.

    Raises:
        UserError: for whatever is missing, empty or does not fit, in one line that names the file and the line.
    """
    given = dict(zip(SPLITS, (train, val, test), strict=True))
    packed = read_shards(root, given, multi_label)
    class_names = class_names or (beside_shards(root) if are_shards(root) else "")
    found = {split: packed[split].source if split in packed else _find(root, split, given[split]) for split in SPLITS}
    if root and not are_shards(root) and not os.path.isdir(root):
        what = "a file, give its folder" if os.path.exists(root) else "no such folder"
        hint = "; data.root= is none, if the splits are whole paths" if any(given.values()) else ""
        raise UserError(f"data.root={root}: {what}{hint}")
    _refuse_mixed(root, packed, given)
    if root and not packed and not train and not any(_find(root, split, "") for split in SPLITS):
        found |= {split: path for split, path in annotations.find(root, fold).items() if not found[split]}
    if not any(found.values()) and root and any(files for _, files in class_folders(root, frame_folders)):
        found["train"] = root
    if not any(found.values()):
        if not root:
            raise UserError("no dataset: set data.root, or data.train and data.val")
        raise UserError(f"data.root={root}: it has no train, val or test folder or list and {no_classes(root)}")
    wanted = {*splits} | ({"val"} if not found["test"] and "test" in splits else set())
    wanted |= {"train"} if not found["val"] and "val" in wanted else set()
    needed = wanted if class_names else wanted | {"train"}  # the training split names the classes
    read = {
        split: packed.pop(split, None) or read_split(source, root, split, fold, multi_label, frame_folders)
        for split, source in found.items()
        if source and split in needed
    }
    names = class_names_of(class_names, num_classes, read)
    records = {
        split: _resolve(part, names, class_names, max_missing, multi_label)
        for split, part in read.items()
        if split in wanted
    }
    for split, part in records.items():
        first = part.path(0) if len(part) else ""
        part.coverage = annotations.kinetics_coverage(len(names), split, first, len(part))
    if not found["val"] and "train" in records:
        records["train"], records["val"] = split_off(records["train"], val_fraction)
    if "test" not in records and "val" in records:
        records["test"] = records["val"]
        records["test"].used_as_test = True
    for split in splits:
        if split not in records:
            raise UserError(
                f"no {split} split: set data.{split}, or put a folder or list '{split}' into data.root={root}"
            )
        if not len(records[split]):
            source = found[split] or found["val"] or found["train"]
            hint = no_classes(source, split) if os.path.isdir(source) else "no files in it"
            if records[split].held_out:
                hint = "too few source videos per class to set some aside: give data.val"
            raise UserError(f"the {split} split of {source} is empty: {hint}")
    if multi_label and "train" in splits and not records["train"].label_sets.values.size:
        raise UserError(f"the train split of {found['train']} has no labels: training needs some")
    if not multi_label and "train" in splits and len(np.unique(records["train"].labels)) < 2:
        raise UserError(f"the train split of {found['train']} has files of one class only: training needs two or more")
    del read, packed
    _return_freed_memory()
    return {split: records[split] for split in splits}


def _refuse_mixed(root: str, packed: Mapping[str, ReadSplit], given: Mapping[str, str]) -> None:
    """Raises UserError where a folder of shards is a dataset of files too."""
    if not os.path.isdir(root) or all(given[split] for split in packed):
        return
    files = [_find(root, split, "") for split in SPLITS]
    files += [os.path.join(root, name) for name, found in class_folders(root) if found]
    if other := next(filter(None, files), None):
        raise UserError(f"data.root={root}: shards and {other} are in it: keep one, or give data.train, data.val")


def _return_freed_memory() -> None:
    """To the system: what growing buffers and sorted copies of them leave behind, some 70 bytes a file where a
    validation split is made, would else stay on the heap of the run."""
    with contextlib.suppress(AttributeError, OSError):  # where the C library is another one
        ctypes.CDLL(None).malloc_trim(0)


def _find(root: str, split: str, given: str) -> str:
    """The list or folder of a split; "" if there is none."""
    if given:
        for path in (given, os.path.join(root, given)):
            if os.path.exists(path):
                return path
        raise UserError(f"data.{split}={given}: no such file or folder")
    if not root:
        return ""
    bases = [os.path.join(root, name) for name in ALIASES[split]]
    files = [base + suffix for base in bases for suffix in LIST_SUFFIXES if os.path.isfile(base + suffix)]
    return next(iter(files + [base for base in bases if os.path.isdir(base)]), "")


def _refuse_conflict(part: ReadSplit, numbers: list[list[int]]) -> None:
    """Raise UserError for a file with two labels; `numbers` are the classes of each key of `first_place`.

    The long lists of Kinetics are taken as they are published.
    """
    if part.is_kinetics or not part.is_list:
        return
    hashes = np.fromiter(map(hash, part.paths), np.int64, len(part.paths))
    order = np.argsort(hashes, kind="stable")
    hashes, labels = hashes[order], np.asarray(part.labels)[order]
    changes = np.flatnonzero((hashes[1:] == hashes[:-1]) & (labels[1:] != labels[:-1]))
    written = list(part.first_place)
    for second, first in sorted((int(order[at + 1]), int(order[at])) for at in changes):
        a, b = part.labels[first], part.labels[second]
        if part.paths[first] == part.paths[second] and set(numbers[a]) != set(numbers[b]):
            there = f"'{written[a]}' in {'line' if part.mark == ':' else 'entry'} {part.lines[first]}"
            place = f"{part.place(second)}: {part.paths[second]}"
            raise UserError(f"{place} has label '{written[b]}', but {there}: keep one")


def _resolve(
    part: ReadSplit, names: tuple[str, ...], names_file: str, max_missing: float, multi_label: bool = False
) -> Records:
    total = len(part.paths) + part.num_missing
    if part.num_missing > max_missing * total:
        found = f"{part.source}: {part.num_missing} of {total} listed files are missing"
        limit = f"more than data.max_missing={max_missing:g} allows"
        raise UserError(f"{found}, {limit}; the first: {', '.join(part.missing)}")
    numbered = bool(names_file) or names == tuple(map(str, range(len(names))))
    number = {name: i for i, name in enumerate(names)}
    if names_file and all(map(_SYNSET.match, names)):
        number |= {name.split(" ")[0]: i for i, name in enumerate(names)}
    for label in part.label_places():
        if label not in number and numbered and part.is_list and label.isdecimal() and int(label) < len(names):
            number[label] = int(label)
    written = [part.labels_in(label) for label in part.first_place]  # what the numbers of `part.labels` stand for
    numbers = [[number.get(label, -1) for label in labels] for labels in written]
    wrong = np.array([-1 in each for each in numbers], bool)[np.asarray(part.labels)]
    if (unknown := np.flatnonzero(wrong)).size:
        label = next(label for label in written[part.labels[unknown[0]]] if label not in number)
        known = f"0 to {len(names) - 1}" if label.isdecimal() and numbered else f"the {len(names)} class names"
        hint = ": give data.class_names, in the order of the numbers" if label.isdecimal() and not numbered else ""
        if not label.isdecimal() and (near := difflib.get_close_matches(label, names, n=1)):
            hint = f"; did you mean '{near[0]}'?"
        raise UserError(f"{part.place(unknown[0])}: label '{label}' is not one of {known}{hint}")
    _refuse_conflict(part, numbers)
    images, first = 0, {}
    for path in part.paths:
        if not path.isascii() and path != (printable := os.fsencode(path).decode(errors="backslashreplace")):
            raise UserError(f"{printable}: the file name is not UTF-8: rename it")
        images += is_image(path)
        first.setdefault(is_media(path), path)
    if len(set(map(os.path.isdir, first.values()))) > 1:
        raise UserError(f"{part.source}: folders of frames and files are mixed: keep them in separate datasets")
    if images not in (0, len(part.paths)):
        raise UserError(f"{part.source}: images and videos are mixed: keep them in separate datasets")
    if multi_label:
        labels = LabelSets.pack(numbers).take(np.asarray(part.labels))
    else:
        labels = np.array([each[0] for each in numbers], np.int32)[np.asarray(part.labels)]
    records = Records(part.paths, labels, names)
    records.num_missing, records.missing, records.members = part.num_missing, part.missing, part.members
    records.empty_folders = tuple(part.empty_folders)
    records.sources = np.array(part.sources, np.uint64) if part.sources else None
    records.frames = np.array(part.frames, np.int32) if part.frames else None
    return records
