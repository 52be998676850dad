"""The optimum of each recipe loss classifies separable data correctly, however unequal the classes are."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from video_rs.data.sources.records import Records
from video_rs.data.transforms.mixing import draw_mix, mix
from video_rs.data_config import DataConfig
from video_rs.training import recipe
from video_rs.training.losses import BinaryCrossEntropy, CrossEntropy
from video_rs.training.options import Options

COUNTS = {"160:5": (160, 5), "400:4:4": (400, 4, 4), "33:1, many": (66, 66, 2, 2, 2, 66, 66, 66)}


class Linear(nn.Linear):
    """A linear network of points, with the data config that the recipe reads."""

    data_config = DataConfig(num_frames=1)
    num_classes = property(lambda self: self.out_features)


def points(counts):
    """Points in one corner per class, and their labels, in random order: linearly separable."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    corners = 4 * np.eye(len(counts))[labels]
    return torch.from_numpy(corners + rng.uniform(-0.5, 0.5, corners.shape)), labels


def optimum(criterion, inputs, targets):
    """A linear network with the smallest mean loss, by L-BFGS in float64."""
    torch.manual_seed(0)
    network = nn.Linear(inputs.shape[1], inputs.shape[1], dtype=torch.float64)
    solver = torch.optim.LBFGS(network.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = criterion(network(inputs), targets).mean()
        loss.backward()
        return loss

    solver.step(closure)
    return network


def recall(network, inputs, labels):
    """The accuracy of each class."""
    predicted = network(inputs).argmax(1).numpy()
    return [np.mean(predicted[labels == label] == label) for label in np.unique(labels)]


LOSSES = [
    {"loss": loss, "label_smoothing": smoothing, "class_weights": weights, "mixup": mixup}
    for loss, smoothing, weights, mixup in product(
        ("cross_entropy", "bce"), (0.0, 0.1), ("none", "balanced"), (0.0, 0.4)
    )
    if loss == "cross_entropy" or weights == "none"  # the other is refused
]


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("settings", LOSSES, ids=lambda each: " ".join(map(str, each.values())))
def test_the_optimum_predicts_every_class(settings, counts):
    inputs, labels = points(counts)
    records = Records(map(str, range(len(labels))), labels, [str(c) for c in range(len(counts))])
    network = Linear(len(counts), len(counts), dtype=torch.float64)
    criterion = recipe.criterion(Options(**settings), network, records)
    seen, targets = inputs, torch.from_numpy(labels)
    if settings["mixup"]:  # a point is a clip of one pixel, and is mixed with many partners
        drawn = torch.from_numpy(np.random.default_rng(1).integers(len(labels), size=4096))
        draws = draw_mix(0, 0, len(drawn), 1, 1, mixup=settings["mixup"])
        clips, targets = mix(inputs[drawn, :, None, None, None], F.one_hot(targets[drawn]).double(), draws)
        seen = clips.flatten(1)
    assert recall(optimum(criterion, seen, targets), inputs, labels) == [1] * len(counts)


def test_a_loss_is_weighted_by_the_class_of_its_sample():
    """The loss is w[y] CE(p, smooth(y)); for mixed targets t, the sum over k of t[k] w[k] CE(p, smooth(k))."""
    torch.manual_seed(0)
    logits, weights = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0.3, 1.0, 40.0, 0.0], dtype=torch.float64)
    labels, other, part = torch.tensor([0, 1, 2, 2, 0, 1]), torch.tensor([2, 2, 0, 1, 1, 1]), torch.rand(6).double()
    plain, weighted = CrossEntropy(0.2), CrossEntropy(0.2, weights)

    def expected(labels):
        return weights[labels] * plain(logits, labels)

    torch.testing.assert_close(weighted(logits, labels), expected(labels))
    mixed = part[:, None] * F.one_hot(labels, 4) + (1 - part)[:, None] * F.one_hot(other, 4)
    torch.testing.assert_close(weighted(logits, mixed), part * expected(labels) + (1 - part) * expected(other))
    single = CrossEntropy(0.2, weights.float())
    assert single(logits.bfloat16(), labels).dtype == single(logits.float(), mixed).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", [None, torch.tensor([0.3, 1.0, 40.0, 0.0])], ids=["equal", "weighted"])
def test_numbers_of_16_bits_are_widened_first(dtype, weights):
    logits, targets = torch.randn(6, 4).to(dtype), torch.rand(6, 4).softmax(1).to(dtype)
    for loss in (CrossEntropy(0.1, weights), BinaryCrossEntropy(0.1, towards=0.5)):
        torch.testing.assert_close(loss(logits, targets), loss(logits.float(), targets.float()), rtol=1e-6, atol=1e-6)
