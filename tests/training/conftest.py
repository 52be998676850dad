"""Fixtures for the tests of the recipe: mutations, and runs of small networks with the recipe of a config."""

from contextlib import nullcontext

import pytest
import torch

from tests import costs
from video_rs.data.tools import motion
from video_rs.experiment import config
from video_rs.experiment.run import make_job


@pytest.fixture(autouse=True)
def _costs(monkeypatch):
    costs.remember(monkeypatch)


@pytest.fixture
def mutated(request, monkeypatch):
    if request.param is None:
        return nullcontext()
    request.param(monkeypatch)
    return pytest.raises((AssertionError, pytest.fail.Exception))


@pytest.fixture(scope="session")
def unequal(tmp_path_factory):
    """Three classes of 9, 3 and 2 training videos."""
    root = tmp_path_factory.mktemp("recipe") / "videos"
    motion.make(root, train=72, val=16, test=8, size=32, frames=6, workers=1)
    for split in ("train", "val"):
        for name in motion.CLASSES[3:]:
            for file in (root / split / name).iterdir():
                file.unlink()
    for name, kept in zip(motion.CLASSES, (9, 3, 2)):
        for file in sorted((root / "train" / name).iterdir())[kept:]:
            file.unlink()
    return root


@pytest.fixture
def job(tmp_path):
    """Return a run of a small network with the recipe of a config: 40 samples, batches of 4, micro-batches of 2."""
    torch.set_num_threads(1)

    def make(name="k400_rs50", *overrides):
        image = name.startswith("imagenet")
        root = tmp_path / ("images" if image else "videos")
        for folder in (root / split / label for split in ("train", "val") for label in "ab"):
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(20):
                (folder / f"{i:02}.{'png' if image else 'mp4'}").touch()
        small = [f"data.root={root}", "train.batch_size=4", "train.micro_batch=2", "train.device=cpu"]
        small += ["model.width=0.125", f"model.name={'resnet_rs_26' if image else 'resnet3d_rs_26'}"]
        return make_job(config.load_config(name, [*small, "train.precision=float64", *overrides]))

    return make
