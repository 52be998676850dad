"""What only runs on a GPU: autocast, the gradient scaler, pinned batches, repeatable kernels."""

import pytest
import torch

from video_rs import config
from video_rs.cli.job import Job
from video_rs.data import motion

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
        found.append(job.trainer.mean_loss())
    return torch.tensor(found)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_follows_float32(load, precision):
    expected = losses(Job(load("train.precision=float32")))
    torch.testing.assert_close(losses(Job(load(f"train.precision={precision}"))), expected, rtol=0.05, atol=0)


def test_deterministic_is_repeatable(load):
    jobs = [Job(load("train.deterministic=true")) for _ in range(2)]
    torch.testing.assert_close(losses(jobs[0]), losses(jobs[1]), rtol=0, atol=0)
    for name, value in jobs[0].model.state_dict().items():
        assert torch.equal(value, jobs[1].model.state_dict()[name]), name


def test_a_validation_on_the_device(load):
    job = Job(load())
    figures = job.validate(job.trainer.ema.model, lambda: None)
    assert 0 <= figures["top1"] <= 1
