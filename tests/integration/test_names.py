"""Names of files and classes with formulas and control characters, through the commands that write and print them."""

import csv
import json
import os
import re
from pathlib import Path

import pytest

from video_rs.files import safe_cell, write_csv

CLASSES = ['=HYPERLINK("a")', "+1+1", "-2a", "@SUM(A1)", "a\u202ered", "plain"]
ESCAPED = ['\'=HYPERLINK("a")', "'+1+1", "'-2a", "'@SUM(A1)", r"a\u202ered", "plain"]
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize(
    "value, expected",
    [
        *zip(CLASSES, ESCAPED),
        *((text, f"'{text}") for text in ("=1", "-a.mp4", "+", "--", "-1-1", "-1e5x", "-inf", "@", " =1", "\uff1d1")),
        *((text, text) for text in ("a=1", "-1.5e-3", "+7", "-.5", "1-2", "'=1", "", "\u00e9", "\U0001f468\u200d")),
        *[("\t=1", r"\t=1"), ("\r=1", r"\r=1"), ("a\nb", r"a\nb"), ("\u202ea", r"\u202ea"), ("\udcff", r"\udcff")],
        *((number, number) for number in (-1, -2.5, 0, None, True)),
    ],
)  # fmt: skip
def test_formulas_in_cells_are_escaped(value, expected):
    assert safe_cell(value) == expected


def test_files_that_are_read_back_are_not_escaped(tmp_path):
    write_csv(tmp_path / "a.csv", ("path",), [("=1\x1b",)], escape=False)
    assert (tmp_path / "a.csv").read_text() == "path\n=1\x1b\n"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, make_video):
    """Each class has two videos in train and one in val; the first class also has a broken one in each."""
    root = tmp_path_factory.mktemp("names") / "data"
    for number, name in enumerate(CLASSES):
        for split, count in (("train", 2), ("val", 1)):
            for video in range(count):
                first = 1000 * (split == "val") + 100 * number + 20 * video
                make_video(root / split / name / f"=\x1b[2J{video}\n.mp4", 12, first_number=first)
    for split in ("train", "val"):
        (root / split / CLASSES[-1] / "+\x1b]0;broken\x07.mp4").write_text("no video")
    return root


def cells(file: Path) -> list[str]:
    with open(file, newline="", encoding="utf-8") as stream:
        return [cell for row in list(csv.reader(stream))[1:] for cell in row]


def assert_no_formulas(*files: Path) -> None:
    for file in files:
        for cell in cells(file):
            assert not CONTROL.search(cell) and "\n" not in cell, (file, cell)
            assert cell[:1] not in ("=", "+", "@") and (cell[:1] != "-" or float(cell) < 0), (file, cell)


@pytest.mark.slow
def test_results_and_output_of_all_commands(dataset, tmp_path, run_tool, tiny_config, monkeypatch):
    monkeypatch.setenv("VIDEO_RS_CACHE", str(tmp_path / "cache"))
    config = tiny_config(data__root=str(dataset), data__workers=1, data__max_broken=0.5, model__num_classes=6)
    run, check, out = tmp_path / "run", tmp_path / "check", tmp_path / "out"
    weights = ("--weights", run / "best.pt")
    videos = dataset / "val" / CLASSES[0]
    done = {
        "train": run_tool("train_net.py", "--cfg", config, "train.epochs=1", "train.batch_size=4"),
        "test": run_tool("test_net.py", "--cfg", config, "test.clips=1", "test.crops=1", "test.split=val"),
        "predict": run_tool("predict.py", *weights, dataset / "val"),
        "csv": run_tool("predict.py", *weights, "--csv", *os.listdir(videos), cwd=videos),
        "json": run_tool("predict.py", *weights, "--json", videos),
        "check": run_tool("check_dataset.py", "--cfg", config, "--workers", 1, "--out", check),
        "prepare": run_tool("prepare_dataset.py", "--cfg", config, "--workers", 1, "--out", out),
        "index": run_tool("index_dataset.py", "--cfg", config),
        "show": run_tool("show_clips.py", "--cfg", config, "--gif", "--num", 2),
        "status": run_tool("run_status.py", run),
    }
    codes = {name: each.returncode for name, each in done.items()}
    assert codes == {name: 2 if name in ("predict", "check") else 0 for name in done}, done
    for name, each in done.items():
        assert not CONTROL.search(each.stdout + each.stderr), (name, each)
    assert_no_formulas(run / "val/predictions.csv", check / "files.csv", check / "problems.csv")
    assert_no_formulas(run / "broken_files.csv", out / "failed.csv")
    for file in ("log.txt", "val/report.html"):
        assert not CONTROL.search((run / file).read_text(encoding="utf-8")), file
    rows = list(csv.DictReader(done["csv"].stdout.splitlines()))
    assert rows[0]["path"] == r"'=\x1b[2J0\n.mp4" and {row["label"] for row in rows} <= {*ESCAPED}
    assert json.loads(done["json"].stdout)["path"] == str(videos / os.listdir(videos)[0])  # for programs: unchanged
    with open(out / "train.csv", newline="") as file:  # a list, which is read back
        assert {row["label"] for row in csv.DictReader(file)} == {*CLASSES}
    assert run_tool("check_dataset.py", "--cfg", config, f"data.root={out}", "--workers", 1).returncode == 0
