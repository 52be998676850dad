"""Activation checkpointing: the same numbers, bit for bit, from less memory."""

import copy

import pytest
import torch
from torch import nn

from video_rs.errors import UserError
from video_rs.models.architecture import RESNET_RS_2D, RESNET_RS_3D
from video_rs.models.resnet_rs import ResNetRS
from video_rs.models.sync_batch_norm import convert_sync_batch_norm

KEYS = torch.arange(4) * 2**60 - 2**62
pytestmark = pytest.mark.usefixtures("one_thread")


def network(architecture=RESNET_RS_3D):
    """Return a network whose residual branches are not zero and whose running statistics are averages."""
    model = ResNetRS(architecture, (1, 2, 1, 1), 5, width=0.125, dropout=0.2, drop_path=0.3)
    for name, weight in model.named_parameters():
        if name.endswith("conv3.norm.weight"):
            nn.init.uniform_(weight, 0.1, 0.3)
    return model


def step(model, frames=4):
    """Run forward and backward, and return the bytes that were kept in between."""
    kept = {}
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(4, frames, 32, 32, 3, generator=generator, dtype=model.head.weight.dtype).permute(0, 4, 1, 2, 3)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(clips, KEYS).square().sum()
    loss.backward()
    return sum(kept.values())


def assert_same(model, other):
    for (name, parameter), of_other in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter.grad, of_other.grad), name
    for (name, buffer), of_other in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(buffer, of_other), name


@pytest.mark.parametrize("sync", [False, True], ids=["batch_norm", "sync_batch_norm"])
@pytest.mark.parametrize("architecture", [RESNET_RS_3D, RESNET_RS_2D], ids=["3d", "2d"])
def test_gradients_and_statistics_are_the_same(architecture, sync):
    model = convert_sync_batch_norm(network(architecture)) if sync else network(architecture)
    other, frames = copy.deepcopy(model), 4 if architecture is RESNET_RS_3D else 1
    other.set_grad_checkpointing()
    for _ in range(2):  # what a step leaves behind, the next one has
        assert step(other, frames) < 0.6 * step(model, frames)
    assert_same(model, other)
    assert model.stages[0][0].conv1.norm.num_batches_tracked == 2
    assert list(other.state_dict()) == list(model.state_dict())


def test_each_stage_saves_its_own():
    model, kept = network(), []
    for stages in ((), (1,), (2,), (1, 2)):
        model.set_grad_checkpointing(stages)
        kept.append(step(model))
    none, first, second, both = kept
    assert first < none and second < none and both < min(first, second)


def test_what_is_not_finite_leaves_the_same_statistics():
    model = network()
    nn.init.constant_(model.stages[1][0].conv1.norm.weight, torch.inf)
    other = copy.deepcopy(model)
    other.set_grad_checkpointing((1,))
    for each in (model, other):
        step(each)
    for (name, buffer), of_other in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, of_other, rtol=0, atol=0, equal_nan=True, msg=name)


def test_frozen_stages_and_evaluation():
    model = network().double()
    for part in (model.stem, model.stages[0]):
        part.requires_grad_(False)
    other = copy.deepcopy(model)
    other.set_grad_checkpointing((1, 2))
    for each in (model, other):
        step(each)
    assert other.stages[0][0].conv1.conv.weight.grad is None
    assert torch.equal(model.stages[1][0].conv1.conv.weight.grad, other.stages[1][0].conv1.conv.weight.grad)
    clips = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    assert torch.equal(model.eval()(clips), other.eval()(clips))


def test_a_stage_that_is_not_there():
    with pytest.raises(UserError, match="no stage 5 to checkpoint: the stages are 1 to 4"):
        network().set_grad_checkpointing((1, 5))
