"""One split as its source has it: a folder of class folders, a list, or an annotation file."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from video_rs.data.shards import Members
from video_rs.data.sources import layouts as annotations
from video_rs.data.sources import lists
from video_rs.data.sources.holdout import source_key
from video_rs.data.sources.records import SEPARATOR, Paths
from video_rs.data.video.images import has_frames
from video_rs.data.video.media import is_media
from video_rs.errors import UserError


@dataclass
class ReadSplit:
    """One split before its labels are numbers, packed line by line or class by class."""

    source: str
    paths: Paths = field(default_factory=Paths)
    labels: array[int] = field(default_factory=lambda: array("i"))  # one per path: which key of `first_place`
    lines: array[int] = field(default_factory=lambda: array("i"))  # one per path of a list, for messages
    first_place: dict[str, str] = field(default_factory=dict)  # missing files' too: a class is one wherever they are
    num_missing: int = 0
    missing: list[str] = field(default_factory=list)  # the first three
    empty_folders: list[str] = field(default_factory=list)
    class_names: tuple[str, ...] = ()  # in the official order, where annotation files of the dataset give it
    sources: array[int] = field(default_factory=lambda: array("Q"))  # one per path, or none where a list has none
    is_kinetics: bool = False  # whether it is an official csv of Kinetics
    frames: array[int] = field(default_factory=lambda: array("i"))  # one per path that a list counts them of, or none
    joined: bool = False  # whether a label as written is any number of labels with ";" between them
    members: Members | None = None  # where the files lie in shards, if they do
    num_shards: int = 0  # that were read
    wanted_shards: int = 0  # that their indexes count
    _numbers: dict[str, int] = field(default_factory=dict)  # of the keys of `first_place`

    def add(self, path: str, label: str, file: str, line: int) -> None:
        """One more path, with the label as written in a line of a file."""
        number = self._numbers.setdefault(label, len(self._numbers))
        if number == len(self.first_place):
            self.first_place[label] = f"{file}{self.mark}{line}"
        self.paths.append(path)
        self.labels.append(number)
        self.lines.append(line)

    @property
    def mark(self) -> str:
        """What stands between a file and the number of a line of it, or of an entry of a JSON file, in messages."""
        return ": entry " if self.source.lower().endswith(".json") else ":"

    @property
    def is_list(self) -> bool:
        return self.members is not None or not os.path.isdir(self.source)

    def labels_in(self, written: str) -> tuple[str, ...]:
        """The labels in one key of `first_place`."""
        return split_labels(written, self.first_place[written]) if self.joined else (written,)

    def label_places(self) -> dict[str, str]:
        """Where each label was first found."""
        places: dict[str, str] = {}
        for written, place in self.first_place.items():
            for label in self.labels_in(written):
                places.setdefault(label, place)
        return places

    def place(self, index: int) -> str:
        """Where one path was found, for messages."""
        in_list = self.is_list and self.members is None
        return f"{self.source}{self.mark}{self.lines[index]}" if in_list else self.paths[index]


def read_split(
    source: str, root: str, split: str, fold: int, multi_label: bool, frame_folders: bool = False
) -> ReadSplit:
    """Read the split of a source; for the arguments see ``splits.load_splits``. Raise UserError."""
    official = annotations.read(source, root, split, fold, multi_label)
    if os.path.isdir(source) and not official:
        return _of_folder(source, frame_folders)
    names, entries = official or ((), lists.read_list(source, root, multi_label))
    part = ReadSplit(source, class_names=names, joined=multi_label)
    for entry in entries:
        part.add(entry.path, entry.label, entry.file or source, entry.line)
        part.frames.append(entry.frames)
        if entry.source is not None:
            part.sources.append(source_key(entry.source))
    part.frames = part.frames if any(part.frames) else array("i")
    part.is_kinetics = not official and lists.is_kinetics(source)
    there = present(part.paths)
    if (gone := np.flatnonzero(~there)).size:
        part.num_missing, part.missing = len(gone), [part.paths[i] for i in gone[:3]]
        part.paths = Paths(part.paths[i] for i in np.flatnonzero(there))
        for name in ("labels", "lines", "sources", "frames"):
            if column := getattr(part, name):
                setattr(part, name, array(column.typecode, np.asarray(column)[there].tobytes()))
    return part


def _of_folder(folder: str, frame_folders: bool) -> ReadSplit:
    part = ReadSplit(folder)
    for name, files in class_folders(folder, frame_folders):
        if not files:
            part.empty_folders.append(name)
            continue
        part.labels.extend(repeat(len(part.first_place), len(files)))
        part.first_place[name] = os.path.join(folder, name)
        for file in files:
            part.paths.append(os.path.join(folder, name, file))
    if frame_folders and len(part.paths) and not has_frames(part.paths[0]):  # one tells, without listing all
        raise UserError(f"data.frame_folders=true: there are no images directly in {part.paths[0]}")
    return part


def class_folders(folder: str, frame_folders: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Each class and its video and image files, or its folders of frames, sorted; what is hidden is left out."""
    for name in _folders(folder):
        place = os.path.join(folder, name)
        files = sorted(filter(_is_shown, os.listdir(place)))
        if frame_folders and files:
            raise UserError(f"data.frame_folders=true: {os.path.join(place, files[0])} is not in a folder of its own")
        yield name, _folders(place) if frame_folders else files


