"""A dataset layout in a module outside the package, as docs/extending.md shows it."""

import importlib

import pytest

from video_rs.data.sources.layouts import base
from video_rs.data.sources.splits import load_splits
from video_rs.errors import UserError

MODULE = '''
"""Jester: lines "<video>;<label>" in jester-v1-train.csv, a folder of frames per video."""

import os

from video_rs.data.sources.layouts import Entry, Layout, register_layout
from video_rs.errors import UserError


@register_layout("jester")
class Jester(Layout):
    files = {"train": "jester-v1-train.csv", "val": "jester-v1-validation.csv"}

    def class_names(self, source, fold):
        with open(os.path.join(os.path.dirname(source), "jester-v1-labels.csv"), encoding="utf-8") as file:
            return file.read().splitlines()

    def read(self, source, root, split, fold):
        folder = os.path.join(root or os.path.dirname(source), "20bn-jester-v1")
        with open(source, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                video, mark, label = line.strip().partition(";")
                if not mark:
                    raise UserError(f"{source}:{number}: expected 'video;label'; found '{line.strip()}'")
                yield Entry(os.path.join(folder, video), label, number)
'''
NAMES = ("Swiping Left", "Doing other things")
FILES = {"train": "train.csv", "val": "validation.csv"}


@pytest.fixture
def jester(tmp_path, monkeypatch):
    """The folder of a dataset in the layout, which is registered."""
    monkeypatch.setattr(base, "_LAYOUTS", dict(base._LAYOUTS))
    monkeypatch.syspath_prepend(tmp_path / "code")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "jester_layout.py").write_text(MODULE)
    importlib.reload(importlib.import_module("jester_layout"))

    root = tmp_path / "jester"
    for video in range(6):
        (root / "20bn-jester-v1" / str(video)).mkdir(parents=True)
        (root / "20bn-jester-v1" / str(video) / "00001.jpg").touch()
    (root / "jester-v1-labels.csv").write_text("".join(f"{name}\n" for name in NAMES))
    for split, videos in (("train", range(4)), ("validation", (4, 5))):
        (root / f"jester-v1-{split}.csv").write_text("".join(f"{i};{NAMES[i % 2]}\n" for i in videos))
    return root


def test_a_registered_layout_is_recognised(jester):
    for options in ({"root": str(jester)}, {s: f"{jester}/jester-v1-{n}" for s, n in FILES.items()}):
        splits = load_splits(**options)
        assert {split: len(records) for split, records in splits.items()} == {"train": 4, "val": 2, "test": 2}
        train = splits["train"]
        assert train.class_names == NAMES and train.labels.tolist() == [0, 1, 0, 1]
        assert train.path(3) == f"{jester}/20bn-jester-v1/3"


def test_its_errors_name_the_line(jester):
    (jester / "jester-v1-train.csv").write_text("0;Swiping Left\n1\n")
    with pytest.raises(UserError, match=r"jester-v1-train.csv:2: expected 'video;label'; found '1'$"):
        load_splits(str(jester))


def test_without_it_the_folder_is_no_dataset(jester, monkeypatch):
    monkeypatch.delitem(base._LAYOUTS, "jester")
    with pytest.raises(UserError, match="no train, val or test folder"):
        load_splits(str(jester))


def test_a_layout_registered_later_is_tried_first(jester):
    @base.register_layout("jester-flipped")
    class Flipped(type(base._LAYOUTS["jester"])):
        def class_names(self, source, fold):
            return NAMES[::-1]

    assert load_splits(str(jester))["train"].class_names == NAMES[::-1]
