"""``tools/convert_weights.py`` and ``tools/convert_tensorflow.py``: networks found, files written, errors.

Dicts replace the files of TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests import commands
from tests.conftest import same
from tests.models.test_convert_tensorflow import EMA as AVERAGE
from tests.models.test_convert_tensorflow import network, to_garden, to_keras, to_tpu, trained
from tools import convert_tensorflow
from video_rs import checkpoint
from video_rs.cli import convert
from video_rs.cli.common import run
from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.models import registry
from video_rs.models.presets import PRESETS
from video_rs.models.registry import create_model
from video_rs.models.weights.init_from import init_from
from video_rs.models.weights.state_dict import to_timm
from video_rs.training.ema import EMA
from video_rs.training.log import RunLog
from video_rs.training.loop import Run
from video_rs.training.schedule import Schedule
from video_rs.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def file_holds(monkeypatch):
    """Return a function that sets the variables of every TensorFlow file."""

    def hold(variables, prefix="ckpt-1"):
        monkeypatch.setattr(convert_tensorflow, "find_checkpoint", lambda path: Path(prefix))
        for reader in ("read_checkpoint", "read_h5"):
            monkeypatch.setattr(convert_tensorflow, reader, lambda path: variables)

    return hold


def save_run(path, model, **entries):
    name = entries.pop("name", "resnet_rs_26")
    state = {"format": 1, "config": {"a": 1}, "data_config": model.data_config.to_dict(), "model": model.state_dict()}
    state |= {"model_args": {"name": name, "num_classes": 5, "width": 0.125}, "ema": None, "step": 3, **entries}
    checkpoint.save(path, state)
    return str(path)


def convert_with(arguments: list[str]) -> int:
    """Run the script for weights of TensorFlow, the command for all others."""
    script = convert_tensorflow if {"garden", "tpu", "keras"} & {*arguments} else convert
    return script.main(arguments)


def refused(*arguments: object) -> str:
    """Return the error line of the command."""
    with pytest.raises(UserError) as error:
        convert_with([*map(str, arguments)])
    assert "\n" not in str(error.value)
    return str(error.value)


GARDENS = ("garden_resnet_rs_101", "garden_resnet3d_rs_50", "garden_r3d_50", "garden_r3d_50g", "garden_slowonly_50")


@pytest.mark.parametrize("name", GARDENS)
def test_the_gardens_weights_tell_their_network(tmp_path, capsys, file_holds, name):
    model = network(name)
    file_holds(trained(to_garden(model)))
    out = tmp_path / "out.safetensors"
    assert convert_with(["--from", "garden", "ckpt-1", "--out", str(out)]) == 0
    state = checkpoint.load_run(out)
    assert state["model_args"] == {"name": name, "num_classes": 5, "in_channels": 3, "width": 0.125}
    assert DataConfig.from_dict(state["data_config"]) == PRESETS[name].data_config and same(
        state["model"], model.state_dict()
    )
    create_model(**state["model_args"]).load_state_dict(state["model"])
    tensors = sum("num_batches" not in key for key in model.state_dict())
    said = capsys.readouterr().out
    assert f"-> {name}, 5 classes, {sum(p.numel() for p in model.parameters()):,} parameters" in said
    assert f"matched: all {tensors} tensors" in said and f"moving averages: {tensors} of {tensors} tensors" in said
    assert "ignored: " in said and "_CHECKPOINTABLE_OBJECT_GRAPH" in said and f"--weights {out}" in said


def test_exports_hold_their_averages_as_variables(tmp_path, capsys, file_holds):
    model = network("garden_resnet_rs_50")
    raw = network("garden_resnet_rs_50")
    saved = trained(to_garden(model))
    raw.load_state_dict({key: value + ("num_batches" not in key) for key, value in model.state_dict().items()})
    cases = {"best_ckpt-9": ([], raw), "average_weights-9": ([], raw), "ckpt-9": (["--no-averages"], raw)}
    for prefix, (options, expected) in {**cases, "model.ckpt-9": ([], model)}.items():
        file_holds(saved, prefix)
        convert_with(["--from", "garden", prefix, "--out", str(tmp_path / "out.pt"), *options])
        assert same(checkpoint.load_run(tmp_path / "out.pt")["model"], expected.state_dict())
        assert (f"{prefix} holds them in place of the variables" in capsys.readouterr().out) == ("_" in prefix)


def test_a_resolution_is_named(tmp_path, file_holds):
    file_holds(to_garden(network("garden_resnet_rs_101")))
    name, out = "garden_resnet_rs_101_i160", tmp_path / "out.pt"
    convert_with(["--from", "garden", "ckpt-1", "--model", name, "--out", str(out)])
    state = checkpoint.load_run(out)
    assert state["model_args"]["name"] == name and state["data_config"]["test_size"] == 160


@pytest.mark.parametrize(("source", "to_theirs"), [("tpu", to_tpu), ("keras", to_keras)])
def test_tpu_and_keras(tmp_path, file_holds, source, to_theirs):
    model = network("resnet_rs_101")
    file_holds(to_theirs(model))
    convert_with(["--from", source, "weights", "--out", str(tmp_path / "out.pt")])
    state = checkpoint.load_run(tmp_path / "out.pt")
    assert state["model_args"]["name"] == "resnet_rs_101" and same(state["model"], model.state_dict())
    assert DataConfig.from_dict(state["data_config"]) == PRESETS["resnet_rs_101"].data_config


def test_another_network_is_one_line(tmp_path, file_holds):
    out = tmp_path / "out.pt"
    file_holds(to_garden(network("garden_resnet_rs_50")))

    def model(name: str, source: str = "garden") -> str:
        return refused("--from", source, "ckpt-1", "--model", name, "--out", out)

    found = "ckpt-1: as garden_resnet_rs_101 it does not fit: its network has blocks 3, 4, 6, 3 (depth 50), this one 3"
    assert found in model("garden_resnet_rs_101")
    assert "weights have other shapes: stem.conv1.conv.weight" in model("garden_resnet3d_rs_50")
    assert "belong to garden_*; resnet_rs_50 would return different results" in model("resnet_rs_50")
    assert "there is no model 'garden_resnet_rs_51'" in model("garden_resnet_rs_51")
    assert "not the variables of the TPU" in model("resnet_rs_50", "tpu")
    assert "ckpt-1: " in model("resnet_rs_50", "keras") and "are not those of Keras" in model("resnet_rs_50", "keras")
    file_holds(to_garden(network("garden_r3d_50")))
    assert "as garden_resnet3d_rs_50 it does not fit: " in model("garden_resnet3d_rs_50")
    model_26 = dataclasses.replace(PRESETS["garden_resnet_rs_50"], name="garden_26", blocks=(2, 2, 2, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "garden_26", model_26)
        patch.setitem(registry._FACTORIES, "garden_26", functools.partial(registry._resnet_rs, model_26))
        file_holds(to_garden(network("garden_26")))
    assert "has blocks 2, 2, 2, 2 (depth 26) for images, and no garden_* preset has these" in (
        refused("--from", "garden", "ckpt-1", "--out", out)
    )
    assert not any(tmp_path.iterdir())


def test_what_is_left_over_or_missing_is_named_and_nothing_written(tmp_path, file_holds):
    out = tmp_path / "out.pt"
    out.write_text("before")
    variables = to_tpu(network("resnet_rs_26"))
    file_holds({**variables, "conv2d_77/kernel": variables[f"conv2d/kernel{AVERAGE}"]})
    assert refused("--from", "tpu", "ckpt-1", "--out", out).endswith("conv2d_77/kernel")
    file_holds({name: value for name, value in variables.items() if "dense" not in name})
    message = refused("--from", "tpu", "ckpt-1", "--out", out)
    assert message == "ckpt-1: as resnet_rs_26 it does not fit: it has no head.weight, head.bias"
    file_holds({name.removesuffix(AVERAGE): value for name, value in variables.items()})
    assert "no moving average" in refused("--from", "tpu", "ckpt-1", "--out", out)
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt"] and out.read_text() == "before"


def test_without_tensorflow(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.index").touch()
    for source, package in {"garden": "tensorflow", "tpu": "tensorflow", "keras": "h5py"}.items():
        arguments = ["--from", source, str(tmp_path / "a.index"), "--out", str(tmp_path / "o.pt")]
        assert run(convert_tensorflow.main, arguments) == 3
        assert f"error: the package {package} is missing in " in capsys.readouterr().err


def test_a_run_becomes_the_weights_to_predict_with(tmp_path, capsys):
    model, averaged = network("resnet_rs_26"), network("resnet_rs_26")
    model.data_config = dataclasses.replace(model.data_config, class_names=tuple("abcde"), test_size=96)
    extra = {"ema": averaged.state_dict(), "optimizer": {"lr": 1.0}, "metrics": {"top1": 0.5}}
    run = save_run(tmp_path / "best.pt", model, **extra)
    out = tmp_path / "best.safetensors"
    convert_with(["--from", "video_rs", run, "--out", str(out)])
    said = capsys.readouterr().out
    assert "moving averages: all tensors, from the run" in said and "ignored: 2 entries: model, optimizer" in said
    state = checkpoint.load_run(out)
    assert (
        same(state["model"], averaged.state_dict()) and DataConfig.from_dict(state["data_config"]) == model.data_config
    )
    assert state["step"] == 3 and state["config"] == {"a": 1} and state["metrics"] == {"top1": 0.5}
    assert "contains resnet_rs_26, not resnet_rs_50" in (
        refused("--from", "video_rs", run, "--model", "resnet_rs_50", "--out", tmp_path / "o.pt")
    )
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    bare = ["--from", "video_rs", tmp_path / "bare.pt", "--out", tmp_path / "o.pt"]
    assert "do not name their network: give --model" in refused(*bare)
    assert "as resnet3d_rs_26 it does not fit: " in refused(*bare, "--model", "resnet3d_rs_26")
    convert_with([*map(str, bare), "--model", "resnet_rs_26"])
    assert same(checkpoint.load_run(tmp_path / "o.pt")["model"], model.state_dict())


def test_timms_files(tmp_path):
    model = network("resnet_rs_50")
    torch.save({f"module.{name}": value for name, value in to_timm(model.state_dict()).items()}, tmp_path / "timm.pth")
    out = tmp_path / "o.pt"
    convert_with(["--from", "timm", str(tmp_path / "timm.pth"), "--out", str(out)])
    state = checkpoint.load_run(out)
    assert state["model_args"]["name"] == "resnet_rs_50" and same(state["model"], model.state_dict())
    assert DataConfig.from_dict(state["data_config"]) == PRESETS["resnet_rs_50"].data_config
    convert_with([str(tmp_path / "timm.pth"), "--out", str(tmp_path / "told.pt")])  # whose names these are is found out
    convert_with([str(tmp_path / "told.pt"), "--out", str(tmp_path / "again.safetensors")])
    assert same(checkpoint.load_run(tmp_path / "again.safetensors")["model"], model.state_dict())
    lacking = to_timm(model.state_dict())
    del lacking["layer1.0.conv1.weight"]  # by which timm's names are known
    torch.save(lacking, tmp_path / "lacking.pth")
    message = refused("--from", "timm", tmp_path / "lacking.pth", "--out", tmp_path / "p.pt")
    assert "it has no stages.0.0.conv1.conv.weight" in message
    for name in ("conv1.weight", "cls_token"):  # of timm's ResNets and transformers
        torch.save({name: torch.zeros(8, 3, 7, 7)}, out)
        message = refused("--from", "timm", out, "--out", tmp_path / "p.pt")
        assert "not one of timm's resnetrs*" in message and "model.name=timm/<name> train.init_from=FILE" in message


CASES = {
    "resnet_rs_50": {"num_classes": 5, "in_channels": 4},
    "timm/test_resnet.r160_in1k": {"num_classes": 5, "in_channels": 1},
    "timm/test_vit": {"num_classes": 3, "data_config": DataConfig(1, 1, train_size=96, short_side=96, test_size=96)},
}


@pytest.mark.parametrize("name", CASES)
def test_timm_loads_what_goes_to_it(tmp_path, capsys, name):
    timm = pytest.importorskip("timm")
    model = create_model(name, **CASES[name])
    args = {"name": name, **CASES[name]}
    args.pop("data_config", None)
    checkpoint.save(tmp_path / "run.pt", checkpoint.from_weights(args, model.data_config, model.state_dict()))
    out = tmp_path / "timm.safetensors"
    convert_with(["--from", "video_rs", "--to", "timm", str(tmp_path / "run.pt"), "--out", str(out)])
    call = capsys.readouterr().out.rpartition("next: ")[2].removesuffix(" in Python\n")
    theirs = eval(call, {"timm": timm}).state_dict()
    own = model.network.state_dict() if "/" in name else to_timm(model.state_dict())
    assert same(theirs, own)


def test_another_packages_run(tmp_path, capsys):
    """MViT computes tables when it is made, so it cannot be made on the meta device."""
    data_config = DataConfig(4, 2, train_size=32, short_side=32, test_size=32)
    model = create_model("pytorchvideo/mvit_base_16x4", num_classes=3, data_config=data_config)
    run = save_run(tmp_path / "run.pt", model, model_args={"name": model.name, "num_classes": 3})
    convert_with(["--from", "video_rs", run, "--out", str(tmp_path / "o.safetensors")])
    assert f"-> {model.name}, 3 classes" in capsys.readouterr().out
    assert same(checkpoint.load_run(tmp_path / "o.safetensors")["model"], model.state_dict())
    message = refused("--from", "video_rs", "--to", "timm", run, "--out", tmp_path / "o.pth")
    assert "it has no pytorchvideo/mvit_base_16x4" in message


def test_what_a_checkpoint_asks_for_is_not_done(tmp_path):
    for args in ({"pretrained": True}, {"heads": 2}, {"num_classes": -1}):
        run = save_run(tmp_path / "run.pt", network("resnet_rs_26"), model_args={"name": "resnet_rs_26", **args})
        assert "model_args" in refused("--from", "video_rs", run, "--out", tmp_path / "o.pt")


def said_of(capsys, tmp_path, source: str, path: object, *options: str) -> tuple[str, dict]:
    """Return the output of the command for a file, and the checkpoint."""
    out = tmp_path / "said.pt"
    assert convert_with(["--from", source, str(path), "--out", str(out), *options]) == 0
    return capsys.readouterr().out, checkpoint.load_run(out)


def test_a_trainers_best_weights_are_its_averages(tmp_path, capsys):
    """``best.pt`` has the averages as ``model``, and no ``ema``."""
    for decay, said in ((0.99, "all tensors, as the run kept them (decay 0.99)"), (0.0, "none, the run kept none")):
        model = network("resnet_rs_26")
        trained = Trainer(
            model,
            Schedule(num_samples=4, num_steps=1, batch_size=2, micro_batch=2, seed=0),
            criterion=torch.nn.Identity(),
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            learning_rate=float,
            ema=EMA(model, decay) if decay else None,
        )
        identity = {"format": 1, "config": {"train": {"ema_decay": decay}}, "fingerprint": {}, "versions": {}}
        identity |= {"data_config": model.data_config.to_dict()}
        identity |= {"model_args": {"name": "resnet_rs_26", "num_classes": 5, "width": 0.125}}
        run = Run(
            trained,
            folder=tmp_path,
            log=RunLog.silent(),
            identity=identity,
            loader_from=lambda *_: (),
            validate=lambda *_: {"top1": 0.5, "loss": 1.0},
        )
        run._validate()
        run.checkpointer.wait()
        out, state = said_of(capsys, tmp_path, "video_rs", tmp_path / "best.pt")
        assert f"moving averages: {said}\n" in out and same(state["model"], model.state_dict())
        assert state["metrics"] == {"top1": 0.5, "loss": 1.0} and "ignored: nothing" in out
        out, _ = said_of(capsys, tmp_path, "video_rs", tmp_path / "last.pt")
        assert f"averages: {'all tensors, from the run' if decay else said}\n" in out
        out, _ = said_of(capsys, tmp_path, "video_rs", shutil.copy(tmp_path / "said.pt", tmp_path / "again.pt"))
        assert "as the run kept them" in out or "none, the run kept none" in out


def test_timms_averages_come_first(tmp_path, capsys):
    """timm's trainer writes both, and its ``load_checkpoint`` takes the averages too."""
    model, averaged = network("resnet_rs_50"), network("resnet_rs_50")
    raw, ema = (to_timm(each.state_dict()) for each in (model, averaged))
    saved = {"epoch": 3, "arch": "resnetrs50", "state_dict": raw, "metric": 0.5}
    for name, entries, expected, said in (
        ("both.pth.tar", {"state_dict_ema": ema}, averaged, "all tensors, the entry state_dict_ema of the file"),
        ("other.pth.tar", {"model_ema": ema}, averaged, "all tensors, the entry model_ema of the file"),
        ("one.pth.tar", {}, model, "none, the entry state_dict of the file was used"),
    ):
        torch.save({**saved, **entries}, tmp_path / name)
        out, state = said_of(capsys, tmp_path, "timm", tmp_path / name)
        assert same(state["model"], expected.state_dict()) and f"moving averages: {said}\n" in out
        assert ("ignored: 4 entries: arch, epoch, metric and 1 more" if entries else "ignored: 3 entries") in out
        started = network("resnet_rs_50")
        init_from(started, tmp_path / name)
        assert same(started.state_dict(), expected.state_dict())


