"""Networks by name: what create_model's arguments reach."""

import pytest
import torch

from video_rs.errors import UserError
from video_rs.models.layers import Conv
from video_rs.models.zoo import create_model

torch.set_num_threads(1)
TINY = {"num_classes": 3, "width": 0.125}


def momenta(model):
    return {m.momentum for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}


def test_none_takes_the_familys_own():
    model = create_model("resnet3d_rs_26", **TINY)
    assert momenta(model) == {0.1}
    assert model.layout.temporal_padding == "zeros"
    assert momenta(create_model("resnet3d_rs_26", **TINY, bn_momentum=1.0)) == {1.0}


def test_temporal_padding_reaches_the_convolutions():
    model = create_model("resnet3d_rs_26", **TINY, temporal_padding="replicate").eval()
    over_time = [m for m in model.modules() if isinstance(m, Conv) and m.kernel_size[0] > 1]
    assert {m.temporal_padding for m in over_time} == {"replicate"}
    zeros = create_model("resnet3d_rs_26", **TINY).eval()
    zeros.load_state_dict(model.state_dict())
    for network in (model, zeros):  # as they start, blocks are their shortcuts
        for stage in network.stages:
            for block in stage:
                torch.nn.init.constant_(block.conv3.norm.weight, 0.2)
    still = torch.rand(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 8, -1, -1)
    frames = [network.features(still) for network in (model, zeros)]
    assert (frames[0] - frames[0][:, :, :1]).abs().max() < 1e-5  # a still clip stays still
    assert (frames[1] - frames[1][:, :, :1]).abs().max() > 1e-3
    with pytest.raises(UserError, match="temporal_padding is one of zeros, replicate, not 'reflect'"):
        create_model("resnet3d_rs_26", **TINY, temporal_padding="reflect")
