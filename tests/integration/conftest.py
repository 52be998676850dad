"""A tiny dataset of real videos and a config that trains on it in seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import commands, corpus, costs
from video_rs.data.tools import motion

REPOSITORY = Path(__file__).resolve().parents[2]

TINY = {
    "model": {"name": "resnet3d_rs_26", "width": 0.125, "dropout": 0.2, "drop_path": 0.2},
    "data": {
        "num_frames": 4,
        "stride": 2,
        "train_size": 32,
        "short_side": 36,
        "test_size": 32,
        "flip": 0,
        "workers": 0,
    },
    "optim": {"lr": 0.05, "lr_batch": 8, "warmup_epochs": 1},
    "train": {"epochs": 2, "batch_size": 8, "ema_decay": 0.9, "threads": 1, "log_every": 1, "device": "cpu"},
    "test": {"clips": 2, "crops": 3, "batch_size": 8},
}


@pytest.fixture(autouse=True)
def _costs(monkeypatch):
    costs.remember(monkeypatch)


@pytest.fixture(scope="session")
def tiny_videos():
    """A folder with train, val and test splits of eight classes of 48x48 videos; never change it."""
    sizes = {"train": 24, "val": 8, "test": 8, "size": 48, "frames": 12}
    return corpus.shared(lambda root: motion.make(root, workers=1, **sizes), "motion", sizes)


@pytest.fixture
def tiny_config(tiny_videos, tmp_path):
    """A function that writes a config for ``tiny_videos``, changed by ``section__key=value`` arguments."""

    def write(**changes):
        values = yaml.safe_load(yaml.safe_dump({**TINY, "out": str(tmp_path / "run")}))
        values["data"]["root"] = str(tiny_videos)
        for name, value in changes.items():
            *sections, leaf = name.split("__")
            place = values
            for section in sections:
                place = place.setdefault(section, {})
            place[leaf] = value
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def tool(name, *arguments, cwd=None, **options):
    """Run ``tools/<name>`` as a user does, as a process of its own if there are options; return the result."""
    if options or "PYTHONPATH" in os.environ:
        return process(name, *arguments, cwd=cwd, **options)
    return commands.script(f"tools/{name}", *arguments, cwd=cwd)


def process(name, *arguments, **options):
    """Run ``tools/<name>`` in a process of its own."""
    command = [sys.executable, str(REPOSITORY / "tools" / name), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, **options)


@pytest.fixture
def run_tool():
    return tool
