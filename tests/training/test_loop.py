"""The training loop: schedules, accumulation, EMA, and steps that are not finite."""

import contextlib
import dataclasses
import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from video_rs import checkpoint
from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.signals import Interrupted
from video_rs.training.ema import EMA
from video_rs.training.incidents import Incidents, Suspect
from video_rs.training.log import RunLog
from video_rs.training.loop import Run
from video_rs.training.losses import BinaryCrossEntropy, CrossEntropy
from video_rs.training.lr_schedule import learning_rate
from video_rs.training.optim import create
from video_rs.training.schedule import Schedule
from video_rs.training.trainer import Trainer


class MeanColour(nn.Module):
    """The smallest network with a data config. It has no batch norm, so the size of micro-batches has no effect."""

    data_config = DataConfig(num_frames=1, stride=1)
    num_classes = 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 3)

    def forward(self, clips, keys=None):
        return self.head(clips.mean((2, 3, 4)))


def schedule(**changes):
    return Schedule(**{"num_samples": 12, "num_steps": 6, "batch_size": 4, "micro_batch": 4, **changes})


def trainer(schedule, wrap=lambda model: model, **options):
    model = wrap(MeanColour()).double()
    optimizer = create("sgd", model, momentum=0.9, nesterov=True, weight_decay=1e-4)
    rate = learning_rate(0.5, schedule.num_steps, 0)
    return Trainer(
        model,
        schedule,
        criterion=CrossEntropy(0.1),
        optimizer=optimizer,
        learning_rate=rate,
        precision="float64",
        **options,
    )


def batches(schedule, start=0):
    for step in range(start, schedule.num_steps):
        generator = torch.Generator().manual_seed(step)
        clips = torch.randint(0, 256, (schedule.batch_size, 1, 2, 2, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 3, (schedule.batch_size,), generator=generator)
        for i in range(0, schedule.batch_size, schedule.micro_batch):
            part = slice(i, i + schedule.micro_batch)
            yield {"clip": clips[part], "label": labels[part], "broken": []}


@contextlib.contextmanager
def run_of(job, folder, validate=lambda model, check: {"top1": 0.5, "loss": 1.0}, batches=batches, **options):
    """Yield the run of a trainer."""
    log = RunLog(Path(folder), job.step, job.schedule.num_steps)
    try:
        identity = {"format": 1, "config": {}, "model_args": {"name": "mean"}, "data_config": {}}
        yield Run(
            job,
            folder=Path(folder),
            log=log,
            identity=identity,
            loader_from=lambda step: batches(job.schedule, step),
            validate=validate,
            **options,
        )
    finally:
        log.close()


def fit(job, folder, *functions, state=None, **options):
    """Return the weights after a whole run, or after resuming from a saved state."""
    with run_of(job, folder, *functions, **options) as run:
        if state:
            run.load_state_dict(state)
        run.fit()
    return job.model.state_dict()


def test_micro_batches_add_up(tmp_path):
    whole = fit(trainer(schedule()), tmp_path / "whole")
    parts = fit(trainer(schedule(micro_batch=1)), tmp_path / "parts")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-12, atol=1e-12)


