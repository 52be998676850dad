"""``torch.hub`` finds and makes every network, from a copy of the repository and from anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import video_rs
from video_rs import checkpoint

REPOSITORY = Path(__file__).parents[1]
TINY = {"name": "resnet3d_rs_26", "num_classes": 3, "width": 0.125}

PROGRAM = """
import importlib.abc, json, sys, torch
torch.set_num_threads(1)

class Refuse(importlib.abc.MetaPathFinder):  # what this package needs elsewhere, and torch.hub does not ask for
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("decord", "fvcore", "matplotlib", "pytorchvideo", "tensorboard", "timm", "yaml"):
            raise ModuleNotFoundError(f"{name} is no dependency of hubconf.py", name=name)

sys.meta_path.insert(0, Refuse())
repository, cached, weights, frames = sys.argv[1], "me/video-rs:main", sys.argv[2], sys.argv[3]
listed = torch.hub.list(cached, trust_repo=True, verbose=False)
help = torch.hub.help(cached, "resnet3d_rs_50", trust_repo=True)
local = {"source": "local", "verbose": False}
model = torch.hub.load(repository, "resnet3d_rs_26", num_classes=10, width=0.125, pretrained=False, **local)
named = torch.hub.load(repository, "create_model", "resnet_rs_26", width=0.125, **local)
classifier = torch.hub.load(repository, "load", weights, "cpu", **local)
clip = torch.load(frames)
print(json.dumps({
    "listed": listed,
    "help": help,
    "logits": list(model(torch.zeros(2, 3, 8, 32, 32)).shape),
    "classes": named.num_classes,
    "predicted": [list(p) for p in classifier.predict(clip)],
}))
"""


@pytest.fixture(scope="module")
def checkpoint_file(tmp_path_factory):
    torch.manual_seed(0)
    model = video_rs.create_model(**TINY)
    torch.nn.init.normal_(model.head.weight, std=3.0)
    data_config = {**model.data_config.to_dict(), "num_frames": 4, "short_side": 32, "test_size": 32}
    state = {"format": 1, "config": {}, "model_args": TINY, "data_config": data_config, "ema": None}
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    checkpoint.save(path, {**state, "model": model.state_dict()})
    return path


@pytest.mark.slow
def test_from_another_folder(tmp_path, checkpoint_file):
    """``list`` and ``help`` only know repositories that were fetched: a link in hub's cache stands for a download."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "me_video-rs_main").symlink_to(REPOSITORY)
    frames = torch.randint(0, 256, (8, 40, 48, 3), dtype=torch.uint8)
    torch.save(frames, tmp_path / "frames.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, REPOSITORY, checkpoint_file, tmp_path / "frames.pt"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment | {"TORCH_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["listed"]) == {*video_rs.list_models(), "create_model", "load"}
    assert "resnet3d_rs_50" in found["help"] and "400 classes" in found["help"] and "pretrained" in found["help"]
    assert found["logits"] == [2, 10] and found["classes"] == 1000
    expected = video_rs.load(checkpoint_file, "cpu").predict(frames)
    for (label, index, score), prediction in zip(found["predicted"], expected):
        assert (label, index) == prediction[:2] and score == pytest.approx(prediction.score, abs=1e-5)


def test_entry_points_have_the_names_and_sizes_of_the_presets(monkeypatch):
    monkeypatch.setattr("video_rs.models.registry.create_model", lambda name, **options: (name, options))
    entries = torch.hub._import_module("hubconf", REPOSITORY / "hubconf.py")
    for name in video_rs.list_models():
        entry = getattr(entries, name)
        assert entry.__name__ == name and entry(num_classes=7) == (name, {"pretrained": False, "num_classes": 7})
        assert entry(True)[1] == {"pretrained": True}
