"""Lists, JSON files and numbers that would take endless recursion or conversion are errors of one line."""

import time

import pytest

from video_rs.cli.common import run
from video_rs.cli.main import dispatch

LONG = "9" * 5000
DEEP = "[" * 200_000
NESTED = "[" * 900 + "]" * 900
OBJECTS = '{"a":' * 100_000
VALUES = {"a long number": LONG, "deep lists": DEEP, "nested lists": NESTED, "deep objects": OBJECTS}


def refused(capsys, *argv):
    """Run a command that must end with exit code 2 and one line, in 2 seconds; return the line."""
    start = time.process_time()
    code = run(dispatch, [*map(str, argv)])
    out, err = capsys.readouterr()
    assert code == 2 and time.process_time() - start < 2 and err.count("\n") == 1 and len(err) < 600, (code, err)
    assert "sys." not in err and "recursion" not in err
    return err


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", VALUES)
def test_deep_and_long_values_in_lists(tmp_path, capsys, name):
    value = VALUES[name]
    texts = {
        "a.csv": f"path,label\na.mp4,{value}\nb.mp4,1\n",
        "b.csv": f"path,label,num_frames\na.mp4,1,{value}\n",
        "a.txt": f"a.mp4 {value}\nb.mp4 1\n",
        "a.jsonl": f'{{"path": "a.mp4", "label": {value}}}\n',
        "ssv2/train.json": f'[{{"id": "1", "template": "x", "x": {value}}}]',
        "ssv2_names/labels.json": f'{{"x": {value}}}',
    }
    write(tmp_path / "ssv2/labels.json", '{"x": "0"}')
    write(tmp_path / "ssv2_names/train.json", '[{"id": "1", "template": "x"}]')
    for file, text in texts.items():
        place = write(tmp_path / file, text).with_name("train.json") if "ssv2" in file else write(tmp_path / file, text)
        settings = ["data.root=", f"data.train={place}", f"data.val={place}", "--out", tmp_path / "out"]
        assert str(place.parent) in refused(capsys, "check", "--cfg", "motion_rs.yaml", *settings)


@pytest.mark.parametrize("name", VALUES)
def test_deep_and_long_values_in_files_of_commands(tmp_path, capsys, name):
    """The status of a run is then derived from other files."""
    line = '{"kind": "val", "step": 3, "top1": 0.5}\n'
    for file in ("status.json", "metrics.jsonl"):
        write(tmp_path / file, VALUES[name] + "\n" + line)
        assert run(dispatch, ["status", str(tmp_path)]) == 0
    assert "top-1 50.00 %" in capsys.readouterr().out
    write(tmp_path / "out/settings.json", VALUES[name])
    write(tmp_path / "data/train/a/x.mp4", "")
    write(tmp_path / "data/val/a/y.mp4", "")
    prepare = ["prepare", "--cfg", "motion_rs.yaml", f"data.root={tmp_path / 'data'}", "--out", tmp_path / "out"]
    assert "settings.json is damaged" in refused(capsys, *prepare)
    write(tmp_path / "motion/motion.json", VALUES[name])
    assert "motion.json is damaged" in refused(capsys, "make-motion", "--out", tmp_path / "motion")


@pytest.mark.parametrize("name", VALUES)
def test_deep_and_long_values_in_class_names(tmp_path, capsys, name):
    file = write(tmp_path / "names.json", VALUES[name])
    write(tmp_path / "data/train/a/x.mp4", "")
    settings = [f"data.root={tmp_path / 'data'}", f"data.class_names={file}", "--out", tmp_path / "out"]
    assert str(file) in refused(capsys, "check", "--cfg", "motion_rs.yaml", *settings)


def test_long_numbers_in_arguments(tmp_path, capsys):
    for argv in (
        ["predict", "--weights", "x.pt", "--top-k", LONG, "a.mp4"],
        ["predict", "--weights", "x.pt", "--every", LONG, "a.mp4"],
        ["check", "--cfg", "motion_rs.yaml", f"data.root={tmp_path}/{{0..{LONG}}}.tar"],
        ["make-motion", "--out", tmp_path / "m", "--seed", LONG[:4000]],
        ["make-motion", "--out", tmp_path / "m", "--size", LONG],
    ):
        refused(capsys, *argv)