def test_the_gradient_is_clipped_as_a_whole(tmp_path):
    job = trainer(schedule(), clip_grad_norm=1e-3)
    job.train_step(list(batches(job.schedule))[:1])
    norm = torch.cat([p.grad.flatten() for p in job.model.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-4)


def test_the_learning_rate_of_every_step(tmp_path):
    job, rates = trainer(schedule()), []
    for batch in batches(job.schedule):
        job.train_step([batch])
        rates.append(job.optimizer.param_groups[1]["lr"])
    assert rates == pytest.approx([0.5 * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])


def test_the_average_is_validated_and_kept(tmp_path):
    job = trainer(schedule())
    job.ema = EMA(job.model, 0.9)
    seen = []
    fit(job, tmp_path, lambda model, check: seen.append(model) or {"top1": len(seen) / 10, "loss": 1.0})
    assert seen == [job.ema.model] * 2  # 12 samples, 4 a step: an epoch is 3 steps
    best = checkpoint.load(tmp_path / "best.pt")
    assert torch.equal(best["model"]["head.weight"], job.ema.model.head.weight)
    assert not torch.equal(best["model"]["head.weight"], job.model.head.weight)


@pytest.mark.parametrize(("metrics", "kept"), [([(0.5, 1.0), (0.4, 0.5)], 3), ([(0.5, 1.0), (0.5, 0.5)], 6)])
def test_the_best_is_by_accuracy_then_loss(tmp_path, metrics, kept):
    results = iter(metrics)
    fit(trainer(schedule()), tmp_path, lambda model, check: dict(zip(("top1", "loss"), next(results))))
    assert checkpoint.load(tmp_path / "best.pt")["step"] == kept


def test_weights_that_are_not_finite_end_the_run(tmp_path):
    """As after a flipped bit in memory: all later steps are skipped, and no checkpoint of them is written."""

    def spoiling(schedule, start):
        for step, batch in enumerate(batches(schedule, start), start):
            if step == 4:
                job.model.head.weight.data.fill_(float("nan"))
            yield batch

    job = trainer(schedule(num_steps=9))
    good = tmp_path / "checkpoints" / "step-00000003.pt"
    with pytest.raises(UserError, match=f"step 6: weights are not finite; .*another out= and train.init_from={good}"):
        fit(job, tmp_path, batches=spoiling, samples_of=samples)
    saved = checkpoint.load(tmp_path / "last.pt")
    assert saved["step"] == 3 and torch.isfinite(saved["model"]["head.weight"]).all()
    assert (tmp_path / "bad_steps.csv").exists()


def test_a_signal_in_the_last_validation_comes_too_late(tmp_path):
    """The run is complete, not interrupted."""

    def validate(model, check):
        run.signals.received = signal.SIGTERM if run.step == 6 else None
        return {"top1": 0.5, "loss": 1.0}

    with run_of(trainer(schedule()), tmp_path, validate) as run:
        run.fit()
    assert run.validated == 6 and checkpoint.load(tmp_path / "last.pt")["validated"] == 6


def test_weights_that_overflow_are_not_saved(tmp_path):
    """The loss is computed before the update: the last update can make weights infinite while every loss is finite."""
    job = trainer(schedule(num_samples=4))
    job.learning_rate = lambda step: 1e308 if step == 2 else 0.1
    with pytest.raises(UserError, match="step 3: weights are not finite; .*checkpoints/step-00000002.pt"):
        fit(job, tmp_path)
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2


def test_replaced_files_are_counted(tmp_path):
    def with_broken(schedule, start):
        return ({**batch, "broken": [("a.mp4", "empty")]} for batch in batches(schedule, start))

    with run_of(trainer(schedule(num_steps=3)), tmp_path, batches=with_broken) as run:
        run.fit()
    assert run.incidents.files == {"a.mp4": ["empty", 3]}


@given(st.integers(1, 50), st.integers(1, 60), st.integers(1, 40), st.integers(0, 3))
def test_every_epoch_ends_once(num_samples, batch_size, num_steps, val_every):
    p = schedule(num_samples=num_samples, batch_size=batch_size, num_steps=num_steps, val_every=val_every)
    ends = [step for step in range(1, num_steps + 1) if p.ends_epoch(step)]
    crossed = {
        step
        for step in range(1, num_steps + 1)
        if step * batch_size // num_samples > (step - 1) * batch_size // num_samples
    }
    assert set(ends) == crossed | {num_steps}
    validated = [step for step in range(1, num_steps + 1) if p.validates(step)]
    assert validated[-1] == num_steps
    assert set(validated) <= set(ends)
    assert val_every or validated == [num_steps]


def test_the_second_log_line_tells_when_the_run_ends(tmp_path):
    fit(trainer(schedule(num_samples=24, log_every=1)), tmp_path)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    (at,) = [i for i, line in enumerate(lines) if "the run takes" in line]
    assert " step 2/6 " in lines[at - 1] and "(validations not counted)" in lines[at]


# Several classes a sample --------------------------------------------------------------------------------------------


def of_several(schedule, **options):
    """Return a trainer of a network with three classes; the data has two: red is bright, green is bright."""
    job = trainer(schedule, **options)
    job.model.data_config = dataclasses.replace(job.model.data_config, multi_label=True)
    job = Trainer(
        job.model,
        schedule,
        criterion=BinaryCrossEntropy(towards=0.5),
        optimizer=job.optimizer,
        learning_rate=lambda step: 3.0,
        precision="float64",
        **options,
    )
    return job


def coloured(schedule, start=0):
    for step in range(start, schedule.num_steps):
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(0, 2, (schedule.batch_size, 2), generator=generator).float()
        clips = torch.zeros(schedule.batch_size, 1, 2, 2, 3, dtype=torch.uint8)
        clips[..., :2] = (255 * labels).byte().view(-1, 1, 1, 1, 2)
        for i in range(0, schedule.batch_size, schedule.micro_batch):
            part = slice(i, i + schedule.micro_batch)
            yield {"clip": clips[part], "label": labels[part], "broken": []}


def test_several_classes_are_learned_each_by_itself(tmp_path):
    seen = iter([0.2, 0.6, 0.4])
    steps = schedule(num_steps=60, num_samples=80, log_every=60)
    job = of_several(steps)
    with run_of(job, tmp_path, lambda model, check: {"map": next(seen), "hit1": 0.1, "loss": 1.0}, coloured) as run:
        run.fit()
    colours = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]).double().view(4, 3, 1, 1, 1)
    found = job.model(colours).sigmoid() > 0.5
    assert found.int().tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert run.best == (0.6, -1.0) and checkpoint.load(tmp_path / "best.pt")["step"] == 40


