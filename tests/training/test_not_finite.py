"""Values that are not finite: nothing of them is written, and the run ends with the newest good checkpoint named."""

import copy
import math

import pytest
import torch
from torch import nn

from tests.training.test_loop import Poisoned, batches, fit, run_of, samples, schedule, trainer, with_white
from video_rs import checkpoint
from video_rs.errors import UserError
from video_rs.training.ema import EMA
from video_rs.training.trainer import Trainer, is_finite


class Overflowing(nn.Module):
    """A network with batch norm in float32, whose running variance overflows for an all-white clip."""

    def __init__(self, model):
        super().__init__()
        self.data_config, self.num_classes, self.model = model.data_config, model.num_classes, model
        self.norm = nn.BatchNorm3d(3, momentum=0.1, affine=False)

    def double(self):
        self.model.double()
        return self

    def forward(self, clips, keys=None):
        white = clips.amin((1, 2, 3, 4)) == 1
        normed = self.norm((clips * (1.0 + 1e20 * white).view(-1, 1, 1, 1, 1)).float())
        assert normed.isfinite().all()
        return self.model(normed.double())


def everything_written(folder):
    return [checkpoint.load(path) for path in folder.rglob("*.pt")]


def test_a_step_whose_statistics_overflow_is_skipped_and_named(tmp_path):
    """Loss and gradient are finite, but the running variance would stay infinite."""
    job, twin = (trainer(schedule(), wrap=Overflowing) for _ in range(2))
    with run_of(job, tmp_path, batches=with_white({3}, [2]), samples_of=samples) as run:
        run.fit()
    for step in (0, 1, 2, 4, 5):
        twin.step = step
        twin.train_step(list(batches(twin.schedule, step))[:1])
    assert all(torch.equal(value, twin.model.state_dict()[name]) for name, value in job.model.state_dict().items())
    assert run.incidents.steps == {4: samples(3)}


def spoil_weights(job):
    job.model.model.head.weight.data[0, 0] = math.nan


def spoil_buffers(job):
    job.model.norm.running_var[1] = math.inf


def spoil_ema(job):
    job.ema.model.model.head.bias[2] = -math.inf


def spoil_ema_buffers(job):
    job.ema.model.norm.running_mean[0] = math.nan


def spoil_optimizer(job):
    next(iter(job.optimizer.state.values()))["momentum_buffer"].fill_(math.inf)


@pytest.mark.parametrize("spoil", [spoil_weights, spoil_buffers, spoil_ema, spoil_ema_buffers, spoil_optimizer])
@pytest.mark.parametrize("log_every", [1, 20])
def test_state_that_is_not_finite_is_never_written(tmp_path, spoil, log_every):
    """It is found at the next log line, checkpoint or validation; epochs are of three steps."""

    def train_step(micro_batches):
        Trainer.train_step(job, micro_batches)
        if job.step == 4:
            spoil(job)

    job = trainer(schedule(num_steps=9, log_every=log_every), wrap=Poisoned)
    job.ema, job.train_step = EMA(job.model, 0.9), train_step
    good = tmp_path / "checkpoints" / "step-00000003.pt"
    with pytest.raises(UserError, match=f"step [456]: weights are not finite; .* and train.init_from={good}$"):
        fit(job, tmp_path)
    assert all(map(is_finite, everything_written(tmp_path)))
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 3


def test_precise_statistics_that_are_not_finite_are_never_written(tmp_path):
    def prepare(model, check):
        model = copy.deepcopy(model)
        model.norm.running_var.fill_(math.inf if job.step == 6 else 1.0)
        return model

    job = trainer(schedule(), wrap=Poisoned)
    with pytest.raises(UserError, match="step 6: weights are not finite; .*step-00000006.pt"):
        fit(job, tmp_path, prepare=prepare)
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 3
    assert all(map(is_finite, everything_written(tmp_path)))


@pytest.mark.parametrize(("keep", "named"), [(3, "checkpoints/step-00000003.pt"), (1, "best.pt")])
def test_non_finite_outputs_name_the_checkpoint_of_the_last_validation(tmp_path, keep, named):
    """Weights can be finite and their outputs not, as with an overflow in fp16."""
    seen = iter([0.5, math.nan])

    def validate(model, check):
        return {"top1": 0.5, "loss": next(seen)}

    message = f"step 6: no validation output is finite; .*train.init_from={tmp_path / named}$"
    with pytest.raises(UserError, match=message):
        fit(trainer(schedule(num_steps=9)), tmp_path, validate, keep=keep)
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 3


def test_non_finite_outputs_of_the_first_validation_name_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="step 3: no validation output is finite; .* another out=$"):
        fit(trainer(schedule()), tmp_path, lambda model, check: {"top1": 0.0, "loss": math.nan})
    assert not (tmp_path / "best.pt").exists()


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_run_without_a_finite_step_is_not_complete(tmp_path, num_steps):
    """It is shorter than the window of train.max_bad_steps."""
    job = trainer(schedule(num_steps=num_steps), wrap=Poisoned)
    with pytest.raises(UserError, match=f"step {num_steps}: no step of the run is finite; .* another out=$"):
        fit(job, tmp_path, batches=with_white(range(4), [0]))
    assert not (tmp_path / "best.pt").exists()


def test_a_scale_that_fp16_cannot_lower_is_noticed_at_the_next_log_line(tmp_path):
    """The epoch has 48 steps. Overflowing gradients count as no bad steps."""
    job = trainer(schedule(num_samples=192, num_steps=48, log_every=2))
    job.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-8)
    job.model.head.weight.register_hook(lambda gradient: gradient * (math.inf if job.step >= 2 else 1))
    good = tmp_path / "checkpoints" / "step-00000001.pt"
    with pytest.raises(UserError, match=f"step 6: no fp16 loss scale is left.*train.init_from={good}$"):
        fit(job, tmp_path)
    assert job.step == 6 and checkpoint.load(tmp_path / "last.pt")["scaler"]["scale"] >= 2.0**-10


def test_log_lines_can_be_far_apart(tmp_path):
    """Flags are read every 256 steps: memory does not grow with train.log_every, and no step is forgotten."""
    bad = {0, 255, 256, 300, 399}
    plan = schedule(num_samples=4000, num_steps=400, log_every=10**12, val_every=0)
    with run_of(trainer(plan, wrap=Poisoned), tmp_path, batches=with_white(bad, [0])) as run:
        run.checkpointer.minutes = math.inf
        run.fit()
    assert sorted(run.incidents.steps) == [step + 1 for step in sorted(bad)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_non_finite_value_among_many_is_found(value, dtype):
    state = {"step": 3, "model": {"a": torch.zeros(3, dtype=torch.int64), "b": torch.full((2, 3), 3e4, dtype=dtype)}}
    assert is_finite({**state, "optimizer": {"state": {0: {"m": torch.zeros(())}}}, "empty": torch.zeros(0)})
    state["optimizer"] = {"state": {0: {"m": torch.zeros(5, dtype=dtype)}}, "param_groups": [{"betas": (0.9, 0.99)}]}
    state["optimizer"]["state"][0]["m"][3] = value
    assert not is_finite(state)
