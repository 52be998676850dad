"""ImageNet (ILSVRC 2012) as Kaggle packs it: https://www.kaggle.com/c/imagenet-object-localization-challenge."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice

from video_rs.data.sources.entries import Entry
from video_rs.data.sources.layouts import base
from video_rs.data.sources.tables import bad_line, read_csv

_IMAGES = "ILSVRC/Data/CLS-LOC"
_WNID = re.compile(r"n\d{8}")


@base.register_layout("imagenet")
class ImageNet(base.Layout):
    """Training images in class folders. ``LOC_val_solution.csv`` gives class and boxes of the validation images:
    ``ILSVRC2012_val_00048981,n03995372 85 1 499 272``. Validation images are in one folder or in class folders."""

    columns = ("imageid", "predictionstring")

    def find(self, root: str, fold: int) -> dict[str, str]:
        """See ``Layout``."""
        train, val = (os.path.join(root, _IMAGES, split) for split in ("train", "val"))
        solution = os.path.join(root, "LOC_val_solution.csv")
        if not os.path.isdir(train):
            return {}
        sources = {"train": train, "val": solution if os.path.isfile(solution) else val}
        return {split: path for split, path in sources.items() if os.path.exists(path)}

    def read(self, source: str, root: str, split: str, fold: int) -> Iterator[Entry]:
        """See ``Layout``."""
        place = base.find_folder(source, root, (f"{_IMAGES}/val", "val"))
        suffix = base.find_suffix(place, ".JPEG")
        in_class_folders = None
        for line, row, text in islice(read_csv(source), 1, None):
            image, label = (row[0], row[1].split(" ")[0]) if len(row) == 2 else ("", "")
            if not image.startswith("ILSVRC2012_val_") or not _WNID.fullmatch(label):
                raise bad_line(f"{source}:{line}", "'ILSVRC2012_val_00000001,n01751748 boxes'", text)
            if in_class_folders is None:
                in_class_folders = os.path.isdir(os.path.join(place, label))
            folder = os.path.join(place, label) if in_class_folders else place
            yield Entry(os.path.join(folder, image + suffix), label, line)
