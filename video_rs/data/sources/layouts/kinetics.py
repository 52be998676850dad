"""Kinetics-400, -600 and -700: the official csv, and the number of videos in each edition.

The numbers are those of the videos hosted by CVDF, and for the first edition of Kinetics-700 of the videos in its
lists. Source: class docstrings of ``fiftyone/zoo/datasets/base.py`` in voxel51/fiftyone, 000772d8dfc9.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice

import numpy as np

from video_rs.data.sources.entries import Entry, parse_split
from video_rs.data.sources.holdout import KINETICS_NAME
from video_rs.data.sources.layouts import base
from video_rs.data.sources.records import Paths
from video_rs.data.sources.tables import bad_line, read_csv, read_header
from video_rs.data.video.media import VIDEO_EXTENSIONS
from video_rs.data.video.search import media_below
from video_rs.errors import UserError

_NUM_VIDEOS = {
    400: {"train": 246_534, "val": 19_906, "test": 39_805},
    600: {"train": 427_549, "val": 29_793, "test": 72_924},
    700: {"train": 529_046, "val": 33_925, "test": 67_446},
}
_NUM_VIDEOS_2020 = {"train": 534_073, "val": 33_914, "test": 64_260}


@base.register_layout("kinetics")
class Kinetics(base.Layout):
    """A csv ``label,youtube_id,time_start,time_end,split``; videos ``<youtube_id>_<start>_<end>.*`` in any folder."""

    columns = ("youtube_id",)
    used_columns = ("label", "youtube_id", "time_start", "time_end", "split")
    repeats = True

    def read(self, source: str, root: str, split: str, fold: int) -> Iterator[Entry]:
        """See ``Layout``."""
        root, columns = root or os.path.dirname(source), read_header(source)[0]
        if "label" not in columns:
            raise UserError(f"{source}:1: this Kinetics csv has no column 'label'; use a split with labels")
        files = Paths(media_below(root, VIDEO_EXTENSIONS))
        stems = np.fromiter((hash(os.path.splitext(os.path.basename(path))[0]) for path in files), np.int64, len(files))
        order = np.argsort(stems, kind="stable")  # the first of several copies stays the first
        stems = stems[order]
        for line, fields, text in islice(read_csv(source), 1, None):
            row = dict(zip(columns, fields))
            try:
                start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
                label, stem = row["label"], f"{row['youtube_id']}_{start:06d}_{end:06d}"
            except (KeyError, ValueError, OverflowError):
                expected = "'label,youtube_id,time_start,time_end,split'"
                raise bad_line(f"{source}:{line}", expected, text) from None
            part = parse_split(row["split"], f"{source}:{line}") if "split" in row else ""
            at = stems.searchsorted(hash(stem))
            found = at < len(stems) and stems[at] == hash(stem)
            yield Entry(files[order[at]] if found else os.path.join(root, stem + ".mp4"), label, line, split=part)


def kinetics_coverage(num_classes: int, split: str, first_path: str, count: int) -> str:
    """Return the coverage of Kinetics as "239,000 of the 246,534 videos of Kinetics-400"; "" for other datasets.

    Args:
        num_classes: number of classes in the dataset.
        split: "train", "val" or "test".
        first_path: path of one video; Kinetics is recognised by the format of the name.
        count: number of files in the split.
    """
    name = os.path.splitext(os.path.basename(first_path))[0]
    if num_classes not in _NUM_VIDEOS or not KINETICS_NAME.fullmatch(name):
        return ""
    edition = f" (2020: {_NUM_VIDEOS_2020[split]:,})" if num_classes == 700 else ""
    return f"{count:,} of the {_NUM_VIDEOS[num_classes][split]:,} videos of Kinetics-{num_classes}{edition}"