@pytest.mark.parametrize(("colour", "expected"), [(0, 2 / 4), (1, 3 / 4), (2, 0)])
def test_a_hit_is_a_top_class_among_the_labels(tmp_path, colour, expected):
    job = of_several(schedule(num_steps=1))
    with torch.no_grad():
        job.model.head.bias.copy_(100 * torch.eye(3)[colour])  # whatever is shown
    labels = torch.tensor([[1.0, 1.0], [0, 1], [1, 1], [0, 0]])
    batch = {"clip": torch.zeros(4, 1, 2, 2, 3, dtype=torch.uint8), "label": labels, "broken": []}
    metrics = {"map": 0.5, "loss": 1.0}
    fit(job, tmp_path, lambda model, check: metrics, lambda schedule, start: iter([batch]))
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = next(each for each in logged if each["kind"] == "train")
    assert train["hit1"] == expected and "accuracy" not in train


def test_label_sets_are_mixed(tmp_path):
    """Targets are mixed in the same proportion as pixels."""
    job, seen = of_several(schedule(num_steps=1), mixup=1.0), []
    criterion = job.criterion
    job.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mean((2, 3, 4))))
    job.criterion = lambda logits, targets: seen.append(targets) or criterion(logits, targets)
    fit(job, tmp_path, lambda model, check: {"map": 0.5, "loss": 1.0}, coloured)
    colours, targets = seen[:2]
    assert targets.shape == (4, 3) and targets.dtype == torch.float64
    torch.testing.assert_close(colours, targets)
    assert ((targets > 0.01) & (targets < 0.99)).any()


# Steps that are not finite --------------------------------------------------------------------------------------------


class Poisoned(nn.Module):
    """A network whose output for an all-white clip is not finite."""

    def __init__(self, model):
        super().__init__()
        self.data_config, self.num_classes, self.model = model.data_config, model.num_classes, model
        self.norm = nn.BatchNorm3d(3, momentum=0.1)

    def forward(self, clips, keys=None):
        white = clips.amin((1, 2, 3, 4)) == 1
        spoilt = torch.where(white, float("nan"), 1.0).view(-1, 1, 1, 1, 1)
        return self.model(self.norm(clips)) * spoilt.flatten()[:, None]


