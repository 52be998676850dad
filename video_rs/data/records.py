"""Which files a dataset has, and their labels.

Sources, for each split:

* a folder of class folders, ``root/train/<class>/<file>``, or ``root/<class>/<file>`` for a dataset without splits;
* a list ``root/train.csv`` or ``root/train.txt`` of lines "path label", separated by a comma, a tab or spaces; the
  label is a number or a class name, or any number of them with ";" between where files have several;
* the official Kinetics csv (``label,youtube_id,time_start,time_end,split``), whose files are found by their names
  ``<youtube_id>_<start>_<end>`` anywhere below the root;
* the annotation files of UCF101, HMDB51, Something-Something v2, Diving48 and Charades (annotations.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from video_rs.data import annotations, lists
from video_rs.data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, is_image
from video_rs.data.labels import SEPARATOR, LabelSets, split_labels
from video_rs.data.paths import Paths, present
from video_rs.data.split import source_key, split_off
from video_rs.errors import UserError

if TYPE_CHECKING:
    from video_rs.data.index import VideoIndex
    from video_rs.data.packets import Scan

SPLITS = ("train", "val", "test")
MEDIA_EXTENSIONS = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
LIST_SUFFIXES = (".csv", ".txt", ".tsv")
ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "validate", "validation", "valid"),
    "test": ("test", "testing"),
}


class Records:
    """Paths and labels in a few arrays, so that forked workers share them for good (reference counts of Python objects
    would copy the list into each).

    Args:
        paths: of the files.
        labels: one per path, in ``[0, len(class_names))``; or any number per path, as ``LabelSets``.
        class_names: in the order of the labels.
        missing: listed files that are not there; they are counted and the first three kept.
        left_out: class folders without a video or an image in them.

    Attributes:
        labels: int32 ``[N]``; of label sets the class written first, -1 for a file without any.
        label_sets: the classes of each file where it may have any number of them, else None.
        class_names, left_out: as given.
        num_missing, missing: how many listed files are not there, and the first three.
        index: what the packets of the files tell, a ``VideoIndex``, where ``video-rs index`` has looked.
        share: how much of Kinetics it has, for start-up lines; "" for other datasets.
        made: whether the split was made of training files, for want of one of its own.
        by_listed_sources: whether it was made by the sources that a column of the training list names.
        stands_in: whether this validation split is also the test split, for want of one.
    """

    index: VideoIndex | None = None
    share = ""
    made = False
    by_listed_sources = False
    stands_in = False

    def __init__(
        self,
        paths: Iterable[str],
        labels: Iterable[int] | LabelSets,
        class_names: Sequence[str],
        missing: Sequence[str] = (),
        left_out: Sequence[str] = (),
    ) -> None:
        self._paths = paths if isinstance(paths, Paths) else Paths(map(os.fspath, paths))
        self.label_sets = labels if isinstance(labels, LabelSets) else None
        self.labels = self.label_sets.first() if self.multi_label else np.fromiter(labels, np.int32)
        self.class_names, self.left_out = tuple(class_names), tuple(left_out)
        self.num_missing, self.missing = len(missing), list(missing[:3])

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Of one file."""
        return self._paths[int(index)]

    @property
    def multi_label(self) -> bool:
        """Whether a file may have any number of labels."""
        return self.label_sets is not None

    def label(self, index: int) -> int:
        """Of one file; the first of several, -1 for none."""
        return int(self.labels[index])

    def label_set(self, index: int) -> np.ndarray:
        """All labels of one file, int32; one where there are no label sets."""
        return self.label_sets[int(index)] if self.multi_label else self.labels[index : index + 1]

    def label_names(self, index: int) -> tuple[str, ...]:
        """The names of :meth:`label_set`."""
        return tuple(self.class_names[label] for label in self.label_set(index))

    def scan(self, index: int) -> Scan | None:
        """What is known of the packets of one file."""
        return self.index.scan(int(index), self.path(index)) if self.index else None

    def packed_paths(self) -> bytes:
        """All paths, ended by zeros, and the folder that relative ones start from."""
        ended = bytes(self._paths.packed)
        return ended if os.path.isabs(self.path(0)) else ended + os.fsencode(os.getcwd())

    def fingerprint(self) -> str:
        """Of the classes, the file names and their labels, in order, wherever the files lie: 12 hexadecimal digits."""
        digest = sha1(self.labels.astype("<i4").tobytes())
        if self.multi_label:
            digest.update(b"sets" + self.label_sets.ends.astype("<i8").tobytes())
            digest.update(self.label_sets.values.astype("<i4").tobytes())
        digest.update("\0".join(self.class_names).encode(errors="surrogateescape") + b"\0")
        for index in range(len(self)):
            digest.update(b"\0" + os.path.basename(self._paths.encoded(index)))
        return digest.hexdigest()[:12]

    def describe(self) -> str:
        """One phrase for start-up lines: counts, fingerprint, whether there is an index, missing files."""
        values = self.label_sets.values if self.multi_label else self.labels
        text = f"{len(self)} files, {len(np.unique(values))} classes, "
        text += f"{len(values) / max(len(self), 1):.2f} labels a file, " if self.multi_label else ""
        text += f"fingerprint {self.fingerprint()}"
        text += ", indexed" if self.index else ""
        text += f"; {self.share}" if self.share else ""
        if self.num_missing:
            text += f"; {self.num_missing} listed files are missing, the first: {', '.join(self.missing)}"
        if self.left_out:
            first = ", ".join(self.left_out[:3])
            text += f"; {len(self.left_out)} folders have no known video or image in them, the first: {first}"
        return text

    def subset(self, indices: np.ndarray) -> Records:
        """Some of the files, with the same classes."""
        labels = self.label_sets.take(indices) if self.multi_label else self.labels[indices]
        return Records((self.path(i) for i in indices), labels, self.class_names)


