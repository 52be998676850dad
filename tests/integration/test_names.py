"""Names of files and classes with formulas and control characters, through the commands that write and print them."""

import csv
import json
import os
import re
from pathlib import Path

import pytest

from tests.integration.conftest import TINY
from video_rs.files import safe_cell, write_csv

CLASSES = ['=HYPERLINK("http://a")', "+1+1", "-2", "@SUM(A1)", "\x1b[31mred", "plain"]
ESCAPED = ["'=HYPERLINK(\"http://a\")", "'+1+1", "-2", "'@SUM(A1)", r"\x1b[31mred", "plain"]
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize(
    "value, expected",
    [
        *zip(CLASSES, ESCAPED),
        *((text, f"'{text}") for text in ("=1", "-a.mp4", "+", "--", "-1-1", "-1e5x", "-inf", "@", " =1", "\uff1d1")),
        *((text, text) for text in ("a=1", "-1.5e-3", "+7", "-.5", "1-2", "'=1", "", "\u00e9 \u4e2d", "\U0001f468\u200d\U0001f469")),
        *[("\t=1", r"\t=1"), ("\r=1", r"\r=1"), ("a\nb", r"a\nb"), ("\u202ea", r"\u202ea"), ("\udcff", r"\udcff")],
        *((number, number) for number in (-1, -2.5, 0, None, True)),
    ],
)  # fmt: skip
def test_cells_that_are_no_formulas(value, expected):
    assert safe_cell(value) == expected


def test_files_that_are_read_back_are_not_escaped(tmp_path):
    write_csv(tmp_path / "a.csv", ("path",), [("=1\x1b",)], escape=False)
    assert (tmp_path / "a.csv").read_text() == "path\n=1\x1b\n"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, make_video):
    """Each class has two videos in train and one in val; the first class also has a broken one in each."""
    root = tmp_path_factory.mktemp("names") / "data"
    for number, name in enumerate(CLASSES):
        folder = name.replace("/", "\u2215")
        for split, count in (("train", 2), ("val", 1)):
            for video in range(count):
                first = 1000 * (split == "val") + 100 * number + 20 * video
                make_video(root / split / folder / f"=\x1b[2J{video}\n.mp4", 12, first_number=first)
    for split in ("train", "val"):
        (root / split / CLASSES[-1] / "+\x1b]0;broken\x07.mp4").write_text("no video")
    return root


def classes_of(root: Path) -> list[str]:
    return sorted(os.listdir(root / "train"))


def cells(file: Path) -> list[str]:
    with open(file, newline="", encoding="utf-8") as stream:
        return [cell for row in list(csv.reader(stream))[1:] for cell in row]


def assert_harmless(*texts: str) -> None:
    for text in texts:
        assert not CONTROL.search(text), ascii(text)


def assert_no_formulas(*files: Path) -> None:
    for file in files:
        for cell in cells(file):
            assert not CONTROL.search(cell) and "\n" not in cell, (file, cell)
            assert cell[:1] not in ("=", "+", "@") and (cell[:1] != "-" or float(cell) < 0), (file, cell)