def with_white(steps, positions):
    def make(schedule, start=0):
        for number, batch in enumerate(batches(schedule, start), start * schedule.accumulation_steps):
            step, part = divmod(number, schedule.accumulation_steps)
            for position in positions if step in steps else ():
                if part == position // schedule.micro_batch:
                    batch["clip"][position % schedule.micro_batch] = 255
            yield batch

    return make


def samples(step):
    return [Suspect(f"{step}-{position}.mp4", 0, 0) for position in range(4)]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("step", [0, 3])
def test_a_poisoned_clip_is_passed_over_and_named(tmp_path, step, optimizer):
    """Weights, buffers, optimizer and EMA are those from before the step, bit for bit."""

    def make():
        job = trainer(schedule(micro_batch=2), wrap=Poisoned)
        if optimizer == "adamw":
            job.optimizer = torch.optim.AdamW(job.model.parameters(), fused=True)
        job.ema = EMA(job.model, 0.9)
        return job

    job, twin = make(), make()
    with run_of(job, tmp_path, batches=with_white({step}, [2]), samples_of=samples) as run:
        run.fit()
    for taken in range(6):
        if taken != step:
            twin.step = taken
            twin.train_step(list(batches(twin.schedule, taken))[:2])
    state, expected = job.state_dict(), twin.state_dict()
    for part in ("model", "ema"):
        for name, value in expected[part].items():
            assert torch.equal(state[part][name], value), (part, name)
    assert state["ema_updates"] == expected["ema_updates"] == 5
    for own, other in zip(state["optimizer"]["state"].values(), expected["optimizer"]["state"].values()):
        assert all(torch.equal(own[name], value) for name, value in other.items())
    rows = (tmp_path / "bad_steps.csv").read_text().splitlines()
    assert rows == ["step,path,epoch,copy", f"{step + 1},{step}-2.mp4,0,0"]


@pytest.mark.parametrize("name", ["rmsproptf", "adan"])
def test_a_run_with_an_optimizer_of_timms_resumes_to_the_bit(tmp_path, name):
    """With skipped steps; adan counts its steps on the host."""

    def make():
        job = trainer(schedule(), wrap=Poisoned)
        job.optimizer = create(name, job.model, weight_decay=1e-4)
        job.learning_rate = learning_rate(0.01, 6, 0)
        return job

    data = {"batches": with_white({1, 4}, [0]), "samples_of": samples}
    whole = fit(make(), tmp_path, **data)
    saved = checkpoint.load_run(tmp_path / "checkpoints" / "step-00000003.pt")
    resumed = fit(make(), tmp_path / "resumed", state=saved, **data)
    assert all(torch.equal(resumed[part], value) for part, value in whole.items())
    first, last = (checkpoint.load_run(folder / "last.pt") for folder in (tmp_path, tmp_path / "resumed"))
    assert str(first["optimizer"]) == str(last["optimizer"])


def test_steps_that_a_checkpoint_finds_are_told_too(tmp_path):
    """Checkpoints are written between two log lines, here after each epoch of three steps."""
    job = trainer(schedule(log_every=4), wrap=Poisoned)
    with run_of(job, tmp_path, batches=with_white({1, 3}, [2]), samples_of=samples) as run:
        run.fit()
    lines = [line for line in (tmp_path / "log.txt").read_text().splitlines() if "skipped non-finite" in line]
    assert ["steps: 2, 4;" in line for line in lines] == [True]


def test_a_gradient_that_is_not_finite_blames_the_batch(tmp_path):
    job = trainer(schedule(num_steps=3))
    job.model.head.weight.register_hook(lambda gradient: gradient * (float("inf") if job.step == 1 else 1))
    with run_of(job, tmp_path, samples_of=samples) as run:
        run.fit()
    assert run.incidents.steps == {2: samples(1)}
    assert torch.isfinite(job.model.head.weight).all()


