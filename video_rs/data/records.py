"""Which files a dataset has, and their labels.

Sources, for each split:

* a folder of class folders, ``root/train/<class>/<file>``, or ``root/<class>/<file>`` for a dataset without splits;
* a list ``root/train.csv`` or ``root/train.txt`` of lines "path label", separated by a comma, a tab or spaces; the
  label is a number or a class name;
* the official Kinetics csv (``label,youtube_id,time_start,time_end,split``), whose files are found by their names
  ``<youtube_id>_<start>_<end>`` anywhere below the root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from video_rs.data import lists
from video_rs.data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, is_image
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
        labels: one per path, in ``[0, len(class_names))``.
        class_names: in the order of the labels.
        missing: listed files that are not there; they are counted and the first three kept.
        left_out: class folders without a video or an image in them.

    Attributes:
        labels: int32 ``[N]``.
        class_names, left_out: as given.
        num_missing, missing: how many listed files are not there, and the first three.
        index: what the packets of the files tell, a ``VideoIndex``, where ``video-rs index`` has looked.
        made: whether the split was made of training files, for want of one of its own.
        stands_in: whether this validation split is also the test split, for want of one.
    """

    index: VideoIndex | None = None
    made = False
    stands_in = False

    def __init__(
        self,
        paths: Iterable[str],
        labels: Iterable[int],
        class_names: Sequence[str],
        missing: Sequence[str] = (),
        left_out: Sequence[str] = (),
    ) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self.labels = np.asarray(list(labels), dtype=np.int32)
        self.class_names, self.left_out = tuple(class_names), tuple(left_out)
        self.num_missing, self.missing = len(missing), list(missing[:3])

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Of one file."""
        return os.fsdecode(self._encoded(int(index)))

    def _encoded(self, index: int) -> bytes:
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].tobytes()

    def label(self, index: int) -> int:
        """Of one file."""
        return int(self.labels[index])

    def scan(self, index: int) -> Scan | None:
        """What is known of the packets of one file."""
        return self.index.scan(int(index), self.path(index)) if self.index else None

    def packed_paths(self) -> bytes:
        """All paths, ended by zeros, and the folder that relative ones start from."""
        ended = np.insert(self._bytes, self._ends, 0).tobytes()
        return ended if os.path.isabs(self.path(0)) else ended + os.fsencode(os.getcwd())

    def fingerprint(self) -> str:
        """Of the classes, the file names and their labels, in order, wherever the files lie: 12 hexadecimal digits."""
        digest = sha1(self.labels.astype("<i4").tobytes())
        digest.update("\0".join(self.class_names).encode(errors="surrogateescape") + b"\0")
        for index in range(len(self)):  # one by one: all names at once would take as much memory as the records
            digest.update(b"\0" + os.path.basename(self._encoded(index)))
        return digest.hexdigest()[:12]

    def describe(self) -> str:
        """One phrase for start-up lines: counts, missing files, fingerprint."""
        text = f"{len(self)} files, {len(set(self.labels.tolist()))} classes, fingerprint {self.fingerprint()}"
        if self.num_missing:
            text += f"; {self.num_missing} listed files are missing, the first: {', '.join(self.missing)}"
        if self.left_out:
            first = ", ".join(self.left_out[:3])
            text += f"; {len(self.left_out)} folders have no known video or image in them, the first: {first}"
        return text

    def subset(self, indices: np.ndarray) -> Records:
        """Some of the files, with the same classes."""
        return Records([self.path(i) for i in indices], self.labels[indices], self.class_names)


@dataclass
class _Split:
    """One split before its labels are numbers: paths, labels as written, and where each was written, for messages."""

    source: str
    paths: list[str]
    labels: list[str]
    places: list[str]
    missing: list[str]
    left_out: list[str]
    first_place: dict[str, str]  # of each label, missing files' too: a class is one wherever its files are

    @property
    def is_list(self) -> bool:
        return not os.path.isdir(self.source)


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
    splits: Sequence[str] = SPLITS,
) -> dict[str, Records]:
    """The records of the splits asked for.

    Without a validation split, a share of the training files becomes one: of every class, and never so that clips of
    one source video are on both sides. Without a test split, "test" is the validation split.

    Args:
        root: folder of the dataset; paths in lists are relative to it, or without it to the folder of the list.
        train, val, test: a list or a folder of class folders for one split, if it is not found under `root`.
        class_names: a file with one name a line, in the order of the labels. Else: the names of the folders or those
            in the lists, sorted; for numbered labels "0", "1", ... Only with it may some labels be numbers, some names.
        num_classes: how many the labels may name; 0 for as many as there are.
        val_fraction: of the validation split that is made.
        max_missing: the largest share of listed files that may be missing.
        splits: which to return.

    Raises:
        UserError: for whatever is missing, empty or does not fit, in one line that names the file and the line.
    """
    found = {split: _find(root, split, given) for split, given in zip(SPLITS, (train, val, test), strict=True)}
    if root and not os.path.isdir(root):
        raise UserError(f"data.root={root}: no such folder")
    if not any(found.values()) and root and any(_class_folders(root).values()):
        found["train"] = root
    if not any(found.values()):
        if not root:
            raise UserError("no dataset: set data.root, or data.train and data.val")
        raise UserError(f"data.root={root}: it has no train, val or test folder or list and {_no_classes(root)}")
    wanted = {*splits} | ({"val"} if not found["test"] and "test" in splits else set())
    wanted |= {"train"} if not found["val"] and "val" in wanted else set()
    needed = wanted if class_names else wanted | {"train"}  # the training split names the classes
    read = {split: _read(source, root) for split, source in found.items() if source and split in needed}
    names = _class_names(class_names, num_classes, read)
    records = {
        split: _resolve(part, names, class_names, max_missing) for split, part in read.items() if split in wanted
    }
    if not found["val"] and "train" in records:
        records["train"], records["val"] = split_off(records["train"], val_fraction)
        records["val"].made = True
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
    if "train" in splits and len(np.unique(records["train"].labels)) < 2:
        raise UserError(f"the train split of {found['train']} has files of one class only: training needs two or more")
    del read
    _return_freed_memory()
    return {split: records[split] for split in splits}


def split_off(records: Records, fraction: float) -> tuple[Records, Records]:
    """Two parts of a dataset: all but `fraction` of every class, and that fraction.

    Files cut from one source video (:func:`source_of`) stay together, so that the fraction is met only as nearly as
    whole sources allow, and the last source of a class stays in the first part. Which go where depends on their names
    alone: not on their order, the machine or the seed of a run, so that runs can be compared and averaged.
    """
    sources = [source_of(records.path(i)) for i in range(len(records))]
    classes: dict[str, set[int]] = {}
    for source, label in zip(sources, records.labels.tolist(), strict=True):
        classes.setdefault(source, set()).add(label)
    left = Counter(label for labels in classes.values() for label in labels)  # sources of each class in the first part
    to_val: dict[str, bool] = {}
    for label in np.unique(records.labels):
        groups = Counter(sources[i] for i in np.flatnonzero(records.labels == label))
        wanted = max(1, round(fraction * groups.total())) if fraction > 0 else 0
        wanted -= sum(count for name, count in groups.items() if to_val.get(name))
        fresh = [name for name in groups if name not in to_val]
        for name in sorted(fresh, key=lambda name: sha1(name.encode(errors="surrogateescape")).digest()):
            to_val[name] = groups[name] < 2 * wanted and all(left[other] > 1 for other in classes[name])
            if to_val[name]:
                wanted -= groups[name]
                left.subtract(classes[name])
    mask = np.array([to_val[source] for source in sources], dtype=bool)
    train = records.subset(np.flatnonzero(~mask))
    train.num_missing, train.missing, train.left_out = records.num_missing, records.missing, records.left_out
    return train, records.subset(np.flatnonzero(mask))


def source_of(path: str) -> str:
    """The source video of a clip: the id in a Kinetics file name, the group in a UCF-101 one, else the file itself."""
    stem = Path(path).stem
    match = lists.KINETICS_NAME.fullmatch(stem) or lists.UCF_NAME.fullmatch(stem)
    return match["source"] if match else "/".join(Path(path).parts[-2:])


def _return_freed_memory() -> None:
    """To the system: every worker that is forked would else be charged for what reading a long list took."""
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


def _read(source: str, root: str) -> _Split:
    if os.path.isdir(source):
        return _read_folder(source)
    entries, missing = lists.read_list(source, root)
    first_place = {
        label: f"{source}:{line}" for _, label, line in sorted(entries + missing, key=itemgetter(2), reverse=True)
    }
    paths, labels, lines = zip(*entries, strict=True) if entries else ((), (), ())
    places = [f"{source}:{line}" for line in lines]
    return _Split(source, list(paths), list(labels), places, [entry[0] for entry in missing], [], first_place)


def _read_folder(folder: str) -> _Split:
    part = _Split(folder, [], [], [], [], [], {})
    for name, files in _class_folders(folder).items():
        if not files:
            part.left_out.append(name)
            continue
        part.paths += [os.path.join(folder, name, file) for file in files]
        part.labels += [name] * len(files)
        part.first_place[name] = os.path.join(folder, name)
    part.places = part.paths
    return part


def _class_folders(folder: str) -> dict[str, list[str]]:
    """``{class: its video and image files}``, sorted; what is hidden is left out."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return {entry.name: sorted(filter(_is_media, os.listdir(entry.path))) for entry in folders}