def no_classes(folder: str, split: str = "train") -> str:
    """Why no class folder was found, for messages."""
    loose = list(filter(_is_shown, os.listdir(folder)))
    text = "no class folders with videos or images in it"
    if loose:
        is_imagenet = loose[0].startswith("ILSVRC2012_val_")
        kaggle = ", or put LOC_val_solution.csv into data.root" if is_imagenet else ""
        return f"{text}; {len(loose)} files lie directly in it: give data.{split}=LIST{kaggle}"
    for name in _folders(folder):
        for inner in _folders(os.path.join(folder, name))[:1]:
            if has_frames(os.path.join(folder, name, inner)):
                return f"{text}, but folders of images: set data.frame_folders=true if each of them is one video"
    return text


def _folders(folder: str) -> list[str]:
    """The names of those in a folder, sorted; what is hidden is left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and is_media(name)


def present(paths: Paths) -> np.ndarray:
    """Which of the files are there, bool ``[N]``.

    Each folder is listed once: asking for 240,000 files one by one takes minutes on network storage. Of names only
    64-bit hashes are kept; that a missing file shares the hash of another has a chance of 1e-7 in a million files.
    """
    folders, wanted, listed = array("q"), array("q"), array("q")
    for path in paths:
        folders.append(hash(_folder(path)))
        wanted.append(hash(path))
    firsts = np.sort(np.unique(folders, return_index=True)[1])
    del folders
    for folder in (_folder(paths[first]) for first in firsts):
        if os.path.isdir(folder or "."):
            with os.scandir(folder or ".") as entries:
                listed.extend(hash(folder + entry.name) for entry in entries)
    listed = np.sort(listed)
    order = np.argsort(wanted)  # looked up in this order they take a seventh of np.isin's time
    wanted = np.asarray(wanted)[order]
    there = np.empty(len(paths), bool)
    there[order] = np.searchsorted(listed, wanted) < np.searchsorted(listed, wanted, "right")
    return there


def _folder(path: str) -> str:
    """Up to and with the last slash."""
    return path[: len(path) - len(os.path.basename(path))]


def split_labels(written: str, place: str) -> tuple[str, ...]:
    """The labels in a field of a list, ``"run;jump"``; none in an empty one. Raises UserError, which names `place`."""
    if not written.strip():
        return ()
    labels = tuple(label.strip() for label in written.split(SEPARATOR))
    if "" in labels:
        raise UserError(f"{place}: '{written}' has an empty label before or after a ';': write label1;label2")
    return labels
