"""Start networks of other packages from weights, and the family from timm's weights."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from torch import nn

from tests.conftest import same
from tests.models.test_init import NAMES, save_run, small
from video_rs.data_config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from video_rs.errors import MachineError, UserError
from video_rs.models.adapters.base import External
from video_rs.models.base import classifier_names
from video_rs.models.registry import create_model
from video_rs.models.weights.init_from import init_from
from video_rs.models.weights.state_dict import to_timm
from video_rs.models.weights.timm import read_timm


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def external(name="timm/test_resnet", **kwargs):
    pytest.importorskip("timm")
    model = create_model(name, **{"num_classes": 3, **kwargs})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("kind", ["theirs", "ours", "wrapped", "run"])
def test_networks_of_other_packages(tmp_path, kind):
    source, model, path = external(), external(), tmp_path / "weights.pt"
    state, before = source.state_dict(), model.data_config
    theirs = source.network.state_dict()
    kinds = {"theirs": theirs, "ours": state, "wrapped": {"model_state": theirs, "epoch": 1}}
    source.data_config = dataclasses.replace(source.data_config, class_names=NAMES, std=(0.1, 0.2, 0.3))
    save_run(path, source, name=f"{source.name}.r160_in1k") if kind == "run" else torch.save(kinds[kind], path)
    report = init_from(model, path)
    left = ", entry model_state, not used: epoch" if kind == "wrapped" else ""
    assert same(model.state_dict(), state) and str(report) == f"{len(state)} weights unchanged{left}"
    assert model.data_config == (source.data_config if kind == "run" else before)


class Owner(nn.Module):
    """A network with a child called ``network``, the name that our wrapper uses; timm's volo_* have one."""

    def __init__(self, *, more: bool) -> None:
        super().__init__()
        self.network = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4) if more else nn.Identity()


@pytest.mark.parametrize("kind", ["theirs", "ours", "wrapped"])
@pytest.mark.parametrize("more", [True, False])
def test_networks_that_have_a_child_called_network(tmp_path, kind, more):
    def wrapper():
        return External("timm/owner", Owner(more=more), 4, DataConfig(), native=DataConfig(), classifier="network.norm")

    source, model = wrapper(), wrapper()
    theirs = {f"module.{name}": tensor for name, tensor in source.network.state_dict().items()}
    kinds = {"theirs": source.network.state_dict(), "ours": source.state_dict(), "wrapped": theirs}
    torch.save(kinds[kind], tmp_path / "weights.pt")
    report = init_from(model, tmp_path / "weights.pt")
    assert same(model.state_dict(), source.state_dict()) and len(report.matched) == (4 if more else 2)


def test_heads_of_networks_of_other_packages(tmp_path):
    path = save_run(tmp_path / "run.pt", external(), name="timm/test_resnet")
    model = external(num_classes=5)
    head = model.get_parameter("network.fc.weight").clone()
    report = init_from(model, path)
    assert report.adapted == dict.fromkeys(classifier_names(model), "3 -> 5 classes, new head")
    assert torch.equal(model.get_parameter("network.fc.weight"), head)
    assert len(report.matched) == len(model.state_dict()) - 2
    features = {name: value for name, value in external().state_dict().items() if name not in classifier_names(model)}
    torch.save(features, path)  # as public weights of networks that end in features
    assert init_from(model, path).adapted == dict.fromkeys(classifier_names(model), "new head")
    assert torch.equal(model.get_parameter("network.fc.weight"), head)


