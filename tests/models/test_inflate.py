"""An inflated network on a still clip is its image network on the frame."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from video_rs.errors import UserError
from video_rs.models.convert import to_timm
from video_rs.models.inflate import average_channels, inflate, inflate_kernel
from video_rs.models.layout import RESNET_RS_2D, RESNET_RS_3D
from video_rs.models.resnet_rs import ResNetRS

BLOCKS = (1, 1, 2, 2)
REPLICATE = dataclasses.replace(RESNET_RS_3D, temporal_padding="replicate")
SAME = dataclasses.replace(RESNET_RS_3D, padding="same")


def network(layout=RESNET_RS_2D, num_classes=11, **kwargs) -> ResNetRS:
    torch.set_num_threads(1)
    return ResNetRS(layout, BLOCKS, num_classes, width=0.125, **kwargs)


@pytest.fixture
def image_network(request) -> ResNetRS:
    return lively(network(getattr(request, "param", RESNET_RS_2D)))


def lively(model: ResNetRS) -> ResNetRS:
    """Every block contributes, and the statistics are those of a batch: else errors vanish or explode with depth."""
    torch.manual_seed(1)
    for stage in model.stages:
        for block in stage:
            torch.nn.init.uniform_(block.conv3.norm.weight, 0.1, 0.3)
    torch.nn.init.normal_(model.head.weight)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = 1.0
    model.train()(torch.randn(8, 3, 64, 64))
    return model.eval()


def still_clip_error(model_2d: ResNetRS, model_3d: ResNetRS, length: int) -> float:
    """The largest difference of the logits, relative to the largest logit."""
    torch.manual_seed(2)
    images = torch.randn(2, 3, 64, 64)
    clips = images[:, :, None].expand(-1, -1, length, -1, -1)
    with torch.inference_mode():
        expected, logits = model_2d(images), model_3d.eval()(clips)
    return ((logits - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("length", [1, 4, 7, 16])
@pytest.mark.parametrize("layout", [RESNET_RS_3D, REPLICATE], ids=["zeros", "replicate"])
def test_center_gives_the_logits_of_the_image_network(image_network, layout, length):
    model = network(layout)
    report = inflate(image_network.state_dict(), model, "center")
    assert still_clip_error(image_network, model, length) < 1e-5
    assert report.inflated == [
        name for name, weight in model.named_parameters() if weight.ndim == 5 and weight.shape[2] > 1
    ]
    assert not (report.adapted or report.unused or report.missing)


@pytest.mark.parametrize("length", [4, 7])
@pytest.mark.parametrize("image_network", [dataclasses.replace(RESNET_RS_2D, padding="same")], indirect=True)
def test_center_holds_with_same_padding(image_network, length):
    model = network(SAME)
    inflate(image_network.state_dict(), model, "center")
    assert still_clip_error(image_network, model, length) < 1e-5


@pytest.mark.parametrize("place", ["stem.conv1", "stages.2.1.conv1", "stages.3.0.conv1"])
def test_one_zeroed_temporal_kernel_shows(image_network, place):
    model = network(RESNET_RS_3D)
    inflate(image_network.state_dict(), model, "center")
    model.get_parameter(f"{place}.conv.weight").data.zero_()
    assert still_clip_error(image_network, model, 4) > 1e-3


@pytest.mark.parametrize("length", [1, 4, 7])
def test_average_is_exact_with_replicated_frames_alone(image_network, length):
    errors = {}
    for layout in (REPLICATE, RESNET_RS_3D):
        model = network(layout)
        inflate(image_network.state_dict(), model, "average")
        errors[layout.temporal_padding] = still_clip_error(image_network, model, length)
    assert errors["replicate"] < 1e-5
    assert errors["zeros"] > 1e-2


def test_timms_names_and_prefixes_are_known(image_network):
    theirs = {f"module.{name}": tensor for name, tensor in to_timm(image_network.state_dict()).items()}
    models = network(RESNET_RS_3D), network(RESNET_RS_3D)
    reports = [inflate(state, model) for state, model in zip((theirs, image_network.state_dict()), models, strict=True)]
    assert reports[0] == reports[1]
    for (name, ours), theirs in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_kernels():
    kernel = torch.randn(4, 3, 1, 3, 3)
    center, average = (inflate_kernel(kernel, 5, method) for method in ("center", "average"))
    torch.testing.assert_close(center[:, :, 2], kernel[:, :, 0])
    torch.testing.assert_close(center.sum(2), kernel[:, :, 0])
    torch.testing.assert_close(average, kernel.repeat(1, 1, 5, 1, 1) / 5)
    grey = torch.randn(1, 1, 1, 3, 3)
    for channels in (1, 2, 5):
        adapted = average_channels(kernel, channels)
        assert adapted.shape == (4, channels, 1, 3, 3)
        torch.testing.assert_close((adapted * grey).sum(1), (kernel * grey).sum(1))


def test_the_report_names_everything(image_network):
    state = image_network.state_dict()
    layout = dataclasses.replace(RESNET_RS_3D, stem_pool="max", self_gating=True)
    model = network(layout, num_classes=5, in_channels=2)
    head = model.head.weight.clone()
    report = inflate(state, model)
    assert set(report.adapted) == {"head.weight", "head.bias", "stem.conv1.conv.weight"}
    assert report.adapted["head.weight"] == "11 -> 5 classes, starts anew"
    torch.testing.assert_close(model.head.weight, head)
    assert all(name.startswith("stem.pool") for name in report.unused) and report.unused
    assert all(".gating." in name for name in report.missing) and len(report.missing) == 8
    places = report.matched + report.inflated + report.missing + list(report.adapted)
    assert sorted(set(places)) == sorted(model.state_dict())
    text = str(report)
    assert "11 -> 5 classes" in text and "stages.0.0.gating.weight" in text and len(text.splitlines()) == 5


def test_other_shapes_are_named_and_change_nothing(image_network):
    model = ResNetRS(RESNET_RS_3D, BLOCKS, 11, width=0.25)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"stem.conv1.conv.weight is \[4, 3, 1, 3, 3\] but \[8, 3, 5, 3, 3\]"):
        inflate(image_network.state_dict(), model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(UserError, match="center or average"):
        inflate(image_network.state_dict(), model, "mean")
