"""Checkpoints: whole or not at all, and no code in them is ever run."""

import os
import pickle
import resource
import subprocess
import sys
import textwrap

import pytest
import torch

from video_rs import checkpoint
from video_rs.errors import MachineError, UserError


def test_round_trip(tmp_path):
    state = {"model": {"w": torch.arange(6.0).view(2, 3)}, "step": 3, "config": {"a": [1, None, "x"]}}
    checkpoint.save(tmp_path / "deep" / "a.pt", state)
    loaded = checkpoint.load(tmp_path / "deep" / "a.pt")
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert loaded["config"] == state["config"]
    assert os.listdir(tmp_path / "deep") == ["a.pt"]


def test_weights_prefer_the_average():
    model, ema = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    assert checkpoint.weights({"model": model, "ema": ema}) is ema
    assert checkpoint.weights({"model": model, "ema": None}) is model


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("writer", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_code_is_refused_and_not_run(tmp_path, writer):
    path = tmp_path / "evil.pt"
    writer({"model": Evil(tmp_path / "was_run")}, path)
    with pytest.raises(UserError, match="evil.pt .*refused"):
        checkpoint.load(path)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated(tmp_path, keep):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"w": torch.randn(1000)})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(UserError, match="a.pt"):
        checkpoint.load(path)


def test_not_a_checkpoint(tmp_path):
    path = tmp_path / "a.pt"
    for content in (b"", b"hello there", b"a b c", b"\x89PNG\r\n\x1a\n", b"<html>404</html>", bytes(range(1, 256))):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.pt is not a checkpoint"):
            checkpoint.load(path)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(tmp_path / "gone.pt")
    checkpoint.save(path, {"w": torch.zeros(1)})
    with pytest.raises(UserError, match="train.init_from"):
        checkpoint.load_run(path)


def test_a_full_disk_leaves_the_previous_one_intact(tmp_path):
    """A process whose files may not grow beyond 64 KiB stands for a full disk: the write fails half-way."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"w": torch.ones(10)})
    program = textwrap.dedent(f"""
        import resource, sys, torch
        from video_rs import checkpoint
        from video_rs.errors import MachineError
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        try:
            checkpoint.save({str(path)!r}, {{"w": torch.randn(100_000)}})
        except MachineError as error:
            print(error)
            sys.exit(error.exit_code)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == MachineError.exit_code, done.stderr
    assert "last.pt cannot be written" in done.stdout
    assert os.listdir(tmp_path) == ["last.pt"]
    assert torch.equal(checkpoint.load(path)["w"], torch.ones(10))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 65536