@dataclass
class _Split:
    """One split before its labels are numbers, packed line by line or class by class."""

    source: str
    paths: Paths = field(default_factory=Paths)
    labels: array[int] = field(default_factory=lambda: array("i"))  # one per path: which key of `first_place`
    lines: array[int] = field(default_factory=lambda: array("i"))  # one per path of a list, for messages
    first_place: dict[str, str] = field(default_factory=dict)  # missing files' too: a class is one wherever they are
    num_missing: int = 0
    missing: list[str] = field(default_factory=list)  # the first three
    left_out: list[str] = field(default_factory=list)
    class_names: tuple[str, ...] = ()  # in the official order, where annotation files of the dataset give it
    sources: array[int] = field(default_factory=lambda: array("Q"))  # one per path, or none where a list has none
    is_kinetics: bool = False  # whether it is an official csv of Kinetics
    joined: bool = False  # whether a label as written is any number of labels with ";" between them

    @property
    def is_list(self) -> bool:
        return not os.path.isdir(self.source)

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
        return f"{self.source}:{self.lines[index]}" if self.is_list else self.paths[index]


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
    splits: Sequence[str] = SPLITS,
) -> dict[str, Records]:
    """The records of the splits asked for.

    Without a validation split, a share of the training files becomes one: of every class, and never so that clips of
    one source video are on both sides. Without a test split, "test" is the validation split.

    Args:
        root: folder of the dataset; paths in lists are relative to it, or without it to the folder of the list.
        train, val, test: a list, an official annotation file or a folder of class folders for one split, if it is not
            found under `root`.
        class_names: a file with one name a line, in the order of the labels. Else: the names of the folders or those
            in the lists, sorted; for numbered labels "0", "1", ... Only with it may some labels be numbers, some names.
        num_classes: how many the labels may name; 0 for as many as there are.
        val_fraction: of the validation split that is made.
        max_missing: the largest share of listed files that may be missing.
        multi_label: whether a file may have any number of labels, which lists join by ";".
        fold: which of the official splits of UCF101 or HMDB51, 1 to 3.
        splits: which to return.

    Raises:
        UserError: for whatever is missing, empty or does not fit, in one line that names the file and the line.
    """
    found = {split: _find(root, split, given) for split, given in zip(SPLITS, (train, val, test), strict=True)}
    if root and not os.path.isdir(root):
        raise UserError(f"data.root={root}: no such folder")
    if root and not train and not any(_find(root, split, "") for split in SPLITS):
        found |= {split: path for split, path in annotations.find(root, fold).items() if not found[split]}
    if not any(found.values()) and root and any(files for _, files in _class_folders(root)):
        found["train"] = root
    if not any(found.values()):
        if not root:
            raise UserError("no dataset: set data.root, or data.train and data.val")
        raise UserError(f"data.root={root}: it has no train, val or test folder or list and {_no_classes(root)}")
    wanted = {*splits} | ({"val"} if not found["test"] and "test" in splits else set())
    wanted |= {"train"} if not found["val"] and "val" in wanted else set()
    needed = wanted if class_names else wanted | {"train"}  # the training split names the classes
    read = {
        split: _read(source, root, split, fold, multi_label)
        for split, source in found.items()
        if source and split in needed
    }
    for part in read.values():
        part.joined = multi_label and part.is_list
    names = _class_names(class_names, num_classes, read)
    records = {
        split: _resolve(part, names, class_names, max_missing, multi_label)
        for split, part in read.items()
        if split in wanted
    }
    shares = {split: _kinetics_share(part, split) for split, part in records.items()}
    if not found["val"] and "train" in records:
        records["train"], records["val"] = split_off(records["train"], val_fraction, read["train"].sources)
        records["val"].made, records["val"].by_listed_sources = True, bool(read["train"].sources)
    for split, share in shares.items():
        records[split].share = share
    if "test" not in records and "val" in records:
        records["test"] = records["val"]
        records["test"].stands_in = True
    for split in splits:
        if split not in records:
            raise UserError(
                f"no {split} split: set data.{split}, or put a folder or a list '{split}' into data.root={root}"
            )
        if not len(records[split]):
            made = split != "train" and not found[split] and not found["val"]
            source = found["train"] if made else found[split] or found["val"]
            hint = "too few source videos per class to set some aside: give data.val" if made else "no files in it"
            if not made and os.path.isdir(source):
                hint = _no_classes(source, split)
            raise UserError(f"the {split} split of {source} is empty: {hint}")
    if multi_label and "train" in splits and not records["train"].label_sets.values.size:
        raise UserError(f"the train split of {found['train']} has no labels: training needs some")
    if not multi_label and "train" in splits and len(np.unique(records["train"].labels)) < 2:
        raise UserError(f"the train split of {found['train']} has files of one class only: training needs two or more")
    del read
    _return_freed_memory()
    return {split: records[split] for split in splits}


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


