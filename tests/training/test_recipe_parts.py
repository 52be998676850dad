"""From keys of the config to the parts of a recipe: each key changes what it names, and nothing without it."""

import dataclasses

import pytest
import torch

from video_rs.data.sources.records import Records
from video_rs.data.transforms.color_jitter import ColorJitter
from video_rs.data.transforms.random_erasing import RandomErasing
from video_rs.errors import ConfigError, UserError
from video_rs.experiment import build
from video_rs.experiment.config import load_config
from video_rs.experiment.run import options_of
from video_rs.models.registry import create_model
from video_rs.training import losses, recipe
from video_rs.training.lamb import Lamb
from video_rs.training.options import Options


def config(*overrides):
    return load_config("k400_rs50", ["model.name=resnet3d_rs_26", "model.width=0.125", *overrides])


def options(*overrides):
    return options_of(config(*overrides))


def small():
    return create_model("resnet3d_rs_26", num_classes=4, width=0.125)


def test_optimizers():
    sgd = recipe.optimizer(options(), small())
    assert type(sgd) is torch.optim.SGD and sgd.defaults["momentum"] == 0.9 and sgd.defaults["nesterov"]
    for name, kind in (("adamw", torch.optim.AdamW), ("lamb", Lamb)):
        keys = [f"optim.name={name}", "optim.betas=[0.8, 0.95]", "optim.eps=1e-6", "optim.weight_decay=0.02"]
        optimizer = recipe.optimizer(options(*keys, "optim.layer_decay=0.5"), small())
        assert type(optimizer) is kind
        assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.8, 0.95), 1e-6)
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0, 0.02}
        assert {group["lr_scale"] for group in optimizer.param_groups} == {0.5**i for i in range(10)}


def test_what_is_frozen_is_not_in_the_optimizer():
    model = small()
    optimizer = recipe.optimizer(options("train.freeze=3", "train.init_from=x.pt"), model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] + name.split(".")[1][:1] for name in trained} == {"stages2", "stages3", "headw", "headb"}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)
    probe = small()
    optimizer = recipe.optimizer(options("train.linear_probe=true", "train.init_from=x.pt"), probe)
    assert [p for group in optimizer.param_groups for p in group["params"]] == [probe.head.weight, probe.head.bias]
    with pytest.raises(UserError, match="the network has 5 stages"):
        recipe.optimizer(options("train.freeze=9", "train.init_from=x.pt"), small())


def rates(*overrides):
    """Learning rate at the start of each of 90 epochs; the base rate is 1."""
    steps = ["train.epochs=90", "train.batch_size=10", "train.micro_batch=0", "optim.warmup_epochs=0"]
    keys = options(*steps, "optim.lr=1", "optim.lr_batch=10", *overrides)
    rate = recipe.learning_rate(keys, recipe.schedule(keys, 40))
    return [rate(4 * epoch) for epoch in range(90)]


def test_schedules():
    assert rates("optim.schedule=constant") == [1] * 90
    stepwise = [1] * 30 + [0.1] * 30 + [0.01] * 20 + [0.001] * 10
    assert rates("optim.schedule=step") == pytest.approx(stepwise)
    chosen = rates("optim.schedule=step", "optim.step_epochs=[20, 40]", "optim.step_factor=0.5")
    assert chosen == [1] * 20 + [0.5] * 20 + [0.25] * 50
    assert rates()[45] == pytest.approx(0.5)


def test_losses():
    model = small()
    assert type(recipe.criterion(options(), model, None)) is losses.CrossEntropy
    bce = recipe.criterion(options("train.loss=bce"), model, None)
    assert type(bce) is losses.BinaryCrossEntropy and (bce.label_smoothing, bce.towards) == (0.1, None)
    model.data_config = dataclasses.replace(model.data_config, multi_label=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses._REGISTERED, "Own", losses.CrossEntropy)
        assert type(recipe.criterion(Options(loss="Own"), model, None)) is losses.CrossEntropy
    several = recipe.criterion(options("train.loss=bce", "data.multi_label=true"), model, None)
    assert type(several) is losses.BinaryCrossEntropy and several.towards == 0.5


