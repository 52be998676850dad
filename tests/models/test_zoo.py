"""Networks by name, and the arguments of create_model."""

import re
import sys

import pytest
import torch

from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.experiment import config
from video_rs.models.arguments import RANGES
from video_rs.models.layers import Conv
from video_rs.models.registry import create_model, empty_model

torch.set_num_threads(1)
TINY = {"num_classes": 3, "width": 0.125}


def momenta(model):
    return {m.momentum for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}


def test_none_takes_the_familys_own():
    model = create_model("resnet3d_rs_26", **TINY)
    assert momenta(model) == {0.1}
    assert model.architecture.temporal_padding == "zeros"
    assert momenta(create_model("resnet3d_rs_26", **TINY, bn_momentum=1.0)) == {1.0}


def test_temporal_padding_reaches_the_convolutions():
    model = create_model("resnet3d_rs_26", **TINY, temporal_padding="replicate").eval()
    over_time = [m for m in model.modules() if isinstance(m, Conv) and m.kernel_size[0] > 1]
    assert {m.temporal_padding for m in over_time} == {"replicate"}
    zeros = create_model("resnet3d_rs_26", **TINY).eval()
    zeros.load_state_dict(model.state_dict())
    for network in (model, zeros):  # as they start, blocks are their shortcuts
        for stage in network.stages:
            for block in stage:
                torch.nn.init.constant_(block.conv3.norm.weight, 0.2)
    still = torch.rand(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 8, -1, -1)
    frames = [network.forward_features(still) for network in (model, zeros)]
    assert (frames[0] - frames[0][:, :, :1]).abs().max() < 1e-5  # a still clip stays still
    assert (frames[1] - frames[1][:, :, :1]).abs().max() > 1e-3
    with pytest.raises(UserError, match="temporal_padding must be one of zeros, replicate, not 'reflect'"):
        create_model("resnet3d_rs_26", **TINY, temporal_padding="reflect")


@pytest.mark.parametrize("name", ["resnet_rs_26", "timm/test_resnet", "pytorchvideo/slow_r50"])
def test_channels_and_data_config_must_agree(name):
    """Otherwise pixels would be normalised by the statistics of other channels, or not at all."""
    with torch.device("meta"), pytest.raises(UserError) as error:
        create_model(name, in_channels=1, data_config=DataConfig(8, 1))
    assert str(error.value) == "in_channels=1, but the data config is for 3 channels; make them equal"
    with torch.device("meta"), pytest.raises(UserError, match="in_channels=3, but the data config is for 1 channels"):
        create_model(name, data_config=DataConfig().with_channels(1))


@pytest.mark.parametrize("name", ["resnet3d_rs_26", "timm/test_resnet", "pytorchvideo/slow_r50"])
def test_numbers_out_of_range(name):
    for key, value, wanted in (
        ("num_classes", -1, "a whole number, 0 or more"),
        ("num_classes", "5", "a whole number, 0 or more"),
        ("num_classes", 2.5, "a whole number, 0 or more"),
        ("num_classes", True, "a whole number, 0 or more"),
        ("in_channels", 0, "a whole number above 0"),
        ("in_channels", None, "a whole number above 0"),
        ("width", 0, "a number from 0.05 to 8"),
        ("width", -1, "a number from 0.05 to 8"),
        ("width", None, "a number from 0.05 to 8"),
        ("dropout", -1, "a number from 0 to 0.95"),
        ("dropout", float("nan"), "a number from 0 to 0.95"),
        ("drop_path", 2, "a number from 0 to 0.95"),
        ("bn_momentum", 0, "a number from 0.0001 to 1"),
    ):
        with pytest.raises(UserError, match=re.escape(f"{key} must be {wanted}; found {value!r}") + "$"):
            create_model(name, **{key: value})


def test_ranges_are_the_configs():
    keys = {key: config._schema()[f"model.{key}"].metadata for key in RANGES}
    assert {key: (rules["low"], rules["high"]) for key, rules in keys.items()} == RANGES


@pytest.mark.parametrize("name", [None, 50])
def test_names_are_strings(name):
    with pytest.raises(UserError, match=f"such as 'resnet3d_rs_50'; found {name}$"):
        create_model(name)


@pytest.mark.parametrize("name", ["resnet3d_rs_26", "timm/test_resnet", "pytorchvideo/slow_r50"])
def test_what_is_no_batch(name):
    with torch.device("meta"):
        model = create_model(name, num_classes=3).eval()
    for shape, ending in (
        ((3, 32, 32), "; use x[None] for a single sample"),
        ((3, 4, 32, 32), "; use x[None] for a single sample"),  # otherwise three images of four channels
        ((32, 32), ""),
        ((1, 4, 3, 32, 32), ""),
        ((1, 1, 3, 4, 32, 32), ""),
    ):
        with pytest.raises(UserError) as error:
            model(torch.empty(shape, device="meta"))
        assert str(error.value) == (
            f"the network takes clips [N, 3, T, H, W] or images [N, 3, H, W]; found {list(shape)}{ending}"
        )


