"""``video-rs status`` on real run folders: of processes that live, were killed, are elsewhere, or long gone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from video_rs.cli import common
from video_rs.cli.main import dispatch
from video_rs.cli.status import page, table
from video_rs.errors import UserError
from video_rs.training import sight, status
from video_rs.training.sight import look

ROOT = Path(__file__).parents[2]
RUN = """
import sys, time
from pathlib import Path
from video_rs.training.plan import Plan
from video_rs.training.status import Status

told = Status(Path(sys.argv[1]))
told.begin(Plan(num_samples=24, num_steps=120, batch_size=8, micro_batch=8), 0, "video-rs train --cfg x.yaml")
told.trained(30, 10.0, {"step": 30, "accuracy": 0.5, "loss": 1.5, "clips_per_second": 8.0})
told.checkpoint(30)
print("begun", flush=True)
time.sleep(60)
"""


@pytest.fixture
def alive(tmp_path):
    """A process that trains in ``run``, as far as its folder tells."""
    command, environment = [sys.executable, "-c", RUN, "run"], {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "begun\n"
    yield process
    process.kill()
    process.wait()


def change(folder, **values):
    (folder / "status.json").write_text(json.dumps({**status.read(folder), **values}))


def old_run(folder, *, last="step 4/6  epoch 1.33  loss 1.0", val=3, age=0.0):
    """As a version without a status left it."""
    folder.mkdir(parents=True)
    lines = [{"kind": "train", "step": step, "epoch": step / 3, "clips_per_second": 4.0} for step in (1, 2, 3, 4)]
    lines.append({"kind": "val", "step": val, "epoch": val / 3, "top1": 0.25, "top5": 1.0, "loss": 2.0})
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "train", "st'
    (folder / "metrics.jsonl").write_text(text)
    (folder / "log.txt").write_text(f"2026-01-01 00:00:00 starting at step 0 of 6\n2026-01-01 00:00:01 {last}\n")
    (folder / "config.yaml").write_text("train: {batch_size: 8}\n")
    (folder / "last.pt").write_bytes(b"x" * 1500)
    for path in folder.iterdir():
        os.utime(path, (time.time() - age,) * 2)
    return folder


def test_a_run_that_lives_then_is_killed(alive, tmp_path):
    folder = tmp_path / "run"
    seen = look(folder)
    assert seen.verdict == "running" and seen.text == f"running here, process {alive.pid}"
    assert seen.age < 30 and (seen.step, seen.steps) == (30, 120) and 60 < seen.seconds_left <= 90 * 8 / 8
    assert page(seen)[-1] == f"if it stops: cd {tmp_path} && video-rs train --cfg x.yaml"
    os.kill(alive.pid, signal.SIGKILL)
    until = time.time() + 10
    while look(folder).verdict == "running" and time.time() < until:  # as a zombie it is gone, too
        time.sleep(0.05)
    seen = look(folder)
    assert seen.verdict == "stopped" and f"process {alive.pid} is gone" in seen.text and seen.seconds_left is None
    assert page(seen)[-1].startswith("next: cd ")


def test_an_id_that_was_used_again(alive, tmp_path):
    change(tmp_path / "run", pid=os.getpid())
    assert look(tmp_path / "run").verdict == "stopped"


def test_a_process_that_hangs(alive, tmp_path):
    seen = look(tmp_path / "run", time.time() + 7200)
    assert seen.verdict == "running" and any("it may hang" in line for line in seen.warnings)


@pytest.mark.parametrize(
    "values, silent, verdict",
    [
        ({"log_seconds": 10.0}, 60, "running"),
        ({"log_seconds": 10.0}, 200, "stopped"),
        ({"log_seconds": 100.0}, 400, "running"),
        ({}, 1000, "running"),  # has not logged twice yet
        ({}, 2000, "stopped"),
        ({"log_seconds": 10.0, "state": "validating"}, 2000, "running"),
        ({"log_seconds": 10.0, "state": "validating", "validation_seconds": 100.0}, 2000, "stopped"),
        ({"log_seconds": 10.0, "state": "complete"}, 2000, "complete"),
    ],
)
def test_another_machine_is_judged_by_its_silence(alive, tmp_path, values, silent, verdict):
    folder = tmp_path / "run"
    change(folder, host="node17", **values)
    seen = look(folder, status.read(folder)["time"] + silent)
    assert seen.verdict == verdict
    assert ("node17" in seen.text) == (verdict != "complete")


def test_another_container_of_this_name_is_another_machine(alive, tmp_path):
    alive.kill()
    change(tmp_path / "run", namespace="pid:[1]")
    assert look(tmp_path / "run").text == f"running on {socket.gethostname()}"


def test_a_run_that_failed(alive, tmp_path):
    change(tmp_path / "run", state="failed", error="the disk is full", broken_files=2, bad_steps=3)
    seen = look(tmp_path / "run")
    lines = page(seen)
    assert lines[0].startswith(f"{tmp_path / 'run'}: failed: the disk is full; ") and lines[0].endswith(" ago")
    assert sum(line.startswith("  warning") for line in lines) == 3  # and there is no checkpoint


def test_a_run_that_was_moved(alive, tmp_path, capsys):
    (tmp_path / "run" / "config.yaml").write_text("train: {batch_size: 8}\n")
    change(tmp_path / "run", state="failed")
    assert dispatch(["status", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.endswith("&& video-rs train --cfg x.yaml\n")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert dispatch(["status", str(moved)]) == 0
    assert capsys.readouterr().out.endswith(f" --cfg {moved}/config.yaml out={moved}\n")


def test_the_newest_checkpoint(alive, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir()
    for step, size in ((9, 10), (30, 2500), (7, 10)):
        (folder / "checkpoints" / f"step-{step:08}.pt").write_bytes(b"x" * size)
    (folder / "checkpoints" / ".step-00000040.pt.tmp").write_bytes(b"half")
    newest = look(folder).checkpoint
    assert (newest["step"], newest["bytes"], newest["kept"]) == (30, 2500, 3)
    assert any("step 30, 0 s ago, 2.5 kB, " in line for line in page(look(folder)))
    (folder / "checkpoints" / "step-00000050.pt").touch()
    assert any("is empty" in line for line in look(folder).warnings)


def test_metrics_are_newer_than_the_status(alive, tmp_path):
    line = {"kind": "train", "step": 42, "epoch": 14.0, "loss": float("nan"), "accuracy": 0.75}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    seen = look(tmp_path / "run")
    assert (seen.step, seen.epoch) == (42, 14.0)
    assert "  training    accuracy 75.00 %" in page(seen)


@pytest.mark.parametrize(
    "options, verdict",
    [
        ({"age": 3600}, "stopped"),
        ({"age": 5}, "running"),
        ({"val": 6, "age": 3600}, "complete"),
        ({"last": "interrupted; the state after step 4 is saved. Resume with: x", "age": 5}, "interrupted"),
    ],
)
def test_runs_of_earlier_versions(tmp_path, options, verdict):
    seen = look(old_run(tmp_path / "old", **options))
    assert (seen.verdict, seen.step) == (verdict, options.get("val", 4))
    assert seen.steps == 6 and seen.checkpoint["bytes"] == 1500 and seen.clips_per_second == 4.0
    assert seen.seconds_left == (2 * 8 / 4 if verdict == "running" else None)
    assert any(line.strip().startswith("validation") and "top-1 25.00 %" in line for line in page(seen))


@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl", "log.txt", "config.yaml", "broken_files.csv"])
@pytest.mark.parametrize("content", ["", "{", '{"state": ["x"], "step": "y", "train": 3}\n', "\x00\xff\n[1]\n", "3"])
def test_half_written_files(tmp_path, capsys, name, content):
    folder = old_run(tmp_path / "old")
    (folder / name).write_text(content, encoding="latin-1")
    assert dispatch(["status", str(folder)]) == 0
    assert dispatch(["status", "--json", str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out


@pytest.mark.parametrize("name", sight.SIGNS)
def test_one_file_is_enough(tmp_path, capsys, name):
    (tmp_path / name).touch()
    assert dispatch(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}: ")


def test_a_folder_of_runs(alive, tmp_path, capsys):
    old_run(tmp_path / "old", val=6)
    (tmp_path / "no_run").mkdir()
    assert dispatch(["status", str(tmp_path)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:3] for row in rows] == [
        [str(tmp_path / "old"), "complete", "6/6"],
        [str(tmp_path / "run"), "running", "30/120"],
    ]
    assert head == table([look(tmp_path / name) for name in ("old", "run")])[0]
    assert dispatch(["status", "--json", str(tmp_path)]) == 0
    objects = [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]
    assert [(run["verdict"], run["step"]) for run in objects] == [("complete", 6), ("running", 30)]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: None])
def test_what_is_no_run(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(UserError, match="x is no"):
        dispatch(["status", str(tmp_path / "x")])


def test_the_command_needs_no_torch(tmp_path):
    old_run(tmp_path / "old")
    code = (
        "import sys; from video_rs.cli.main import dispatch; dispatch(['status', 'old']); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.stdout.endswith("False\n"), done.stderr
    script = ROOT / "tools" / common.SCRIPTS["status"]
    done = subprocess.run([sys.executable, script, "old"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].endswith("tools/train_net.py --cfg old/config.yaml out=old"), done.stderr
