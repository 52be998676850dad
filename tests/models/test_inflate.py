"""An inflated network gives the same logits for a still clip as its image network for the frame."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from video_rs.errors import UserError
from video_rs.models import base
from video_rs.models.architecture import GARDEN_2D, GARDEN_3D, INFLATED_GARDEN_2D, RESNET_RS_2D, RESNET_RS_3D
from video_rs.models.resnet_rs import ResNetRS
from video_rs.models.weights.inflate import adapt_head, average_channels, inflate, inflate_kernel
from video_rs.models.weights.state_dict import to_timm

BLOCKS = (1, 1, 2, 2)
REPLICATE = dataclasses.replace(RESNET_RS_3D, temporal_padding="replicate")


def network(architecture=RESNET_RS_2D, num_classes=11, **kwargs) -> ResNetRS:
    torch.set_num_threads(1)
    return ResNetRS(architecture, BLOCKS, num_classes, width=0.125, **kwargs)


@pytest.fixture
def image_network(request) -> ResNetRS:
    torch.manual_seed(0)
    return lively(network(getattr(request, "param", RESNET_RS_2D)))


def lively(model: ResNetRS) -> ResNetRS:
    """Make every block contribute, with statistics of a batch; otherwise errors vanish or explode with depth."""
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


def still_clip_error(model_2d: ResNetRS, model_3d: ResNetRS, length: int, size: int = 64, channels: int = 3) -> float:
    """Return the largest difference of the logits over the largest logit; for grey images if ``channels`` differ."""
    torch.manual_seed(2)
    weight = model_2d.head.weight
    images = torch.randn(2, 3 if channels == 3 else 1, size, size, dtype=weight.dtype)
    clips = images[:, :, None].expand(-1, channels, length, -1, -1)
    with torch.inference_mode():
        expected, logits = model_2d(images.expand(-1, 3, -1, -1)), model_3d.eval()(clips)
    return ((logits - expected).abs().max() / expected.abs().max()).item()


def inflated(image_network: ResNetRS, architecture, method: str = "center", **kwargs) -> ResNetRS:
    model = network(architecture, **kwargs).to(image_network.head.weight.dtype)
    report = inflate(image_network.state_dict(), model, method)
    temporal = [name for name, weight in model.named_parameters() if weight.ndim == 5 and weight.shape[2] > 1]
    assert report.inflated == temporal and not report.unused and not report.missing
    return model


PAIRS = [
    pytest.param(RESNET_RS_2D, RESNET_RS_3D, id="default"),
    pytest.param(RESNET_RS_2D, REPLICATE, id="default-replicate"),
    pytest.param(GARDEN_2D, INFLATED_GARDEN_2D, id="garden"),
    pytest.param(
        GARDEN_2D, dataclasses.replace(INFLATED_GARDEN_2D, temporal_padding="replicate"), id="garden-replicate"
    ),
]


@pytest.mark.parametrize(("image_network", "architecture"), PAIRS, indirect=["image_network"])
def test_center_gives_the_logits_of_the_image_network(image_network, architecture):
    """SAME padding puts the odd frame and pixel at the end, so even and odd lengths and sizes differ."""
    model = inflated(image_network, architecture)
    for length, size in ((1, 64), (4, 71), (7, 64), (16, 71)):
        assert still_clip_error(image_network, model, length, size) < 1e-5
    image_network.double(), model.double()
    for length, size in ((1, 71), (2, 64), (8, 64), (9, 71)):
        assert still_clip_error(image_network, model, length, size) < 1e-12


@pytest.mark.parametrize("place", ["stem.conv1", "stages.2.1.conv1", "stages.3.0.conv1"])
def test_one_zeroed_temporal_kernel_shows(image_network, place):
    model = network(RESNET_RS_3D)
    inflate(image_network.state_dict(), model, "center")
    model.get_parameter(f"{place}.conv.weight").data.zero_()
    assert still_clip_error(image_network, model, 4) > 1e-3


@pytest.mark.parametrize("image_network", [RESNET_RS_2D, GARDEN_2D], ids=["default", "garden"], indirect=True)
@pytest.mark.parametrize("length", [1, 4, 7])
def test_average_is_exact_with_replicated_frames_alone(image_network, length):
    image_network.double()
    architecture = RESNET_RS_3D if image_network.architecture == RESNET_RS_2D else INFLATED_GARDEN_2D
    replicate = dataclasses.replace(architecture, temporal_padding="replicate")
    assert still_clip_error(image_network, inflated(image_network, replicate, "average"), length) < 1e-12
    assert still_clip_error(image_network, inflated(image_network, architecture, "average"), length) > 1e-2


def test_how_far_average_with_zeros_is_off(image_network):
    """8 frames give 4 outputs of the stem, one with 3/5 of its kernel and one with 4/5."""
    fresh = network().eval()
    assert still_clip_error(fresh, inflated(fresh, RESNET_RS_3D, "average"), 8) == pytest.approx(0.6 / 4, rel=1e-3)
    model = inflated(image_network, RESNET_RS_3D, "average")
    errors = {length: still_clip_error(image_network, model, length) for length in (8, 16, 32)}
    assert 0.3 < errors[8] < 1.5
    assert errors[16] == pytest.approx(errors[8] / 2, rel=0.1) and errors[32] == pytest.approx(errors[8] / 4, rel=0.1)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_grey_image_gives_what_it_gave_in_other_channels(image_network, channels):
    model = inflated(image_network.double(), RESNET_RS_3D, in_channels=channels)
    assert still_clip_error(image_network, model, 4, channels=channels) < 1e-12


def test_timms_names_and_prefixes_are_known(image_network):
    theirs = {f"module.{name}": tensor for name, tensor in to_timm(image_network.state_dict()).items()}
    models = network(RESNET_RS_3D), network(RESNET_RS_3D)
    reports = [inflate(state, model) for state, model in zip((theirs, image_network.state_dict()), models, strict=True)]
    assert reports[0] == reports[1]
    for (name, ours), theirs in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    ("theirs", "ours", "how"),
    [
        ("abcd", "abcd", ""),
        ("abcd", "", ""),
        ("", "wxyz", ""),
        ("abcd", "dbca", "4 of 4 classes by name"),
        ("abcd", "axcy", "2 of 4 classes by name"),
        ("abcd", "da", "2 of 2 classes by name"),
        ("abcd", "xbyczw", "2 of 6 classes by name"),
        ("abcd", "wxyz", "other class names, new head"),
        ("abcd", "xyz", "other class names, new head"),
        (("a", "b", "2", "3"), ("b", "x", "2"), "1 of 3 classes by name"),  # 2 and 3 have no names
        ("0123", ("0", "1"), "4 -> 2 classes, new head"),
        ("0123", "wxyz", ""),
    ],
)
def test_the_head_by_class_name(theirs, ours, how):
    weight, bias = torch.randn(4, 3), torch.randn(4)
    fresh = torch.full((len(ours) or 4, 3), 7.0), torch.full((len(ours) or 4,), 7.0)
    for source, target in zip((weight, bias), fresh, strict=True):
        before = target.clone()
        adapted, said = adapt_head(source, target, tuple(theirs), tuple(ours))
        assert said == how and torch.equal(target, before)
        if how.endswith("new head"):
            assert adapted is None
        elif how:
            for i, name in enumerate(ours):
                known = name in theirs and not name.isdecimal()
                assert torch.equal(adapted[i], source[tuple(theirs).index(name)] if known else target[i])
        else:
            assert adapted is source


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


@pytest.mark.parametrize(
    "image_network", [RESNET_RS_2D, dataclasses.replace(GARDEN_2D, activation="relu")], ids=["a", "b"], indirect=True
)
def test_the_report_names_everything(image_network):
    """The target has the Model Garden's max pool in the stem, and self-gating in the last block of each stage."""
    state = image_network.state_dict()
    model = network(GARDEN_3D, num_classes=5, in_channels=2)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = inflate(state, model)
    assert set(report.adapted) == {"head.weight", "head.bias", "stem.conv1.conv.weight"}
    assert report.adapted["head.weight"] == "11 -> 5 classes, new head"
    assert report.adapted["stem.conv1.conv.weight"] == "3 -> 2 input channels"
    assert report.unused == [name for name in state if name.startswith("stem.pool.")]
    gates = ("stages.0.0", "stages.1.0", "stages.2.1", "stages.3.1")
    assert report.missing == [f"{block}.gating.{kind}" for block in gates for kind in ("weight", "bias")]
    for name in ("head.weight", "head.bias", *report.missing):
        assert torch.equal(model.state_dict()[name], fresh[name])
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in report.matched)
    places = report.matched + report.inflated + report.missing + list(report.adapted)
    assert sorted(set(places)) == sorted(model.state_dict())
    text = report.table()
    assert "11 -> 5 classes" in text and "stages.0.0.gating.weight" in text and len(text.splitlines()) == 5


def test_other_shapes_are_named_and_change_nothing(image_network):
    model = ResNetRS(RESNET_RS_3D, BLOCKS, 11, width=0.25)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        UserError, match=r"other shapes: stem.conv1.conv.weight is \[4, 3, 1, 3, 3\] but \[8, 3, 5, 3, 3\]"
    ):
        inflate(image_network.state_dict(), model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(UserError, match="center or average"):
        inflate(image_network.state_dict(), model, "mean")


def test_the_classifier_is_looked_up_once(image_network, monkeypatch):
    walks, looked_up = [], "video_rs.models.weights.inflate.classifier_names"
    monkeypatch.setattr(looked_up, lambda model: walks.append(model) or base.classifier_names(model))
    inflate(image_network.state_dict(), model := network(RESNET_RS_3D))
    assert walks == [model]
