"""The weight average and the loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from video_rs.training.ema import EMA
from video_rs.training.losses import CrossEntropy, balanced_class_weights


def test_ema_warms_up_and_averages_buffers():
    model = nn.BatchNorm1d(1, momentum=1.0)
    ema = EMA(model, 0.9999)
    expected = 0.0
    for n, value in enumerate([1.0, 5.0, -2.0, 7.0]):
        with torch.no_grad():
            model.running_mean.fill_(value)
            model.weight.fill_(value + 1)
            model.num_batches_tracked += 1
        ema.update(model)
        decay = min(0.9999, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        assert ema.model.running_mean.item() == pytest.approx(expected)
    assert ema.model.weight.item() == pytest.approx(expected + 1)
    assert ema.model.num_batches_tracked == 4
    assert ema.updates == 4


def test_ema_decay_is_capped():
    model = nn.Linear(1, 1, bias=False).requires_grad_(False)
    ema = EMA(model, 0.5)
    ema.updates = 1000
    model.weight.fill_(ema.model.weight.item() + 1)
    before = ema.model.weight.item()
    ema.update(model)
    assert ema.model.weight.item() == pytest.approx(before + 0.5)


def test_loss_with_smoothing_by_hand():
    logits, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    target = F.one_hot(labels, 4) * 0.9 + 0.1 / 4
    expected = -(target * logits.log_softmax(1)).sum(1)
    hard = CrossEntropy(0.1)(logits, labels)
    soft = CrossEntropy(0.1)(logits, F.one_hot(labels, 4).double())
    torch.testing.assert_close(hard, expected)
    torch.testing.assert_close(soft, expected)


def test_class_weights_average_to_one_over_the_samples():
    labels = np.array([0] * 8 + [1] * 2 + [3] * 10)
    weights = balanced_class_weights(labels, 4)
    assert weights[2] == 0
    assert weights[labels].mean().item() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(4)
    logits = torch.zeros(20, 4)
    losses = CrossEntropy(0, weights.float())(logits, torch.from_numpy(labels))
    assert losses.mean().item() == pytest.approx(np.log(4), rel=1e-5)
