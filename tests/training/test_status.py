"""``status.json``: values kept over restarts, and the time left."""

import json
import time

import pytest

from video_rs.terminal import duration
from video_rs.training import run_status as status
from video_rs.training.log import time_line, train_line
from video_rs.training.run_status import Status, metrics_text, read_metrics
from video_rs.training.schedule import Schedule


def schedule(**changes):
    return Schedule(**{"num_samples": 24, "num_steps": 12, "batch_size": 8, "micro_batch": 8, **changes})


@pytest.mark.parametrize("samples, steps, every", [(24, 12, 1), (24, 12, 2), (20, 13, 1), (24, 12, 0), (24, 11, 3)])
def test_validations_left(samples, steps, every):
    run = schedule(num_samples=samples, num_steps=steps, val_every=every)
    for step in range(steps + 1):
        assert run.validations_left(step) == sum(run.validates(later) for later in range(step + 1, steps + 1))


def test_time_left_counts_validations_once_one_was_measured(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert schedule().seconds_left(6, rate=4.0, validation_seconds=10) == 6 * 8 / 4 + 2 * 10
    assert schedule().seconds_left(6, rate=0.0) == float("inf")
    assert time_line(schedule(), 6, 4.0, 3600, now=1793000000.0) == (
        "at 4.0 clips/s the run takes 2h00m more, until Mon 26 Oct 09:33"
    )
    assert time_line(schedule(), 6, 4.0, now=1793000000.0).endswith("(validations not counted)")
    assert "not counted" not in time_line(schedule(), 12, 4.0)


@pytest.mark.parametrize(("seconds", "text"), [(5, "5s"), (75, "1m15s"), (7500, "2h05m")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_lines():
    metrics = {"loss": 2.1114, "accuracy": 0.109, "lr": 0.01331, "clips_per_second": 9.7, "data_wait": 0.04}
    assert train_line(6, schedule(), metrics, 231) == (
        "step 6/12  epoch 2.00  loss 2.1114  accuracy 10.9 %  lr 0.01331  9.7 clips/s  waiting for data 4 %  3m51s left"
    )
    assert (
        metrics_text({"top1": 0.875, "top5": 0.99, "loss": 0.4321, "step": 3})
        == "top-1 87.50 %  top-5 99.00 %  loss 0.4321"
    )
    assert metrics_text({"map": 0.5, "hit1": None, "loss": None}) == "mAP 50.00 %"


def test_what_is_written_when(tmp_path):
    writer = Status(tmp_path)
    writer.trained(1, 10.0)  # nothing has begun
    assert not (tmp_path / "status.json").exists()
    writer.begin(0, 12, "resume")
    writer.trained(1, float("inf"))
    assert status.read(tmp_path)["step"] == 0  # log steps wait, for each write waits for the disk
    writer.validating()
    values = json.loads((tmp_path / "status.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert (values["state"], values["step"], values["seconds_left"]) == ("validating", 1, None)
    time.sleep(0.03)
    writer.validated(3)
    writer.trained(4, 10.0)
    time.sleep(0.05)
    writer.trained(5, 9.0)
    writer.end("failed", "try again", "one\nline")
    values = status.read(tmp_path)
    assert (values["state"], values["error"], values["step"]) == ("failed", "one line", 5)
    assert 0.03 <= values["validation_seconds"] < 5 and 0.05 <= values["log_seconds"] < 5
    assert values["command"].startswith("cd ") and values["command"].endswith(" && try again")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_the_end_has_the_error_of_a_worker_and_the_step_of_the_checkpoint(tmp_path):
    writer = Status(tmp_path)
    writer.begin(0, 12, "resume")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000006.pt").touch()
    writer.end(
        "failed", "resume", "Caught KeyError in DataLoader worker process 0.\nTraceback (most ...\nKeyError: 'x'\n"
    )
    values = status.read(tmp_path)
    assert (values["step"], values["error"]) == (6, "KeyError: 'x'")


def test_the_first_log_line_ends_the_long_silence_before_it(tmp_path):
    """Its interval is the time since the start, which is longer than later intervals."""
    writer = Status(tmp_path)
    writer.begin(0, 12, "resume")
    time.sleep(0.03)
    writer.trained(1, 10.0)
    assert 0.03 <= writer.values["log_seconds"] < 5


def test_a_later_start_knows_of_the_earlier_ones(tmp_path):
    first = Status(tmp_path)
    first.begin(0, 12, "resume")
    first.validating()
    time.sleep(0.03)
    first.validated(3)
    first.end("interrupted", "resume")
    before = status.read(tmp_path)["seconds"]
    second = Status(tmp_path)
    second.begin(4, 12, "resume")
    time.sleep(0.02)
    second.validating()
    values = status.read(tmp_path)
    assert values["seconds"] >= before + 0.02 and second.validation_seconds >= 0.03
    assert (values["state"], values["step"], second.first_step) == ("validating", 4, 4)


def test_the_best_validation_is_by_accuracy_then_loss(tmp_path):
    found = [(3, 0.5, 1.0), (6, 0.75, 0.9), (9, 0.75, 0.8), (12, 0.6, 0.1)]
    lines = [{"kind": "val", "step": step, "epoch": step / 3, "top1": top1, "loss": loss} for step, top1, loss in found]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = read_metrics(tmp_path)
    assert metrics["train"] == {} and metrics["val"]["step"] == 12
    assert (metrics["best"]["step"], metrics["best"]["name"], metrics["best"]["value"]) == (9, "top1", 0.75)


def test_a_disk_that_refuses_ends_nothing(tmp_path):
    writer = Status(tmp_path / "gone")
    (tmp_path / "gone").write_text("a file where the folder was")
    writer.begin(0, 12, "resume")
    writer.end("complete", "test")


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    silent = Status(None)
    silent.begin(0, 12, "resume")
    silent.end("complete", "test")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', "\x00\xff", '{"state": 1, "step": 1}'])
def test_what_is_no_status_is_none(tmp_path, content):
    (tmp_path / "status.json").write_text(content, encoding="latin-1")
    assert status.read(tmp_path) == {}
