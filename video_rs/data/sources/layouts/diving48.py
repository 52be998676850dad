"""Diving48 V2 (http://www.svcl.ucsd.edu/projects/resound/dataset.html)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from video_rs.data.sources.entries import Entry
from video_rs.data.sources.layouts import base
from video_rs.data.sources.tables import bad_line
from video_rs.errors import format_value


@base.register_layout("diving48")
class Diving48(base.Layout):
    """JSON objects ``{"vid_name": ..., "label": 26}``; Diving48_vocab.json lists the four parts of each class."""

    files = {"train": "Diving48_V2_train.json", "test": "Diving48_V2_test.json"}
    json_key = "vid_name"

    def class_names(self, source: str, fold: int) -> Sequence[str]:
        """See ``Layout``."""
        file = base.beside(source, "Diving48_vocab.json")
        vocabulary = base.read_json(file)
        if not isinstance(vocabulary, list) or not all(isinstance(each, list) for each in vocabulary):
            raise bad_line(f"{file}:1", "a list of lists", "another")
        return [" ".join(map(str, parts)) for parts in vocabulary]

    def read(self, source: str, root: str, split: str, fold: int) -> Iterator[Entry]:
        """See ``Layout``."""
        names = self.class_names(source, fold)
        objects = base.read_objects(source)
        folder = base.find_folder(source, root, ("rgb", "videos"))
        suffix = base.find_suffix(folder, ".mp4")
        for number, entry in enumerate(objects, 1):
            label = entry.get("label")
            if not entry.get("vid_name") or type(label) is not int or not 0 <= label < len(names):
                expected = f"'vid_name' and a 'label' from 0 to {len(names) - 1}"
                raise bad_line(f"{source}: entry {number}", expected, format_value(entry))
            name = str(entry["vid_name"])  # <youtube id>_<clip>; too common a pattern to use it for other datasets
            yield Entry(os.path.join(folder, f"{name}{suffix}"), names[label], number, name.rpartition("_")[0] or name)
