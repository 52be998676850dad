"""Weights in files of other trainers: nested entries, prefixes, and other content."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import same
from tests.models.test_init import NAMES, save_run, small
from tests.models.test_init_external import external
from video_rs import checkpoint
from video_rs.cli.common import run
from video_rs.cli.main import dispatch
from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.models.base import classifier_names
from video_rs.models.resnet_rs import ResNetRS
from video_rs.models.weights.find import find_weights
from video_rs.models.weights.init_from import init_from
from video_rs.models.weights.load import load_network
from video_rs.models.weights.state_dict import to_ours, to_timm

pytestmark = pytest.mark.usefixtures("one_thread")

ENTRIES = (
    *("state_dict", "model", "model_state", "model_state_dict", "weights", "net", "network", "params", "ema"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "student", "any.name.at.all"),
)
PREFIXES = (
    *("module.", "model.", "net.", "backbone.", "encoder.", "_orig_mod.", "network.", "module.model.", "model.module."),
    *("model._orig_mod.", "_orig_mod.module.", "model.net.encoder.", "ema_model.module.", "0.", "any_name."),
)
BESIDE = {
    "criterion.weight": torch.ones(3),
    "train_acc.correct": torch.zeros(3),
    "train_acc.total": torch.zeros(3),
    "pos_weight": torch.ones(3),
}
"""Weights of a loss and buffers of a metric, as in Lightning's checkpoints."""


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def nested(entry, state):
    for key in reversed(entry.split(".") if entry else []):
        state = {key: state}
    return state


@pytest.fixture(scope="module", params=["ours", "timm", "external"])
def network(request):
    """Return a network, and its state dict with the names of its files."""
    if request.param == "external":
        model = external()
        return model, {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    model = small()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return model, state if request.param == "ours" else to_timm(state)


@pytest.fixture
def in_memory(monkeypatch):
    """Pass the content of a file on without the file. Reading is tested below, and takes most of the time."""
    files = {}
    monkeypatch.setattr(torch, "save", lambda saved, path: files.update({path: saved}))
    monkeypatch.setattr(checkpoint, "load", lambda path: files[Path(path)])


def loaded(saved, path, model, expected):
    """Set all weights of a network to 7, load a file into it, and compare its weights with those expected."""
    torch.save(saved, path)
    for tensor in model.state_dict().values():
        tensor.fill_(7)
    report = init_from(model, path)
    state = {name.removeprefix("network."): tensor for name, tensor in model.state_dict().items()}
    expected = to_ours(expected) if isinstance(model, ResNetRS) else expected
    assert same({name: state[name] for name in expected}, expected)
    return report


def test_weights_in_any_entry(tmp_path, in_memory, network):
    model, theirs = network
    for entry in ENTRIES:
        saved = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, **nested(entry, theirs)}
        report = loaded(saved, tmp_path / "a.ckpt", model, theirs)
        assert f"entry {entry}, not used: epoch, optimizer" in str(report) and not report.adapted


def test_names_with_any_prefix_and_extra_weights(tmp_path, in_memory, network):
    model, theirs = network
    for i, prefix in enumerate(PREFIXES):
        entry, beside = ("", "state_dict")[i % 2], (BESIDE, prefixed(prefix, BESIDE), {})[i % 3]
        saved = nested(entry, {**prefixed(prefix, theirs), **beside})
        report = loaded(saved, tmp_path / "a.ckpt", model, theirs)
        assert not report.adapted and ("criterion.weight" in str(report)) == ("train_acc" in str(report)) == bool(
            beside
        )


