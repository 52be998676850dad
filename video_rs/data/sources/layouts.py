"""The official annotation files of UCF101, HMDB51, Something-Something v2, Diving48, Charades and ImageNet's validation
images, a reader for each.

They are recognised below the root of a dataset by their names, and wherever else by their names and what is in them.
All readers yield the entries of lists.py; labels are class names, in the official order.

Sources: the annotation files of the datasets' own sites, as ``datasets/<name>/README.md`` links them. Known numbers of
videos in Kinetics: class docstrings of ``fiftyone/zoo/datasets/base.py`` in voxel51/fiftyone, 000772d8dfc9.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from itertools import islice

from video_rs.data.sources.holdout import KINETICS_NAME
from video_rs.data.sources.lists import Entry, bad_line, columns_of, read_csv, read_lines
from video_rs.data.video.media import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from video_rs.errors import UserError

_UCF_LIST = re.compile(r"(?:train|test)list\d+\.txt")
_HMDB_LIST = re.compile(r"(?P<name>.+)_test_split(?P<fold>\d)\.txt")
_WNID = re.compile(r"n\d{8}")
_CHARADES_CODE = re.compile(r"c\d{3}")

_UCF_FOLDERS = ("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "annotations", "")
_HMDB_FOLDERS = ("testTrainMulti_7030_splits", "test_train_splits/testTrainMulti_7030_splits", "annotations", "splits")
_JSON_AND_CSV = (  # in one of _PLACES
    {"train": "something-something-v2-train.json", "val": "something-something-v2-validation.json"},
    {"train": "labels/train.json", "val": "labels/validation.json"},
    {"train": "Diving48_V2_train.json", "test": "Diving48_V2_test.json"},
    {"train": "Charades_v1_train.csv", "test": "Charades_v1_test.csv"},
)
_KAGGLE = "ILSVRC/Data/CLS-LOC"  # of ImageNet, below the folder of LOC_val_solution.csv
_PLACES = ("", "annotations", "labels", "Charades")

# {split: videos}: what CVDF hosts; of the first edition of Kinetics-700, what its lists named
_KINETICS = {
    400: {"train": 246_534, "val": 19_906, "test": 39_805},
    600: {"train": 427_549, "val": 29_793, "test": 72_924},
    700: {"train": 529_046, "val": 33_925, "test": 67_446},
}
_KINETICS_2020 = {"train": 534_073, "val": 33_914, "test": 64_260}


Annotations = tuple[tuple[str, ...], Iterator[Entry]]  # class names in the official order; files, which may be missing


def find(root: str, fold: int = 1) -> dict[str, str]:
    """The annotation files of the layout that a folder has, ``{split: path}``; empty where it has none of them.

    Args:
        root: folder of the dataset.
        fold: which of the three splits of UCF101 and HMDB51. The files of one split of HMDB51 are a folder.
    """
    for place in (os.path.join(root, name) for name in _UCF_FOLDERS):
        lists = {split: os.path.join(place, f"{split}list{fold:02d}.txt") for split in ("train", "test")}
        if os.path.isfile(os.path.join(place, "classInd.txt")):
            if not os.path.isfile(lists["train"]):
                raise UserError(f"data.fold={fold}: no such file {lists['train']}")
            return {split: path for split, path in lists.items() if os.path.isfile(path)}
    for place in (os.path.join(root, name) for name in _HMDB_FOLDERS):
        if _hmdb_lists(place):
            if not _hmdb_lists(place, fold):
                raise UserError(f"data.fold={fold}: no files *_test_split{fold}.txt in {place}")
            return {"train": place, "test": place}
    images = {split: os.path.join(root, _KAGGLE, split) for split in ("train", "val")}
    if os.path.isdir(images["train"]):
        solution = os.path.join(root, "LOC_val_solution.csv")
        images["val"] = solution if os.path.isfile(solution) else images["val"]
        return {split: path for split, path in images.items() if os.path.exists(path)}
    for names in _JSON_AND_CSV:
        for place in _PLACES:
            paths = {split: os.path.join(root, place, name) for split, name in names.items()}
            named = "/" not in names["train"] or os.path.isfile(os.path.join(root, place, "labels/labels.json"))
            if named and os.path.isfile(paths["train"]):  # any dataset may have a train.json, but not labels.json too
                return {split: path for split, path in paths.items() if os.path.isfile(path)}
    return {}


def read(source: str, root: str, split: str, fold: int = 1, multi_label: bool = False) -> Annotations | None:
    """Read one split of an official annotation file, or HMDB51's folder of them. Return None for any other file.

    Args:
        source: the file or the folder.
        root: folder of the dataset; if empty, the videos are looked for beside the file and beside its folder.
        split: which of HMDB51's files to take, as they name both train and test.
        fold: which of its three splits.
        multi_label: whether a file may have any number of labels: Charades' have.

    Raises:
        UserError: for what does not fit the format, naming file and line.
    """
    folder, name = (source, "") if os.path.isdir(source) else os.path.split(source)
    bases = [root] if root else [folder or ".", os.path.dirname(os.path.abspath(folder))]  # of the folder of videos
    if not name:
        lists = _hmdb_lists(source, fold)
        return _hmdb(lists, bases, split) if lists else None
    if _UCF_LIST.fullmatch(name) and os.path.isfile(os.path.join(folder, "classInd.txt")):
        return _ucf(source, bases)
    if name.lower().endswith(".json"):
        return _json(source, bases)
    columns = columns_of(source)[0] if name.lower().endswith(".csv") else []
    if {"imageid", "predictionstring"} <= set(columns):
        return _imagenet(source, bases)
    if {"id", "actions"} <= set(columns):
        if not multi_label:
            raise UserError(f"{source}: videos of Charades have several labels each: set data.multi_label=true")
        return _charades(source, bases)
    return None


def kinetics_coverage(class_count: int, split: str, first_path: str, count: int) -> str:
    """How much of Kinetics a split has, "239,000 of the 246,534 videos of Kinetics-400"; "" for other datasets.

    Args:
        class_count: of the dataset.
        split: "train", "val" or "test".
        first_path: of a video; those of Kinetics are told by their names.
        count: files that the split has.
    """
    if class_count not in _KINETICS or not KINETICS_NAME.fullmatch(os.path.splitext(os.path.basename(first_path))[0]):
        return ""
    edition = f" (2020: {_KINETICS_2020[split]:,})" if class_count == 700 else ""
    return f"{count:,} of the {_KINETICS[class_count][split]:,} videos of Kinetics-{class_count}{edition}"


# One reader each ------------------------------------------------------------------------------------------------------


def _ucf(file: str, bases: list[str]) -> Annotations:
    """Lines ``<class>/<video>.avi <number>``, test lists without the number; classInd.txt has ``<number> <class>``."""
    class_file = os.path.join(os.path.dirname(file), "classInd.txt")
    number: dict[str, str] = {}
    for line, fields in _fields(class_file):
        if len(fields) != 2 or not fields[0].isdecimal() or int(fields[0]) != len(number) + 1 or fields[1] in number:
            raise bad_line(f"{class_file}:{line}", f"'{len(number) + 1} ClassName'", " ".join(fields))
        number[fields[1]] = fields[0]

    def entries() -> Iterator[Entry]:
        base = ""
        for line, fields in _fields(file):
            name = fields[0].split("/")[0]
            if len(fields) > 2 or fields[0].count("/") != 1 or name not in number:
                raise bad_line(f"{file}:{line}", "'ClassName/video.avi', of a class in classInd.txt", " ".join(fields))
            if len(fields) == 2 and fields[1] != number[name]:
                raise bad_line(f"{file}:{line}", f"the number {number[name]}, as in classInd.txt", fields[1])
            base = base or _base(bases, ("UCF-101", "UCF101", "videos", ""), name)
            yield Entry(os.path.join(base, fields[0]), name, line)

    return tuple(number), entries()


def _hmdb(lists: list[str], bases: list[str], split: str) -> Annotations:
    """A file per class, lines ``<video>.avi <0: not in this split, 1: train, 2: test>``."""
    names = tuple(_HMDB_LIST.fullmatch(os.path.basename(file))["name"] for file in lists)

    def entries() -> Iterator[Entry]:
        base = _base(bases, ("hmdb51_org", "hmdb51", "videos", ""), *names)
        for file, name in zip(lists, names, strict=True):
            for line, fields in _fields(file):
                if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
                    raise bad_line(f"{file}:{line}", "'video.avi 0', 1 or 2", " ".join(fields))
                if fields[1] == ("1" if split == "train" else "2"):
                    yield Entry(os.path.join(base, name, fields[0]), name, line, file=file)

    return names, entries()


def _json(file: str, bases: list[str]) -> Annotations:
    """A list of objects: with "template" Something-Something's, with "vid_name" Diving48's."""
    objects = _load(file)
    if not isinstance(objects, list) or not objects or not all(isinstance(each, dict) for each in objects):
        raise bad_line(file, "a JSON list of objects", json.dumps(objects))
    if "template" in objects[0]:
        return _something(file, objects, bases)
    if "vid_name" in objects[0]:
        return _diving(file, objects, bases)
    raise bad_line(file, "'template' (Something-Something v2) or 'vid_name' (Diving48)", json.dumps(objects[0]))


def _something(file: str, objects: list[dict], bases: list[str]) -> Annotations:
    """``{"id": ..., "template": "Holding [something]"}``; labels.json numbers the templates without brackets."""
    class_file = _beside(file, "labels.json", "something-something-v2-labels.json")
    numbers = _load(class_file)
    try:
        names = sorted(numbers, key=lambda name: int(numbers[name]))
        if [int(numbers[name]) for name in names] != list(range(len(names))):
            raise ValueError
    except (TypeError, ValueError):
        raise bad_line(f"{class_file}:1", "an object {template: number} with all numbers from 0", "another") from None
    known = set(names)

    def entries() -> Iterator[Entry]:
        base, suffix = _flat(bases, ("20bn-something-something-v2", "videos"), ".webm")
        for number, entry in enumerate(objects, 1):
            label = str(entry.get("template", "")).replace("[", "").replace("]", "")
            if not str(entry.get("id", "")) or label not in known:
                raise bad_line(f"{file}: entry {number}", "'id' and a 'template' of labels.json", json.dumps(entry))
            yield Entry(os.path.join(base, f"{entry['id']}{suffix}"), label, number)

    return tuple(names), entries()


def _diving(file: str, objects: list[dict], bases: list[str]) -> Annotations:
    """``{"vid_name": ..., "label": 26}``; Diving48_vocab.json lists the four parts of each class."""
    class_file = _beside(file, "Diving48_vocab.json")
    vocabulary = _load(class_file)
    if not isinstance(vocabulary, list) or not all(isinstance(each, list) for each in vocabulary):
        raise bad_line(f"{class_file}:1", "a list of lists", "another")
    names = tuple(" ".join(map(str, parts)) for parts in vocabulary)

    def entries() -> Iterator[Entry]:
        base, suffix = _flat(bases, ("rgb", "videos"), ".mp4")
        for number, entry in enumerate(objects, 1):
            label = entry.get("label")
            if not entry.get("vid_name") or type(label) is not int or not 0 <= label < len(names):
                expected = f"'vid_name' and a 'label' from 0 to {len(names) - 1}"
                raise bad_line(f"{file}: entry {number}", expected, json.dumps(entry))
            name = str(entry["vid_name"])  # <youtube id>_<clip>: too common a form to go by in other datasets
            yield Entry(os.path.join(base, f"{name}{suffix}"), names[label], number, name.rpartition("_")[0] or name)

    return names, entries()


def _charades(file: str, bases: list[str]) -> Annotations:
    """A csv; ``actions`` is ``c092 11.90 21.20;c147 0.00 12.60``, codes with times, or empty."""
    class_file = _beside(file, "Charades_v1_classes.txt")
    names: dict[str, str] = {}
    for line, fields in _fields(class_file, 1):
        if len(fields) != 2 or not _CHARADES_CODE.fullmatch(fields[0]):
            raise bad_line(f"{class_file}:{line}", "'c000 name of the class'", " ".join(fields))
        names[fields[0]] = fields[1]

    def entries() -> Iterator[Entry]:
        base, suffix = _flat(bases, ("Charades_v1_480", "Charades_v1", "videos"), ".mp4")
        columns, _ = columns_of(file)
        for line, fields, text in islice(read_csv(file), 1, None):
            row = dict(zip(columns, fields))
            codes = [action.split(" ")[0] for action in row.get("actions", "").split(";") if action]
            if not row.get("id") or "actions" not in row or not set(codes) <= names.keys():
                raise bad_line(f"{file}:{line}", "an id, and actions like 'c092 11.90 21.20'", row.get("actions", text))
            labels = ";".join(dict.fromkeys(names[code] for code in codes))
            yield Entry(os.path.join(base, row["id"] + suffix), labels, line)

    return tuple(names.values()), entries()


def _imagenet(file: str, bases: list[str]) -> Annotations:
    """``ILSVRC2012_val_00048981,n03995372 85 1 499 272``, a class and boxes; images in one folder or one a class."""
    found: list[tuple[str, str, int]] = []
    for line, row, text in islice(read_csv(file), 1, None):
        image, label = (row[0], row[1].split(" ")[0]) if len(row) == 2 else ("", "")
        if not image.startswith("ILSVRC2012_val_") or not _WNID.fullmatch(label):
            raise bad_line(f"{file}:{line}", "'ILSVRC2012_val_00000001,n01751748 boxes'", text)
        found.append((image, label, line))

    def entries() -> Iterator[Entry]:
        place, suffix = _flat(bases, (f"{_KAGGLE}/val", "val"), ".JPEG")
        sorted_into_classes = bool(found) and os.path.isdir(os.path.join(place, found[0][1]))
        for image, label, line in found:
            folder = os.path.join(place, label) if sorted_into_classes else place
            yield Entry(os.path.join(folder, image + suffix), label, line)

    return tuple(sorted({label for _, label, _ in found})), entries()


# Where things are -----------------------------------------------------------------------------------------------------


def _hmdb_lists(folder: str, fold: int | str = "[1-3]") -> list[str]:
    """The file of each class, sorted by class."""
    files = glob.glob(os.path.join(glob.escape(folder), f"?*_test_split{fold}.txt"))
    return sorted(files, key=lambda file: _HMDB_LIST.fullmatch(os.path.basename(file))["name"])


def _base(bases: list[str], names: tuple[str, ...], *classes: str) -> str:
    """The first folder with a folder of one of the classes in it."""
    places = [os.path.join(base, name) if name else base for base in bases for name in names]
    return next((p for p in places if any(os.path.isdir(os.path.join(p, c)) for c in classes)), places[0])


def _flat(bases: list[str], names: tuple[str, ...], suffix: str) -> tuple[str, str]:
    """Return the first of the folders that is there, and the suffix of its first file: some are re-encoded."""
    extensions = IMAGE_EXTENSIONS if suffix.lower() in IMAGE_EXTENSIONS else VIDEO_EXTENSIONS
    places = [os.path.join(base, name) for base in bases for name in names]
    place = next(filter(os.path.isdir, places), bases[0])
    with os.scandir(place) as files:
        found = (os.path.splitext(file.name)[1] for file in files if not file.name.startswith("."))
        return place, next((each for each in found if each.lower() in extensions), suffix)


def _beside(file: str, *names: str) -> str:
    folder = os.path.dirname(file)
    paths = [os.path.join(folder, name) for name in names]
    paths += [os.path.join(folder, "labels", names[0]), os.path.join(os.path.dirname(folder), names[0])]
    found = next(filter(os.path.isfile, paths), "")
    if not found:
        raise UserError(f"{file}: {names[0]}, which names its classes, is not beside it: put it there")
    return found


# What is in them ------------------------------------------------------------------------------------------------------


def _fields(file: str, splits: int = -1) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the words of each line that is not empty."""
    for line, text in enumerate(read_lines(file), 1):
        if text.strip():
            yield line, text.strip().split(None, splits)


def _load(file: str) -> object:
    text = "".join(read_lines(file))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise bad_line(f"{file}:{error.lineno}", "JSON", text[error.pos :] or "the end of the file") from None