def test_many_bad_steps_stop_the_run(tmp_path):
    """Two of four steps are bad. The others are good: a checkpoint is saved, and a larger limit resumes."""
    steps = schedule(num_samples=24, num_steps=6, log_every=1)
    bad = with_white({2, 3}, [0])
    undisturbed = fit(trainer(steps, wrap=Poisoned), tmp_path / "undisturbed", batches=bad, samples_of=samples)
    with pytest.raises(UserError) as error:
        limited = {"samples_of": samples, "incidents": Incidents(max_bad_steps=2)}
        fit(trainer(steps, wrap=Poisoned), tmp_path, batches=bad, **limited)
    for text in ("step 4: 2 of the last 4 steps are not finite", "optim.lr", "step-00000001.pt"):
        assert text in str(error.value)
    assert f"steps: 4; see {tmp_path / 'bad_steps.csv'}" in (tmp_path / "log.txt").read_text()
    saved = checkpoint.load(tmp_path / "last.pt")
    assert saved["step"] == 4 and sorted(saved["bad_steps"]) == [3, 4]
    resumed = fit(trainer(steps, wrap=Poisoned), tmp_path, batches=bad, samples_of=samples, state=saved)
    assert all(torch.equal(resumed[name], value) for name, value in undisturbed.items())


def test_a_row_of_bad_steps_leaves_the_checkpoints_from_before_it(tmp_path):
    """An epoch is one step, and two checkpoints are kept: those of the streak would push out all good ones."""
    bad = {"batches": with_white({4, 5, 6, 7}, [0]), "incidents": Incidents(max_bad_steps=4)}
    with pytest.raises(UserError, match="step-00000004.pt"):
        fit(trainer(schedule(num_samples=4, num_steps=12, log_every=4), wrap=Poisoned), tmp_path, **bad, keep=2)
    kept = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000004.pt", "step-00000008.pt"]


def test_the_checkpoint_from_before_doubtful_steps_is_kept(tmp_path):
    """Two of three steps are bad; one checkpoint is kept, and in addition the one from before the bad steps."""
    bad = {"batches": with_white({3, 4, 6, 7}, [0]), "incidents": Incidents(max_bad_steps=4)}
    with pytest.raises(UserError, match="step-00000003.pt"):
        fit(trainer(schedule(num_samples=4, num_steps=12, log_every=8), wrap=Poisoned), tmp_path, **bad, keep=1)
    kept = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000003.pt", "step-00000008.pt"]


def test_two_stops_in_one_streak_name_the_checkpoint_from_before_it(tmp_path):
    """All steps from the ninth on are bad: each stop writes a checkpoint in the streak, and one is kept."""
    bad, state = with_white(range(8, 40), [0]), None
    for step in (16, 24):
        with pytest.raises(UserError, match=f"step {step}: 4 of the last 4 steps.*step-00000008.pt"):
            job = trainer(schedule(num_samples=32, num_steps=40, log_every=8), wrap=Poisoned)
            fit(job, tmp_path, batches=bad, incidents=Incidents(max_bad_steps=2), state=state, keep=1)
        kept = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
        assert kept == ["step-00000008.pt", f"step-{step:08d}.pt"]
        state = checkpoint.load(tmp_path / "last.pt")


def test_a_checkpoint_of_a_run_that_was_asked_to_leave_in_a_streak_is_not_a_good_one(tmp_path):
    def leaving(schedule, start=0):
        for step, batch in enumerate(with_white(range(8, 40), [0])(schedule, start), start):
            if step == 10 and start == 0:
                run.signals.received = signal.SIGTERM
            yield batch

    state = None
    for error, message in ((Interrupted, "SIGTERM"), (UserError, "step-00000008.pt")):
        job, limit = (
            trainer(schedule(num_samples=32, num_steps=40, log_every=16), wrap=Poisoned),
            Incidents(max_bad_steps=2),
        )
        with (
            run_of(job, tmp_path, batches=leaving, incidents=limit, keep=1) as run,
            pytest.raises(error, match=message),
        ):
            if state:
                run.load_state_dict(state)
            run.fit()
        state = checkpoint.load(tmp_path / "last.pt")
    log = [line for line in (tmp_path / "log.txt").read_text().splitlines() if "skipped non-finite" in line]
    assert len(log) == 1 and "steps: 9, 10, 11" in log[0]  # also those of the first start, which wrote no line