def test_what_weights_do_not_tell_is_said(tmp_path, capsys, file_holds):
    """The resolution, the clip and the activation are taken from the name of the file or its folder if possible."""
    cases = {
        ("garden", "ckpt-1"): ("garden_resnet_rs_101 (192 px); also garden_resnet_rs_101_i160 (160 px): give", 192),
        ("garden", "w/resnet-rs-101-i160/ckpt-1"): (
            "garden_resnet_rs_101_i160 (160 px), from the name resnet-rs-",
            160,
        ),
        ("keras", "resnet-rs-101-i192.h5"): ("resnet_rs_101 (192 px), from the name resnet-rs-101-i192.h5", 192),
        ("tpu", "resnetrs101_i160/model.ckpt"): ("resnet_rs_101_i160 (160 px), from the name resnetrs101_i160", 160),
        ("tpu", "i1600/model.ckpt"): ("resnet_rs_101 (192 px); also resnet_rs_101_i160", 192),
    }
    makers = {"garden": to_garden, "keras": to_keras, "tpu": to_tpu}
    for (source, path), (said, size) in cases.items():
        file_holds(makers[source](network("garden_resnet_rs_101" if source == "garden" else "resnet_rs_101")), path)
        out, state = said_of(capsys, tmp_path, source, path)
        assert f"the weights do not determine the resolution: assumed {said}" in out
        assert state["data_config"]["test_size"] == size
        assert ("do not determine the activation: assumed swish\n" in out) == (source == "garden")
    file_holds(to_garden(network("garden_slowonly_50")))
    out, state = said_of(capsys, tmp_path, "garden", "ckpt-1")
    assert (
        "determine the clip: assumed garden_slowonly_50 (8x8 frames); also garden_slowonly_50_16x4 (16x4 frames)" in out
    )
    file_holds(to_garden(network("garden_slowonly_50")), "slowonly_16x4/ckpt-1")
    out, state = said_of(capsys, tmp_path, "garden", "slowonly_16x4")
    assert (state["data_config"]["num_frames"], state["data_config"]["stride"]) == (16, 4) and "slowonly_16x4\n" in out
    torch.save(to_timm(network("resnet_rs_101").state_dict()), tmp_path / "resnetrs101.pth")
    assert (
        "the resolution: assumed resnet_rs_101 (192 px); also"
        in (said_of(capsys, tmp_path, "timm", tmp_path / "resnetrs101.pth")[0])
    )
    for name, options in (("garden_resnet3d_rs_50", []), ("garden_resnet_rs_101", ["--model", "garden_resnet_rs_101"])):
        file_holds(to_garden(network(name)))
        assert "do not determine the resolution" not in said_of(capsys, tmp_path, "garden", "ckpt-1", *options)[0]


