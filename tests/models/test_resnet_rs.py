"""The network: shapes, rates, initialisation, keys."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from video_rs.errors import UserError
from video_rs.models.architecture import GARDEN_3D, RESNET_RS_2D, RESNET_RS_3D, Architecture
from video_rs.models.base import classifier_names
from video_rs.models.presets import PRESETS
from video_rs.models.registry import create_model
from video_rs.models.resnet_rs import ResNetRS


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny(architecture: Architecture = RESNET_RS_3D, blocks=(1, 2, 2, 1), **kwargs) -> ResNetRS:
    return ResNetRS(architecture, blocks, kwargs.pop("num_classes", 7), width=0.125, **kwargs)


@pytest.mark.parametrize(
    "name",
    [
        *("resnet_rs_26", "resnet3d_rs_26"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet_rs_300", "resnet3d_rs_400")),
    ],
)
def test_presets_without_a_published_size_build_and_run(name):
    with torch.device("meta"):
        model = create_model(name, num_classes=5)
        x = torch.empty((2, 3, 64, 64) if name.startswith("resnet_rs") else (2, 3, 8, 64, 64))
    assert model(x).shape == (2, 5)
    assert model.data_config is model.data_config is PRESETS[name].data_config


def test_stage_outputs_have_the_published_shapes():
    with torch.device("meta"):
        model, x = create_model("resnet3d_rs_50"), torch.empty(1, 3, 32, 224, 224)
    shapes = []
    for stage in model.stages:
        stage[-1].register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[1:])))
    assert model.forward_features(x).shape == (1, 2048, 16, 7, 7)
    assert shapes == [(256, 16, 56, 56), (512, 16, 28, 28), (1024, 16, 14, 14), (2048, 16, 7, 7)]
    assert model.num_features == 2048
    assert [name for name, _ in model.named_parameters() if not name.startswith(("stem.", "stages."))] == [
        *classifier_names(model)
    ]


def test_images_are_clips_of_one_frame():
    model = tiny(RESNET_RS_2D).eval()
    images = torch.randn(3, 3, 37, 50)
    assert model.forward_features(images).ndim == 4
    torch.testing.assert_close(model(images), model(images[:, :, None]), rtol=0, atol=0)
    torch.testing.assert_close(
        model.forward_features(images), model.forward_features(images[:, :, None])[:, :, 0], rtol=0, atol=0
    )
    model.train()
    keys = torch.arange(3)
    torch.testing.assert_close(model(images, keys), model(images[:, :, None], keys), rtol=0, atol=0)


def test_nothing_copies_a_channels_last_clip():
    model = tiny()
    clip_NTHWC = torch.randn(2, 5, 40, 33, 3)
    architectures = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(
                lambda module, args, out: architectures.append(
                    args[0].movedim(2, 1).flatten(0, 1).data_ptr() == args[0].data_ptr()
                    and out.is_contiguous(memory_format=torch.channels_last_3d)
                )
            )
    model(clip_NTHWC.permute(0, 4, 1, 2, 3))
    assert all(architectures) and len(architectures) > 20


def test_drop_path_rates_by_stage():
    model = create_model("resnet3d_rs_26", width=0.125, drop_path=0.1)
    assert [round(stage[0].drop_path.rate, 9) for stage in model.stages] == [0.04, 0.06, 0.08, 0.1]
    streams = [block.drop_path.stream for stage in model.stages for block in stage] + [model.dropout.stream]
    assert len(set(streams)) == len(streams)
    assert model.dropout.rate == 0.5


def test_drop_path_rates_by_block_are_timms():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model("resnetrs50", drop_path_rate=0.3)
        ours = create_model("resnet_rs_50", drop_path=0.3, drop_path_rule="block")
    layers = (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)
    expected = [getattr(block.drop_path, "drop_prob", 0.0) for layer in layers for block in layer]
    rates = [block.drop_path.rate for stage in ours.stages for block in stage]
    assert rates == pytest.approx(expected) and rates[0] == 0 and rates[-1] == 0.3
    with pytest.raises(UserError, match="drop_path_rule is stage or block, not 'linear'"):
        create_model("resnet_rs_26", drop_path_rule="linear")


def test_initialisation():
    model = create_model("resnet_rs_50", width=0.5)
    kernel = model.stages[3][1].conv2.conv.weight
    fan_in = kernel[0].numel()
    assert kernel.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
    assert kernel.abs().max().item() <= 2 * (fan_in**-0.5) / 0.8796
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    for stage in model.stages:
        for block in stage:
            assert not block.conv3.norm.weight.any() and block.conv2.norm.weight.eq(1).all()
    assert tiny(GARDEN_3D).stages[0][0].conv3.norm.weight.eq(1).all()


def test_batch_norm_momentum_one_keeps_the_last_batch():
    model = create_model("resnet3d_rs_26", width=0.125, bn_momentum=1.0)
    x = torch.randn(2, 3, 4, 32, 32)
    seen = []
    model.stem.conv1.norm.register_forward_hook(lambda module, args, out: seen.append(args[0].mean((0, 2, 3, 4))))
    model(x), model(x + 1)
    torch.testing.assert_close(model.stem.conv1.norm.running_mean, seen[-1])


def test_training_without_keys_differs_and_with_keys_repeats():
    model = tiny(dropout=0.5, drop_path=0.5)
    x = torch.randn(4, 3, 4, 32, 32)
    for stage in model.stages:
        for block in stage:
            torch.nn.init.ones_(block.conv3.norm.weight)
    keys = torch.tensor([3, 1, 4, 1])
    torch.testing.assert_close(model(x, keys), model(x, keys), rtol=0, atol=0)
    assert not torch.equal(model(x), model(x))
    model.eval()
    torch.testing.assert_close(model(x), model(x, keys), rtol=0, atol=0)


def test_gradients_reach_every_parameter():
    model = tiny(dataclasses.replace(GARDEN_3D, activation="swish", temporal_padding="replicate"))
    model(torch.randn(2, 3, 4, 64, 64)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_unknown_names_and_choices_are_one_line():
    with pytest.raises(UserError, match="resnet3d_rs_50"):
        create_model("resnet3d_rs50")
    with pytest.raises(UserError, match="symmetric, same"):
        Architecture(padding="valid")


def test_other_channels_are_not_normalised_as_rgb():
    model = create_model("resnet_rs_26", in_channels=2, width=0.125)
    assert model.data_config.in_channels == 2 and model.data_config.mean == (0.0, 0.0)
    assert model(torch.randn(2, 2, 32, 32)).shape == (2, 1000)
