"""``tools/inflate_weights.py``, from files to checkpoints."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest
import torch

from tests import commands
from video_rs import checkpoint
from video_rs.cli import inflate
from video_rs.cli.common import run
from video_rs.data_config import IMAGENET_MEAN, DataConfig
from video_rs.experiment.build import build_model
from video_rs.experiment.config import load_config
from video_rs.models.registry import create_model
from video_rs.models.weights.init_from import init_from
from video_rs.models.weights.state_dict import from_timm, to_timm


def image_weights(path: Path) -> Path:
    torch.set_num_threads(1)
    torch.save(to_timm(create_model("resnet_rs_26", num_classes=6, width=0.25).state_dict()), path)
    return path


def test_the_tool_writes_a_checkpoint_to_start_from(tmp_path):
    source, out = image_weights(tmp_path / "image.pth"), tmp_path / "video.pt"
    arguments = ["--from", source, "--model", "resnet3d_rs_26", "--num-classes", "4", "--out", out]
    done = commands.script("tools/inflate_weights.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "inflated     5  stem.conv1.conv.weight" in done.stdout and "6 -> 4 classes" in done.stdout
    state = checkpoint.load_run(out)
    data_config = DataConfig.from_dict(state["data_config"])
    assert data_config.mean == IMAGENET_MEAN and data_config.filter == "bicubic" and data_config.num_frames == 32
    model = create_model(**state["model_args"], data_config=data_config)
    model.load_state_dict(checkpoint.weights(state))
    assert model.num_classes == 4 and model.num_features == 512
    report = init_from(create_model("resnet3d_rs_26", num_classes=4, width=0.25), out)
    assert not (report.adapted or report.inflated)


@pytest.mark.parametrize("timm_names", [True, False])
def test_the_config_of_the_next_command_fits_the_weights(tmp_path, capsys, timm_names):
    source, out = image_weights(tmp_path / "image.pth"), str(tmp_path / "video.pt")
    if not timm_names:  # then nothing says what pixels they expect
        torch.save(from_timm(torch.load(source)), source)
    inflate.main(["--from", str(source), "--model", "resnet3d_rs_26", "--out", out])
    printed = capsys.readouterr().out
    assert ("architecture of the source unknown: not compared" in printed) == (not timm_names)
    arguments = shlex.split(printed.rpartition("next: ")[2])
    config = load_config(arguments[arguments.index("--cfg") + 1], arguments[arguments.index("--cfg") + 2 :])
    model = build_model(config, "abcdef")
    before = model.data_config
    assert config.train.init_from == out and not init_from(model, out).adapted
    assert model.data_config == before


def saved(path: Path, name: str, names: str) -> Path:
    model = create_model(name, num_classes=len(names), width=0.125)
    model.data_config = dataclasses.replace(model.data_config, class_names=tuple(names))
    state = {"format": 1, "config": {}, "data_config": model.data_config.to_dict(), "model": model.state_dict()}
    model_args = {"name": name, "num_classes": len(names), "width": 0.125}
    checkpoint.save(path, {**state, "model_args": model_args, "ema": None, "step": 0})
    return path


def test_padding_class_names_and_safetensors(tmp_path, capsys):
    """Garden image weights go into their video architecture, from and to safetensors; two classes are known."""
    source = saved(tmp_path / "image.safetensors", "garden_resnet_rs_50", "abcd")
    (tmp_path / "names.txt").write_text("d\nx\nb\n")
    out = tmp_path / "video.safetensors"
    options = ["--class-names", str(tmp_path / "names.txt"), "--method", "average", "--temporal-padding", "replicate"]
    inflate.main(["--from", str(source), "--model", "inflated_garden_resnet_rs_50", "--out", str(out), *options])
    printed = capsys.readouterr().out
    assert "head.weight (2 of 3 classes by name)" in printed
    assert "differs from" not in printed and "--temporal-padding" not in printed
    state = checkpoint.load_run(out)
    assert state["model_args"] == {
        "name": "inflated_garden_resnet_rs_50",
        "num_classes": 3,
        "in_channels": 3,
        "width": 0.125,
        "temporal_padding": "replicate",
    }
    assert state["data_config"]["class_names"] == ["d", "x", "b"]
    head, theirs = state["model"]["head.weight"], checkpoint.load(source)["model"]["head.weight"]
    assert torch.equal(head[[0, 2]], theirs[[3, 1]])
    arguments = shlex.split(printed.rpartition("next: ")[2])
    config = load_config(arguments[arguments.index("--cfg") + 1], arguments[arguments.index("--cfg") + 2 :])
    assert config.model.temporal_padding == "replicate" and config.data.mean == IMAGENET_MEAN
    assert not init_from(build_model(config, "dxb"), out).differences


def test_what_the_inflated_network_will_not_compute_alike_is_said(tmp_path, capsys):
    source = saved(tmp_path / "image.pt", "resnet_rs_50", "abcd")
    arguments = ["--from", str(source), "--model", "garden_resnet3d_rs_50", "--out", str(tmp_path / "video.pt")]
    inflate.main([*arguments, "--method", "average"])
    printed = capsys.readouterr().out
    assert "unused       6  stem.pool.conv.weight" in printed and "missing      8  stages.0.2.gating.weight" in printed
    assert "differs from the source: stem_pool conv -> max, shortcut pool -> conv, self_gating False -> True" in printed
    assert "--temporal-padding replicate makes still clips exact" in printed


def test_weights_of_odd_widths(tmp_path, capsys):
    source, out = tmp_path / "image.pt", tmp_path / "video.pt"
    torch.save(create_model("resnet_rs_26", num_classes=4, width=0.3).state_dict(), source)
    inflate.main(["--from", str(source), "--model", "resnet3d_rs_26", "--out", str(out)])
    assert "model.width=0.3 " in capsys.readouterr().out
    assert checkpoint.load_run(out)["model_args"]["width"] == 0.3


@pytest.mark.parametrize("number", ["-1", "0", "many"])
def test_no_classes_are_refused(capsys, number):
    assert run(inflate.main, ["--from", "none.pth", "--out", "video.pt", f"--num-classes={number}"]) == 2
    assert f"'{number}' is not a whole number above 0" in capsys.readouterr().err


def test_what_a_person_can_mend_is_one_line(tmp_path, capsys):
    source, out = image_weights(tmp_path / "image.pth"), str(tmp_path / "video.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    theirs = {name: tensor for name, tensor in torch.load(source).items() if "maxpool" not in name and "se" not in name}
    torch.save(theirs, tmp_path / "resnet26d.pth")
    garden = saved(tmp_path / "garden.pt", "garden_resnet_rs_50", "abcd")
    video = saved(tmp_path / "run.pt", "resnet3d_rs_50", "abcd")
    torch.save(create_model("resnet3d_rs_26", num_classes=3, width=0.125).state_dict(), tmp_path / "bare.pt")
    timms = create_model("timm/test_resnet", num_classes=4)
    model_args = {"name": "timm/test_resnet", "num_classes": 4}
    checkpoint.save(tmp_path / "timm.pt", checkpoint.from_weights(model_args, timms.data_config, timms.state_dict()))
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    (tmp_path / "names.txt").write_text("a\nb\n")
    (tmp_path / "none.txt").write_text("\n")
    cases = {
        "resnet_rs_26 is an image network; use a video network, such as resnet3d_rs_26": [
            *("--from", str(source), "--model", "resnet_rs_26")
        ],
        "another architecture: shortcut_pool_in_stage1 is True, not False; activation is swish, not "
        "relu; padding is same, not symmetric. They fit inflated_garden_resnet_rs_50: set "
        "model.name=inflated_garden_resnet_rs_50 (inflate: "
        "--model inflated_garden_resnet_rs_50)": [
            "--from",
            str(garden),
        ],
        "there is no model 'pytorchvideo/slow_r50'; did you mean": [
            *("--from", str(source), "--model", "pytorchvideo/slow_r50")
        ],
        "timm.pt does not fit: its network is timm/test_resnet, not a ResNet-RS": [
            *("--from", str(tmp_path / "timm.pt"))
        ],
        f"already a video network (resnet3d_rs_50); start from it with train.init_from={video}": ["--from", str(video)],
        "bare.pt is already a video network; start from it with": [
            *("--from", str(tmp_path / "bare.pt"), "--model", "resnet3d_rs_26")
        ],
        "twice.txt: 'a' is repeated": ["--from", str(source), "--class-names", str(tmp_path / "twice.txt")],
        "nothing.txt: no such file": ["--from", str(source), "--class-names", str(tmp_path / "nothing.txt")],
        "none.txt: no names in it": ["--from", str(source), "--class-names", str(tmp_path / "none.txt")],
        "names.txt: has 2 names, but --num-classes=3": [
            *("--from", str(source), "--class-names", str(tmp_path / "names.txt"), "--num-classes", "3")
        ],
        "'same' (choose from": ["--from", str(source), "--temporal-padding", "same"],
        "resnet3d_rs_26": ["--from", str(source), "--model", "resnet3d_rs26"],
        "does not exist": ["--from", str(tmp_path / "none.pth")],
        "other.pth does not fit: the weights are not those of a ResNet-RS": ["--from", str(tmp_path / "other.pth")],
        "resnet26d.pth does not fit: the weights are not those of a ResNet-RS: they have no stages, the first": [
            *("--from", str(tmp_path / "resnet26d.pth"), "--model", "resnet3d_rs_26")
        ],
        "has blocks 2, 2, 2, 2 (depth 26), this one 3, 4, 6, 3 (depth 50)": [
            "--from",
            str(source),
            "--model",
            "resnet3d_rs_50",
        ],
    }
    for message, arguments in cases.items():
        assert run(inflate.main, [*arguments, "--out", out]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not Path(out).exists()