def test_networks_of_other_packages_take_their_own_weights_alone(tmp_path):
    source, path = external(), tmp_path / "weights.pt"
    wrong = {
        "its network is timm/test_resnet, not timm/test_vit": external("timm/test_vit"),
        r"conv1.0.weight is .* \(input channels are only adapted for the ResNet-RS": external(in_channels=1),
    }
    save_run(path, source, name="timm/test_resnet")
    for message, model in wrong.items():
        with pytest.raises(UserError, match=message):
            init_from(model, path)
    save_run(path, small(), name="resnet_rs_26")
    with pytest.raises(UserError, match="its network is resnet_rs_26, not timm/test_resnet"):
        init_from(external(), path)
    torch.save({**source.network.state_dict(), "fc.extra": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="this network has no network.fc.extra$"):
        init_from(external(), path)
    torch.save(source.state_dict(), path)
    with pytest.raises(UserError, match="not those of a ResNet-RS: they have no stages, the first is conv1.0.weight$"):
        init_from(small(), path)
    save_run(path, source, name="timm/test_resnet")
    with pytest.raises(UserError, match="its network is timm/test_resnet, not a ResNet-RS$"):
        init_from(small(), path)


def test_timms_own_resnetrs_trained_here_goes_into_the_family(tmp_path):
    source = small()
    theirs = {f"network.{name}": tensor for name, tensor in to_timm(source.state_dict()).items()}
    torch.save(theirs, tmp_path / "weights.pt")
    model = small("resnet3d_rs_26")
    assert init_from(model, tmp_path / "weights.pt").inflated
    assert torch.equal(model.head.weight, source.head.weight)


@pytest.mark.parametrize(("depth", "filter"), [(50, "bicubic"), (200, "bicubic-antialias")])
@pytest.mark.parametrize("name", ["resnet_rs_{}", "resnet3d_rs_{}"])
def test_what_timms_weights_expect_depends_on_who_trained_them(tmp_path, name, depth, filter):
    torch.save(to_timm(small(f"resnet_rs_{depth}").state_dict()), tmp_path / "weights.pt")
    own = DataConfig(num_frames=8, class_names=NAMES)
    model = small(name.format(depth), data_config=own)
    init_from(model, tmp_path / "weights.pt")
    assert model.data_config == dataclasses.replace(own, mean=IMAGENET_MEAN, std=IMAGENET_STD, filter=filter)


@pytest.mark.parametrize("name", ["resnet3d_rs_26", "garden_resnet_rs_50", "garden_resnet3d_rs_50", "resnet_rs_50"])
def test_networks_without_public_weights(name):
    """The last one is refused for its width. Nothing is downloaded."""
    with pytest.raises(
        UserError, match="no public weights of this network; timm has weights for .*from a file instead"
    ):
        init_from(small(name), "pretrained")


def test_timms_weights_are_asked_for_by_depth(monkeypatch):
    timm = pytest.importorskip("timm")
    asked = []
    create = timm.create_model

    def fake(name, pretrained=False, **kwargs):
        if not pretrained:
            return create(name, **kwargs)
        asked.append((name, kwargs))
        with torch.device("meta"):
            return create(name)

    monkeypatch.setattr(timm, "create_model", fake)
    source = read_timm((3, 4, 6, 3))
    assert asked == [("resnetrs50", {})] and "stages.0.0.conv1.conv.weight" in source.state

    def offline(name, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no route to host\nand so on")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(MachineError, match="weights of timm/resnetrs101 could not be downloaded: no route to host$"):
        read_timm((3, 4, 23, 3))
    with pytest.raises(UserError, match="depths 50, 101"):
        init_from(small(), "timm")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (RuntimeError("operator torchvision::nms does not exist\n..."), r"installed but cannot .*nms.*matching pair"),
        (OSError("undefined symbol: _ZN3c10"), "installed but cannot be imported .undefined symbol"),
        (ModuleNotFoundError("No module", name="torchvision.transforms.functional_tensor"), "timm, which is installed"),
    ],
)
def test_timm_that_is_broken(monkeypatch, fault, said):
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "timm":
                raise fault

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(UserError, match=said) as error:
        read_timm((3, 4, 6, 3))
    assert "\n" not in str(error.value)


def test_timms_resnetrs_are_not_for_other_networks():
    with pytest.raises(UserError, match="timm is for the ResNet-RS family; use pretrained for timm/test_resnet$"):
        init_from(external(), "timm")
