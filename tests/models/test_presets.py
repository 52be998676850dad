"""The presets have the published sizes, recipes and accuracies; each number is written out again here."""

from __future__ import annotations

import dataclasses
from itertools import product

import torch

from video_rs.data_config import IMAGENET_MEAN, IMAGENET_STD
from video_rs.models.architecture import GARDEN_2D, GARDEN_3D, INFLATED_GARDEN_2D, RESNET_RS_2D, RESNET_RS_3D
from video_rs.models.presets import BLOCKS, PRESETS
from video_rs.models.registry import create_model, list_models

IMAGES = {  # name after the prefix: size, dropout, drop path, RandAugment of the TPU code and of the Model Garden
    "50": (160, 0.25, 0.0, 10, 10),
    "101_i160": (160, 0.25, 0.0, 10, 15),
    "101": (192, 0.25, 0.0, 15, 15),
    "152_i192": (192, 0.25, 0.0, 15, 15),
    "152_i224": (224, 0.25, 0.0, 15, 15),
    "152": (256, 0.25, 0.0, 15, 15),
    "200": (256, 0.25, 0.1, 15, 15),
    "270": (256, 0.25, 0.1, 15, 15),
    "350": (256, 0.25, 0.1, 15, 15),
    "350_i320": (320, 0.4, 0.1, 15, 15),
    "420": (320, 0.4, 0.1, 15, 15),
}
PARAMETERS = {  # trainable
    "resnet_rs_50": 35_691_912,
    "resnet_rs_101": 63_618_696,
    "resnet_rs_152": 86_621_576,
    "resnet_rs_200": 93_209_992,
    "resnet_rs_270": 129_861_448,
    "resnet_rs_350": 163_956_168,
    "resnet_rs_420": 191_891_656,
    "garden_resnet3d_rs_50": 48_129_840,
    "garden_resnet3d_rs_101": 84_969_520,
    "garden_resnet3d_rs_152": 114_788_144,
    "garden_resnet3d_rs_200": 121_376_560,
    "garden_resnet3d_rs_270": 169_038_064,
    "garden_resnet3d_rs_300": 174_087_536,
    "garden_resnet3d_rs_350": 213_094_256,
    "garden_r3d_50": 32_491_728,
    "garden_r3d_50g": 33_617_872,
    "garden_slowonly_50": 32_454_096,
    "garden_slowonly_50_16x4": 32_454_096,
    "resnet3d_rs_50": 42_592_432,
}
STATISTICS = {50: 53_376, 101: 105_600, 152: 151_680, 200: 176_256, 270: 243_072, 350: 312_192}
"""Running means and variances of the Model Garden's image networks, by depth."""
PRINTED = {50: 35.7, 101: 63.7, 152: 86.8, 200: 93.4, 270: 130.1, 350: 164.3}
"""Millions of parameters in MODEL_GARDEN.md, which counts all variables, with 1001 classes."""


def size(name: str) -> tuple[int, int]:
    """Return the numbers of trainable parameters and of running statistics."""
    with torch.device("meta"):
        model = create_model(name)
    statistics = sum(b.numel() for key, b in model.named_buffers() if not key.endswith("num_batches_tracked"))
    return sum(p.numel() for p in model.parameters()), statistics


def test_parameters_are_those_of_the_reference():
    assert {name: size(name)[0] for name in PARAMETERS} == PARAMETERS
    references = {name: PRESETS[name].reference for name in PARAMETERS}
    published = {name: reference.parameters for name, reference in references.items() if reference}
    assert published == {name: PARAMETERS[name] for name in published} and len(published) > 10


def test_parameters_of_the_model_gardens_image_networks():
    sizes = {depth: size(f"garden_resnet_rs_{depth}") for depth in STATISTICS}
    for name in list_models("garden_resnet_rs_*"):
        preset = PRESETS[name]
        parameters, statistics = sizes[preset.depth]  # the presets of a depth differ in the size of images
        assert preset.architecture == PRESETS[f"garden_resnet_rs_{preset.depth}"].architecture
        assert parameters == preset.reference.parameters == PARAMETERS[f"resnet_rs_{preset.depth}"] + 2048 + 1, name
        assert statistics == STATISTICS[preset.depth], name
        assert round((parameters + statistics) / 1e6, 1) == PRINTED[preset.depth], name


def test_names():
    assert list_models() == list(PRESETS) and {preset.depth for preset in PRESETS.values()} == set(BLOCKS)
    assert all(preset.name == name and f"_{preset.depth}" in name for name, preset in PRESETS.items())
    gardens = [f"garden_resnet_rs_{key}" for key in IMAGES if key != "420"]
    assert list_models("garden_resnet_rs_*") == gardens
    assert set(list_models("resnet_rs_*")) == {f"resnet_rs_{key}" for key in [*IMAGES, 26, 300, 400]}
    assert list_models("inflated_*") == [f"inflated_garden_resnet_rs_{d}" for d in (50, 101, 152, 200, 270, 350)]
    fifties = "garden_resnet_rs_50 garden_resnet3d_rs_50 garden_r3d_50 garden_slowonly_50"
    assert list_models("garden_*_50") == fifties.split()
    assert list_models("resnet3d_rs_50") == ["resnet3d_rs_50"] and list_models("swin*") == []