def _kinetics_share(records: Records, split: str) -> str:
    first = records.path(0) if len(records) else ""
    return annotations.kinetics_share(len(records.class_names), split, first, len(records))


def _read(source: str, root: str, split: str, fold: int, multi_label: bool) -> _Split:
    official = annotations.read(source, root, split, fold, multi_label)
    if os.path.isdir(source) and not official:
        return _read_folder(source)
    part, numbers = _Split(source, class_names=official.class_names if official else ()), {}
    for entry in official.entries if official else lists.read_list(source, root, multi_label):
        if entry.label not in numbers:
            numbers[entry.label] = len(numbers)
            part.first_place[entry.label] = f"{entry.file or source}:{entry.line}"
        part.paths.append(entry.path)
        part.labels.append(numbers[entry.label])
        part.lines.append(entry.line)
        if entry.source is not None:
            part.sources.append(source_key(entry.source))
    part.is_kinetics = not official and lists.is_kinetics(source)
    there = present(part.paths)
    if (gone := np.flatnonzero(~there)).size:
        kept = np.flatnonzero(there)
        part.num_missing, part.missing = len(gone), [part.paths[i] for i in gone[:3]]
        part.paths = Paths(part.paths[i] for i in kept)
        part.labels, part.lines = (array("i", np.asarray(each)[kept].tobytes()) for each in (part.labels, part.lines))
        part.sources = array("Q", np.asarray(part.sources)[kept].tobytes()) if part.sources else part.sources
    return part


