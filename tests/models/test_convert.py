"""timm's weights, prefixes, and starting a network from files."""

from __future__ import annotations

import pytest
import torch

from video_rs import checkpoint
from video_rs.errors import UserError
from video_rs.models.convert import from_timm, strip_prefixes, to_timm
from video_rs.models.zoo import create_model

NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(name="resnet_rs_26", num_classes=3, **kwargs):
    model = create_model(name, num_classes=num_classes, width=0.125, **kwargs)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def save_run(path, model, ema=None, **model_args):
    checkpoint.save(
        path,
        {
            "format": 1,
            "config": {},
            "model_args": {"num_classes": model.num_classes, "width": 0.125, **model_args},
            "contract": model.contract.to_dict(),
            "model": model.state_dict(),
            "ema": ema,
            "step": 3,
        },
    )
    return path


def test_only_image_networks_go_to_timm():
    state = small().state_dict()
    assert same(from_timm(to_timm(state)), state)
    with pytest.raises(UserError, match="extends over 5 frames"):
        to_timm(small("resnet3d_rs_26").state_dict())
    with pytest.raises(UserError, match="layer1.0.attn.weight is not a weight of the image ResNet-RS"):
        from_timm({"layer1.0.attn.weight": torch.zeros(1)})


def test_prefixes():
    state = small().state_dict()
    assert same(strip_prefixes({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}), state)
    assert same(strip_prefixes(state), state)
    assert strip_prefixes({}) == {}