def test_image_recipes():
    for garden, key in product((False, True), IMAGES):
        name = "garden_" * garden + f"resnet_rs_{key}"
        if name == "garden_resnet_rs_420":
            continue  # not published
        resolution, dropout, drop_path, *magnitudes = IMAGES[key]
        preset = PRESETS[name]
        assert (preset.dropout, preset.drop_path, preset.rand_augment) == (dropout, drop_path, magnitudes[garden]), name
        assert preset.architecture == (GARDEN_2D if garden else RESNET_RS_2D)
        assert preset.num_classes == (1001 if garden else 1000)
        data_config = preset.data_config
        assert (data_config.num_frames, data_config.train_size, data_config.test_size) == (1, resolution, resolution)
        # The crop leaves a border of size * (1 / 0.875 - 1) pixels.
        assert data_config.short_side == {160: 183, 192: 219, 224: 256, 256: 293, 320: 366}[resolution]
        assert (data_config.mean, data_config.std) == (IMAGENET_MEAN, IMAGENET_STD)
        assert data_config.filter == ("bilinear" if garden else "bicubic")


def test_video_recipes():
    for name in [*list_models("resnet3d_rs_*"), *list_models("garden_resnet3d_rs_*"), *list_models("inflated_*")]:
        preset = PRESETS[name]
        assert (preset.dropout, preset.drop_path, preset.rand_augment, preset.num_classes) == (0.5, 0.1, None, 400)
        data_config = preset.data_config
        assert (data_config.num_frames, data_config.stride, data_config.train_size) == (32, 2, 224)
        assert (data_config.short_side, data_config.test_size, data_config.filter) == (256, 256, "bilinear")
        images = name.startswith("inflated")
        assert data_config.mean == (IMAGENET_MEAN if images else (0, 0, 0))
        assert data_config.std == (IMAGENET_STD if images else (1, 1, 1))
    plain = {
        "r3d_50": (32, 2, 0.5),
        "r3d_50g": (64, 1, 0.2),
        "slowonly_50": (8, 8, 0.5),
        "slowonly_50_16x4": (16, 4, 0.5),
    }
    for name, expected in plain.items():
        preset = PRESETS[f"garden_{name}"]
        assert (preset.data_config.num_frames, preset.data_config.stride, preset.dropout) == expected
        assert preset.drop_path == 0 and not preset.architecture.se_ratio


def test_the_architectures_differ_as_the_implementations_do():
    for garden in (GARDEN_2D, GARDEN_3D):
        assert garden.padding == "same" and not garden.zero_init_last_gamma
    assert GARDEN_2D.shortcut_pool_in_stage1 and GARDEN_2D.activation == "swish" and GARDEN_2D.stem_pool == "conv"
    assert GARDEN_3D.self_gating and (GARDEN_3D.stem_pool, GARDEN_3D.shortcut) == ("max", "conv")
    temporal = {"stem_temporal_kernel": 5, "stem_temporal_stride": 2, "temporal_kernels": (1, 1, 3, 3)}
    assert dataclasses.replace(GARDEN_2D, **temporal) == INFLATED_GARDEN_2D
    assert dataclasses.replace(RESNET_RS_2D, **temporal) == RESNET_RS_3D


TOP1 = {  # the first published accuracy, on the preset's own settings
    "resnet_rs": dict(zip(IMAGES, (78.8, 80.3, 81.2, 82.0, 82.2, 83.0, 83.4, 83.8, 84.0, 84.2, 84.4))),
    "garden_resnet_rs": dict(zip(IMAGES, (79.1, 80.2, 81.3, 81.9, 82.5, 83.1, 83.5, 83.6, 83.7, 84.2))),
    "garden_resnet3d_rs": {"50": 78.2, "101": 79.5, "152": 79.9, "200": 80.4},
    "garden": {"r3d_50": 77.0, "r3d_50g": 78.7, "slowonly_50": 74.1, "slowonly_50_16x4": 75.6},
}
TOP5 = {
    "garden_resnet_rs": dict(zip(IMAGES, (94.5, 94.9, 95.6, 95.8, 96.1, 96.3, 96.6, 96.6, 96.7, 96.9))),
    "garden_resnet3d_rs": {"50": 93.7, "101": 94.2, "152": 94.3, "200": 94.4},
    "garden": {"r3d_50": 93.0, "r3d_50g": 93.6, "slowonly_50": 91.4, "slowonly_50_16x4": 92.1},
}


def test_published_accuracies():
    first = {name: preset.published[0] for name, preset in PRESETS.items() if preset.published}
    assert {name: p.top1 for name, p in first.items()} == {
        f"{prefix}_{key}": top1 for prefix, rows in TOP1.items() for key, top1 in rows.items()
    }
    assert {name: p.top5 for name, p in first.items() if p.top5 is not None} == {
        f"{prefix}_{key}": top5 for prefix, rows in TOP5.items() for key, top5 in rows.items()
    }
    for name, published in first.items():
        data_config = PRESETS[name].data_config
        views = (
            f"{data_config.num_frames}x{data_config.stride}"
            if data_config.num_frames > 1
            else f"{data_config.test_size}x"
        )
        assert published.views.startswith(views) or name == "garden_r3d_50g"
        assert published.dataset == ("ImageNet" if data_config.num_frames == 1 else published.dataset)
        garden = "tensorflow/tpu resnet_rs/README.md" if name.startswith("resnet_rs") else "tensorflow/models "
        assert published.source.startswith(garden)


def test_our_own_architecture_claims_no_accuracy():
    for pattern in ("resnet3d_rs_*", "inflated_*"):
        assert not any(PRESETS[name].published or PRESETS[name].reference for name in list_models(pattern))


def test_timms_accuracies_come_with_its_own_resolutions():
    timm = {name: [p for p in preset.published if p.source.startswith("timm")] for name, preset in PRESETS.items()}
    assert [name for name, rows in timm.items() if rows] == [
        f"resnet_rs_{d}" for d in (50, 101, 152, 200, 270, 350, 420)
    ]
    assert [(p.views, p.top1, p.top5) for p in timm["resnet_rs_350"]] == [
        ("288x288", 84.304, 96.942),
        ("384x384", 84.710, 96.992),
    ]