def _no_classes(folder: str, split: str = "train") -> str:
    loose = sum(map(_is_media, os.listdir(folder)))
    text = "no class folders with videos or images in it"
    return f"{text}; {loose} files lie directly in it: give data.{split}=LIST" if loose else text


def _is_media(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in MEDIA_EXTENSIONS


def _class_names(file: str, num_classes: int, read: dict[str, _Split]) -> tuple[str, ...]:
    """The classes, from the file, else from the training split, else from all."""
    if file:
        return read_class_names(file)
    parts = [read["train"]] if "train" in read and read["train"].first_place else list(read.values())
    places = {label: place for part in parts for label, place in part.first_place.items()}
    listed = {label: place for part in read.values() if part.is_list for label, place in part.first_place.items()}
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
    if (
        not num_classes
        and int(largest) >= 10 * sum(len(part.paths) + len(part.missing) for part in read.values()) + 1000
    ):
        raise UserError(f"{listed[largest]}: label '{largest}' is too large for so short a list: set model.num_classes")
    return tuple(str(i) for i in range(num_classes or 1 + int(largest)))


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


def _resolve(part: _Split, names: tuple[str, ...], names_file: str, max_missing: float) -> Records:
    total = len(part.paths) + len(part.missing)
    if len(part.missing) > max_missing * total:
        raise UserError(
            f"{part.source}: {len(part.missing)} of {total} listed files are missing, more than data.max_missing="
            f"{max_missing:g} allows; the first: {', '.join(part.missing[:3])}"
        )
    numbered = bool(names_file) or names == tuple(map(str, range(len(names))))
    number = {name: i for i, name in enumerate(names)}
    labels = []
    for label, place in zip(part.labels, part.places, strict=True):
        index = number.get(label)
        if index is None and numbered and part.is_list and label.isdecimal() and int(label) < len(names):
            index = int(label)
        if index is None:
            known = f"0 to {len(names) - 1}" if label.isdecimal() and numbered else f"the {len(names)} class names"
            hint = ": give data.class_names, in the order of the numbers" if label.isdecimal() and not numbered else ""
            raise UserError(f"{place}: label '{label}' is not one of {known}{hint}")
        labels.append(index)
    for path in part.paths:
        if path != (printable := os.fsencode(path).decode(errors="backslashreplace")):
            raise UserError(f"{printable}: the file name is not UTF-8: rename it")
    kinds = {is_image(path) for path in part.paths}
    if len(kinds) > 1:
        raise UserError(f"{part.source}: images and videos are mixed: keep them in separate datasets")
    return Records(part.paths, labels, names, part.missing, part.left_out)
