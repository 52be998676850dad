"""The weight average and the loss."""

import math

import numpy as np
import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from torch import nn

from video_rs.data_config import DataConfig
from video_rs.distributed.world import World
from video_rs.errors import UserError
from video_rs.training.ema import EMA
from video_rs.training.losses import BinaryCrossEntropy, CrossEntropy, balanced_class_weights
from video_rs.training.optim import create
from video_rs.training.schedule import Schedule
from video_rs.training.trainer import Trainer


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
    ema.updates.fill_(1000)
    model.weight.fill_(ema.model.weight.item() + 1)
    before = ema.model.weight.item()
    ema.update(model)
    assert ema.model.weight.item() == pytest.approx(before + 0.5)


class Normalized(nn.Module):
    """Batch norm on the pixels themselves, so that its statistics can be worked out by hand."""

    data_config, num_classes = DataConfig(num_frames=1, stride=1), 3

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm3d(3, momentum=1.0), nn.Linear(3, 3)
        nn.init.eye_(self.head.weight), nn.init.zeros_(self.head.bias)

    def forward(self, clips, keys=None):
        return self.head(self.norm(clips).mean((2, 3, 4)))


def trained_step(world):
    """A trainer after one step on the micro-batch of one rank: two clips of one gray pixel."""
    model = Normalized().double()
    schedule = Schedule(num_samples=4, num_steps=2, batch_size=2 * world.size, micro_batch=2, world_size=world.size)
    options = {"optimizer": create("sgd", model, momentum=0.9, nesterov=True, weight_decay=0), "precision": "float64"}
    trainer = Trainer(
        model,
        schedule,
        criterion=CrossEntropy(),
        learning_rate=lambda step: 0.5,
        ema=EMA(model, 0.9999),
        world=world,
        **options,
    )
    pixels = torch.tensor([[51, 153], [0, 255]][world.rank], dtype=torch.uint8)  # 0.2 and 0.6; 0 and 1
    clip = pixels.view(2, 1, 1, 1, 1).expand(2, 1, 1, 1, 3)
    trainer.train_step([{"clip": clip, "label": torch.tensor([world.rank, 2]), "broken": []}])
    return trainer


def check_replicas(world):
    trainer = trained_step(world)
    norm, average = trainer.model.norm, trainer.ema.model.norm
    assert norm.running_mean.tolist() == pytest.approx([0.45] * 3)  # of 0.4 and 0.5
    assert norm.running_var.tolist() == pytest.approx([0.29] * 3)  # of 0.08 and 0.5
    assert average.running_mean.tolist() == pytest.approx([0.9 * 0.45] * 3)  # started at 0, 1; the decay is 1/10
    assert average.running_var.tolist() == pytest.approx([0.1 * 1 + 0.9 * 0.29] * 3)
    assert norm.num_batches_tracked == average.num_batches_tracked == 1
    weights = world.gather({name: p.tolist() for name, p in trainer.model.named_parameters()}, "the weights")
    assert weights[0] == weights[1]


def replica(rank, store):
    """One of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    world = World(rank, rank, 2)
    check_replicas(world)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(Trainer, "_share", lambda self, buffers, sums: (buffers, sums.clone()))
        check_replicas(world)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_batch_norm_across_replicas(tmp_path):
    """Two processes with a micro-batch each: their statistics are averaged before the moving average sees them.

    DESIGN.md, "BN across replicas". Not averaging them fails.
    """
    torch.multiprocessing.spawn(replica, (tmp_path / "store",), nprocs=2)


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


def test_binary_cross_entropy_by_hand():
    logits, targets = (
        torch.randn(4, 3, dtype=torch.float64),
        torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0.3, 0]]),
    )
    smooth, probs = targets.double() * 0.8 + 0.1, logits.sigmoid()
    expected = -(smooth * probs.log() + (1 - smooth) * (1 - probs).log()).mean(1)
    torch.testing.assert_close(BinaryCrossEntropy(0.2, towards=0.5)(logits, targets), expected)
    assert BinaryCrossEntropy(towards=0.5)(logits.bfloat16(), targets).dtype == torch.float32
    large = logits + 1000 * (2 * smooth.round() - 1)
    assert BinaryCrossEntropy(towards=0.5)(large, targets.round()).max() < 1e-6  # no overflow


@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_one_versus_rest_is_timms(smoothing):
    timm = pytest.importorskip("timm.loss")
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 3, 0])
    losses = BinaryCrossEntropy(smoothing, towards=None)(logits, labels)
    assert losses.shape == (6,)
    torch.testing.assert_close(losses.mean(), timm.BinaryCrossEntropy(smoothing)(logits, labels))
    soft = 0.3 * F.one_hot(labels, 4).double() + 0.7 * F.one_hot(labels.flip(0), 4)
    smoothed = soft * (1 - smoothing) + smoothing / 4  # as timm's mixup does
    torch.testing.assert_close(
        BinaryCrossEntropy(smoothing, towards=None)(logits, soft).mean(),
        timm.BinaryCrossEntropy(smoothing)(logits, smoothed),
    )


def test_what_binary_targets_are_smoothed_towards_is_said():
    with pytest.raises(TypeError, match="towards"):
        BinaryCrossEntropy(0.1)


def test_one_versus_rest_by_hand():
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)  # probabilities 1/2 and 3/4
    loss = BinaryCrossEntropy(0.2, towards=None)(logits, torch.tensor([1]))
    assert loss.item() == pytest.approx(-(math.log(0.5) + 0.9 * math.log(0.75) + 0.1 * math.log(0.25)) / 2)
    assert BinaryCrossEntropy(towards=None)(logits.bfloat16(), torch.tensor([1])).dtype == torch.float32


def test_statistics_of_one_value_are_one_line():
    schedule = Schedule(num_samples=8, num_steps=2, batch_size=2, micro_batch=1)
    model = Normalized().double()
    parts = {"criterion": CrossEntropy(), "optimizer": create("sgd", model, weight_decay=0), "precision": "float64"}
    trainer = Trainer(model, schedule, learning_rate=lambda step: 0, **parts)
    batch = {"clip": torch.zeros(1, 1, 1, 1, 3, dtype=torch.uint8), "label": torch.tensor([0]), "broken": []}
    with pytest.raises(UserError, match=r"one value per channel \(train.micro_batch=1\): raise train.micro_batch"):
        trainer.train_step([batch, batch])
    assert model.norm.running_var.tolist() == [1, 1, 1]
