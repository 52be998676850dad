"""A config, a run folder and a checkpoint that version 0.1 wrote still load, predict, start other runs and resume.

``version_0_1/`` holds what 0.1 left of ``train_net.py --cfg old.yaml`` after a SIGINT in step 5 of 12.
"""

import shutil
from pathlib import Path

import pytest

import video_rs
from video_rs import checkpoint
from video_rs.cli import status as status_command
from video_rs.cli import train as train_command
from video_rs.experiment import config

OLD = Path(__file__).parent / "version_0_1"
# computed by 0.1: predict of last.pt on test/translate_left/00000.mp4, and the end of the run that was resumed with it
PROBABILITIES = {
    "translate_left": 0.4242085814476013,
    "translate_down": 0.1528443694114685,
    "zoom_in": 0.15177549421787262,
    "translate_right": 0.06906973570585251,
    "rotate_counterclockwise": 0.06688988953828812,
    "zoom_out": 0.050695858895778656,
    "rotate_clockwise": 0.04250999540090561,
    "translate_up": 0.0420060008764267,
}
FINAL = {"head_norm": 0.6903529066875452, "bias_norm": 0.030800183517933594}


@pytest.fixture
def old_run(tiny_videos, tmp_path, monkeypatch):
    """The current folder, as the person who trained with 0.1 left it."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    (tmp_path / "videos").symlink_to(tiny_videos)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_checkpoint_predicts(old_run, one_thread):
    found = video_rs.load("run/last.pt").predict("videos/test/translate_left/00000.mp4", top_k=8)
    assert {one.label: one.score for one in found} == pytest.approx(PROBABILITIES, abs=1e-3)


@pytest.mark.parametrize("written", ["old.yaml", "run/config.yaml"])
def test_config_resumes_the_run(old_run, one_thread, written, capsys):
    assert train_command.train(config.load_config(written)) == 0
    assert "step 6/12" in capsys.readouterr().out
    state = checkpoint.load_run("run/last.pt")
    assert state["step"] == 12
    assert state["model"]["head.weight"].norm().item() == pytest.approx(FINAL["head_norm"], rel=1e-4)
    assert state["model"]["head.bias"].norm().item() == pytest.approx(FINAL["bias_norm"], rel=1e-3)
    assert checkpoint.load_run("run/best.pt")["step"] in (6, 9, 12)


def test_checkpoint_starts_another_run(old_run, one_thread):
    overrides = ["train.init_from=run/last.pt", "out=other", "train.max_steps=1"]
    assert train_command.train(config.load_config("old.yaml", overrides)) == 0
    old, new = (checkpoint.load_run(f"{run}/last.pt")["model"] for run in ("run", "other"))
    assert all((new[name] - weight).norm() <= 0.1 * weight.norm() for name, weight in old.items() if "conv.w" in name)


def test_status_of_the_run(old_run, capsys):
    assert status_command.main(["run"]) == 0
    out = capsys.readouterr().out
    assert "5" in out and "12" in out and "interrupted" in out