def _refuse_conflict(part: _Split, numbers: list[list[int]]) -> None:
    """Raises UserError where one file has two labels; `numbers` are the classes of each key of `first_place`. The long
    lists of Kinetics are taken as they are published."""
    if part.is_kinetics or not part.is_list:
        return
    pair = lists.conflict(part.paths, part.labels, lambda a, b: set(numbers[a]) == set(numbers[b]))
    if pair:
        written = list(part.first_place)
        (first, second), (a, b) = (part.lines[i] for i in pair), (written[part.labels[i]] for i in pair)
        raise UserError(
            f"{part.source}:{second}: {part.paths[pair[1]]} has label '{b}', but '{a}' in line {first}: keep one"
        )


def _read_folder(folder: str) -> _Split:
    part = _Split(folder)
    for name, files in _class_folders(folder):
        if not files:
            part.left_out.append(name)
            continue
        part.labels.extend(repeat(len(part.first_place), len(files)))
        part.first_place[name] = os.path.join(folder, name)
        for file in files:
            part.paths.append(os.path.join(folder, name, file))
    return part


def _class_folders(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Each class and its video and image files, sorted; what is hidden is left out."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith("."):
            yield entry.name, sorted(filter(_is_media, os.listdir(entry.path)))


def _no_classes(folder: str, split: str = "train") -> str:
    loose = sum(map(_is_media, os.listdir(folder)))
    text = "no class folders with videos or images in it"
    return f"{text}; {loose} files lie directly in it: give data.{split}=LIST" if loose else text


def _is_media(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in MEDIA_EXTENSIONS


def _class_names(file: str, num_classes: int, read: dict[str, _Split]) -> tuple[str, ...]:
    """The classes, from the file, else from the training split, else from all."""
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
        raise UserError(
            f"{listed[named]}: label '{named}' is a name, but '{number}' in {listed[number]} is a number: "
            "use one kind, or give data.class_names"
        )
    largest = max(listed, key=int)
    lines = sum(len(part.paths) + part.num_missing for part in read.values())
    if not num_classes and int(largest) >= 10 * lines + 1000:
        raise UserError(f"{listed[largest]}: label '{largest}' is too large for so short a list: set model.num_classes")
    return tuple(str(i) for i in range(num_classes or 1 + int(largest)))


def _refuse_joined(read: dict[str, _Split], names: tuple[str, ...]) -> None:
    """Where each file has one label, one with ";" in it is one only where the names say so."""
    for part in read.values():
        for label, place in part.first_place.items():
            if SEPARATOR in label and part.is_list and not part.joined and label not in names:
                raise UserError(f"{place}: '{label[:80]}' are several labels of one file: set data.multi_label=true")


def read_class_names(file: str, key: str = "data.class_names") -> tuple[str, ...]:
    """The lines of a text file that aren't empty. Raises UserError, which calls the file what ``key`` is set to."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{key}={file}: no such file") from None
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{key}={file}: not a text file in UTF-8") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{key}={file}: '{twice}' is in it twice")
    return names


def _resolve(
    part: _Split, names: tuple[str, ...], names_file: str, max_missing: float, multi_label: bool = False
) -> Records:
    total = len(part.paths) + part.num_missing
    if part.num_missing > max_missing * total:
        raise UserError(
            f"{part.source}: {part.num_missing} of {total} listed files are missing, more than data.max_missing="
            f"{max_missing:g} allows; the first: {', '.join(part.missing)}"
        )
    numbered = bool(names_file) or names == tuple(map(str, range(len(names))))
    number = {name: i for i, name in enumerate(names)}
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
        raise UserError(f"{part.place(unknown[0])}: label '{label}' is not one of {known}{hint}")
    _refuse_conflict(part, numbers)
    images = 0
    for path in part.paths:
        if not path.isascii() and path != (printable := os.fsencode(path).decode(errors="backslashreplace")):
            raise UserError(f"{printable}: the file name is not UTF-8: rename it")
        images += is_image(path)
    if images not in (0, len(part.paths)):
        raise UserError(f"{part.source}: images and videos are mixed: keep them in separate datasets")
    if multi_label:
        labels = LabelSets.of(numbers).take(np.asarray(part.labels))
    else:
        labels = np.array([each[0] for each in numbers], np.int32)[np.asarray(part.labels)]
    records = Records(part.paths, labels, names, left_out=part.left_out)
    records.num_missing, records.missing = part.num_missing, part.missing
    return records
