"""Checkpoints are written in the background, and the newest valid one is found."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from tests.commands import full_disk
from video_rs import checkpoint
from video_rs.errors import MachineError, UserError
from video_rs.training import run_folder
from video_rs.training.checkpointer import Checkpointer
from video_rs.training.run_folder import newest_before, newest_valid, remove_unfinished, verify


def state(step, size=1000):
    run = {"format": 1, "config": {}, "model_args": {"name": "none"}, "data_config": {}, "optimizer": {}}
    return {**run, "step": step, "model": {"w": torch.full((size,), float(step))}, "ema": None}


@pytest.fixture
def saved(tmp_path):
    """A run folder with checkpoints of steps 1 to 4; the newest three are kept."""
    with Checkpointer(tmp_path, keep=3) as checkpointer:
        for step in range(1, 5):
            checkpointer.save(state(step), step)
    return tmp_path


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_newest_are_kept_and_last_is_one_of_them(saved):
    assert names(saved) == [f"step-{step:08d}.pt" for step in (2, 3, 4)]
    assert (saved / "last.pt").samefile(saved / "checkpoints" / "step-00000004.pt")
    found = newest_valid(saved)
    assert (found.state["step"], found.skipped) == (4, [])


def test_what_is_saved_is_the_state_of_that_moment(tmp_path):
    value, inner = torch.zeros(1_000_000), {"list": [1, torch.zeros(3)]}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save({**state(1), "model": {"w": value}, "extra": inner}, 1)
        value.fill_(7)
        inner["list"][1].fill_(7)
        inner["list"].append(2)
    found = newest_valid(tmp_path).state
    assert not found["model"]["w"].any() and not found["extra"]["list"][1].any() and len(found["extra"]["list"]) == 2


def test_the_caller_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    free, original = threading.Event(), checkpoint.save

    def slow(path, content):
        assert free.wait(10)
        original(path, content)

    monkeypatch.setattr(checkpoint, "save", slow)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state(1), 1)
        checkpointer.poll()
        assert not (tmp_path / "last.pt").exists()
        free.set()
        checkpointer.wait()
        assert (tmp_path / "last.pt").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other", "no_optimizer"])
def test_a_damaged_one_is_passed_over(saved, damage):
    path = saved / "checkpoints" / "step-00000004.pt"
    content = bytearray(path.read_bytes())
    if damage == "flipped":  # within the numbers, where torch.load does not look
        place = content.index(torch.full((10,), 4.0).numpy().tobytes()) + 100
        content[place] ^= 1
        path.write_bytes(content)
        assert torch.load(path)["model"]["w"].shape == (1000,)
    elif damage == "no_optimizer":
        checkpoint.save(path, {key: value for key, value in state(4).items() if key != "optimizer"})
    else:
        path.write_bytes({"cut": content[:-500], "empty": b"", "other": b"hello"}[damage])
    found = newest_valid(saved)
    assert found.state["step"] == 3
    assert path in [skipped for skipped, _ in found.skipped]


def test_none_is_valid(saved):
    for path in (saved / "checkpoints").iterdir():
        os.truncate(path, 100)
    with pytest.raises(
        UserError, match="step-00000004.pt is truncated or damaged.*older ones.*another out=.*"
    ) as error:
        newest_valid(saved)
    assert "best.pt" not in str(error.value)
    checkpoint.save(saved / "best.pt", state(3))
    with pytest.raises(UserError, match="train.init_from=.*best.pt"):
        newest_valid(saved)


def test_other_files_beside_the_checkpoints_are_left_alone(saved):
    copy = saved / "checkpoints" / "step-00000003-copy.pt"
    copy.write_bytes(b"a person's backup")
    with Checkpointer(saved, keep=1) as checkpointer:
        checkpointer.save(state(5), 5)
    assert names(saved) == ["step-00000003-copy.pt", "step-00000005.pt"]
    assert newest_valid(saved).state["step"] == 5 and newest_before(saved, 5) is None


def test_a_disk_that_fails_while_a_checkpoint_is_verified(saved, monkeypatch):
    """A checkpoint that cannot be read now may be intact: no older one is used instead."""

    def fail(archive):
        raise OSError(number, "it fails")

    number = errno.EIO
    monkeypatch.setattr(run_folder.zipfile.ZipFile, "testzip", fail)
    with pytest.raises(MachineError, match="step-00000004.pt cannot be read"):
        newest_valid(saved)
    number = errno.EACCES
    with pytest.raises(UserError, match="step-00000004.pt cannot be read"):
        newest_valid(saved)


def test_a_run_of_an_earlier_version(tmp_path):
    assert newest_valid(tmp_path) is None
    checkpoint.save(tmp_path / "last.pt", state(9))
    assert newest_valid(tmp_path).state["step"] == 9
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state(10), 10)
    assert newest_valid(tmp_path).state["step"] == 10


def test_a_disk_that_refuses(saved, tmp_path):
    """Existing files stay, no unfinished file is left, and the next poll raises."""
    checkpointer = Checkpointer(saved, keep=1)
    with full_disk(2000), pytest.raises(MachineError, match="step-00000005.pt cannot be written"):
        checkpointer.save(state(5), 5)
        for _ in range(100):
            checkpointer.poll()
            time.sleep(0.1)
    assert names(saved) == [f"step-{step:08d}.pt" for step in (2, 3, 4)]
    assert newest_valid(saved).state["step"] == 4


def test_an_error_comes_out_at_the_end(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises((MachineError, UserError)), Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state(1), 1)


@pytest.mark.parametrize(
    "rounds", [pytest.param(3, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.exhaustive)]
)
def test_killed_while_it_saves(tmp_path, rounds):
    """There is always a valid checkpoint once there was one, and its step never decreases."""
    program = f"""
from tests.training.test_checkpointer import state
from video_rs.training.checkpointer import Checkpointer
from video_rs.training.run_folder import newest_valid, remove_unfinished
remove_unfinished({str(tmp_path)!r})
found = newest_valid({str(tmp_path)!r})
step = found.state["step"] if found else 0
checkpointer = Checkpointer({str(tmp_path)!r}, keep=2)
while True:
    step += 1
    checkpointer.save(state(step, 300_000), step)
    print(step, flush=True)
"""
    before, draw = 0, random.Random(0)
    for _ in range(rounds):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            process.stdout.readline()
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = newest_valid(tmp_path)
        assert found and found.state["step"] > before
        assert torch.equal(found.state["model"]["w"], torch.full((300_000,), float(found.state["step"])))
        before = found.state["step"]
    remove_unfinished(tmp_path)
    assert not list(tmp_path.rglob(".*.pt.*"))


def test_verify_reads_only_what_torch_saved(tmp_path):
    (tmp_path / "text.pt").write_text("not a zip")
    with pytest.raises(UserError, match="text.pt is truncated or damaged"):
        verify(tmp_path / "text.pt")
