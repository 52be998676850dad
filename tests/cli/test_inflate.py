"""``tools/inflate_weights.py``, from files to checkpoints."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from video_rs import checkpoint
from video_rs.cli import inflate
from video_rs.cli.build import build_model
from video_rs.cli.common import run
from video_rs.config import load_config
from video_rs.contract import IMAGENET_MEAN, DataContract
from video_rs.models.convert import from_timm, to_timm
from video_rs.models.init import init_from
from video_rs.models.zoo import create_model

TOOL = Path(__file__).parents[2] / "tools" / "inflate_weights.py"


def image_weights(path: Path) -> Path:
    torch.set_num_threads(1)
    torch.save(to_timm(create_model("resnet_rs_26", num_classes=6, width=0.25).state_dict()), path)
    return path


def test_the_tool_writes_a_checkpoint_to_start_from(tmp_path):
    source, out = image_weights(tmp_path / "image.pth"), tmp_path / "video.pt"
    arguments = ["--from", source, "--model", "resnet3d_rs_26", "--num-classes", "4", "--out", out]
    done = subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "inflated     5  stem.conv1.conv.weight" in done.stdout and "6 -> 4 classes" in done.stdout
    state = checkpoint.load_run(out)
    contract = DataContract.from_dict(state["contract"])
    assert contract.mean == IMAGENET_MEAN and contract.filter == "bicubic" and contract.num_frames == 32
    model = create_model(**state["model_args"], contract=contract)
    model.load_state_dict(checkpoint.weights(state))
    assert model.num_classes == 4 and model.num_features == 512
    report = init_from(create_model("resnet3d_rs_26", num_classes=4, width=0.25), out)
    assert not (report.weights.adapted or report.weights.inflated)


@pytest.mark.parametrize("timm_names", [True, False])
def test_the_config_of_the_next_command_fits_the_weights(tmp_path, capsys, timm_names):
    source, out = image_weights(tmp_path / "image.pth"), str(tmp_path / "video.pt")
    if not timm_names:  # then nothing says what pixels they expect
        torch.save(from_timm(torch.load(source)), source)
    inflate.main(["--from", str(source), "--model", "resnet3d_rs_26", "--out", out])
    arguments = shlex.split(capsys.readouterr().out.rpartition("next: ")[2])
    config = load_config(arguments[arguments.index("--cfg") + 1], arguments[arguments.index("--cfg") + 2 :])
    model = build_model(config, "abcdef")
    before = model.contract
    assert config.train.init_from == out and not init_from(model, out).weights.adapted
    assert model.contract == before


@pytest.mark.parametrize("number", ["-1", "0", "many"])
def test_no_classes_are_refused(capsys, number):
    assert run(inflate.main, ["--from", "none.pth", "--out", "video.pt", f"--num-classes={number}"]) == 2
    assert f"'{number}' is not a whole number above 0" in capsys.readouterr().err


def test_what_a_person_can_mend_is_one_line(tmp_path, capsys):
    source, out = image_weights(tmp_path / "image.pth"), str(tmp_path / "video.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    cases = {
        "resnet3d_rs_26": ["--from", str(source), "--model", "resnet3d_rs26"],
        "does not exist": ["--from", str(tmp_path / "none.pth")],
        "not those of a ResNet-RS": ["--from", str(tmp_path / "other.pth")],
        "has depth 26 (blocks 2, 2, 2, 2), this one 50": ["--from", str(source), "--model", "resnet3d_rs_50"],
    }
    for message, arguments in cases.items():
        assert run(inflate.main, [*arguments, "--out", out]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not Path(out).exists()
