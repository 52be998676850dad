"""Tests on a GPU: autocast, gradient scaler, copies, augmentation, steps without synchronization."""

import contextlib
import time

import numpy as np
import pytest
import torch

from video_rs.data.tools import motion
from video_rs.data.transforms import rand_augment
from video_rs.distributed.device import ToDevice
from video_rs.distributed.self_check import check_convolutions
from video_rs.experiment import config
from video_rs.experiment.run import make_job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def load(tmp_path):
    motion.make(tmp_path / "videos", train=16, val=8, test=8, size=48, frames=8, workers=1)
    (tmp_path / "cuda.yaml").write_text("")
    fixed = [
        *(f"data.root={tmp_path / 'videos'}", f"out={tmp_path / 'run'}", "data.workers=2", "data.num_frames=4"),
        *("data.train_size=32", "data.short_side=32", "data.test_size=32", "model.name=resnet3d_rs_26"),
        *("model.width=0.25", "train.device=cuda", "train.batch_size=8", "train.micro_batch=4", "train.epochs=3"),
        *("optim.lr=0.05", "optim.lr_batch=8", "optim.clip_grad_norm=1", "data.stride=1", "train.ema_decay=0.9"),
    ]
    return lambda *overrides: config.load_config(tmp_path / "cuda.yaml", [*fixed, *overrides])


def losses(job):
    batches, found = iter(job.loader(0)), []
    for _ in range(6):
        job.trainer.train_step([next(batches), next(batches)])
        found.append(job.trainer.metrics.means()[0])
    return torch.tensor(found)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_follows_float32(load, precision):
    expected = losses(make_job(load("train.precision=float32")))
    torch.testing.assert_close(losses(make_job(load(f"train.precision={precision}"))), expected, rtol=0.05, atol=0)


def test_deterministic_is_repeatable(load):
    jobs = [make_job(load("train.deterministic=true")) for _ in range(2)]
    torch.testing.assert_close(losses(jobs[0]), losses(jobs[1]), rtol=0, atol=0)
    for name, value in jobs[0].model.state_dict().items():
        assert torch.equal(value, jobs[1].model.state_dict()[name]), name


def test_a_validation_on_the_device(load):
    job = make_job(load())
    metrics = job.validate(job.trainer.ema.model, lambda: None)
    assert 0 <= metrics["top1"] <= 1


EVERYTHING = [
    *("data.augment_on=device", "data.rand_augment_layers=3", "data.color_jitter=[0.4, 0.4, 0.4, 0.1]"),
    *("data.random_erasing=0.5", "data.random_erasing_mode=noise", "data.mixup=0.2", "data.cutmix=1"),
    *("model.drop_path=0.2", "model.dropout=0.2", "train.activation_checkpointing=[1, 2]"),
]


@pytest.fixture
def no_waiting():
    """Whatever makes the host wait for the device raises an error."""

    @contextlib.contextmanager
    def forbid():
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return forbid


def test_the_host_waits_for_no_step(load, no_waiting):
    job = make_job(load(*EVERYTHING))
    batches = list(job.loader(0))
    job.trainer.train_step(batches[:2])  # constants are sent and kernels are chosen
    with no_waiting():
        for first in range(2, len(batches), 2):
            job.trainer.train_step(batches[first : first + 2])
    assert job.trainer.metrics.means()[0] > 0 and not job.trainer.metrics.bad_steps()


@pytest.mark.parametrize("operation", rand_augment.OPERATIONS, ids=lambda operation: operation.__name__)
def test_rand_augment_on_the_device(operation, no_waiting):
    """The same bits as on the host, on coarse noise and on a clip of one colour."""
    coarse = torch.randint(0, 256, (4, 12, 16, 3), dtype=torch.uint8).repeat_interleave(9, 1).repeat_interleave(7, 2)
    for clip in (coarse, torch.full_like(coarse, 7)):
        on_device = clip.cuda()
        for level in (0.1, 1.0, 1.5):
            with no_waiting():
                found = operation(on_device, level, np.random.default_rng(5))
            assert torch.equal(found.cpu(), operation(clip, level, np.random.default_rng(5)))


def test_clips_are_finished_on_the_device_as_on_the_host(load):
    host, device = (make_job(load(*EVERYTHING[1:], f"data.augment_on={on}")) for on in ("host", "device"))
    for finished, raw in zip(host.loader(0), device.loader(0), strict=True):
        found = device.trainer.augment(raw["clip"].cuda(), raw["rngs"]).cpu().int()
        difference = (found - finished["clip"]).abs()  # hue and contrast round otherwise, and what follows spreads that
        assert difference.float().mean() < 1 and (difference > 2).float().mean() < 0.01


def test_copies_do_not_overtake():
    """Copies equal the batch, however much is queued, and its memory is not reused too early."""
    to_device, device = ToDevice(torch.device("cuda")), torch.device("cuda")
    busy, sums = torch.randn(4096, 4096, device=device), []
    for number in range(50):
        (batch,) = to_device(torch.full((4 << 20,), number, dtype=torch.uint8).pin_memory())
        for _ in range(4):
            busy = busy @ busy * 0.01
        sums.append(batch.sum())
        del batch
    assert [int(total) for total in sums] == [number << 22 for number in range(50)]


@pytest.mark.parametrize("precision", ["float32", "fp16", "bf16"])
def test_the_convolutions_are_right(load, precision):
    job = make_job(load(f"train.precision={precision}"))  # which checks them, and once more for the clock
    start = time.monotonic()
    check_convolutions(job.model, job.precision)
    assert time.monotonic() - start < 1


def test_compiled_follows_eager(load):
    fixed = ("train.precision=float32", "train.deterministic=true")
    expected = losses(make_job(load(*fixed)))
    torch.testing.assert_close(losses(make_job(load(*fixed, "train.compile=true"))), expected, rtol=1e-3, atol=0)
