"""The statistics of batch norm from many samples, in one process and two."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from video_rs.data_config import DataConfig
from video_rs.distributed.world import World
from video_rs.errors import MachineError, UserError
from video_rs.models.sync_batch_norm import convert_sync_batch_norm
from video_rs.training.precise_bn import with_precise_statistics


class Normed(nn.Module):
    """Batch norm of clips, scaled and shifted."""

    data_config = DataConfig(num_frames=1, stride=1)

    def __init__(self, scale=1.0, shift=0.0):
        super().__init__()
        self.norm, self.scale, self.shift = nn.BatchNorm3d(3, momentum=1.0), scale, shift
        self.double()

    def forward(self, clips, keys=None):
        return self.norm(clips * self.scale + self.shift)


def batches(number, rank=0, processes=1):
    generator = torch.Generator().manual_seed(0)
    shape = (number * processes, 4, 1, 2, 2, 3)
    everything = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return [{"clip": clip} for clip in everything[rank::processes]]


def expected(all_batches):
    """Mean and variance over all samples, of batches of one size: the law of total variance."""
    clips = [batch["clip"].double().div(255).flatten(0, 3) for batch in all_batches]
    mean = torch.stack([clip.mean(0) for clip in clips]).mean(0)
    square = torch.stack([clip.var(0, correction=0) + clip.mean(0).square() for clip in clips]).mean(0)
    return mean, square - mean.square()


def check(model, all_batches):
    mean, var = expected(all_batches)
    torch.testing.assert_close(model.norm.running_mean, mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(model.norm.running_var, var, rtol=1e-6, atol=0)


def test_statistics_of_many_batches():
    model, data = Normed(), batches(50)
    found = with_precise_statistics(model, data, "float64", World())
    check(found, data)
    assert torch.equal(model.norm.running_mean, torch.zeros(3))  # the network in training keeps its own
    assert not found.training


def test_statistics_with_a_large_mean():
    """Mean 100, standard deviation 0.1: in float32 a difference of squares has no digit left."""
    generator = torch.Generator().manual_seed(0)
    model, noise = Normed(0.1 * 255 / 25, 100).float(), torch.randn(64, 4, 1, 4, 4, 3, generator=generator)
    data = [{"clip": clip} for clip in (128 + 25 * noise).clamp(0, 255).byte()]
    found = with_precise_statistics(model, data, "float32", World()).norm
    clips = torch.stack([batch["clip"] for batch in data]).double() / 255 * model.scale + model.shift
    torch.testing.assert_close(found.running_mean.double(), clips.mean((0, 1, 2, 3, 4)), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.running_var.double(), clips.var((0, 1, 2, 3, 4), correction=0), rtol=1e-4, atol=0)
    assert found.running_var.sqrt() == pytest.approx(torch.full((3,), 0.1), rel=0.1) and found.momentum == 1.0


def test_statistics_are_fvcores():
    """In float64, where its differences of squares do no harm; with batches of different sizes."""
    from fvcore.nn.precise_bn import update_bn_stats

    data = [{"clip": batch["clip"][: 1 + i % 4]} for i, batch in enumerate(batches(20))]
    found, peer = with_precise_statistics(Normed(), data, "float64", World()).norm, Normed().train()
    update_bn_stats(peer, [batch["clip"].permute(0, 4, 1, 2, 3).double() / 255 for batch in data], len(data))
    torch.testing.assert_close(found.running_mean, peer.norm.running_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.running_var, peer.norm.running_var, rtol=1e-6, atol=0)


def far_apart(rank, world):
    """The ranks' means are 100 and 300, their standard deviations 0.1."""
    noise = torch.randint(0, 255, (2, 8, 4, 1, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = Normed(0.35, 100 + 200 * rank).float()
    found = with_precise_statistics(model, [{"clip": clip} for clip in noise[rank]], "float32", world).norm
    clips = noise.double() / 255 * 0.35 + torch.tensor([100.0, 300.0]).view(2, 1, 1, 1, 1, 1, 1)
    dims = tuple(range(6))
    torch.testing.assert_close(found.running_mean.double(), clips.mean(dims), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.running_var.double(), clips.var(dims, correction=0), rtol=1e-6, atol=0)


def work(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    world = World(rank, rank, 2, 2, _host=dist.group.WORLD)
    found = with_precise_statistics(Normed(), batches(25, rank, 2), "float64", world)
    check(found, batches(50))
    far_apart(rank, world)
    synced = convert_sync_batch_norm(Normed())
    check(with_precise_statistics(synced, batches(25, rank, 2), "float64", world), batches(50))

    def late():
        late.calls += 1
        if late.calls == 2 + rank:  # as a signal is seen: not by both before the same batch
            raise UserError("told to leave")

    late.calls = 0
    with pytest.raises(Exception, match="told to leave"):
        with_precise_statistics(synced, batches(25, rank, 2), "float64", world, late)
    with pytest.raises(AssertionError):  # one process's alone
        check(with_precise_statistics(Normed(), batches(25, rank, 2)[:1], "float64", World()), batches(50))

    def failing():
        if rank == 1:
            raise MachineError("a worker died")

    with pytest.raises(Exception, match="a worker died"):  # and no rank waits for the one that failed
        with_precise_statistics(Normed(), batches(2, rank, 2), "float64", world, failing)
    dist.barrier()
    os._exit(0)  # gloo's threads sometimes abort a process that ends in order


@pytest.mark.slow
def test_statistics_of_two_processes(tmp_path):
    torch.multiprocessing.spawn(work, (tmp_path / "store",), nprocs=2)


def test_a_run_that_is_to_stop():
    def stop():
        raise UserError("stop")

    with pytest.raises(UserError, match="stop"):
        with_precise_statistics(Normed(), batches(2), "float64", World(), stop)