MIXED = "; accuracy in training is of mixed clips, by their larger part"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ([], "smoothed cross entropy (label smoothing 0.1); in validations cross entropy"),
        (["train.label_smoothing=0"], "cross entropy; in validations cross entropy"),
        (
            ["train.class_weights=balanced"],
            "smoothed weighted cross entropy (label smoothing 0.1); in validations cross entropy",
        ),
        (
            ["train.loss=bce", "data.mixup=0.2"],
            "smoothed binary cross entropy of mixed clips (label smoothing 0.1); in validations cross entropy" + MIXED,
        ),
        (
            ["data.multi_label=true"],
            "smoothed binary cross entropy (label smoothing 0.1); in validations binary cross entropy",
        ),
    ],
)
def test_the_log_names_its_losses(keys, text):
    assert recipe.describe_loss(options(*keys), multi_label="data.multi_label=true" in keys) == text


def test_augmentation():
    plain = build.transform(config(), is_training=True).spatial
    assert plain.color_jitter is plain.random_erasing is plain.rand_augment is None
    keys = ["data.color_jitter=[0.4, 0, 0, 0.1]", "data.random_erasing=0.25", "data.mean=[0.5, 0.2, 0]"]
    transform = build.transform(config(*keys), is_training=True).spatial
    assert type(transform.color_jitter) is ColorJitter
    assert transform.color_jitter.ranges == {"brightness": (0.6, 1.4), "hue": (-0.1, 0.1)}
    assert type(transform.random_erasing) is RandomErasing and transform.random_erasing.probability == 0.25
    assert transform.random_erasing.pixel.tolist() == [128, 51, 0]
    noise = build.transform(config(*keys, "data.random_erasing_mode=noise"), is_training=True).spatial
    assert noise.random_erasing.pixel is None


PHASES = "data.phases=[[10, 8, 112], [20.5, 16, 160]]"


def test_phases():
    keys = config(PHASES, "train.batch_size=10", "train.micro_batch=0", "data.random_erasing=0.1")
    assert recipe.phase_ends(options_of(keys), 40) == [40, 82]
    assert recipe.phase_ends(options(PHASES, "train.batch_size=12", "train.micro_batch=0"), 40) == [34, 69]
    dataset = build.train_dataset(keys, Records(["a.mp4"], [0], ["a"]))
    sizes = [(sampling.num_frames, sampling.stride, transform.size) for sampling, transform in dataset.phases]
    assert sizes == [(8, 2, 112), (16, 2, 160)] and (dataset.sampling.num_frames, dataset.transform.size) == (32, 224)
    assert all(transform.random_erasing for _, transform in dataset.phases)
    assert keys.data_config().num_frames == 32 and keys.data_config().train_size == 224
    assert recipe.describe_phases(options_of(keys), 40, dataset.sampling, dataset.transform.size) == [
        "clips to epoch 10 (steps 0 to 40): 8 frames x stride 2, 112 px, 6 % of the pixels",
        "clips to epoch 20.5 (steps 40 to 82): 16 frames x stride 2, 160 px, 26 % of the pixels",
        "clips from there (step 82): 32 frames x stride 2, 224 px",
    ]
    assert recipe.describe_phases(options(), 40, dataset.sampling, 224) == [] == recipe.phase_ends(options(), 40)


def test_a_network_that_cannot_take_a_phase_says_so_at_the_start():
    keys = load_config(
        "k400_slow_r50",
        [
            "model.name=pytorchvideo/mvit_base_16x4",
            "data.num_frames=16",
            "data.train_size=224",
            "data.test_size=224",
            "data.phases=[[5, 16, 160]]",
        ],
    )
    with pytest.raises(UserError, match="160"):
        build.build_model(keys, ("a", "b"))


def test_half_a_pair_is_refused():
    whole = config("data.mixup=0.2", "train.batch_size=8", "train.micro_batch=2")
    assert recipe.schedule(options_of(whole), 40).repeats == 1
    with pytest.raises(ConfigError, match="a micro-batch of 3: must be a multiple of 2"):
        config("data.mixup=0.2", "train.batch_size=9", "train.micro_batch=3")
    two = config("data.cutmix=0.2", "data.repeats=2", "train.batch_size=8", "train.micro_batch=4")
    assert recipe.schedule(options_of(two), 40).repeats == 2
