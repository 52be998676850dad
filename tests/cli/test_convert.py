"""``tools/convert_weights.py``: what it finds out, writes and refuses. Dicts stand in for the files of TensorFlow."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.models.test_convert_tensorflow import EMA, network, to_garden, to_keras, to_tpu, trained
from video_rs import checkpoint
from video_rs.cli import convert
from video_rs.contract import DataContract
from video_rs.errors import UserError
from video_rs.models import tensorflow_files
from video_rs.models.convert import to_timm
from video_rs.models.presets import PRESETS
from video_rs.models.zoo import create_model

TOOL = Path(__file__).parents[2] / "tools" / "convert_weights.py"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Variables(dict):
    """As ``read_checkpoint`` gives them."""

    prefix = Path("ckpt-1")


@pytest.fixture
def file_holds(monkeypatch):
    """Lets every TensorFlow file hold some variables."""

    def hold(variables, prefix="ckpt-1"):
        variables = Variables(variables)
        variables.prefix = Path(prefix)
        for reader in ("read_checkpoint", "read_h5"):
            monkeypatch.setattr(tensorflow_files, reader, lambda path: variables)

    return hold


def same(state, model) -> bool:
    expected = model.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def save_run(path, model, **entries):
    name = entries.pop("name", "resnet_rs_26")
    state = {"format": 1, "config": {"a": 1}, "contract": model.contract.to_dict(), "model": model.state_dict()}
    state |= {"model_args": {"name": name, "num_classes": 5, "width": 0.125}, "ema": None, "step": 3, **entries}
    checkpoint.save(path, state)
    return str(path)


def refused(*arguments: object) -> str:
    """The one line that the command ends with."""
    with pytest.raises(UserError) as error:
        convert.main([*map(str, arguments)])
    assert "\n" not in str(error.value)
    return str(error.value)


GARDENS = ("garden_resnet_rs_101", "garden_resnet3d_rs_50", "garden_r3d_50", "garden_r3d_50g", "garden_slowonly_50")


@pytest.mark.parametrize("name", GARDENS)
def test_the_gardens_weights_tell_their_network(tmp_path, capsys, file_holds, name):
    model = network(name)
    file_holds(trained(to_garden(model)))
    out = tmp_path / "out.safetensors"
    assert convert.main(["--from", "garden", "ckpt-1", "--out", str(out)]) == 0
    state = checkpoint.load_run(out)
    assert state["model_args"] == {"name": name, "num_classes": 5, "in_channels": 3, "width": 0.125}
    assert DataContract.from_dict(state["contract"]) == PRESETS[name].contract and same(state["model"], model)
    create_model(**state["model_args"]).load_state_dict(state["model"])
    tensors = sum("num_batches" not in key for key in model.state_dict())
    said = capsys.readouterr().out
    assert f"-> {name}, 5 classes, {sum(p.numel() for p in model.parameters()):,} parameters" in said
    assert f"matched: {tensors} tensors" in said and f"moving averages: {tensors} of {tensors} tensors" in said
    assert "ignored: " in said and "_CHECKPOINTABLE_OBJECT_GRAPH" in said and f"--weights {out}" in said


def test_exports_hold_their_averages_as_variables(tmp_path, capsys, file_holds):
    model = network("garden_resnet_rs_50")
    raw = network("garden_resnet_rs_50")
    saved = trained(to_garden(model))
    raw.load_state_dict({key: value + ("num_batches" not in key) for key, value in model.state_dict().items()})
    cases = {"best_ckpt-9": ([], raw), "average_weights-9": ([], raw), "ckpt-9": (["--no-averages"], raw)}
    for prefix, (options, expected) in {**cases, "model.ckpt-9": ([], model)}.items():
        file_holds(saved, prefix)
        convert.main(["--from", "garden", prefix, "--out", str(tmp_path / "out.pt"), *options])
        assert same(checkpoint.load_run(tmp_path / "out.pt")["model"], expected)
        assert (f"{prefix} holds them in place of the variables" in capsys.readouterr().out) == ("_" in prefix)


def test_a_resolution_is_named(tmp_path, file_holds):
    file_holds(to_garden(network("garden_resnet_rs_101")))
    name, out = "garden_resnet_rs_101_i160", tmp_path / "out.pt"
    convert.main(["--from", "garden", "ckpt-1", "--model", name, "--out", str(out)])
    state = checkpoint.load_run(out)
    assert state["model_args"]["name"] == name and state["contract"]["test_size"] == 160


@pytest.mark.parametrize(("source", "to_theirs"), [("tpu", to_tpu), ("keras", to_keras)])
def test_tpu_and_keras(tmp_path, file_holds, source, to_theirs):
    model = network("resnet_rs_101")
    file_holds(to_theirs(model))
    convert.main(["--from", source, "weights", "--out", str(tmp_path / "out.pt")])
    state = checkpoint.load_run(tmp_path / "out.pt")
    assert state["model_args"]["name"] == "resnet_rs_101" and same(state["model"], model)
    assert DataContract.from_dict(state["contract"]) == PRESETS["resnet_rs_101"].contract


def test_another_network_is_one_line(tmp_path, file_holds):
    out = tmp_path / "out.pt"
    file_holds(to_garden(network("garden_resnet_rs_50")))

    def model(name: str, source: str = "garden") -> str:
        return refused("--from", source, "ckpt-1", "--model", name, "--out", out)

    assert (
        "ckpt-1 holds a network of depth 50 (blocks 3, 4, 6, 3) for images; garden_resnet_rs_101 is of depth 101"
        in (model("garden_resnet_rs_101"))
    )
    assert "garden_resnet3d_rs_50 is of depth 50 for videos" in model("garden_resnet3d_rs_50")
    assert "are those of garden_*; resnet_rs_50 would compute something else" in model("resnet_rs_50")
    assert "there is no model 'garden_resnet_rs_51'" in model("garden_resnet_rs_51")
    assert "not the variables of the TPU" in model("resnet_rs_50", "tpu")
    assert "ckpt-1: " in model("resnet_rs_50", "keras") and "are not those of Keras" in model("resnet_rs_50", "keras")
    file_holds(to_garden(network("garden_r3d_50")))
    assert "does not fit garden_resnet3d_rs_50: " in model("garden_resnet3d_rs_50")
    model_26 = dataclasses.replace(PRESETS["garden_resnet_rs_50"], name="garden_26", blocks=(2, 2, 2, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "garden_26", model_26)
        file_holds(to_garden(network("garden_26")))
    assert "holds a network of depth 26 (blocks 2, 2, 2, 2) for images, and no garden_* is that" in (
        refused("--from", "garden", "ckpt-1", "--out", out)
    )
    assert not any(tmp_path.iterdir())


def test_what_is_left_over_or_missing_is_named_and_nothing_written(tmp_path, file_holds):
    out = tmp_path / "out.pt"
    out.write_text("before")
    variables = to_tpu(network("resnet_rs_26"))
    file_holds({**variables, "conv2d_77/kernel": variables[f"conv2d/kernel{EMA}"]})
    assert refused("--from", "tpu", "ckpt-1", "--out", out).endswith("conv2d_77/kernel")
    file_holds({name: value for name, value in variables.items() if "dense" not in name})
    message = refused("--from", "tpu", "ckpt-1", "--out", out)
    assert message == "ckpt-1 does not fit resnet_rs_26: 2 weights are missing: head.weight, head.bias"
    file_holds({name.removesuffix(EMA): value for name, value in variables.items()})
    assert "no moving average" in refused("--from", "tpu", "ckpt-1", "--out", out)
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt"] and out.read_text() == "before"


def test_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.index").touch()
    for source, package in {"garden": "tensorflow", "tpu": "tensorflow", "keras": "h5py"}.items():
        line = refused("--from", source, tmp_path / "a.index", "--out", tmp_path / "o.pt")
        assert f"needs {package}: pip install 'video-rs[tf]'" in line


def test_a_run_becomes_the_weights_to_predict_with(tmp_path, capsys):
    model, averaged = network("resnet_rs_26"), network("resnet_rs_26")
    model.contract = dataclasses.replace(model.contract, class_names=tuple("abcde"), test_size=96)
    extra = {"ema": averaged.state_dict(), "optimizer": {"lr": 1.0}, "figures": {"top1": 0.5}}
    run = save_run(tmp_path / "best.pt", model, **extra)
    out = tmp_path / "best.safetensors"
    convert.main(["--from", "video_rs", run, "--out", str(out)])
    said = capsys.readouterr().out
    assert (
        "moving averages: all tensors are those of the run" in said and "ignored: 2 entries: optimizer, model" in said
    )
    state = checkpoint.load_run(out)
    assert same(state["model"], averaged) and DataContract.from_dict(state["contract"]) == model.contract
    assert state["step"] == 3 and state["config"] == {"a": 1} and state["figures"] == {"top1": 0.5}
    assert "holds resnet_rs_26, not resnet_rs_50" in (
        refused("--from", "video_rs", run, "--model", "resnet_rs_50", "--out", tmp_path / "o.pt")
    )
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    bare = ["--from", "video_rs", tmp_path / "bare.pt", "--out", tmp_path / "o.pt"]
    assert "do not tell of which network: give --model" in refused(*bare)
    assert "does not fit resnet3d_rs_26: " in refused(*bare, "--model", "resnet3d_rs_26")
    convert.main([*map(str, bare), "--model", "resnet_rs_26"])
    assert same(checkpoint.load_run(tmp_path / "o.pt")["model"], model)


def test_timms_files(tmp_path):
    model = network("resnet_rs_50")
    torch.save({f"module.{name}": value for name, value in to_timm(model.state_dict()).items()}, tmp_path / "timm.pth")
    out = tmp_path / "o.pt"
    convert.main(["--from", "timm", str(tmp_path / "timm.pth"), "--out", str(out)])
    state = checkpoint.load_run(out)
    assert state["model_args"]["name"] == "resnet_rs_50" and same(state["model"], model)
    assert DataContract.from_dict(state["contract"]) == PRESETS["resnet_rs_50"].contract
    assert "has timm's names: give --from timm" in (
        refused("--from", "video_rs", tmp_path / "timm.pth", "--model", "resnet_rs_50", "--out", tmp_path / "p.pt")
    )
    assert "does not have the names of timm's" in refused("--from", "timm", out, "--out", tmp_path / "p.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_loads_what_goes_to_it(tmp_path, capsys, suffix):
    timm = pytest.importorskip("timm")
    model = create_model("resnet_rs_50", num_classes=5)
    torch.nn.init.normal_(model.head.bias)
    state = {"format": 1, "config": {}, "contract": model.contract.to_dict(), "model": model.state_dict(), "ema": None}
    checkpoint.save(tmp_path / "run.pt", {**state, "model_args": {"name": "resnet_rs_50", "num_classes": 5}, "step": 0})
    out = tmp_path / f"timm{suffix}"
    convert.main(["--from", "video_rs", "--to", "timm", str(tmp_path / "run.pt"), "--out", str(out)])
    call = capsys.readouterr().out.rpartition("next: ")[2].removesuffix(" in Python\n")
    theirs = eval(call, {"timm": timm})
    expected = to_timm(model.state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in theirs.state_dict().items())


def test_what_timm_does_not_have(tmp_path, file_holds):
    out = tmp_path / "o.pth"
    file_holds(to_garden(network("garden_resnet_rs_50")))
    assert "it has no garden_resnet_rs_50" in refused("--from", "garden", "--to", "timm", "ckpt-1", "--out", out)
    for name in ("resnet3d_rs_50", "resnet_rs_26", "resnet_rs_50"):
        run = save_run(tmp_path / "run.pt", network(name), name=name)
        message = refused("--from", "video_rs", "--to", "timm", run, "--out", out)
        assert f"it has no {name} of width 0.125" in message
    assert not out.exists()


def test_arguments(tmp_path):
    run = save_run(tmp_path / "run.pt", network("resnet_rs_26"))
    assert "--out ends in .pt, .pth or .safetensors" in refused("--from", "video_rs", run, "--out", tmp_path / "o.bin")
    assert "is the file to convert" in refused("--from", "video_rs", run, "--out", run)
    assert "give the FILE of weights" in refused("--from", "timm", "--out", tmp_path / "o.pt")
    assert "give the FILE of weights" in refused("--from", "keras", "--model", "resnet_rs_50", "--out", "o.pt")
    assert "--no-averages is for" in refused("--from", "video_rs", run, "--no-averages", "--out", tmp_path / "o.pt")
    assert "does not exist" in refused("--from", "video_rs", tmp_path / "none.pt", "--out", tmp_path / "o.pt")
    done = subprocess.run([sys.executable, TOOL, "--from", "a", run, "--out", "o"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "invalid choice: 'a'" in done.stderr
