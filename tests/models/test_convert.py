"""Names of weights: ours, timm's, and prefixes; sizes read from shapes."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import same
from tests.models.test_init import small
from video_rs.errors import UserError
from video_rs.models.architecture import GARDEN_3D, RESNET_RS_2D
from video_rs.models.resnet_rs import STAGES, ResNetRS, scaled
from video_rs.models.weights.find import find_weights
from video_rs.models.weights.init_from import load_into
from video_rs.models.weights.source import Source
from video_rs.models.weights.state_dict import (
    blocks_of,
    from_timm,
    looks_like_timm,
    sizes_of,
    to_timm,
    width_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_timms_weights_are_whole():
    model = small()
    theirs = to_timm(model.state_dict())
    bare = {name: tensor for name, tensor in theirs.items() if not name.endswith("num_batches_tracked")}
    load_into(small(), Source(bare), "theirs")
    with pytest.raises(UserError, match=r"it has no .*stages.1.0.se.reduce.weight, head.bias$"):
        some = {name: tensor for name, tensor in bare.items() if name not in ("layer2.0.se.fc1.weight", "fc.bias")}
        load_into(model, Source(some), "theirs")
    with pytest.raises(UserError, match="this network has no stages.0.1.shortcut.conv.weight"):
        load_into(model, Source({**bare, "layer1.1.downsample.1.weight": torch.zeros(1)}), "theirs")
    with pytest.raises(UserError, match="blocks by stage"):
        some = {name: tensor for name, tensor in bare.items() if not name.startswith("layer2")}
        load_into(model, Source(some), "theirs")


def test_only_image_networks_go_to_timm():
    state = small().state_dict()
    assert same(from_timm(to_timm(state)), state)
    with pytest.raises(UserError, match="extends over 5 frames"):
        to_timm(small("resnet3d_rs_26").state_dict())
    with pytest.raises(UserError, match="layer1.0.attn.weight is not a weight of the image ResNet-RS"):
        from_timm({"layer1.0.attn.weight": torch.zeros(1)})


def test_other_networks_of_timm_are_not_its_resnetrs():
    """timm's resnet50d also has a deep stem, but no squeeze-and-excitation and a pool without weights."""
    theirs = to_timm(small().state_dict())
    assert looks_like_timm(theirs)
    for missing in ("conv1.0.", "maxpool.", ".se."):
        assert not looks_like_timm({name: tensor for name, tensor in theirs.items() if missing not in name})


@pytest.mark.parametrize("architecture", [RESNET_RS_2D, GARDEN_3D])
def test_the_width_is_known_from_the_shapes(architecture):
    """Channels are rounded to multiples of 8, so no single stage determines the width."""
    for width in (0.125, 0.25, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 0.95, 0.26875):
        with torch.device("meta"):
            state = ResNetRS(architecture, (1, 1, 1, 1), 5, in_channels=2, width=width).state_dict()
            again = ResNetRS(architecture, blocks_of(state), **sizes_of(state))
        shapes = {name: tensor.shape for name, tensor in again.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in state.items()}
        if width <= 2 and width * 8 % 1 == 0 or width == 0.3:
            assert width_of(state) == width
    for thousandths in range(5, 2100):
        widths = [scaled(c, thousandths / 1000) for c, _ in STAGES]
        state = {f"stages.{i}.0.conv2.conv.weight": torch.empty(c, device="meta") for i, c in enumerate(widths)}
        assert all(scaled(c, width_of(state)) == len(state[name]) for (c, _), name in zip(STAGES, state, strict=True))


def test_prefixes():
    state = small().state_dict()

    def found(saved, wanted=state):
        return find_weights(saved, {name: tensor.numel() for name, tensor in wanted.items()}).weights

    assert same(found({f"module.network.{name}": tensor for name, tensor in state.items()}), state)
    some = {"network.0.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    assert same(found({f"network.{name}": tensor for name, tensor in some.items()}, some), some)
    assert same(found({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}), state)
    assert same(found(state), state)
    assert found({}) == {}
