"""``video-rs status`` of real runs: training, killed, interrupted, complete; and the last lines of a run."""

import json
import os
import signal
import time

import pytest

from tests.integration.test_resume import run, start, wait_for
from video_rs import checkpoint
from video_rs.data.transforms.crops import normalize
from video_rs.training import trainer
from video_rs.training.run_status import look


def ask(run_tool, *arguments):
    done = run_tool("run_status.py", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_from_start_to_end(tiny_config, run_tool, tmp_path):
    folder = tmp_path / "run"
    path = tiny_config(train__epochs=500)
    process = start(path)
    wait_for(process, "step 3/")
    text = ask(run_tool, folder)
    assert text.startswith(f"{folder}: running")  # perhaps in a validation
    assert "; last update" in text
    assert "if it stops: " in text and "/1500 (" in text
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    seen = look(folder, time.time() + 3700)  # perhaps it was in its first validation
    assert seen["verdict"] == "silent"
    assert json.loads(ask(run_tool, folder, "--json"))["step"] == seen["step"]
    assert seen["checkpoint"]["step"] >= 1 and seen["steps"] == 1500

    process = start(path)
    wait_for(process, "resuming at step")
    wait_for(process, "step ")
    os.kill(process.pid, signal.SIGTERM)
    process.communicate()
    assert "preempted" in ask(run_tool, folder)
    other = tiny_config(out=str(tmp_path / "other"), train__max_steps=2)
    assert run(other) == 0
    table = ask(run_tool, tmp_path)
    assert [line.split()[1] for line in table.splitlines()[1:]] == ["complete", "preempted"]
    text = ask(run_tool, tmp_path / "other")
    assert "2/2 (100 %)" in text and "next: " in text and "  best  " in text


def test_half_of_a_run(tiny_config, run_tool, tmp_path):
    """A truncated status, and a run of a version that wrote none."""
    assert run(tiny_config(train__max_steps=2)) == 0
    folder = tmp_path / "run"
    text = (folder / "status.json").read_text()
    (folder / "status.json").write_text(text[: len(text) // 2])
    assert "cannot be read; the status is derived from other files" in ask(run_tool, folder)
    (folder / "status.json").unlink()
    assert "2" in ask(run_tool, folder)


def test_bad_input(run_tool, tmp_path):
    for folder, words in ((tmp_path / "none", "is not a folder"), (tmp_path, "is not a run folder and contains none")):
        done = run_tool("run_status.py", folder)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and words in done.stderr


def test_a_poisoned_file_is_named_at_the_end(tiny_config, tmp_path, capsys, monkeypatch):
    """Its pixels become NaN on the device: the run completes without it and names it."""
    poisoned, seen = 5, {}
    forward = trainer.Trainer._forward_backward

    def spoiling(self, batch, number):
        seen["bad"] = batch["index"] == poisoned
        forward(self, batch, number)

    def to_nan(clips, *arguments, **options):
        spoilt = seen["bad"].view(-1, 1, 1, 1, 1)
        return normalize(clips, *arguments, **options).masked_fill(spoilt, float("nan"))

    monkeypatch.setattr(trainer.Trainer, "_forward_backward", spoiling)
    monkeypatch.setattr(trainer, "normalize", to_nan)
    assert run(tiny_config(train__micro_batch=1, train__epochs=2)) == 0
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    assert all(value.isfinite().all() for part in ("model", "ema") for value in saved[part].values())
    assert len(saved["bad_steps"]) == 2  # once an epoch
    out = capsys.readouterr().out
    [path] = {path for samples in saved["bad_steps"].values() for path, _, _ in samples}
    assert f"{path} (in 2 of them)" in out and "bad_steps.csv" in out
