"""The log of a run: each step once, TensorBoard, Weights & Biases, and nothing on other ranks."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from video_rs.errors import UserError
from video_rs.training.log import RunLog
from video_rs.training.schedule import Schedule


def steps_of(folder, kind="train"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["kind"] == kind]


def test_a_run_that_is_resumed_has_each_step_once(tmp_path):
    log = RunLog(tmp_path, 0, 6)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 9.0)):
        log.metrics("train", step, step, {"loss": loss})
    log.metrics("val", 3, 3.0, {"top1": 0.5})
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.rename(file.with_name("events.out.tfevents.0000000001"))  # names are in order if a second lies between
    log = RunLog(tmp_path, 1, 6)
    log.metrics("train", 2, 2, {"loss": 1.0})
    log.close()
    assert steps_of(tmp_path) == [1, 2] and steps_of(tmp_path, "val") == []
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 3.0), (2, 1.0)]


def test_a_start_without_news_leaves_no_events(tmp_path):
    log = RunLog(tmp_path, 6, 6, 6)
    log.info("is complete")
    log.close()
    assert not (tmp_path / "tensorboard").exists() and "is complete" in (tmp_path / "log.txt").read_text()


def test_silence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    log = RunLog.silent()
    assert isinstance(log, RunLog)
    log.info("hello")
    log.bar.advance()
    log.bar.note("loss")
    schedule = Schedule(num_samples=24, num_steps=6, batch_size=8, micro_batch=8)
    log.trained(schedule, 1, {"loss": 1.0, "lr": 0.1, "clips_per_second": 8.0, "data_wait": 0.0})
    log.validated(schedule, 3, {"top1": 0.5, "loss": 1.0}, True)
    log.close()
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""
    called = {"silent", "trained", "validated"}  # by way of the others
    faces = {name for name in dir(RunLog) if not name.startswith("_")} - called
    assert all(name in vars(type(log)) for name in faces)  # whatever is added is silent, too


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_disk_ends_no_run(tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log = RunLog(tmp_path, 0, 2)
    log.info("one")
    log.info("two")
    log.metrics("train", 1, 1.0, {"loss": 1.0})
    log.close()
    assert capsys.readouterr().out == "one\ntwo\n" and steps_of(tmp_path) == [1]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_that_is_not_installed(tmp_path):
    with pytest.raises(UserError, match=r"pip install 'video-rs\[wandb\]'"):
        RunLog(tmp_path, 0, 2, wandb="project")


WANDB = """
import sys
from pathlib import Path
from video_rs.cli.common import run
from video_rs.training.log import RunLog
from video_rs.training.schedule import Schedule

def main(argv):
    log = RunLog(Path("run"), int(argv[0]), 4, wandb="project", config={"lr": 0.1})
    print("id", log._wandb._run.id if log._wandb._run else None)
    for step in range(int(argv[0]) + 1, 4):
        log.metrics("train", step, step / 2, {"loss": 1 / step})
        if "break" in argv and step == 1:
            log._wandb._run.finish()  # what comes after fails inside wandb
    log.close()
    print("the run went on to its end")

sys.exit(run(main, sys.argv[1:]))
"""


def with_wandb(folder, *arguments, **environment):
    pytest.importorskip("wandb")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    home = {"HOME": str(folder), "NETRC": str(folder / "none"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", WANDB, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**clean, **home, **environment},
        timeout=120,
    )


@pytest.mark.slow
def test_wandb_goes_on_with_its_run(tmp_path):
    first = with_wandb(tmp_path, "0", WANDB_MODE="offline")
    assert first.returncode == 0 and "Weights & Biases: offline, in run/wandb/" in first.stdout, first.stderr
    again = with_wandb(tmp_path, "2", WANDB_MODE="offline")
    (identity,) = {line for line in (first.stdout + again.stdout).splitlines() if line.startswith("id ")}
    kept = (tmp_path / "run" / "wandb_id").read_text().strip()
    assert identity == f"id {kept}"
    files = list((tmp_path / "run").glob(f"wandb/offline-run-*/run-{kept}.wandb"))
    assert files and all(b"train/loss" in path.read_bytes() for path in files)


@pytest.mark.slow
def test_wandb_that_fails_later(tmp_path):
    done = with_wandb(tmp_path, "0", "break", WANDB_MODE="offline")
    assert done.returncode == 0 and "the run went on to its end" in done.stdout, done.stderr
    assert done.stdout.count("Weights & Biases failed (") == 1, done.stdout


@pytest.mark.slow
def test_wandb_that_does_not_know_us(tmp_path):
    done = with_wandb(tmp_path, "0")
    assert done.returncode == 2 and "wandb login" in done.stderr, (done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.slow
def test_wandb_without_a_network(tmp_path):
    unreachable = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "5"}
    done = with_wandb(tmp_path, "0", **unreachable)
    assert done.returncode == 0 and "the run went on to its end" in done.stdout, (done.stdout, done.stderr)
    assert "Weights & Biases failed (" in done.stdout
