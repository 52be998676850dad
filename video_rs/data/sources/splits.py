"""Find the splits of a dataset and load their records.

Sources of a split:

* a folder of class folders, ``root/train/<class>/<file>``, or ``root/<class>/<file>`` for a dataset without splits;
* a list ``root/train.csv`` or ``root/train.txt``: csv, JSON lines or lines "path label"; see ``lists``. The label is a
  number or a class name, or with ``multi_label`` any number of them joined by ";". A list with a column "split" has the
  rows of all splits;
* the ``metadata.csv`` or ``metadata.jsonl`` of Hugging Face in ``root`` or in ``root/train``;
* the annotation files of a known layout, such as Kinetics or UCF101; see ``layouts``;
* shards: tar files, each with an index, in a local folder or at a URL such as ``s3://bucket/folder``.

A file is a video, an image, or a folder with the frames of a video. A folder in a list is always a folder of frames;
with ``frame_folders``, so are the folders in class folders.
"""

import contextlib
import ctypes
import os
from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from video_rs.data.sources import layouts
from video_rs.data.sources.class_folders import describe_no_classes, folders_with_files
from video_rs.data.sources.class_names import choose_class_names, find_names_file, number_labels
from video_rs.data.sources.entries import ALIASES
from video_rs.data.sources.holdout import split_off
from video_rs.data.sources.layouts.kinetics import kinetics_coverage
from video_rs.data.sources.lists import find_metadata, list_splits, uses_of_columns
from video_rs.data.sources.lookalikes import PathFinder, difference
from video_rs.data.sources.names_file import read_class_names
from video_rs.data.sources.read_split import RawSplit, read_split
from video_rs.data.sources.records import SPLITS, LabelSets, Records
from video_rs.data.sources.shard_splits import are_shards, read_shards
from video_rs.data.sources.tables import JSON_LINES, format_path
from video_rs.data.video.media import is_image, is_media
from video_rs.data.video.search import listing
from video_rs.errors import UserError

LIST_SUFFIXES = (".csv", ".txt", ".tsv", *JSON_LINES)


def load_splits(
    root: str = "",
    train: str = "",
    val: str = "",
    test: str = "",
    *,
    list: str = "",
    class_names: str = "",
    num_classes: int = 0,
    val_fraction: float = 0.1,
    max_missing: float = 0.05,
    multi_label: bool = False,
    fold: int = 1,
    frame_folders: bool = False,
    splits: Sequence[str] = SPLITS,
) -> dict[str, Records]:
    """Return the records of some splits.

    If there is no validation split, a fraction of the training files of each class is held out. All clips of a source
    video stay in the same split. If there is no test split, "test" is the validation split. With
    ``val_fraction=0``, missing splits "val" and "test" are omitted if "train" is returned.

    Args:
        root: folder of the dataset, or shards as for ``read_shards``. Paths in lists are relative to it, or to the
            folder of the list if there is no root.
        train, val, test: the source of one split, if it is not found under `root`: a list, an annotation file, a folder
            of class folders, or shards. If a list of `train` has a column "split", the other splits are in it too.
        list: a list of all splits, with a column "split".
        class_names: file with one name per line, in the order of the labels, or with numbers and names; see
            ``read_class_names``. A line "n01440764 tench" also matches the label n01440764, as in ImageNet's
            LOC_synset_mapping.txt. Default: class_names.txt in the folder of shards, else the sorted names of the
            folders or of the labels in lists, else "0", "1", ... for numbered labels. Numbers and names can only be
            mixed with such a file.
        num_classes: number of classes if labels are numbers; 0 to derive it from the largest label.
        val_fraction: fraction of training files to hold out for validation; 0 for none.
        max_missing: maximum fraction of listed files that can be missing.
        multi_label: True if a file can have any number of labels, joined by ";" in lists.
        fold: official split of UCF101 or HMDB51, 1 to 3.
        frame_folders: True if each folder in a class folder is one video, and its images are the frames.
        splits: the splits to return; empty for all that the dataset has, including a held-out "val".

    Raises:
        UserError: a source is missing, empty or inconsistent. The one-line message names file and line.
    """
    given = {"train": train, "val": val, "test": test}
    raw = read_shards(root, given, multi_label)
    sources = _find_sources(root, given | {"list": list}, raw, fold, frame_folders)
    names_file = class_names or (find_names_file(root) if are_shards(root) else "")
    names = read_class_names(names_file, plain=not class_names) if names_file else ()
    held_out = {"val"} if val_fraction and "train" in sources else set()
    splits = splits or [split for split in SPLITS if split in {*sources} | held_out]
    wanted = {*splits} | ({"val"} if "test" in splits and "test" not in sources else set())
    wanted |= {"train"} if "val" in wanted and "val" not in sources else set()
    needed = wanted if names else wanted | {"train"}  # the training split defines the classes
    raw = {
        split: raw.get(split) or read_split(source, root, split, fold, multi_label, frame_folders, layout)
        for split, (source, layout) in sources.items()
        if split in needed
    }
    _note_other_rows(raw, {split: source for split, (source, _) in sources.items()})
    names = choose_class_names(names, num_classes, raw)
    records: dict[str, Records] = {}
    for split in [split for split in raw if split in wanted]:
        _refuse_missing(raw[split], max_missing)
        records[split] = part = _to_records(raw[split], names, bool(names_file), multi_label)
        part.root = root if os.path.isdir(root) else ""
        part.coverage = kinetics_coverage(len(names), split, part.path(0) if len(part) else "", len(part))
    if "val" not in sources and "train" in records and val_fraction:
        records["train"], records["val"] = split_off(records["train"], val_fraction)
    if "test" not in records and "val" in records:
        records["test"] = records["val"]
        records["test"].used_as_test = True
    for split in splits:
        if split not in records:
            if "train" in records and not val_fraction and "train" in splits:
                continue
            reason = "" if val_fraction else ", and data.val_fraction=0 holds out no files"
            hint = f", or put a folder or list '{split}' into data.root={root}" if root else ""
            raise UserError(f"no {split} split{reason}: set data.{split}{hint}")
        _check(records[split], split, next(sources[name][0] for name in (split, "val", "train") if name in sources))
    del raw
    _return_freed_memory()
    return {split: records[split] for split in splits if split in records}


