"""``data.val_fraction=0``: all files are trained on, without validation, and every command works."""

import json

import pytest
import torch

import video_rs
from video_rs import checkpoint
from video_rs.data.sources.splits import load_splits
from video_rs.errors import UserError


@pytest.fixture
def config(tiny_config, tiny_videos):
    """Return a config of a dataset that has only a training split."""
    only = {"data__root": "", "data__train": str(tiny_videos / "train"), "data__val_fraction": 0}
    return lambda **changes: tiny_config(**{**only, "train__max_steps": 5, **changes})


def test_the_last_weights_are_the_result(config, tmp_path, run_tool):
    done = run_tool("train_net.py", "--cfg", config())
    assert (done.returncode, done.stderr) == (0, "")
    last, best = (checkpoint.load(tmp_path / "run" / f"{name}.pt") for name in ("last", "best"))
    assert all(torch.equal(best["model"][name], value) for name, value in last["ema"].items())
    assert best["step"] == 5 and best["metrics"] == {} and list(last["fingerprint"]) == ["train"]
    said = done.stdout
    assert "24 files" in said and "not validated" in said and "weights" in said
    assert f"of the last step, in {tmp_path / 'run' / 'best.pt'}" in said
    assert "top-1" not in said and "validat" not in said.replace("not validated", "")
    assert '"kind": "val"' not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert said.splitlines()[-1].endswith(f"predict.py --weights {tmp_path / 'run' / 'best.pt'} FILE")  # no test split
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "complete" and "predict.py" in status["command"]
    again = run_tool("train_net.py", "--cfg", config())
    assert again.returncode == 0 and "is complete: 5 steps" in again.stdout
    page = run_tool("run_status.py", tmp_path / "run").stdout
    assert "complete" in page and "validation" not in page
    assert len(video_rs.load(tmp_path / "run").class_names) == 8


@pytest.mark.slow
def test_a_run_without_validation_resumes_to_the_same_bits(config, tmp_path, run_tool):
    whole = run_tool("train_net.py", "--cfg", config(out=str(tmp_path / "whole")))
    assert whole.returncode == 0
    path = config(train__checkpoint_minutes=0, train__keep_checkpoints=9)
    assert run_tool("train_net.py", "--cfg", path).returncode == 0
    later = [tmp_path / "run" / "checkpoints" / f"step-{step:08d}.pt" for step in (3, 4, 5)]
    for file in (*later, tmp_path / "run" / "last.pt", tmp_path / "run" / "best.pt"):
        file.unlink()
    done = run_tool("train_net.py", "--cfg", path, "--resume")
    assert done.returncode == 0 and "resuming at step 2 of 5" in done.stdout
    first, second = (checkpoint.load(tmp_path / folder / "best.pt")["model"] for folder in ("whole", "run"))
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_a_dry_run_without_validation(config, tmp_path, run_tool):
    done = run_tool("train_net.py", "--cfg", config(), "--dry-run")
    assert (done.returncode, done.stderr) == (0, "") and "not validated" in done.stdout


@pytest.mark.slow
def test_other_commands_without_validation(config, tmp_path, tiny_videos, run_tool):
    for name, arguments in {
        "check_dataset.py": ("--out", tmp_path / "check"),
        "index_dataset.py": (),
        "show_clips.py": ("--num", 1),
        "prepare_dataset.py": ("--out", tmp_path / "prepared", "--shards"),
    }.items():
        done = run_tool(name, "--cfg", config(), *arguments)
        assert (done.returncode, done.stderr) == (0, ""), (name, done.stdout, done.stderr)
        assert "val:" not in done.stdout and "val split" not in done.stdout
    assert json.loads((tmp_path / "check" / "summary.json").read_text())["files"] == {"train": 24}
    assert not (tmp_path / "prepared" / "val.csv").exists()
    packed = load_splits(str(tmp_path / "prepared" / "shards"), val_fraction=0)
    assert {split: len(records) for split, records in packed.items()} == {"train": 24}
    for split in ("val", "test"):
        for name, arguments in {"show_clips.py": ("--split", split), "test_net.py": (f"test.split={split}",)}.items():
            done = run_tool(name, "--cfg", config(out=str(tmp_path / "none")), *arguments)
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_a_missing_split_is_named(config, tmp_path, tiny_videos, run_tool):
    run_tool("train_net.py", "--cfg", config(train__max_steps=1))
    done = run_tool("test_net.py", "--cfg", config(train__max_steps=1))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "no test split, and data.val_fraction=0 holds out no files: set data.test" in line
    with pytest.raises(UserError, match="no val split, and data.val_fraction=0 holds out no files: set data.val"):
        video_rs.VideoDataset(tiny_videos / "train", "val", val_fraction=0)
    done = run_tool("test_net.py", "--cfg", config(train__max_steps=1), f"data.test={tiny_videos / 'test'}")
    assert (done.returncode, done.stderr) == (0, "")
    done = run_tool("test_net.py", "--cfg", config(train__max_steps=1), "data.val_fraction=0.3")  # was trained on
    assert done.returncode == 2 and "may have been trained on these videos" in done.stderr


def test_a_validation_split_of_the_dataset_is_used(tiny_config, tmp_path, run_tool):
    done = run_tool("train_net.py", "--cfg", tiny_config(data__val_fraction=0, train__max_steps=1))
    assert done.returncode == 0 and checkpoint.load(tmp_path / "run" / "best.pt")["metrics"]["top1"] >= 0


def test_the_command_stops_early(tiny_config, tmp_path, run_tool):
    """The learning rate is 0: only statistics of batch norm change."""
    path = tiny_config(train__early_stop=1, optim__lr=0, train__epochs=30)
    done = run_tool("train_net.py", "--cfg", path)
    assert done.returncode == 0 and "stopped early at step" in done.stdout
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "complete" and status["step"] < status["steps"] == 90
    assert f"complete    {status['step']} steps" in done.stdout
    again = run_tool("train_net.py", "--cfg", path)
    assert again.returncode == 0 and "train.early_stop=1 ended it; set a larger value or 0 to resume" in again.stdout


def test_early_stopping_needs_a_validation(config, tmp_path, run_tool):
    done = run_tool("train_net.py", "--cfg", config(train__early_stop=2))
    assert done.returncode == 2 and "early_stop=2: requires validation data" in done.stderr
    assert not (tmp_path / "run").exists()