def test_extra_weights_of_a_file_without_a_prefix(tmp_path, in_memory, network):
    model, theirs = network
    report = loaded({**theirs, **BESIDE, "epoch": 3}, tmp_path / "a.ckpt", model, theirs)
    left = "criterion.weight, train_acc.correct, train_acc.total, pos_weight and 1 more"
    assert str(report).endswith(f"not used: {left}")


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module."])
def test_wrappers_of_modules_inside_the_network(tmp_path, in_memory, wrapper):
    state = small().state_dict()
    wrapped = {re.sub(r"^(stages\.\d+\.)", rf"\1{wrapper}", name): tensor for name, tensor in state.items()}
    assert wrapped.keys() != state.keys()
    loaded(prefixed("module.", wrapped), tmp_path / "a.pt", small(), state)


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.encoder."])
def test_a_backbone_without_its_head(tmp_path, in_memory, network, prefix):
    """The network's own head stays, and the head that the file has outside of the backbone is named."""
    model, theirs = network
    names = classifier_names(model)
    ends = {name.removeprefix("network.") for name in names} | {"fc.weight", "fc.bias"}
    backbone = {name: tensor for name, tensor in theirs.items() if name not in ends}
    for head in ({}, {"head.weight": torch.ones(3, 9)}, {"fc.bias": torch.ones(3)}) if prefix else ({},):
        saved = {"state_dict": {**prefixed(prefix, backbone), **head}}
        report = loaded(saved, tmp_path / "a.ckpt", model, backbone)
        assert report.adapted == dict.fromkeys(names, "new head") and report.matched
        assert all((model.state_dict()[name] == 7).all() for name in names)
        assert "(new head)" in str(report) and all(name in str(report) for name in head)


def test_averages_are_preferred_in_any_entry(tmp_path, in_memory, network):
    model, theirs = network
    other = {name: tensor + 1 for name, tensor in theirs.items()}
    counted = {name: tensor for name, tensor in theirs.items() if "num_batches" not in name}
    files = (
        {"model": other, "ema": {"decay": 0.9, "shadow": theirs}},
        {"model_state_dict": other, "ema_state_dict": counted},
        {"state_dict": {**prefixed("model.", other), **prefixed("ema.module.", theirs)}},
        {"state_dict": {**prefixed("student.", other), **prefixed("teacher.", theirs)}},
        {"teacher": prefixed("module.backbone.", theirs), "student": prefixed("module.backbone.", other)},
        {"state_dict": other, "callbacks": {"EMACallback": {"weights": theirs}}},
        {**prefixed("encoder_q.", theirs), **prefixed("encoder_k.", other), "queue": torch.ones(3, 4)},
        {"optimizer": {"exp_avg": other}, "model": theirs},
    )
    for saved in files:
        assert "not used: " in str(loaded(saved, tmp_path / "a.pt", model, counted))


def test_averages_of_the_parameters_alone_are_not_a_network(tmp_path):
    """An EMA without running statistics cannot be used alone."""
    model = small()
    saved = {"model": small().state_dict(), "ema": dict(small().named_parameters())}
    assert "not used: ema" in str(loaded(saved, tmp_path / "a.pt", model, saved["model"]))


def test_an_entry_of_weights_is_preferred_to_one_with_equal_names():
    """A network without buffers has as many weights as an optimizer has averages of their gradients."""
    weights, other, mask = ({"a.weight": torch.full((3,), value)} for value in (1.0, 2.0, True))
    for beside in ({"m": other, "v": other}, {"opt_state": {"ema": other}}, {"net_masks": mask}, {"initial": other}):
        for name in ("model", "params", "network", "state_dict"):
            found = find_weights({**beside, name: weights}, {"a.weight": 3})
            assert found.entry == name and found.weights == weights


@pytest.mark.parametrize("other", [("resnet_rs_50", 3), ("resnet_rs_26", 9)])
def test_the_network_of_the_right_size_is_taken(tmp_path, in_memory, other):
    model, both = small(), {"student": small().state_dict(), "teacher": small(*other).state_dict()}
    for order in (both, dict(reversed(both.items()))):
        flat = {name: tensor for key in order for name, tensor in prefixed(f"{key}.", order[key]).items()}
        for saved in (order, flat):
            report = loaded(saved, tmp_path / "a.pt", model, both["student"])
            assert "teacher" in str(report).partition("not used")[2]