def _find_sources(
    root: str, given: Mapping[str, str], packed: Mapping[str, RawSplit], fold: int, frame_folders: bool
) -> dict[str, tuple[str, layouts.Layout | None]]:
    """Return the source of each split that has one, and its layout if already known. Raise UserError."""
    if root and not are_shards(root) and not os.path.isdir(root):
        problem = "a file, give its folder" if os.path.exists(root) else "no such folder"
        hint = "; leave it empty if data.train and data.val are whole paths" if any(given.values()) else ""
        raise UserError(f"data.root={root}: {problem}{hint}")
    finder = PathFinder()
    own = {split: path for split in SPLITS if (path := _find_in_root(root, split, finder))}
    _refuse_mixed(root, packed, given, own)
    read = {split: part.source for split, part in packed.items()}
    read = {split: path for split in SPLITS if split not in read and (path := _given_path(root, split, given))} | read
    listed = _given_path(root, "list", given)
    rows = _splits_of_list(listed or read.get("train", "")) or ({"train": listed} if listed else {})
    if listed or len(rows) > 1 or (_are_loose(own, frame_folders) and _only_list(root, frame_folders)):
        own = {}  # one list of the whole dataset
    places = _splits_of_list(own.get("train", "")) | own | rows | read
    sources: dict[str, tuple[str, layouts.Layout | None]] = {split: (path, None) for split, path in places.items()}
    if root and not packed and not given["train"] and not listed and not own:
        sources = layouts.find(root, fold) | sources
    if not sources and root and (file := _only_list(root, frame_folders)):
        sources = dict.fromkeys(_splits_of_list(file) or ["train"], (file, None))
    if not sources and root and any(folders_with_files(root, frame_folders)):
        sources["train"] = root, None
    if not sources:
        if not root:
            raise UserError("no dataset: set data.root, or data.train and data.val")
        no_classes = describe_no_classes(root)
        raise UserError(f"data.root={root}: no train, val or test folder or list in it, and {no_classes}")
    return {split: sources[split] for split in SPLITS if split in sources}


def _given_path(root: str, split: str, given: Mapping[str, str]) -> str:
    """Return the list or folder that is set for a split; "" if none is."""
    if not given[split]:
        return ""
    for path in (given[split], os.path.join(root, given[split])):
        if os.path.exists(path):
            return find_metadata(path) or path
    raise UserError(f"data.{split}={given[split]}: no such file or folder")


def _find_in_root(root: str, split: str, finder: PathFinder) -> str:
    """Return the list or folder in the root whose name is or looks like a split ("Train"); "" if there is none."""
    bases = [os.path.join(root, name) for name in ALIASES[split]] if root else []
    names = [(base + suffix, os.path.isfile) for base in bases for suffix in LIST_SUFFIXES]
    names += [(base, os.path.isdir) for base in bases]
    found = next((name for name, is_source in names if is_source(name)), "")
    for name, is_source in [] if found else names:
        similar = [path for path in finder.find_all(name) if is_source(path) and not _is_class(path)]
        if len(similar) > 1:
            raise UserError(f"{difference(*sorted(similar)[:2])}; both look like {split}: set data.{split}")
        found = found or next(iter(similar), "")
    return find_metadata(found) or found


def _is_class(path: str) -> bool:
    """Return True for a folder with files directly in it, such as that of a class "Train"."""
    return os.path.isdir(path) and any(map(is_media, listing(path)[1]))


def _are_loose(own: Mapping[str, str], frame_folders: bool) -> bool:
    """Return True if all sources are folders without class folders, which a list can describe."""
    return bool(own) and not any(
        os.path.isfile(each) or any(folders_with_files(each, frame_folders)) for each in own.values()
    )


