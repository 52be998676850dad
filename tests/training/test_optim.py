"""SGD: parameter groups with weight decay, and the learning rate of every step, against numbers computed by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from video_rs.data_config import DataConfig
from video_rs.models.layers import SelfGating
from video_rs.models.registry import create_model
from video_rs.training import lr_schedule, optim, schedule


def test_decay_by_module_type():
    model = create_model("resnet3d_rs_26", num_classes=4, width=0.125)
    decayed, others = optim.parameter_groups(model, 4e-5)
    assert (decayed["weight_decay"], others["weight_decay"]) == (4e-5, 0.0)
    decayed_ids = {id(p) for p in decayed["params"]}
    assert {id(p) for p in model.parameters()} == decayed_ids | {id(p) for p in others["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in decayed_ids) == (p.ndim > 1), name  # conv, SE and head weights; not biases, not batch norm
    assert id(model.head.weight) in decayed_ids


def test_self_gating_does_not_decay():
    model = nn.Sequential(nn.Conv3d(3, 4, 1), SelfGating(4))
    decayed, _ = optim.parameter_groups(model, 1.0)
    assert [p.shape for p in decayed["params"]] == [model[0].weight.shape]


def test_networks_of_other_packages():
    """Twins excludes its position encodings from weight decay by name; tokens are not weights of a layer."""
    model = create_model(
        "timm/twins_pcpvt_small", num_classes=4, data_config=DataConfig(1, 1, train_size=32, test_size=32)
    )
    decayed, others = ({id(p) for p in group["params"]} for group in optim.parameter_groups(model, 1.0))
    named = dict(model.named_parameters())
    assert id(named["network.pos_block.0.proj.0.weight"]) in others
    assert id(named["network.patch_embeds.0.proj.weight"]) in decayed
    assert id(named["network.head.weight"]) in decayed
    mvit = create_model("pytorchvideo/mvit_base_16x4", data_config=DataConfig(4, 1, train_size=32, test_size=32))
    decayed, others = ({id(p) for p in group["params"]} for group in optim.parameter_groups(mvit, 1.0))
    for name, p in mvit.named_parameters():
        spared = "cls_positional_encoding" in name or p.ndim == 1
        assert (id(p) in others, id(p) in decayed) == (spared, not spared), name


def test_cosine_is_not_shifted_by_the_warm_up():
    """TF Model Garden: min over the warm-up of step / warmup * cosine(warmup), then cosine(step)."""
    rate = lr_schedule.learning_rate(0.8, 1000, 100)

    def cosine(step):
        return 0.8 * 0.5 * (1 + math.cos(math.pi * step / 1000))

    assert rate(0) == 0
    assert rate(50) == pytest.approx(0.5 * cosine(100))
    assert rate(100) == pytest.approx(cosine(100))
    assert rate(600) == pytest.approx(cosine(600))
    assert rate(1000) == pytest.approx(0, abs=1e-12)


@given(st.integers(1, 500), st.floats(0, 800), st.sampled_from(["cosine", "constant"]))
def test_rate_stays_in_range(num_steps, warmup, schedule):
    rate = lr_schedule.learning_rate(0.5, num_steps, warmup, schedule)
    assert all(0 <= rate(step) <= 0.5 for step in range(num_steps + 1))


def test_steps_of_the_published_recipes():
    assert schedule.num_steps(215_570, 1024, 350) == 73_682  # k400_resnet3drs_50_tpu.yaml
    assert schedule.num_steps(1_281_167, 4096, 350) == 109_475  # the TPU code's train_steps


def test_sgd_is_torchs_with_nesterov():
    layer = nn.Linear(1, 1, bias=False)
    optimizer = optim.create("sgd", layer, momentum=0.9, nesterov=True, weight_decay=0.1)
    nn.init.constant_(layer.weight, 2.0)
    layer.weight.grad = torch.ones(1, 1)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()
    g = 1 + 0.1 * 2.0
    assert layer.weight.item() == pytest.approx(2.0 - 0.5 * (g + 0.9 * g))


def test_drops_of_the_tpu_code():
    """resnet_main.get_lr_schedule: x 0.1, 0.01, 0.001 after epochs floor((30, 60, 80) / 90 * 350)."""
    assert lr_schedule.drop_epochs(350) == [116, 233, 311] and lr_schedule.drop_epochs(90) == [30, 60, 80]
    rate = lr_schedule.learning_rate(1.6, 350, 0, "step", lr_schedule.drop_epochs(350))
    expected = {0: 1.6, 115: 1.6, 116: 0.16, 232: 0.16, 233: 0.016, 310: 0.016, 311: 0.0016, 349: 0.0016}
    assert {step: rate(step) for step in expected} == pytest.approx(expected)
    warmed = lr_schedule.learning_rate(1.6, 350, 19, "step", lr_schedule.drop_epochs(350))
    assert warmed(10) == pytest.approx(1.6 * 10 / 19) and warmed(19) == 1.6
    assert lr_schedule.learning_rate(1, 10, 0, "step", [4, 8], 0.5)(9) == 0.25
