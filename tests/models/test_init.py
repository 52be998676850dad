"""Starting a network from files: bare weights, runs, timm's, images."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from video_rs import checkpoint
from video_rs.contract import IMAGENET_MEAN, DataContract
from video_rs.errors import MachineError, UserError
from video_rs.models import init
from video_rs.models.convert import to_timm
from video_rs.models.init import init_from
from video_rs.models.zoo import create_model

NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(name="resnet_rs_26", num_classes=3, **kwargs):
    model = create_model(name, num_classes=num_classes, width=0.125, **kwargs)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def save_run(path, model, ema=None, **model_args):
    checkpoint.save(
        path,
        {
            "format": 1,
            "config": {},
            "model_args": {"num_classes": model.num_classes, "width": 0.125, **model_args},
            "contract": model.contract.to_dict(),
            "model": model.state_dict(),
            "ema": ema,
            "step": 3,
        },
    )
    return path


@pytest.mark.parametrize("kind", ["pt", "safetensors", "timm", "prefixed", "wrapped"])
def test_init_from_bare_weights(tmp_path, kind):
    source, model = small(), small()
    state, path = source.state_dict(), tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        kinds = {
            "timm": to_timm(state),
            "prefixed": {f"module.{name}": tensor for name, tensor in state.items()},
            "wrapped": {"state_dict": state, "epoch": 3},
        }
        torch.save(kinds.get(kind, state), path)
    report = init_from(model, path)
    assert same(model.state_dict(), state)
    assert len(report.weights.matched) == len(state) and str(report) == f"{len(state)} weights as they are"
    assert (report.contract is None) == (kind != "timm")


def test_init_from_a_run_prefers_the_average_and_takes_its_contract(tmp_path):
    pixels = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "filter": "bicubic-antialias"}
    source = small("resnet3d_rs_26", contract=DataContract(**pixels, class_names=NAMES, num_frames=64))
    ema = {name: tensor + 1 for name, tensor in source.state_dict().items()}
    path = save_run(tmp_path / "last.pt", source, ema, name="resnet3d_rs_26")
    model = small("resnet3d_rs_26")
    init_from(model, path)
    assert same(model.state_dict(), ema)
    assert model.contract == dataclasses.replace(DataContract(), **pixels, class_names=NAMES)
    own = small("resnet3d_rs_26", contract=DataContract(class_names=("x", "y", "z")))
    init_from(own, path)
    assert own.contract.class_names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("theirs", "how"),
    [
        (NAMES, None),
        ((), None),
        (("c", "a", "b"), "rows in the order of the class names"),
        (("a", "b", "d"), "other class names, starts anew"),
    ],
)
def test_as_many_classes_are_not_the_same_classes(tmp_path, theirs, how):
    source = small(contract=DataContract(class_names=theirs))
    model = small(contract=DataContract(class_names=NAMES))
    fresh = model.head.weight.clone(), model.head.bias.clone()
    report = init_from(model, save_run(tmp_path / "best.pt", source, name="resnet_rs_26"))
    assert report.weights.adapted == ({"head.weight": how, "head.bias": how} if how else {})
    rows = [theirs.index(name) for name in NAMES] if how and how.startswith("rows") else [0, 1, 2]
    kept = source.head.weight[rows], source.head.bias[rows]
    for ours, expected in zip((model.head.weight, model.head.bias), fresh if "d" in theirs else kept, strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(model.stem.conv1.conv.weight, source.stem.conv1.conv.weight)
    assert model.contract.class_names == NAMES


def test_runs_of_a_newer_version_are_refused(tmp_path):
    path = save_run(tmp_path / "new.pt", small(), name="resnet_rs_26")
    state = checkpoint.load(path)
    checkpoint.save(path, {**state, "format": checkpoint.FORMAT + 1})
    with pytest.raises(UserError, match="new.pt has checkpoint format 2"):
        init_from(small(), path)
    checkpoint.save(path, {**state, "contract": {**state["contract"], "audio": 1}})
    with pytest.raises(UserError, match=r"new.pt has data contract fields \['audio'\]"):
        init_from(small(), path)


def test_init_from_images_inflates_and_replaces_the_head(tmp_path):
    source, model = small(num_classes=7), small("resnet3d_rs_26")
    path = save_run(tmp_path / "image.pt", source, name="resnet_rs_26")
    head = model.head.weight.clone()
    report = init_from(model, path, method="average")
    torch.testing.assert_close(model.head.weight, head)
    kernel = source.stem.conv1.conv.weight
    torch.testing.assert_close(model.stem.conv1.conv.weight, kernel.expand(-1, -1, 5, -1, -1) / 5)
    assert model.contract.mean == IMAGENET_MEAN and model.contract.filter == "bicubic"
    assert model.contract.num_frames == 32
    assert "5 inflated" in str(report) and "head.weight 7 -> 3 classes, starts anew" in str(report)


def test_init_from_is_strict(tmp_path):
    model = small()
    state = model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    faults = {
        "they have no head.bias": {name: tensor + 1 for name, tensor in state.items() if name != "head.bias"},
        "the network has no extra.weight": {**state, "extra.weight": torch.zeros(1)},
        "head.weight is": {**state, "head.weight": torch.zeros(3, 5)},
        "the network has no stages.0.2": create_model("resnet_rs_50", num_classes=3, width=0.125).state_dict(),
    }
    for message, broken in faults.items():
        torch.save(broken, tmp_path / "broken.pt")
        with pytest.raises(UserError, match=message) as error:
            init_from(model, tmp_path / "broken.pt")
        assert "broken.pt" in str(error.value) and "\n" not in str(error.value)
    assert same(model.state_dict(), before)
    torch.save({"epoch": 3}, tmp_path / "broken.pt")
    with pytest.raises(UserError, match="holds no weights"):
        init_from(model, tmp_path / "broken.pt")
    for name in ("nothing.pt", "nothing.safetensors"):
        with pytest.raises(UserError, match=f"{name} does not exist"):
            init_from(model, tmp_path / name)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match="cut.safetensors cannot be read"):
        init_from(model, tmp_path / "cut.safetensors")


def test_timms_weights_are_asked_for_by_depth(monkeypatch):
    timm = pytest.importorskip("timm")
    asked = []
    create = timm.create_model

    def fake(name, pretrained):
        asked.append((name, pretrained))
        return create(name)

    monkeypatch.setattr(timm, "create_model", fake)
    with torch.device("meta"):
        source = init.read_timm((3, 4, 6, 3))
    assert asked == [("resnetrs50", True)] and "stages.0.0.conv1.conv.weight" in source.state

    def offline(name, pretrained):
        raise OSError("no route to host\nand so on")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(MachineError, match="weights of resnetrs101: no route to host$"):
        init.read_timm((3, 4, 23, 3))
    with pytest.raises(UserError, match="depths 50, 101"):
        init_from(small(), "timm")
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        init.read_timm((3, 4, 6, 3))