def _splits_of_list(file: str) -> dict[str, str]:
    """Return the file for each split in its column "split"; empty if it is no list with such a column."""
    is_list = file.lower().endswith(LIST_SUFFIXES) and os.path.isfile(file)
    return dict.fromkeys(list_splits(file), file) if is_list else {}


def _only_list(root: str, frame_folders: bool) -> str:
    """Return the list in a root that holds the whole dataset; "" if there is none.

    It is a ``metadata.csv``, or the only list with a column "split", or the only list if there are fewer than two class
    folders. Beside class folders, a file that cannot be read as a list, such as a readme, is none.
    """
    if metadata := find_metadata(root):
        return metadata
    files = [os.path.join(root, name) for name in sorted(os.listdir(root)) if name.lower().endswith(LIST_SUFFIXES)]
    has_classes = len([*islice(folders_with_files(root, frame_folders), 2)]) == 2
    uses: dict[str, set[str]] = {}
    for file in filter(os.path.isfile, files):
        try:
            used = uses_of_columns(file)
            if {"path", "label"} <= used or layouts.recognise(file):
                uses[file] = used
        except (UserError, OSError):
            if not has_classes:
                raise
    if with_splits := [file for file in uses if "split" in uses[file]]:
        return with_splits[0] if len(with_splits) == 1 else ""
    return next(iter(uses)) if len(uses) == 1 and not has_classes else ""


def _note_other_rows(raw: Mapping[str, RawSplit], sources: Mapping[str, str]) -> None:
    """Note the rows of lists that belong to a split with another source."""
    for part in raw.values():
        for split, count in part.other_rows.items():
            if (used := sources.get(split)) != part.source:
                part.notes.append(f"{count} rows of split {split} are not used: that split is read from {used}")


def _refuse_mixed(root: str, packed: Mapping[str, RawSplit], given: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Raise UserError if a folder contains both shards and a dataset of files."""
    if not os.path.isdir(root) or all(given[split] for split in packed):
        return
    if other := next(filter(None, own.values()), None) or next(folders_with_files(root), None):
        raise UserError(f"data.root={root}: contains both shards and {other}: keep one, or set data.train and data.val")


def _refuse_missing(part: RawSplit, max_missing: float) -> None:
    total = len(part.paths) + part.num_missing
    if part.num_missing > max_missing * total:
        found = f"{part.source}: {part.num_missing} of {total} listed files are missing"
        limit = f"more than data.max_missing={max_missing:g} allows"
        raise UserError(f"{found}, {limit}; the first: {', '.join(map(format_path, part.missing))}")


def _to_records(part: RawSplit, names: tuple[str, ...], from_file: bool, multi_label: bool) -> Records:
    """Return the records of a split. For the arguments see ``number_labels``."""
    numbers = number_labels(part, names, from_file)
    _refuse_mixed_media(part)
    if multi_label:
        labels = LabelSets.pack(numbers[written] for written in part.labels)
    else:
        labels = np.array([each[0] for each in numbers], np.int32)[np.asarray(part.labels)]
    records = Records(part.paths, labels, names)
    records.num_missing, records.missing, records.members = part.num_missing, part.missing, part.members
    records.empty_folders = tuple(part.empty_folders)
    records.notes = tuple(part.notes)
    records.sources = np.array(part.sources, np.uint64) if part.sources else None
    records.frames = np.array(part.frames, np.int32) if part.frames else None
    records.segments = np.array(part.segments).reshape(-1, 2) if part.segments else None
    return records


def _refuse_mixed_media(part: RawSplit) -> None:
    """Raise UserError if a split mixes images, videos and frame folders."""
    by_name, by_kind = {}, {}
    for path in part.paths:
        by_name.setdefault(is_media(path), path)
        by_kind.setdefault(is_image(path), path)
    if len(set(map(os.path.isdir, by_name.values()))) > 1:
        what, first = "folders of frames and files", by_name
    elif len(by_kind) > 1:
        what, first = "images and videos", by_kind
    else:
        return
    names = ", ".join(map(format_path, first.values()))
    raise UserError(f"{part.source}: {what} are mixed: keep them in separate datasets; the first: {names}")


def _check(records: Records, split: str, source: str) -> None:
    """Raise UserError for a split without files, or a training split without labels."""
    if not len(records):
        hint = describe_no_classes(source, split) if os.path.isdir(source) else "no files in it"
        if records.held_out:
            hint = "too few source videos per class to hold some out: set data.val, or data.val_fraction=0 (off)"
        raise UserError(f"the {split} split of {source} is empty: {hint}")
    if split == "train" and records.multi_label and not records.label_sets.values.size:
        raise UserError(f"the train split of {source} has no labels")


def _return_freed_memory() -> None:
    """Return freed memory to the system.

    The memory of grown buffers and sorted copies would otherwise stay on the heap, about 70 bytes per file.
    """
    with contextlib.suppress(AttributeError, OSError):  # C libraries other than glibc
        ctypes.CDLL(None).malloc_trim(0)
