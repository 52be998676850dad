"""Load networks from Python. Files of other tools are tested in ``tests/cli/test_convert.py`` and ``tests/tf``."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import video_rs
from video_rs import checkpoint
from video_rs.errors import UserError
from video_rs.models.weights.load import load_network
from video_rs.models.weights.state_dict import to_timm


@pytest.mark.usefixtures("one_thread")
def test_a_network_of_what_was_read(tmp_path):
    model = video_rs.create_model("resnet3d_rs_26", num_classes=2, width=0.125)
    data_config = dataclasses.replace(model.data_config, class_names=("a", "b"), num_frames=8)
    model_args = {"name": "resnet3d_rs_26", "num_classes": 2, "width": 0.125}
    checkpoint.save(tmp_path / "a.pt", checkpoint.from_weights(model_args, data_config, model.state_dict()))
    weights = load_network(tmp_path / "a.pt")
    twin = weights.network
    assert twin.data_config == data_config and weights.model_args.items() >= model_args.items()
    clips = torch.randn(1, 3, 4, 32, 32)
    torch.testing.assert_close(twin.eval()(clips), model.eval()(clips), rtol=0, atol=0)
    assert len(repr(weights)) < 2000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "give a file"),
        ((None, "garden_resnet_rs_50"), "belong to resnet_rs_"),
        (("gone.pt",), "gone.pt does not exist"),
    ],
)
def test_misuse_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        load_network(*arguments)


@pytest.fixture(scope="module")
def states():
    """State dicts of a narrow image network, with our names and timm's."""
    own = video_rs.create_model("resnet_rs_50", num_classes=2, width=0.125).state_dict()
    return {"ours": own, "timm": to_timm(own), "head": {"fc.weight": torch.ones(2, 8), "fc.bias": torch.ones(2)}}


@pytest.mark.parametrize(
    ("state", "changes", "options", "message"),
    [
        ("timm", {"conv1.0.weight": None}, {"timm": True}, "it has no stem.conv1.conv.weight$"),
        ("head", {}, {"timm": True, "model": "resnet_rs_26"}, "they have no stages, the first is head.weight$"),
        (
            "timm",
            {"conv1.0.weight": torch.ones(3)},
            {},
            r"stem.conv1.conv.weight has shape \[3\], which is invalid for a ResNet-RS",
        ),
        ("ours", {"head.weight": torch.tensor(1.0)}, {"model": "resnet_rs_50"}, r"head.weight has shape \[\], which"),
        ("ours", {}, {"timm": True}, "it has this package's names, not timm's; omit --from$"),
        ("timm", {}, {"timm": False}, "it has timm's names, not this package's; omit --from$"),
        ("timm", {"layer1.b": torch.ones(1)}, {}, r"of another network\? Weights of its"),
        ("timm", {"a.b": torch.ones(1)}, {}, "this network has no a.b$"),
        ("ours", {"a.b": torch.ones(1)}, {"model": "resnet_rs_50"}, "this network has no a.b$"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(tmp_path, states, state, changes, options, message):
    saved = {name: tensor for name, tensor in {**states[state], **changes}.items() if tensor is not None}
    torch.save(saved, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message) as error:
        load_network(tmp_path / "a.pth", **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_keep_their_dtype(tmp_path, states, dtype):
    saved = {k: tensor.to(dtype) if tensor.is_floating_point() else tensor for k, tensor in states["ours"].items()}
    torch.save(saved, tmp_path / "a.pth")
    state = load_network(tmp_path / "a.pth", "resnet_rs_50").network.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {dtype, torch.int64}
    torch.save({**saved, "head.bias": saved["head.bias"].float()}, tmp_path / "mixed.pth")
    mixed = load_network(tmp_path / "mixed.pth", "resnet_rs_50").network
    assert mixed.stem.conv1.conv.weight.dtype == torch.promote_types(dtype, torch.float32)
