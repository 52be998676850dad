"""``video-rs status`` on folders of runs that train, are silent, have ended, or are of an earlier version."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from video_rs.cli import common
from video_rs.cli.main import dispatch
from video_rs.cli.status import cells, page
from video_rs.errors import UserError
from video_rs.training import run_status as status
from video_rs.training.run_status import Status, look

ROOT = Path(__file__).parents[2]
VERSION_0_1 = {
    **{"format": 1, "state": "running", "error": "", "host": "node17", "namespace": "pid:[4026531836]", "pid": 7},
    **{"pid_start": 123, "processes": 1, "first_step": 0, "step": 30, "steps": 120, "epoch": 10.0, "batch_size": 8},
    **{
        "broken_files": 0,
        "bad_steps": 0,
        "rollbacks": 1,
        "command": "video-rs train --cfg x.yaml",
        "cwd": "/else where",
    },
    **{"clips_per_second": 8.0, "seconds_left": 90.0, "train": {"step": 30, "loss": None}, "log_seconds": 10.0},
}


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has trained 30 of 120 steps."""
    folder = tmp_path / "run"
    folder.mkdir()
    line = {"kind": "train", "step": 30, "epoch": 10.0, "accuracy": 0.5, "loss": 1.5, "clips_per_second": 8.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    writer = Status(folder)
    writer.begin(0, 120, "video-rs train --cfg x.yaml")
    writer.trained(30, 90.0)
    writer.validating()
    writer.end("running", "video-rs train --cfg x.yaml")
    return folder


def change(path, /, **values):
    (path / "status.json").write_text(json.dumps({**status.read(path), **values}))


def test_a_run_that_trains(run, monkeypatch):
    seen = look(run)
    assert (seen["verdict"], seen["text"], seen["step"], seen["steps"]) == ("running", "running", 30, 120)
    assert seen["age"] < 30 and 60 < seen["seconds_left"] <= 90
    assert page(seen)[-1] == "if it stops: video-rs train --cfg x.yaml"
    here = os.getcwd()
    monkeypatch.chdir(run)
    assert page(look(run))[-1] == f"if it stops: cd {here} && video-rs train --cfg x.yaml"


@pytest.mark.parametrize(
    "values, age, verdict",
    [
        ({"log_seconds": 10.0}, 110, "running"),
        ({"log_seconds": 10.0}, 130, "silent"),
        ({"log_seconds": 100.0}, 490, "running"),
        ({"log_seconds": 100.0}, 510, "silent"),
        ({"log_seconds": None}, 1790, "running"),  # has not logged yet
        ({"log_seconds": None}, 1810, "silent"),
        ({"log_seconds": 10.0, "state": "validating"}, 3590, "running"),
        ({"log_seconds": 10.0, "state": "validating"}, 3610, "silent"),
        ({"log_seconds": 10.0, "state": "validating", "validation_seconds": 100.0}, 290, "running"),
        ({"log_seconds": 10.0, "state": "validating", "validation_seconds": 100.0}, 310, "silent"),
        ({"log_seconds": 10.0, "state": "validating", "validation_seconds": 1.0}, 110, "running"),
        ({"log_seconds": 10.0, "state": "complete"}, 9999, "complete"),
    ],
)
def test_a_run_is_judged_by_its_age(run, values, age, verdict):
    change(run, **values)
    seen = look(run, status.read(run)["time"] + age)
    assert seen["verdict"] == verdict and (seen["seconds_left"] is None) == (verdict != "running")
    lines = page(seen)
    assert lines[-1].startswith("if it stops: " if verdict == "running" else "next: ")
    assert ("silent, probably stopped" in lines[0]) == (verdict == "silent")


@pytest.mark.parametrize("value", ["x", [1], 1e999, 10**400], ids=["text", "list", "infinite", "huge"])
@pytest.mark.parametrize("key", ["seconds_left", "log_seconds", "validation_seconds", "time", "steps", "step"])
def test_values_of_a_wrong_type(run, key, value):
    change(run, **{key: value}, state="validating")
    seen = look(run)
    assert page(seen) and seen["step"] == 30 and any("cannot be read" in line for line in seen["warnings"])


@pytest.mark.parametrize("key", ["step", "epoch", "top1", "loss"])
def test_metrics_of_a_wrong_type(run, key):
    line = {"kind": "val", "step": 42, "epoch": 14.0, "loss": 0.5, "top1": 0.75}
    lines = [line, {**line, key: "x"}, {**line, key: [1]}, {**line, key: 1e999}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    seen = look(run)
    assert page(seen) and seen["best"]["value"] == 0.75


def test_a_folder_that_vanishes(tmp_path):
    assert look(tmp_path / "gone")["verdict"] == "silent"


def test_a_run_that_failed(run):
    change(run, state="failed", error="the disk is full")
    (run / "broken_files.csv").write_text("path,reason,times_replaced\na.mp4,empty,1\nb.mp4,empty,2\n")
    (run / "bad_steps.csv").write_text("step,path,epoch,copy\n7,a.mp4,0,0\n7,b.mp4,0,0\n")
    lines = page(look(run))
    assert lines[0].startswith(f"{run}: failed: the disk is full; ") and lines[0].endswith(" ago")
    warnings = [line for line in lines if line.startswith("  warning")]
    for text, line in zip(("2 files could not be read", "1 non-finite steps", "no checkpoint"), warnings, strict=True):
        assert text in line


def test_a_run_that_was_moved(run, capsys):
    change(run, state="failed")
    assert dispatch(["status", str(run)]) == 0
    assert capsys.readouterr().out.endswith("next: video-rs train --cfg x.yaml\n")
    moved = run.rename(run.parent / "moved")
    assert dispatch(["status", str(moved)]) == 0
    assert capsys.readouterr().out.endswith(f" --cfg {moved}\n")


def test_the_newest_checkpoint(run):
    (run / "checkpoints").mkdir()
    for step, size in ((9, 10), (30, 2500), (7, 10)):
        (run / "checkpoints" / f"step-{step:08}.pt").write_bytes(b"x" * size)
    (run / "checkpoints" / ".step-00000040.pt.tmp").write_bytes(b"half")
    newest = look(run)["checkpoint"]
    assert (newest["step"], newest["bytes"]) == (30, 2500)
    assert any("step 30, 0 s ago, 2.5 kB, " in line for line in page(look(run)))
    (run / "checkpoints" / "step-00000050.pt").touch()
    assert any("(empty: the previous one" in line for line in page(look(run)))


def test_metrics_are_newer_than_the_status(run):
    line = {"kind": "train", "step": 42, "epoch": 14.0, "loss": float("nan"), "accuracy": 0.75}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    seen = look(run)
    assert (seen["step"], seen["epoch"]) == (42, 14.0)
    assert "  training    accuracy 75.00 %" in page(seen)


@pytest.mark.parametrize("age, verdict", [(20, "running"), (200, "silent")])
def test_a_run_of_version_0_1(run, age, verdict):
    (run / "status.json").write_text(json.dumps({**VERSION_0_1, "time": 1.7e9, "folder": str(run.resolve())}))
    (run / "last.pt").write_bytes(b"x" * 1500)
    seen = look(run, 1.7e9 + age)
    assert (seen["verdict"], seen["step"], seen["steps"], seen["checkpoint"]["bytes"]) == (verdict, 30, 120, 1500)
    assert seen["seconds_left"] == (70 if verdict == "running" else None)
    assert seen["command"] == "cd '/else where' && video-rs train --cfg x.yaml" and not seen["warnings"]


@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl", "log.txt", "config.yaml", "broken_files.csv"])
@pytest.mark.parametrize("content", ["", "{", '{"state": ["x"], "step": "y", "train": 3}\n', "\x00\xff\n[1]\n", "3"])
def test_half_written_files(run, capsys, name, content):
    (run / name).write_text(content, encoding="latin-1")
    assert dispatch(["status", str(run)]) == 0
    assert dispatch(["status", "--json", str(run)]) == 0
    assert str(run) in capsys.readouterr().out


@pytest.mark.parametrize("name", status.SIGNS)
def test_one_file_is_enough(tmp_path, capsys, name):
    (tmp_path / name).touch()
    assert dispatch(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}: ")


def test_a_folder_of_runs(run, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    writer = Status(other)
    writer.begin(6, 6, "train")
    writer.end("complete", "test")
    (tmp_path / "no_run").mkdir()
    assert dispatch(["status", str(tmp_path)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:4] for row in rows] == [
        [str(other), "complete", "6/6", "(100"],
        [str(run), "running", "30/120", "(25"],
    ]
    assert head.split()[:4] == ["run", "state", "step", "epoch"] == list(cells(look(run)))[:4]
    assert dispatch(["status", "--json", str(tmp_path)]) == 0
    objects = [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]
    assert [(each["verdict"], each["step"]) for each in objects] == [("complete", 6), ("running", 30)]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: None])
def test_what_is_no_run(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(UserError, match="x is no"):
        dispatch(["status", str(tmp_path / "x")])


def test_the_command_needs_no_torch(run):
    change(run, folder="/elsewhere")
    code = (
        "import sys; from video_rs.cli.main import dispatch; dispatch(['status', 'run']); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    where = {"cwd": run.parent, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], **where, env=environment)
    assert done.stdout.endswith("False\n"), done.stderr
    script = ROOT / "tools" / common.SCRIPTS["status"]
    done = subprocess.run([sys.executable, script, "run"], **where)
    assert done.stdout.splitlines()[-1].endswith("tools/train_net.py --cfg run"), done.stderr
