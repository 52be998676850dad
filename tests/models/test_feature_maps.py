"""The outputs of layers as maps ``[N, C, T, H, W]``, in networks of every layout."""

import pytest
import torch

from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.models.feature_maps import capture, find_layer, stage_names
from video_rs.models.registry import create_model

TINY = {"num_classes": 3, "width": 0.125, "data_config": DataConfig(num_frames=4, train_size=32, test_size=32)}


def external(name: str, size: int, frames: int = 1) -> torch.nn.Module:
    data_config = DataConfig(num_frames=frames, train_size=size, short_side=size, test_size=size)
    return create_model(name, num_classes=3, data_config=data_config).eval()


def maps_of(model: torch.nn.Module, layer: str) -> torch.Tensor:
    config = model.data_config
    with torch.no_grad(), capture(model, layer) as maps:
        model(torch.zeros(2, 3, config.num_frames, config.test_size, config.test_size))
    return maps()


@pytest.mark.parametrize(
    ("name", "size", "frames", "layer", "shape"),
    [
        ("timm/resnet18", 64, 1, "stage3", (256, 1, 4, 4)),
        ("timm/resnet18", 64, 1, "layer3.1.conv2", (256, 1, 4, 4)),
        ("timm/resnet18", 64, 1, "global_pool", (512,)),
        ("timm/vit_tiny_patch16_224", 64, 1, "stage2", (192, 1, 4, 4)),
        ("timm/swin_tiny_patch4_window7_224", 224, 1, "stage4", (768, 1, 7, 7)),
        ("pytorchvideo/x3d_xs", 64, 4, "stem", (24, 4, 32, 32)),
        ("pytorchvideo/slowfast_r50", 64, 32, "stage4", (2048, 8, 2, 2)),
    ],
)
def test_output_as_maps(name: str, size: int, frames: int, layer: str, shape: tuple[int, ...]) -> None:
    assert maps_of(external(name, size, frames), layer).shape == (2, *shape)


def test_tokens_are_in_raster_order() -> None:
    """The first pixels of the image change the first row of the map: neither the last row nor the first column."""
    model = external("timm/vit_tiny_patch16_224", 64)
    images = torch.zeros(2, 3, 64, 64)
    images[1, :, :16] = torch.randn(3, 16, 64)
    with torch.no_grad(), capture(model, "patch_embed") as maps:
        model(images)
    changed = (maps()[0] != maps()[1]).any(dim=0)[0]
    assert changed[0].all() and not changed[1:].any()


def test_stages_of_resnet_rs() -> None:
    model = create_model("resnet3d_rs_26", **TINY).eval()
    assert stage_names(model) == ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert find_layer(model, "stage3") is model.stages[2] is find_layer(model, "stages.2")
    clips = torch.randn(2, 3, 4, 32, 32)
    with capture(model, "stage4") as maps:
        logits = model(clips)
    assert torch.equal(maps(), model.forward_features(clips)) and torch.equal(logits, model(clips))
    assert not any(module._forward_hooks for module in model.modules())

    with pytest.raises(ZeroDivisionError), capture(model, "stage4"):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_without_the_methods_of_ours() -> None:
    """The stages of any other module are its children."""
    network = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3), torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten())
    assert stage_names(network) == ["0", "1", "2"]
    with capture(network, "0") as maps, capture(network, "2") as pooled:
        network(torch.zeros(2, 3, 4, 8, 8))
    assert maps().shape == (2, 4, 2, 6, 6) and pooled().shape == (2, 4)


@pytest.mark.slow
def test_a_compiled_network() -> None:
    model = create_model("resnet3d_rs_26", **TINY).eval()
    expected = maps_of(model, "stage3")
    model.compile(backend="eager")
    model(torch.zeros(2, 3, 4, 32, 32))
    assert torch.equal(maps_of(model, "stage3"), expected)


def test_next_layer_works_in_place() -> None:
    """The captured output of a layer before an in-place activation still has its negative values."""
    network = external("timm/resnet18", 32)
    with torch.no_grad(), capture(network, "bn1") as maps:
        network(torch.randn(1, 3, 32, 32))
    assert (maps() < 0).any()


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        ("stage33", r"has no layer 'stage33'; did you mean stage3\?"),
        ("layer3.1.conv9", r"has no layer 'layer3.1.conv9'; did you mean (network\.)?layer3.1.conv.\?"),
        ("?" * 200, r"has no layer '\?{100}'; its stages are stem, stage1, stage2, stage3, stage4$"),
        ("", "has no layer ''"),
        ("network.layer3.0.drop_path.missing", "did you mean"),
    ],
)
def test_unknown_layer(layer: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        find_layer(external("timm/resnet18", 32), layer)


def test_layer_without_maps() -> None:
    model = external("timm/crossvit_9_240", 240)
    with pytest.raises(UserError, match=r"layer stage1 has no maps: it returns \[2, 401, 128\]"):
        maps_of(model, "stage1")
    with pytest.raises(UserError, match="layer blocks has no maps: it was not used in the forward pass"):
        maps_of(model, "blocks")
