"""Charades (https://prior.allenai.org/projects/charades)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice

from video_rs.data.sources.entries import Entry
from video_rs.data.sources.layouts import base
from video_rs.data.sources.records import SEPARATOR
from video_rs.data.sources.tables import bad_line, read_csv, read_header

_CODE = re.compile(r"c\d{3}")


@base.register_layout("charades")
class Charades(base.Layout):
    """A csv file. Column ``actions`` has class codes with times, ``c092 11.90 21.20;c147 0.00 12.60``, or is empty."""

    files = {"train": "Charades_v1_train.csv", "test": "Charades_v1_test.csv"}
    columns = used_columns = ("id", "actions")
    multi_label = True

    def class_names(self, source: str, fold: int) -> Sequence[str]:
        """See ``Layout``."""
        return list(_classes(source).values())

    def read(self, source: str, root: str, split: str, fold: int) -> Iterator[Entry]:
        """See ``Layout``."""
        names = _classes(source)
        folder = base.find_folder(source, root, ("Charades_v1_480", "Charades_v1", "videos"))
        suffix = base.find_suffix(folder, ".mp4")
        columns, _ = read_header(source)
        for line, fields, text in islice(read_csv(source), 1, None):
            row = dict(zip(columns, fields))
            codes = [action.split(" ")[0] for action in row.get("actions", "").split(";") if action]
            if not row.get("id") or "actions" not in row or not set(codes) <= names.keys():
                expected = "an id, and actions like 'c092 11.90 21.20'"
                raise bad_line(f"{source}:{line}", expected, row.get("actions", text))
            labels = SEPARATOR.join(dict.fromkeys(names[code] for code in codes))
            yield Entry(os.path.join(folder, row["id"] + suffix), labels, line)


def _classes(source: str) -> dict[str, str]:
    """Return the class name of each code."""
    file = base.beside(source, "Charades_v1_classes.txt")
    names = {}
    for line, fields in base.read_fields(file, 1):
        if len(fields) != 2 or not _CODE.fullmatch(fields[0]):
            raise bad_line(f"{file}:{line}", "'c000 name of the class'", " ".join(fields))
        names[fields[0]] = fields[1]
    return names