def test_unknown_names_of_all_packages():
    with pytest.raises(UserError, match="no model 'resnet_rs_51'; did you mean resnet_rs_50 or "):
        create_model("resnet_rs_51")
    with pytest.raises(UserError, match="no model 'pytorchvideo/x3d'; did you mean pytorchvideo/x3d_"):
        create_model("pytorchvideo/x3d")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("slow_r50", "pytorchvideo/slow_r50?"),
        ("X3D-M", "pytorchvideo/x3d_m?"),
        ("timm/slow_r50", "pytorchvideo/slow_r50?"),
        ("ResNet50", "timm/resnet50?"),
        ("pytorchvideo/resnet50", "timm/resnet50?"),
        ("tim/resnet50", "timm/resnet50?"),
        ("resnet50.a1_in1k", "timm/resnet50.a1_in1k or "),
        ("timm/resnet50.a1_in1", "timm/resnet50.a1_in1k or "),
        ("timm/resnet3d_rs_50", "resnet3d_rs_50?"),
        ("facebook/slowfast_r50", "pytorchvideo/slowfast_r50?"),
        ("slowfast", "pytorchvideo/slowfast_r50 or "),
        ("mvit", "timm/mvitv2_base or timm/mvitv2_tiny or pytorchvideo/mvit_base_16?"),
    ],
)
def test_names_are_suggested_across_packages(name, meant):
    with pytest.raises(UserError) as error:
        create_model(name)
    assert f"did you mean {meant}" in str(error.value)


def test_suggestions_without_packages(monkeypatch):
    """Packages that are missing or broken are left out; long names and names like no other have no suggestion."""
    for package in ("timm", "pytorchvideo", "pytorchvideo.models.hub"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match="no model 'resnet50'; did you mean resnet_rs_50"):
        create_model("resnet50")
    for name in ("q" * 100_000, "", "?"):
        with pytest.raises(UserError, match="; video-rs models lists them.*--plugins$") as error:
            create_model(name)
        assert len(str(error.value)) < 250


def test_fields_of_the_architecture():
    fields = {
        "se_ratio": 0,
        "shortcut": "conv",
        "temporal_kernels": [1, [1, 3], 3, 3],
        "padding": None,
    }  # JSON
    model = create_model("resnet3d_rs_26", **TINY, arch=fields)
    assert model.architecture.temporal_kernels == (1, (1, 3), 3, 3) and model.architecture.padding == "symmetric"
    assert not any(".se." in name for name in model.state_dict())
    twin = empty_model(model.model_args)
    twin.load_state_dict(model.state_dict())
    assert twin.architecture == model.architecture
    for arch, message in (
        ({"se_ration": 0.5}, r"no field 'se_ration' in an architecture \(model.arch\); did you mean se_ratio\?"),
        ({"se_ratio": "0.5"}, "Architecture.se_ratio must be a number from 0 to 1, not '0.5'"),
        ({"self_gating": 1}, "Architecture.self_gating must be true or false, not 1"),
        ({"stem_width": 0}, "Architecture.stem_width must be a whole number above 0, not 0"),
        ({"stem_kernels": 7}, "Architecture.stem_kernels must be a list of odd whole numbers above 0, not 7"),
        ({"stem_kernels": [[3, 3], 3]}, "Architecture.stem_kernels must be a list of odd whole numbers above 0, not "),
        ({"temporal_strides": [[1, 2], 1, 1, 1]}, "whole numbers above 0, one for each of the four stages, not "),
        ("se_ratio", "arch must be a mapping of fields, such as {'se_ratio': 0.25}; found 'se_ratio'"),
        ({"temporal_kernels": [1, 1, 3]}, "odd whole numbers above 0, one for each of the four stages, not "),
        ({"temporal_kernels": [1, 1, 2, 3]}, "odd whole numbers above 0, one for each"),
        ({"shortcut": "max"}, "Architecture.shortcut must be one of pool, conv, not 'max'"),
    ):
        with pytest.raises(UserError, match=message):
            create_model("resnet3d_rs_26", **TINY, arch=arch)
    with pytest.raises(UserError, match="timm/test_resnet has no such setting: model.arch="):
        create_model("timm/test_resnet", arch={"se_ratio": 0})