def test_images_with_a_prefix_are_inflated(tmp_path):
    state = small().state_dict()
    saved = {"state_dict": prefixed("model.", {**to_timm(state), **BESIDE})}
    assert (
        len(loaded(saved, tmp_path / "a.ckpt", small("resnet3d_rs_26"), {"head.bias": state["head.bias"]}).inflated)
        == 5
    )


def test_errors_name_the_entries_of_the_file(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"epoch": 3, "best_acc": 0.5}, path)
    with pytest.raises(
        UserError, match=r"a.ckpt holds no weights: .*; its entries are epoch \(int\), best_acc \(float"
    ):
        init_from(small(), path)
    with pytest.raises(UserError, match=r"a.ckpt holds no weights: .*; its entries are epoch \(int\)"):
        checkpoint.load_run(path)
    torch.save({}, path)
    with pytest.raises(UserError, match="a.ckpt holds no weights: .*; it is empty$"):
        init_from(small(), path)
    torch.save({"epoch": 3, "generator": {"conv.weight": torch.ones(1)}, "optimizer": {}}, path)
    with pytest.raises(
        UserError, match=r"\(entry generator; not used: epoch, optimizer\): .*, the first is conv.weight$"
    ):
        init_from(small(), path)
    with pytest.raises(
        UserError, match=r"\(entry generator; not used: epoch, optimizer\): this .* no network.conv.weig"
    ):
        init_from(external(), path)
    hostile = "\x1b[31m" + "a" * 1000
    torch.save({hostile: {hostile: torch.ones(1)}}, path)
    for create in (small, external):
        with pytest.raises(UserError) as error:
            init_from(create(), path)
        assert str(error.value).isprintable() and len(str(error.value)) < 600


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation")
@pytest.mark.parametrize("kind", ["float8", "complex", "sparse", "quantized"])
def test_weights_that_are_not_plain_are_one_line(tmp_path, kind):
    convert = {
        "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
        "complex": lambda tensor: tensor.to(torch.complex64),
        "sparse": lambda tensor: tensor.to_sparse(),
        "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    }[kind]
    model, path = small(), tmp_path / "a.pt"
    state = {**model.state_dict(), "head.weight": convert(model.head.weight.detach())}
    torch.save({"model": state}, path)
    with pytest.raises(UserError, match=f"a.pt: head.weight is not a dense real tensor .*{kind[:5]}|qint"):
        init_from(model, path)
    torch.save({**checkpoint.load(save_run(path, model, name="resnet_rs_26")), "model": state}, path)
    with pytest.raises(UserError, match="a.pt is damaged: its entry model is invalid"):
        checkpoint.load_run(path)


def test_weights_that_are_not_finite_are_named(tmp_path):
    torch.save({"model": {**small().state_dict(), "head.bias": torch.full((3,), torch.nan)}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="a.pt is damaged: values that are not finite in head.bias; use another file"):
        init_from(small(), tmp_path / "a.pt")


def test_objects_in_a_file_are_named(tmp_path):
    torch.save({"best": slice(3), "model": small().state_dict()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"objects other than tensors \(.*slice\), which were not executed; save a"):
        init_from(small(), tmp_path / "a.pt")


@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
def test_numpy_values_are_ignored(tmp_path, core):
    """A best accuracy, and the state of NumPy's random numbers. NumPy 1 and 2 have different names in files."""
    state = small().state_dict()
    saved = {"best": np.float32(3), "epoch": np.int64(3), "rng": np.random.RandomState(0).get_state(), "model": state}
    torch.save(saved, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "a.pt").read_bytes()
    assert b"cnumpy._core.multiarray\n" in data
    (tmp_path / "a.pt").write_bytes(data.replace(b"cnumpy._core.", f"c{core}.".encode()))
    model = small()
    assert "not used: best, epoch, rng" in str(init_from(model, tmp_path / "a.pt"))
    assert same(model.state_dict(), state)
    assert isinstance(checkpoint.load(tmp_path / "a.pt")["best"], checkpoint.NumPyValue)


def test_many_adversarial_names_are_read_fast(tmp_path):
    saved = {"a." * 30_000 + str(i): torch.zeros(1) for i in range(20)}
    saved |= {f"p{i}.head.weight": torch.zeros(1) for i in range(5000)}
    with pytest.raises(UserError, match="they have no stages"):
        loaded(saved, tmp_path / "a.pt", small(), {})


def test_arguments_of_a_trainer_beside_the_weights(tmp_path):
    """timm's train.py and torchvision's references store an argparse.Namespace."""
    state = small().state_dict()
    saved = {"state_dict": state, "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=[1]))}
    assert "not used: args" in str(loaded(saved, tmp_path / "a.pt", small(), state))


def test_conversion_of_an_average(tmp_path):
    """An average of parameters without buffers is not converted. A full average is, even if a network is larger."""
    state, other = small().state_dict(), {name: tensor + 1 for name, tensor in small().state_dict().items()}
    parameters = dict(small().named_parameters())
    for saved, place in (
        ({"model": to_timm(state), "ema": to_timm(parameters)}, "none, the entry model of"),
        ({"model": to_timm(other), "ema": to_timm(state)}, "all tensors, the entry ema of"),
        (prefixed("ema.", to_timm(state)) | prefixed("net.", to_timm(other)), "names that begin with ema. of"),
    ):
        torch.save(saved, tmp_path / "a.pt")
        loaded = load_network(tmp_path / "a.pt")
        assert same(loaded.network.state_dict(), state) and place in loaded.averages
    torch.save({"generator": {"conv.weight": torch.ones(1)}, "epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a.pt \(entry generator; not used: epoch\): .* the first is conv.weight$"):
        load_network(tmp_path / "a.pt")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_conversion_of_a_trainers_file(tmp_path, capsys, prefix):
    state = small().state_dict()
    torch.save({"state_dict": {**prefixed(prefix, to_timm(state)), **(BESIDE if prefix else {})}}, tmp_path / "a.ckpt")
    argv = ["convert", "--weights", str(tmp_path / "a.ckpt"), "--out", str(tmp_path / "b.pt")]
    assert run(dispatch, argv) == 0
    said = capsys.readouterr().out
    assert "-> resnet_rs_26, 3 classes" in said and "the entry state_dict" in said
    assert not prefix or "ignored: 3 entries: criterion.weight, train_acc.* (2 weights), pos_weight" in said
    assert same(checkpoint.load_run(tmp_path / "b.pt")["model"], state)
    torch.save({"state_dict": prefixed(prefix, {**to_timm(state), **BESIDE})}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="this network has no criterion.weight, "):
        load_network(tmp_path / "a.ckpt")


def test_inflation_of_a_trainers_backbone(tmp_path, capsys):
    state = {name: tensor for name, tensor in to_timm(small().state_dict()).items() if not name.startswith("fc.")}
    save_file({f"backbone.{name}": tensor.contiguous() for name, tensor in state.items()}, tmp_path / "a.safetensors")
    argv = ["inflate", "--weights", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "b.pt")]
    assert run(dispatch, [*argv, "--model", "resnet3d_rs_26", "--num-classes", "5"]) == 0
    assert "head.weight (new head)" in capsys.readouterr().out
    assert checkpoint.load_run(tmp_path / "b.pt")["model"]["head.weight"].shape == (5, 256)


@pytest.mark.parametrize("kind", ["bare", "run without names"])
def test_a_head_whose_classes_are_unknown_is_reported(tmp_path, kind):
    source, model = small(), small(data_config=DataConfig(class_names=NAMES))
    path = tmp_path / "a.pt"
    save_run(path, source, name="resnet_rs_26") if kind != "bare" else torch.save(source.state_dict(), path)
    report = init_from(model, path)
    assert torch.equal(model.head.weight, source.head.weight)
    assert "head.weight kept: the class names of the source are unknown" in str(report)
    assert "kept" not in str(init_from(small(), path))
    source.data_config = dataclasses.replace(source.data_config, class_names=NAMES)
    assert "kept" not in str(init_from(model, save_run(path, source, name="resnet_rs_26")))
