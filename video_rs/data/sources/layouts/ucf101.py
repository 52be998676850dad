"""UCF101 (https://www.crcv.ucf.edu/data/UCF101.php): lists of the three official splits, and ``classInd.txt``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from video_rs.data.sources.entries import Entry
from video_rs.data.sources.layouts import base
from video_rs.data.sources.tables import bad_line
from video_rs.errors import UserError

_FOLDERS = ("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "annotations", "")
_LIST = re.compile(r"(?:train|test)list\d+\.txt")


@base.register_layout("ucf101")
class UCF101(base.Layout):
    """Lists of ``<class>/<video>.avi <number>`` (no number in test lists); classInd.txt has ``<number> <class>``."""

    def find(self, root: str, fold: int) -> dict[str, str]:
        """See ``Layout``."""
        for place in (os.path.join(root, name) for name in _FOLDERS):
            lists = {split: os.path.join(place, f"{split}list{fold:02d}.txt") for split in ("train", "test")}
            if os.path.isfile(os.path.join(place, "classInd.txt")):
                if not os.path.isfile(lists["train"]):
                    raise UserError(f"data.fold={fold}: no such file {lists['train']}")
                return {split: path for split, path in lists.items() if os.path.isfile(path)}
        return {}

    def recognises(self, source: str) -> bool:
        """See ``Layout``."""
        return bool(_LIST.fullmatch(os.path.basename(source))) and os.path.isfile(_class_file(source))

    def class_names(self, source: str, fold: int) -> Sequence[str]:
        """See ``Layout``."""
        file, names = _class_file(source), []
        for line, fields in base.read_fields(file):
            if len(fields) != 2 or fields[0] != str(len(names) + 1) or fields[1] in names:
                raise bad_line(f"{file}:{line}", f"'{len(names) + 1} ClassName'", " ".join(fields))
            names.append(fields[1])
        return names

    def read(self, source: str, root: str, split: str, fold: int) -> Iterator[Entry]:
        """See ``Layout``."""
        number = {name: str(i) for i, name in enumerate(self.class_names(source, fold), 1)}
        folder = base.find_folder(source, root, ("UCF-101", "UCF101", "videos", ""), [*number])
        for line, fields in base.read_fields(source):
            name, slash, video = fields[0].partition("/")
            if len(fields) > 2 or not slash or "/" in video or name not in number:
                expected = "'ClassName/video.avi', of a class in classInd.txt"
                raise bad_line(f"{source}:{line}", expected, " ".join(fields))
            if len(fields) == 2 and fields[1] != number[name]:
                raise bad_line(f"{source}:{line}", f"the number {number[name]}, as in classInd.txt", fields[1])
            yield Entry(os.path.join(folder, fields[0]), name, line)


def _class_file(source: str) -> str:
    return os.path.join(os.path.dirname(source), "classInd.txt")
