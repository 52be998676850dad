"""Finetuning: depths of blocks, learning rates by depth, frozen stages and linear probes."""

import copy

import pytest
import torch
from torch import nn

from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.models.registry import create_model
from video_rs.training import finetune, optim
from video_rs.training.ema import EMA


def small(**options):
    return create_model("resnet3d_rs_26", num_classes=4, width=0.125, **options)


def other(name, frames=1, size=32):
    return create_model(name, num_classes=4, data_config=DataConfig(frames, 1, train_size=size, test_size=size))


def test_depths_of_bottlenecks_and_stages():
    depth, stage = finetune.depths(small()), finetune.depths(small(), by_stage=True)
    assert set(depth) == {name for name, _ in small().named_parameters()}
    assert depth["stem.conv1.conv.weight"] == stage["stem.conv1.conv.weight"] == 0
    assert [depth[f"stages.{s}.{b}.conv1.conv.weight"] for s in range(4) for b in range(2)] == list(range(1, 9))
    assert [stage[f"stages.{s}.1.conv3.norm.bias"] for s in range(4)] == [1, 2, 3, 4]
    assert (depth["head.weight"], depth["head.bias"], stage["head.weight"]) == (9, 9, 5)


def test_depths_of_timms_networks_are_timms():
    pytest.importorskip("timm")
    resnet = finetune.depths(other("timm/resnet18"))
    assert [resnet[f"network.{name}.weight"] for name in ("conv1", "bn1", "layer1.0.conv1", "layer4.1.bn2", "fc")] == [
        *(0, 0, 1, 8, 9)
    ]
    by_stage = finetune.depths(other("timm/resnet18"), by_stage=True)
    assert [by_stage[f"network.layer{i}.1.bn2.weight"] for i in (1, 2, 3, 4)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "frames", "depths"),
    [
        ("slow_r50", 8, {"blocks.0.conv": 0, "blocks.3.res_blocks.1.branch2.conv_b": 3, "blocks.5.proj": 5}),
        ("x3d_xs", 4, {"blocks.0.conv.conv_t": 0, "blocks.5.pool.pre_conv": 5, "blocks.5.proj": 6}),
        (
            "mvit_base_16x4",
            4,
            {"patch_embed.patch_model": 0, "blocks.0.norm1": 1, "blocks.15.mlp.fc1": 16, "norm_embed": 16},
        ),
    ],
)
def test_depths_of_pytorchvideos_networks_are_their_blocks(name, frames, depths):
    model = other(f"pytorchvideo/{name}", frames, 64)
    found = finetune.depths(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert {name: found[f"network.{name}.weight"] for name in depths} == depths


def test_a_network_that_tells_no_order_is_refused_in_one_line():
    with pytest.raises(UserError, match="Linear: the order of its blocks is unknown; set optim.layer_decay=1"):
        finetune.depths(nn.Linear(1, 1))


def test_layer_decay_by_hand_and_by_timm():
    model = small()
    groups = optim.parameter_groups(model, 0.1, 0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(scale) == sum(1 for _ in model.parameters()) and all(group["params"] for group in groups)
    named = dict(model.named_parameters())
    assert scale[id(named["head.bias"])] == 1
    assert scale[id(named["stages.3.1.conv1.conv.weight"])] == 0.5
    assert scale[id(named["stages.0.0.conv1.conv.weight"])] == 0.5**8
    assert scale[id(named["stem.conv1.conv.weight"])] == 0.5**9
    assert decay == {id(p): 0.1 if p.ndim > 1 else 0.0 for p in model.parameters()}
    assert {group["lr_scale"] for group in optim.parameter_groups(model, 0.1)} == {1.0}


def test_layer_decay_is_timms_own():
    layers = pytest.importorskip("timm.optim")
    model = other("timm/resnet18")
    ours = {id(p): g["lr_scale"] for g in optim.parameter_groups(model, 0.1, 0.7) for p in g["params"]}
    theirs = layers.param_groups_layer_decay(model.network, 0.1, layer_decay=0.7)
    assert ours == pytest.approx({id(p): g["lr_scale"] for g in theirs for p in g["params"]})


def trained_steps(model, count=3):
    """Train a few steps, and return the EMA."""
    optimizer, ema = optim.create("sgd", model, momentum=0.9, nesterov=True, weight_decay=0.1), EMA(model, 0.9)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for step in range(count):
        model.train()
        clips = torch.randn(2, 3, 2, 32, 32, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(clips).square().sum().backward()
        optimizer.step()
        ema.update(model)
    return ema


@pytest.mark.parametrize("stages", [1, 3, 5])
def test_frozen_stages_stay_and_the_others_move(stages):
    model = small(bn_momentum=0.5)
    finetune.freeze(model, stages)
    before = copy.deepcopy(model.state_dict())
    ema = trained_steps(model)
    parts = ["stem.", "stages.0.", "stages.1.", "stages.2.", "stages.3."]
    for name, value in model.state_dict().items():
        if name.startswith(tuple(parts[:stages])):
            assert torch.equal(value, before[name]) and torch.equal(ema.state_dict()[name], before[name]), name
    for part in [*parts[stages:], "head."]:
        moved = [name for name in before if name.startswith(part) and "tracked" not in name]
        assert any(not torch.equal(model.state_dict()[name], before[name]) for name in moved), part
        if part != "head.":
            running = [name for name in moved if "running" in name]
            assert all(not torch.equal(model.state_dict()[name], before[name]) for name in running)


def test_a_linear_probe_trains_the_head_alone():
    model = small()
    finetune.freeze(model, but_head=True)
    before = copy.deepcopy(model.state_dict())
    trained_steps(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.parametrize("name", ["timm/resnet18", "pytorchvideo/slow_r50"])
def test_other_packages_networks_freeze_too(name):
    pytest.importorskip("timm")
    model = other(name, 1 if name.startswith("timm") else 4)
    finetune.freeze(model, 2)
    model.eval(), model.train()
    frozen = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.training]
    free = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    assert frozen and free and not any(m.weight.requires_grad for m in frozen)
    assert all(m.weight.requires_grad for m in free)
    held = {id(p) for group in optim.parameter_groups(model, 0.1) for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_the_average_of_a_frozen_network_is_one_of_its_own():
    model = small()
    finetune.freeze(model, 2)
    average = EMA(model, 0.9).model
    norm, copied = model.stem.conv1.norm, average.stem.conv1.norm
    assert average.train() is average and copied is not norm and not copied.training
    norm.training = True
    copied.train()
    assert norm.training  # the copy does not change the original


def test_more_stages_than_there_are():
    with pytest.raises(UserError, match="train.freeze=6: the network has 5 stages including the stem"):
        finetune.freeze(small(), 6)


def test_groups_in_words():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    model[0].bias.requires_grad_(False)
    optimizer = optim.create("lamb", model, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.02)
    assert optim.describe_groups(model, optimizer) == [
        "1 tensors, 6 parameters: weight decay 0.02, learning rate x 1",
        "2 tensors, 4 parameters: weight decay 0, learning rate x 1",
        "1 tensors, 2 parameters: frozen",
    ]
