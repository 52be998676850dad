"""HMDB51 (https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database): a list per class and split."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence

from video_rs.data.sources.entries import Entry
from video_rs.data.sources.layouts import base
from video_rs.data.sources.tables import bad_line
from video_rs.errors import UserError

_FOLDERS = ("testTrainMulti_7030_splits", "test_train_splits/testTrainMulti_7030_splits", "annotations", "splits")


@base.register_layout("hmdb51")
class HMDB51(base.Layout):
    """A file per class with lines ``<video>.avi <0: unused, 1: train, 2: test>``. The source is the folder."""

    def find(self, root: str, fold: int) -> dict[str, str]:
        """See ``Layout``."""
        place = next(filter(self.recognises, (os.path.join(root, name) for name in _FOLDERS)), "")
        if place and not _lists(place, fold):
            raise UserError(f"data.fold={fold}: no files *_test_split{fold}.txt in {place}")
        return {"train": place, "test": place} if place else {}

    def recognises(self, source: str) -> bool:
        """See ``Layout``."""
        return bool(_lists(source))

    def class_names(self, source: str, fold: int) -> Sequence[str]:
        """See ``Layout``."""
        return list(_lists(source, fold))

    def read(self, source: str, root: str, split: str, fold: int) -> Iterator[Entry]:
        """See ``Layout``."""
        lists = _lists(source, fold)
        folder = base.find_folder(source, root, ("hmdb51_org", "hmdb51", "videos", ""), [*lists])
        for name, file in lists.items():
            for line, fields in base.read_fields(file):
                if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
                    raise bad_line(f"{file}:{line}", "'video.avi 0', 1 or 2", " ".join(fields))
                if fields[1] == ("1" if split == "train" else "2"):
                    yield Entry(os.path.join(folder, name, fields[0]), name, line, file=file)


def _lists(folder: str, fold: int | str = "[1-3]") -> dict[str, str]:
    """Return the file of each class, sorted by class."""
    files = glob.glob(os.path.join(glob.escape(folder), f"?*_test_split{fold}.txt"))
    return dict(sorted((os.path.basename(file).rpartition("_test_split")[0], file) for file in files))