def test_frozen_variables_are_named(tmp_path, capsys, file_holds):
    saved = trained(to_garden(network("garden_resnet_rs_50")))
    frozen = [name for name in saved if "layer_with_weights-3/" in name and "average" in name]
    file_holds({name: value for name, value in saved.items() if name not in frozen})
    out, _ = said_of(capsys, tmp_path, "garden", "ckpt-1")
    assert ", none of 2 that training changes: backbone/layer_with_weights-3/" in out


def test_what_timm_does_not_have(tmp_path):
    out = tmp_path / "o.pth"
    for name in ("garden_resnet_rs_50", "resnet3d_rs_50", "resnet_rs_26", "resnet_rs_50"):
        run = save_run(tmp_path / "run.pt", network(name), name=name)
        message = refused("--from", "video_rs", "--to", "timm", run, "--out", out)
        assert f"it has no {name} of width 0.125" in message
    assert not out.exists()


def test_arguments(tmp_path):
    run = save_run(tmp_path / "run.pt", network("resnet_rs_26"))
    assert "--out: it must end in .pt, .pth or .safetensors" in refused(
        "--from", "video_rs", run, "--out", tmp_path / "o.bin"
    )
    assert "is the file to convert" in refused("--from", "video_rs", run, "--out", run)
    assert "give --weights FILE" in refused("--from", "timm", "--out", tmp_path / "o.pt")
    assert "give --weights FILE" in refused("--from", "video_rs", "--out", "o.pt")
    assert "--no-averages is for" in refused("--from", "keras", "a.h5", "--no-averages", "--out", tmp_path / "o.pt")
    (tmp_path / "model.ckpt-1.index").touch()
    for path in ("resnet.h5", tmp_path, tmp_path / "model.ckpt-1", tmp_path / "model.ckpt-1.data-00000-of-00001"):
        with pytest.raises(UserError, match="weights of TensorFlow or Keras; convert them with tools/convert_tensorfl"):
            convert.main([str(path), "--out", str(tmp_path / "o.pt")])
    with pytest.raises(UserError, match="^a: weights of TensorFlow"):
        convert.main(["--from", "keras", "a", "--out", str(tmp_path / "o.pt")])
    with pytest.raises(UserError, match="^https://host/a.h5: weights of TensorFlow"):
        convert.main(["--from", "keras", "https://me:pw@host/a.h5?token=1", "--out", str(tmp_path / "o.pt")])
    assert refused("n" * 300, "--out", tmp_path / "o.pt").endswith("nn cannot be read: File name too long")
    for source in ("garden", "tpu"):
        message = refused("--from", source, "https://host/a.tar.gz?token=1", "--out", tmp_path / "o.pt")
        assert message.startswith("https://host/a.tar.gz is a URL or") and "token" not in message
    assert "does not exist" in refused("--from", "video_rs", tmp_path / "none.pt", "--out", tmp_path / "o.pt")
    done = commands.script("tools/convert_weights.py", "--from", "a", run, "--out", "o")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "invalid choice: 'a'" in done.stderr
