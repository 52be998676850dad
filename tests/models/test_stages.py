"""Stages are modules that are called: hooks, feature extraction and export see them."""

import copy

import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor

from video_rs.models.architecture import GARDEN_2D, GARDEN_3D, RESNET_RS_2D, RESNET_RS_3D
from video_rs.models.resnet_rs import ResNetRS

CASES = [
    pytest.param(RESNET_RS_3D, (2, 3, 4, 32, 32), id="3d"),
    pytest.param(RESNET_RS_2D, (2, 3, 32, 32), id="2d"),
    pytest.param(GARDEN_3D, (2, 3, 4, 33, 32), id="garden 3d"),
    pytest.param(GARDEN_2D, (2, 3, 33, 32), id="garden 2d"),
]


def network(architecture):
    torch.manual_seed(0)
    return ResNetRS(architecture, (1, 2, 1, 1), 5, width=0.125, dropout=0.2, drop_path=0.3).eval()


def sample(shape):
    """In the memory order of a clip that arrives: channels last."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)


@pytest.mark.parametrize(("architecture", "shape"), CASES)
def test_hooks_and_feature_extraction(architecture, shape):
    model, x, seen = network(architecture), sample(shape), []
    hook = model.stages[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    logits = model(x)
    hook.remove()
    features = model.forward_features(x)
    assert len(seen) == 1 and torch.equal(seen[0].reshape(features.shape), features)
    extractor = create_feature_extractor(model, {"stages.3": "features", "head": "logits"})
    found = extractor(x)
    assert torch.equal(found["features"], seen[0]) and torch.equal(found["logits"], logits)
    keys = torch.tensor([3, 4])  # in training, dropout and drop path too are the model's
    assert torch.equal(extractor.train()(x, keys)["logits"], copy.deepcopy(model).train()(x, keys))


def test_names_of_weights_are_as_before():
    model = network(RESNET_RS_3D)
    assert {name for name, _ in model.named_parameters() if name.startswith("stages.1.1.conv1")} == {
        *("stages.1.1.conv1.conv.weight", "stages.1.1.conv1.norm.weight", "stages.1.1.conv1.norm.bias")
    }
    assert [len(stage) for stage in model.stages] == [1, 2, 1, 1] and len(model.stages[1][1:]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "shape"), CASES)
def test_export_keeps_2d_convolutions(architecture, shape):
    model, x = network(architecture), sample(shape)
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    counts = {"aten.conv2d.default": 0, "aten.conv3d.default": 0}
    for node in program.graph.nodes:
        if str(node.target) in counts:
            counts[str(node.target)] += 1
    with torch.no_grad():
        for batch in (x, torch.cat([x, x[:1] + 1])):
            assert torch.equal(program.module()(batch), model(batch))
    mixes_time_and_space = 1 if len(shape) == 5 else 0  # the stem's first kernel
    assert counts["aten.conv3d.default"] == mixes_time_and_space and counts["aten.conv2d.default"] > 20
