"""Something-Something v2 (https://www.qualcomm.com/developer/software/something-something-v-2-dataset)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from video_rs.data.sources.entries import Entry
from video_rs.data.sources.layouts import base
from video_rs.data.sources.tables import bad_line
from video_rs.errors import format_value


@base.register_layout("ssv2")
class SomethingSomething(base.Layout):
    """JSON objects ``{"id": ..., "template": "Holding [something]"}``; labels.json has the class of each template."""

    files = {"train": "something-something-v2-train.json", "val": "something-something-v2-validation.json"}
    json_key = "template"

    def find(self, root: str, fold: int) -> dict[str, str]:
        """See ``Layout``."""
        short = {"train": "labels/train.json", "val": "labels/validation.json"}
        # other datasets may have a labels/train.json too, but no labels.json
        return base.find_files(root, self.files) or base.find_files(root, short, "labels/labels.json")

    def class_names(self, source: str, fold: int) -> Sequence[str]:
        """See ``Layout``."""
        file = base.beside(source, "labels.json", "something-something-v2-labels.json")
        numbers = base.read_json(file)
        try:
            names = sorted(numbers, key=lambda name: int(numbers[name]))
            if [int(numbers[name]) for name in names] != list(range(len(names))):
                raise ValueError
        except (TypeError, ValueError):
            raise bad_line(f"{file}:1", "an object {template: number} with all numbers from 0", "another") from None
        return names

    def read(self, source: str, root: str, split: str, fold: int) -> Iterator[Entry]:
        """See ``Layout``."""
        names = {*self.class_names(source, fold)}
        objects = base.read_objects(source)
        folder = base.find_folder(source, root, ("20bn-something-something-v2", "videos"))
        suffix = base.find_suffix(folder, ".webm")
        for number, entry in enumerate(objects, 1):
            label = str(entry.get("template", "")).replace("[", "").replace("]", "")
            if not str(entry.get("id", "")) or label not in names:
                raise bad_line(f"{source}: entry {number}", "'id' and a 'template' of labels.json", format_value(entry))
            yield Entry(os.path.join(folder, f"{entry['id']}{suffix}"), label, number)
