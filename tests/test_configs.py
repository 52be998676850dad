"""Every config in configs/ loads, has a complete header and follows the published recipe."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml

from video_rs.data.transforms.crops import random_area_crop
from video_rs.experiment.build import build_model, model_args
from video_rs.experiment.config import config_folder, find_config, flatten, load_config
from video_rs.models.architecture import GARDEN_3D
from video_rs.models.presets import PRESETS
from video_rs.models.registry import list_models

CONFIGS = sorted(config_folder().glob("*.yaml"))
DEPTHS_3D = (50, 101, 152, 200)
IMAGENET = [path.stem for path in CONFIGS if path.stem.startswith("imagenet_rs")]


def test_the_set_is_complete():
    names = {path.stem for path in CONFIGS}
    published = [name for name in list_models("resnet_rs_*") if PRESETS[name].published]
    assert {name.replace("resnet_rs_", "imagenet_rs") for name in published} == set(IMAGENET)
    assert names >= {f"k400_rs{d}" for d in DEPTHS_3D}
    assert names >= {"k400_garden_rs50", "k600_rs50", "finetune_rs50", "motion_rs", "motion_rs_one_frame"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_header_and_model(path):
    config, header = load_config(path.stem), path.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert all(word in header for word in ("Expected accuracy:", "Cost:", f"--cfg {path.name}"))
    readme = re.search(r"datasets/\w+/README.md", header)
    assert readme and (Path(__file__).parents[1] / readme[0]).is_file()
    videos = ("resnet3d_rs_", "garden_resnet3d_rs_", "pytorchvideo/")
    assert config.model.name.startswith(("resnet_rs_", "timm/") if config.data.num_frames == 1 else videos)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_model_exists(path):
    config = load_config(path.stem)
    if "/" in config.model.name:
        with torch.device("meta"):
            assert build_model(config, ("a", "b")).num_classes == 2
    else:
        assert config.model.name in list_models()


@pytest.mark.parametrize(("overrides", "rates"), [([], [0.04, 0.04]), (["model.drop_path_rule=block"], [0, 0.1 / 7])])
def test_the_drop_path_rule_reaches_the_model(overrides, rates):
    config = load_config("k400_rs50", ["model.name=resnet3d_rs_26", "model.width=0.125", *overrides])
    model = build_model(config, ("a", "b"))
    assert [block.drop_path.rate for block in model.stages[0]] == pytest.approx(rates)


@pytest.mark.parametrize("depth", DEPTHS_3D)
def test_kinetics_recipe(depth):
    """tensorflow/models, k400_resnet3drs_50_tpu.yaml. Recipes of other depths are unpublished; ours are the same."""
    c = load_config(f"k400_rs{depth}")
    assert c.model.name == f"resnet3d_rs_{depth}"
    assert (c.data.num_frames, c.data.stride, c.data.train_size) == (32, 2, 224)
    assert (c.data.short_side, c.data.test_size, c.test.clips, c.test.crops) == (256, 256, 10, 3)
    assert (c.data.area, c.data.aspect, c.data.min_covered, c.data.flip) == ((0.08, 1.0), (0.5, 2.0), 0.1, 0.5)
    assert (c.data.mean, c.data.std, c.data.filter) == ((0, 0, 0), (1, 1, 1), "bilinear")
    assert (c.data.rand_augment_layers, c.data.mixup, c.data.cutmix) == (0, 0, 0)
    assert (c.model.dropout, c.model.drop_path, c.train.label_smoothing) == (0.5, 0.1, 0.1)
    assert (c.optim.lr, c.optim.lr_batch, c.optim.momentum, c.optim.nesterov) == (0.8, 1024, 0.9, True)
    assert (c.optim.weight_decay, c.optim.warmup_epochs, c.optim.schedule) == (4e-5, 5, "cosine")
    assert (c.train.epochs, c.train.batch_size, c.train.ema_decay) == (350, 1024, 0.9999)


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_recipe(name):
    """tensorflow/tpu, models/official/resnet/resnet_rs/configs/*.yaml. test_presets compares each depth."""
    c, text = load_config(name), find_config(name).read_text()
    assert c.model.name == name.replace("imagenet_rs", "resnet_rs_")
    assert f"Expected accuracy: {PRESETS[c.model.name].published[0].top1} top-1 published" in text
    assert c.data.rand_augment_layers == 2
    assert (c.data.mixup, c.data.cutmix, c.data.flip) == (0, 0, 0.5)
    assert (c.data.area, c.data.aspect) == ((0.08, 1.0), pytest.approx((3 / 4, 4 / 3)))
    assert (c.optim.lr, c.optim.lr_batch, c.optim.momentum, c.optim.nesterov) == (1.6, 4096, 0.9, True)
    assert (c.optim.weight_decay, c.optim.warmup_epochs, c.optim.schedule) == (4e-5, 5, "cosine")
    assert (c.train.epochs, c.train.batch_size, c.train.label_smoothing, c.train.ema_decay) == (350, 4096, 0.1, 0.9999)
    assert (c.test.clips, c.test.crops) == (1, 1)


def test_slow_r50_recipe():
    """facebookresearch/SlowFast, configs/Kinetics/pytorchvideo/SLOW_8x8_R50.yaml and slowfast/config/defaults.py."""
    from video_rs.models.adapters.pytorchvideo import ENTRIES

    c = load_config("k400_slow_r50")
    assert (c.model.name, c.model.dropout, c.model.drop_path) == ("pytorchvideo/slow_r50", 0.5, None)
    assert c.data_config() == ENTRIES["slow_r50"].data_config  # so that its public weights fit
    assert (c.test.clips, c.test.crops, c.data.rand_augment_layers, c.data.mixup) == (10, 3, 0, 0)
    assert (c.optim.lr, c.optim.lr_batch, c.optim.momentum, c.optim.nesterov) == (0.1, 64, 0.9, True)
    assert (c.optim.weight_decay, c.optim.warmup_epochs, c.optim.schedule) == (1e-4, 34, "cosine")
    assert (c.train.epochs, c.train.batch_size, c.train.micro_batch) == (196, 64, 8)
    assert (c.train.label_smoothing, c.train.ema_decay) == (0, 0)
    theirs = [224**2 / (side**2 * ratio) for side, ratio in ((320, 16 / 9), (256, 4 / 3))]  # short side, then the crop
    assert c.data.area == pytest.approx(theirs, abs=0.005)


def test_efficientnet_recipe():
    """The RS recipe, except for settings of B4 in arXiv 2103.07579 section 7.2 and in EfficientNet's code."""
    c, rs = load_config("imagenet_efficientnet_rs"), load_config("imagenet_rs152")
    differ = {key for key, value in flatten(c).items() if value != flatten(rs)[key]}
    assert differ == {"out", "model.name", "model.dropout", "model.drop_path", "model.bn_momentum"}
    assert (c.model.name, c.model.dropout, c.model.drop_path) == ("timm/tf_efficientnet_b4", 0.4, 0.2)
    assert c.data.rand_augment_magnitude == 15  # between 224 and 320 pixels


FAMILY = [path.stem for path in CONFIGS if path.stem.startswith(("k400_rs", "k400_garden", "k600_rs"))]


@pytest.mark.parametrize("name", IMAGENET + FAMILY)
def test_regularisation_and_sizes_are_the_presets(name):
    c = load_config(name)
    preset = PRESETS[c.model.name]
    assert (c.model.dropout, c.model.drop_path) == (preset.dropout, preset.drop_path)
    magnitude = c.data.rand_augment_magnitude if c.data.rand_augment_layers else None
    assert magnitude == preset.rand_augment
    assert c.data_config() == preset.data_config


def test_the_published_recipe_on_the_published_architecture():
    """tensorflow/models, k400_resnet3drs_50_tpu.yaml, item by item."""
    c = load_config("k400_garden_rs50")
    recipe = yaml.safe_load(find_config("k400_garden_rs50").read_text())
    assert c.model.name == "garden_resnet3d_rs_50" and PRESETS[c.model.name].architecture == GARDEN_3D
    assert recipe["data"] == {
        "root": "data/k400",
        **{"num_frames": 32, "stride": 2, "train_size": 224},
        **{"short_side": 256, "test_size": 256},
        **{"area": [0.08, 1.0], "aspect": [0.5, 2.0], "min_covered": 0.1, "flip": 0.5, "filter": "bilinear"},
        **{"mean": [0, 0, 0], "std": [1, 1, 1]},
        **{"rand_augment_layers": 0, "mixup": 0, "cutmix": 0},
    }
    assert inspect.signature(random_area_crop).parameters["attempts"].default == 100
    assert recipe["model"].items() >= {"dropout": 0.5, "drop_path": 0.1, "drop_path_rule": "stage"}.items()
    assert model_args(c, 400)["bn_momentum"] == 1.0  # TensorFlow's 0
    assert (c.optim.lr, c.optim.lr_batch, c.train.batch_size, c.optim.schedule) == (0.8, 1024, 1024, "cosine")
    assert (c.optim.momentum, c.optim.nesterov, c.optim.weight_decay) == (0.9, True, 4e-5)
    assert c.train.epochs * 215_570 / c.train.batch_size == pytest.approx(73_682, abs=2)
    assert c.optim.warmup_epochs * (215_570 // c.train.batch_size) == 1_050
    assert (c.train.label_smoothing, c.train.ema_decay, c.train.precision) == (0.1, 0.9999, "auto")
    assert (c.test.clips, c.test.crops) == (10, 3)
    published = PRESETS[c.model.name].published[0]
    text = find_config("k400_garden_rs50").read_text()
    assert f"Expected accuracy: {published.top1} top-1, {published.top5} top-5" in text


def test_the_published_recipe_is_that_of_our_own_architecture():
    theirs, ours = (flatten(load_config(name)) for name in ("k400_garden_rs50", "k400_rs50"))
    assert {key for key in ours if theirs[key] != ours[key]} == {"out", "model.name"}


def test_the_control_differs_in_its_frames_alone():
    clips, frames = (flatten(load_config(name)) for name in ("motion_rs", "motion_rs_one_frame"))
    assert {key for key in clips if clips[key] != frames[key]} <= {"out", "model.name", "data.num_frames", "test.clips"}
    assert clips["data.flip"] == 0
    assert frames["model.name"].removeprefix("resnet_rs_") == clips["model.name"].removeprefix("resnet3d_rs_")
