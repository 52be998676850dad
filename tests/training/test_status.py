"""``status.json``: what it keeps from start to start, and how long the rest takes."""

import json
import time

import pytest

from video_rs.training import status
from video_rs.training.plan import Plan
from video_rs.training.status import Status, seconds_left, time_line, validations_left


def plan(**changes):
    return Plan(**{"num_samples": 24, "num_steps": 12, "batch_size": 8, "micro_batch": 8, **changes})


@pytest.mark.parametrize("samples, steps, every", [(24, 12, 1), (24, 12, 2), (20, 13, 1), (24, 12, 0), (24, 11, 3)])
def test_validations_left(samples, steps, every):
    run = plan(num_samples=samples, num_steps=steps, val_every=every)
    for step in range(steps + 1):
        assert validations_left(run, step) == sum(run.validates(later) for later in range(step + 1, steps + 1))


def test_time_left_counts_validations_once_one_was_measured(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert seconds_left(plan(), 6, rate=4.0, validation_seconds=10) == 6 * 8 / 4 + 2 * 10
    assert time_line(plan(), 6, 4.0, 3600, now=1793000000.0) == (
        "at 4.0 clips/s the run takes 2h00m more, until Mon 26 Oct 09:33"
    )
    assert time_line(plan(), 6, 4.0, now=1793000000.0).endswith("(validations not counted)")
    assert "not counted" not in time_line(plan(), 12, 4.0)


def test_what_is_written_when(tmp_path):
    told = Status(tmp_path)
    told.trained(1, 0.1, {"loss": 1.0})  # nobody has begun
    assert not (tmp_path / "status.json").exists()
    told.begin(plan(), 0, "go on", processes=2)
    told.trained(1, 1 / 3, {"loss": float("nan"), "clips_per_second": 16.0})
    assert status.read(tmp_path)["step"] == 0  # log steps wait, for each write waits for the disk
    told.checkpoint(1)
    values = json.loads((tmp_path / "status.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert values["train"] == {"step": 1, "loss": None, "clips_per_second": 16.0}
    assert (values["state"], values["step"], values["seconds_left"]) == ("running", 1, 11 * 8 / 16)
    assert values["processes"] == 2 and values["checkpoint"]["step"] == 1
    told.validating()
    assert status.read(tmp_path)["state"] == "validating"
    time.sleep(0.05)
    told.validated(3, 1.0, {"top1": 0.5})
    told.best(3, 1.0, "top1", 0.5)
    told.note(bad_steps=2)
    told.end("failed", "try again", "one\nline")
    values = status.read(tmp_path)
    assert values["validation_seconds"] >= 0.05 and values["best"]["figure"] == 0.5 and values["bad_steps"] == 2
    assert (values["state"], values["error"], values["command"]) == ("failed", "one line", "try again")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_later_start_knows_of_the_earlier_ones(tmp_path):
    first = Status(tmp_path)
    first.begin(plan(), 0, "go on")
    first.validating()
    first.validated(3, 1.0, {"top1": 0.5})
    first.best(3, 1.0, "top1", 0.5)
    first.validated(9, 3.0, {"top1": 0.6})
    first.end("interrupted", "go on")
    before = status.read(tmp_path)["seconds"]
    second = Status(tmp_path)
    second.begin(plan(), 4, "go on")
    time.sleep(0.02)
    second.note(bad_steps=1)
    values = status.read(tmp_path)
    assert values["seconds"] >= before + 0.02 and second.validation_seconds > 0
    assert values["state"] == "running" and values["best"]["step"] == 3
    assert "val" not in values  # it is of a step that is not there any more


def test_the_estimate_is_told_once_a_rate_is_known(tmp_path):
    told = Status(tmp_path)
    assert told.estimate() == ""
    told.begin(plan(), 0, "go on")
    assert told.estimate() == ""
    told.trained(1, 1 / 3, {"clips_per_second": 1.0})  # with the start of the loader
    assert told.estimate() == ""
    told.trained(2, 2 / 3, {"clips_per_second": 8.0})
    assert told.estimate().startswith("at 8.0 clips/s the run takes 10s more, until ")
    assert told.estimate() == ""
    told.checkpoint(2)
    again = Status(tmp_path)
    again.begin(plan(), 2, "go on")
    assert again.estimate().startswith("at 8.0 clips/s the run takes 10s more, until ")
    assert status.read(tmp_path)["seconds_left"] == 10


def test_a_disk_that_refuses_ends_nothing(tmp_path):
    told = Status(tmp_path / "gone")
    (tmp_path / "gone").write_text("a file where the folder was")
    told.begin(plan(), 0, "go on")
    told.end("complete", "test")


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    silent = Status(None)
    silent.begin(plan(), 0, "go on")
    silent.end("complete", "test")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', "\x00\xff"])
def test_what_is_no_status_is_none(tmp_path, content):
    (tmp_path / "status.json").write_text(content, encoding="latin-1")
    assert status.read(tmp_path) == {}
