"""Networks of other packages through the commands: trained, stopped, resumed, tested, predicted with."""

import json

import pytest
import torch

import video_rs
from tests.integration.test_resume import assert_same, interrupt_after, run
from video_rs import checkpoint
from video_rs.cli.common import run as run_command
from video_rs.cli.train import main as train_main
from video_rs.experiment import config
from video_rs.experiment.evaluate import evaluate

torch.set_num_threads(1)
OWN = {"model__width": 1.0, "train__max_steps": 3}  # what the tiny config sets for our family only
IMAGE = {**OWN, "data__num_frames": 1, "test__clips": 1, "test__crops": 1}
VIDEO = {**OWN, "model__drop_path": None}


NETWORKS = [{**IMAGE, "model__name": "timm/test_vit"}, {**VIDEO, "model__name": "pytorchvideo/x3d_xs"}]


@pytest.mark.slow
@pytest.mark.parametrize("settings", NETWORKS, ids=lambda settings: settings["model__name"])
def test_resumed_at_any_step(tiny_config, tmp_path, settings):
    """Dropout, drop path, the learning rate and the statistics of batch norm, to the last bit."""
    whole = tmp_path / "whole"
    assert run(tiny_config(**settings, out=str(whole))) == 0
    path = tiny_config(**settings, out=str(tmp_path / "parts"))
    for step in (1, 2):
        with pytest.MonkeyPatch.context() as patch:
            interrupt_after(patch, step)
            assert run(path) == 130
        torch.rand(step)  # another process would not have drawn the same either
    assert run(path) == 0
    assert_same(*(checkpoint.load(folder / "last.pt") for folder in (whole, tmp_path / "parts")))


@pytest.mark.parametrize(
    "settings",
    [NETWORKS[0], pytest.param(NETWORKS[1], marks=pytest.mark.slow)],
    ids=lambda settings: settings["model__name"],
)
def test_trained_tested_and_predicted_with(tiny_config, tiny_videos, tmp_path, settings):
    path = tiny_config(**settings)
    assert run(path) == 0
    metrics = evaluate(config.load_config(path)).metrics
    assert metrics["num_scored"] == 8
    state = checkpoint.load(tmp_path / "run" / "best.pt")
    assert state["model_args"]["name"] == settings["model__name"]
    assert state["model_args"]["bn_momentum"] is None
    model = video_rs.load(tmp_path / "run" / "best.pt", device="cpu")
    weights = model.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in state["model"].items())
    assert model.data_config.train_size == 32
    predictions = model.predict(next(tiny_videos.rglob("test/*/*.mp4")), top_k=8)
    assert sum(p.score for p in predictions) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pytorchvideo/slowfast_r50", {**VIDEO, "data__num_frames": 8}),
        ("pytorchvideo/mvit_base_16x4", {**OWN, "data__num_frames": 4}),
        ("timm/tf_efficientnet_b0", IMAGE),
    ],
)
def test_the_tools(tiny_config, tiny_videos, tmp_path, run_tool, name, settings):
    path = tiny_config(**{**settings, "model__name": name, "train__max_steps": 2})
    done = run_tool("train_net.py", "--cfg", path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"network        {name}, " in done.stdout and "one step of 1 micro-batches" in done.stdout
    for tool in ("train_net.py", "test_net.py"):
        done = run_tool(tool, "--cfg", path)
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "test" / "metrics.json").read_text())["num_scored"] == 8
    done = run_tool("predict.py", "--weights", tmp_path / "run" / "best.pt", next(tiny_videos.rglob("test/*/*.mp4")))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model__name": "timm/resnet18"}, "timm/resnet18 has no such setting: model.width=0.125; set model.width=1.0"),
        ({**OWN, "model__name": "timm/resnet18"}, "clips of 4 frames; set data.num_frames=1"),
        ({**OWN, "model__name": "pytorchvideo/slow_r50"}, "model.drop_path=0.2; set model.drop_path=null"),
        ({**OWN, "model__name": "pytorchvideo/slow_r5"}, "did you mean pytorchvideo/slow_r50"),
        ({**OWN, "model__name": "slow_r50"}, "no model 'slow_r50'; did you mean pytorchvideo/slow_r50?"),
        ({**OWN, "model__name": "timm/x3d_m"}, "no model 'timm/x3d_m'; did you mean pytorchvideo/x3d_m?"),
        (
            {**OWN, "model__name": "timm/efficientnet_b6", "train__init_from": "pretrained", **IMAGE},
            "no weights for timm",
        ),
    ],
)
def test_one_line(tiny_config, capsys, settings, message):
    assert run_command(train_main, ["--cfg", str(tiny_config(**settings))]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and message in errors[0]


def test_public_weights_must_see_their_own_pixels(tiny_config, tmp_path, capsys, monkeypatch):
    from pytorchvideo.models import hub

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(hub.x3d.checkpoint_paths, "x3d_xs", (tmp_path / "X3D_XS.pyth").as_uri())
    torch.save({"model_state": hub.x3d_xs().state_dict()}, tmp_path / "X3D_XS.pyth")
    start = {**VIDEO, "model__name": "pytorchvideo/x3d_xs", "train__init_from": "pretrained", "train__max_steps": 1}
    assert run_command(train_main, ["--cfg", str(tiny_config(**start))]) == 2
    assert "data.mean is (0.0, 0.0, 0.0), expected (0.45, 0.45, 0.45)" in capsys.readouterr().err
    pixels = {"data__mean": [0.45] * 3, "data__std": [0.225] * 3}
    assert run_command(train_main, ["--cfg", str(tiny_config(**start, **pixels))]) == 0
    assert "started from pretrained: " in capsys.readouterr().out
