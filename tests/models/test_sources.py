"""Weights of other tools from Python; the files themselves are in ``tests/cli/test_convert.py`` and ``tests/tf``."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import video_rs
from video_rs import checkpoint
from video_rs.errors import UserError
from video_rs.models import sources


@pytest.mark.usefixtures("one_thread")
def test_a_network_of_what_was_read(tmp_path):
    model = video_rs.create_model("resnet3d_rs_26", num_classes=2, width=0.125)
    contract = dataclasses.replace(model.contract, class_names=("a", "b"), num_frames=8)
    model_args = {"name": "resnet3d_rs_26", "num_classes": 2, "width": 0.125}
    checkpoint.save(tmp_path / "a.pt", checkpoint.of_weights(model_args, contract, model.state_dict()))
    weights = sources.read(tmp_path / "a.pt")
    twin = weights.network
    assert twin.contract == contract and weights.model_args.items() >= model_args.items()
    clips = torch.randn(1, 3, 4, 32, 32)
    torch.testing.assert_close(twin.eval()(clips), model.eval()(clips), rtol=0, atol=0)
    assert len(repr(weights)) < 2000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "give the file"),
        ((None, "garden_resnet_rs_50"), "those of resnet_rs_"),
        (("gone.pt",), "gone.pt does not exist"),
    ],
)
def test_misuse_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        sources.read(*arguments)