def test_a_streak_between_two_log_lines_stops_the_run(tmp_path):
    """Steps 2 to 4 are bad, later ones are good. A checkpoint is written before the log line."""
    job = trainer(schedule(num_samples=48, num_steps=32, log_every=16, val_every=0), wrap=Poisoned)
    bad = {"batches": with_white({1, 2, 3}, [0]), "incidents": Incidents(max_bad_steps=3)}
    with pytest.raises(UserError, match="step 4: 3 of the last 6 steps .*step-00000001.pt"):
        fit(job, tmp_path, **bad, keep=1)
    kept = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000001.pt", "step-00000016.pt"]
    resumed = fit(job, tmp_path, **bad, state=checkpoint.load(tmp_path / "last.pt"))  # and does not stop it again
    assert job.step == 32 and torch.isfinite(resumed["model.head.weight"]).all()


def test_a_rare_bad_step_keeps_no_old_checkpoint(tmp_path):
    """Every third step is bad, which is below the limit: only recent ones put weights in doubt."""
    job = trainer(schedule(num_samples=32, num_steps=40, log_every=8), wrap=Poisoned)
    bad = {"batches": with_white(range(1, 40, 3), [0]), "incidents": Incidents(max_bad_steps=5)}
    fit(job, tmp_path, **bad, keep=1)
    kept = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000024.pt", "step-00000040.pt"]


def test_a_scale_that_fp16_cannot_lower_further_stops_the_run(tmp_path):
    job = trainer(schedule())
    job.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-11)
    with pytest.raises(
        UserError, match="step 1: no fp16 loss scale is left.*train.precision=float32; start with another out=$"
    ):
        fit(job, tmp_path)
    assert not (tmp_path / "last.pt").exists()


def test_a_run_of_an_earlier_version_that_had_gone_back(tmp_path):
    """Its state lists steps to skip, also later ones. They are taken now if they are finite."""
    undisturbed = fit(trainer(schedule()), tmp_path)
    saved = checkpoint.load(tmp_path / "checkpoints" / "step-00000003.pt")
    bad = {step: samples(step - 1) for step in (2, 3, 5, 6)}
    old = {**saved, "bad_steps": bad, "skipped": [2, 3, 5], "rollbacks": 1}
    incidents = Incidents(max_bad_steps=2)
    resumed = fit(trainer(schedule(log_every=1)), tmp_path / "old", state=old, samples_of=samples, incidents=incidents)
    assert all(torch.equal(resumed[name], value) for name, value in undisturbed.items())
    assert incidents.steps == {}


def test_a_write_that_fails_is_told_though_the_run_was_asked_to_leave(tmp_path):
    """During the validation of step 3 a file replaces the folder of checkpoints."""

    def validate(model, check):
        run.checkpointer.wait()
        shutil.rmtree(tmp_path / "checkpoints")
        (tmp_path / "checkpoints").touch()
        run.checkpointer.saved = 2  # what was written is gone
        run.signals.received = signal.SIGTERM
        check()

    with (
        run_of(trainer(schedule()), tmp_path, validate) as run,
        pytest.raises(UserError, match="checkpoints"),
    ):
        run.fit()


def test_weights_that_are_not_finite_are_told_though_the_run_was_asked_to_leave(tmp_path):
    """Requeueing the run would not help."""

    def ending(schedule, start=0):
        for step, batch in enumerate(batches(schedule, start)):
            if step == 2:
                run.signals.received = signal.SIGTERM
                with torch.no_grad():
                    run.trainer.model.head.weight.fill_(float("inf"))
            yield batch

    with run_of(trainer(schedule()), tmp_path, batches=ending) as run, pytest.raises(UserError, match="not finite"):
        run.fit()
