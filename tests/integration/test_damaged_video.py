"""A damaged file that decoders conceal: the default decoder gives the same pixels in every process."""

import shutil

import pytest
import torch

from tests.conftest import same
from video_rs import checkpoint
from video_rs.data.video.decode import read_frames

DAMAGED = "m00089_mjpeg.mov"


def test_two_reads_of_a_damaged_file_are_equal(assets):
    reads = [read_frames(assets / "cases" / DAMAGED, range(40)) for _ in range(2)]
    assert torch.equal(*reads)


@pytest.mark.slow
def test_two_trainings_on_a_damaged_file_are_equal(assets, make_video, run_tool, tiny_config, tmp_path):
    for label in ("a", "b"):
        for split in ("train", "val"):
            make_video(tmp_path / f"videos/{split}/{label}/good.mp4", 12, height=48, width=48)
        shutil.copy(assets / "cases" / DAMAGED, tmp_path / f"videos/train/{label}/damaged.mov")
    config = tiny_config(data__root=str(tmp_path / "videos"), train__batch_size=2, train__epochs=1)
    weights = []
    for run in ("first", "second"):
        done = run_tool("train_net.py", "--cfg", config, f"out={tmp_path / run}", "data.workers=1")
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / run / "broken_files.csv").exists()
        file = max((tmp_path / run / "checkpoints").glob("*.pt"))
        weights.append(checkpoint.load(file)["model"])
    assert same(*weights)
