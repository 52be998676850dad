"""Channels-last memory all the way: clips, every stage's output, weights, their average and the optimizer's state."""

import pytest
import torch

from video_rs.data.transforms.crops import normalize
from video_rs.models.layers import ConvNorm
from video_rs.models.resnet_rs import Bottleneck

LAST = {"memory_format": torch.channels_last_3d}


@pytest.mark.parametrize("name", ["k400_rs50", "k400_garden_rs50", "imagenet_rs50"])
def test_no_stage_leaves_it(job, name):
    model, seen = job(name, "train.precision=float32").trainer.model, []

    def look(module, args, y):
        seen.append((y.shape, y.is_contiguous(**LAST)))
        if module is not model.stages[-1][-1]:  # which has its gradient from the mean over time and space
            y.register_hook(lambda gradient: seen.append((y.shape, gradient.is_contiguous(**LAST))))

    watched = [module for module in model.modules() if isinstance(module, ConvNorm | Bottleneck)]
    for module in watched:
        module.register_forward_hook(look)
    frames = 1 if name.startswith("imagenet") else 4
    clips = torch.randint(0, 256, (2, frames, 64, 64, 3), dtype=torch.uint8)
    clips = normalize(clips, (0, 0, 0), (1, 1, 1))
    assert clips.is_contiguous(**LAST)
    model(clips, torch.arange(2)).sum().backward()
    assert len(seen) == 2 * len(watched) - 1
    assert not [shape for shape, is_last in seen if not is_last]


def test_average_and_optimizer_keep_it(job):
    trainer = job("k400_rs50").trainer
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    batch = {"clip": clips, "label": torch.tensor([0, 1])}
    trainer.train_step([batch, batch])
    kernels = [p for p in trainer.model.parameters() if p.ndim == 5]
    assert kernels and any(p.shape[1] > 1 and p.shape[3] > 1 for p in kernels)
    averages = [p for p in trainer.ema.model.parameters() if p.ndim == 5]
    momenta = [trainer.optimizer.state[p]["momentum_buffer"] for p in kernels]
    for tensors in (kernels, averages, momenta, [p.grad for p in kernels]):
        assert all(tensor.is_contiguous(**LAST) for tensor in tensors)
    state = trainer.state_dict()
    trainer.load_state_dict(state)
    assert all(trainer.optimizer.state[p]["momentum_buffer"].is_contiguous(**LAST) for p in kernels)
