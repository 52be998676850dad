"""``train.early_stop``: the run ends after so many validations without a better monitored metric."""

import signal

import pytest
import torch

from tests.training.test_fit import data, run  # noqa: F401  data is a fixture
from tests.training.test_loop import Poisoned, batches, fit, run_of, samples, schedule, trainer, with_white
from video_rs import checkpoint
from video_rs.errors import UserError
from video_rs.signals import Interrupted
from video_rs.terminal import counted
from video_rs.training.trainer import Trainer

STEPS = {"num_samples": 8, "num_steps": 12}  # a validation after every second step, six of them


def validating(metrics, name="top1", start=0):
    """Return a validation that returns the next metric each time, with a loss that falls."""
    values = iter([*enumerate(metrics)][start:])

    def validate(model, check):
        number, value = next(values)
        return {name: value, "loss": 1 / (1 + number)}

    return validate


@pytest.mark.parametrize(
    ("early_stop", "metrics", "steps"),
    [
        (1, [0.5, 0.6, 0.6], 6),
        (1, [0.5, 0.4], 4),
        (2, [0.5, 0.4, 0.6, 0.5, 0.6], 10),
        (3, [0.5, 0.5, 0.5, 0.5], 8),
        (2, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 12),
        (9, [0.5] * 6, 12),
        (0, [0.5] * 6, 12),
        (1, [0.0, 0.0], 4),
    ],
    ids=str,
)
def test_a_run_stops_after_validations_without_a_better_metric(tmp_path, early_stop, metrics, steps):
    """A lower loss at an equal metric makes better weights, but no better metric."""
    job = trainer(schedule(**STEPS, early_stop=early_stop))
    with run_of(job, tmp_path, validating(metrics)) as run:
        run.fit()
    last = checkpoint.load(tmp_path / "last.pt")
    assert (job.step, last["step"], last["validated"], run.is_complete) == (steps, steps, steps, True)
    assert run.best[0] == max(metrics) and run.stops_early == (steps < 12)
    log = (tmp_path / "log.txt").read_text()
    best = f"{counted(early_stop, 'validation')} without a better top-1 than {100 * max(metrics):.2f} %"
    assert (f"stopped early at step {steps}: {best}" in log) == (steps < 12)


@pytest.mark.parametrize("after", [1, 2, 3, 5, 6])
def test_an_interrupted_run_stops_at_the_same_step_with_the_same_bits(tmp_path, after):
    metrics = [0.5, 0.6, 0.4, 0.6]
    plan = schedule(**STEPS, early_stop=2)
    expected = fit(trainer(plan), tmp_path / "whole", validating(metrics))

    def stopping(schedule, start):
        for step, batch in enumerate(batches(schedule, start), start):
            yield batch
            if step == after - 1:
                run.signals.received = signal.SIGTERM

    interrupted = run_of(trainer(plan), tmp_path / "run", validating(metrics), batches=stopping)
    with interrupted as run, pytest.raises(Interrupted):
        run.fit()
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    assert state["step"] < 8
    job = trainer(plan)
    resumed = fit(job, tmp_path / "run", validating(metrics, start=state["validated"] // 2), state=state)
    assert job.step == 8 and all(torch.equal(resumed[name], value) for name, value in expected.items())
    first, second = (checkpoint.load(tmp_path / folder / "last.pt") for folder in ("whole", "run"))
    assert {key: first[key] for key in ("stale", "validated", "step")} == {"stale": 2, "validated": 8, "step": 8}
    assert all(first[key] == second[key] for key in ("stale", "validated", "step", "best", "best_metrics"))


def test_a_run_interrupted_in_a_validation_counts_it_once(tmp_path):
    def validate(model, check):
        run.signals.received = signal.SIGTERM if run.step == 6 else None
        check()
        return {"top1": 0.5, "loss": 1.0}

    plan = schedule(**STEPS, early_stop=3)
    with run_of(trainer(plan), tmp_path, validate) as run, pytest.raises(Interrupted):
        run.fit()
    state = checkpoint.load(tmp_path / "last.pt")
    assert (state["step"], state["validated"], state["stale"]) == (6, 4, 1)
    job = trainer(plan)
    fit(job, tmp_path, validating([0.5] * 4), state=state)
    assert job.step == 8


def test_a_larger_limit_resumes_a_run_that_stopped_early(tmp_path):
    metrics = [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    expected = fit(trainer(schedule(**STEPS)), tmp_path / "whole", validating(metrics))
    fit(trainer(schedule(**STEPS, early_stop=1)), tmp_path / "run", validating(metrics))
    for early_stop, steps in ((1, 4), (3, 8), (0, 12)):
        job, state = trainer(schedule(**STEPS, early_stop=early_stop)), checkpoint.load(tmp_path / "run" / "last.pt")
        with run_of(job, tmp_path / "run", validating(metrics, start=state["validated"] // 2)) as run:
            run.load_state_dict(state)
            if not run.is_complete:
                run.fit()
        assert job.step == steps
    assert all(torch.equal(job.model.state_dict()[name], value) for name, value in expected.items())


def test_a_run_of_several_classes_stops_by_its_map(tmp_path):
    job = trainer(schedule(**STEPS, early_stop=1))
    with run_of(job, tmp_path, validating([0.5, 0.6, 0.3], "map")) as run:
        run.monitored = "map"
        run.fit()
    assert job.step == 6 and "without a better mAP than 60.00 %" in (tmp_path / "log.txt").read_text()


def test_a_run_that_stops_at_a_skipped_step_is_saved(tmp_path):
    """Other skipped steps are not; this one is the last."""
    job = trainer(schedule(**STEPS, early_stop=1), wrap=Poisoned)
    fit(job, tmp_path, validating([0.5, 0.5]), batches=with_white({3}, [0]), samples_of=samples)
    last = checkpoint.load(tmp_path / "last.pt")
    assert (last["step"], last["validated"], last["stale"]) == (4, 4, 1)
    assert "skipped non-finite steps: 4;" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "bad_steps.csv").exists()


def test_checkpoints_without_a_count_of_validations_resume(tmp_path):
    fit(trainer(schedule(**{**STEPS, "num_steps": 3})), tmp_path, validating([0.5, 0.5]))
    state = checkpoint.load(tmp_path / "last.pt")
    del state["stale"]
    job = trainer(schedule(**STEPS, early_stop=2))
    fit(job, tmp_path / "resumed", validating([0.4] * 5), state=state)
    assert job.step == 6


def test_fit_stops_early_and_returns_the_result_when_called_again(data, tmp_path, capfd):  # noqa: F811
    """Nothing changes at a learning rate of 0, except statistics of batch norm."""
    options = {"epochs": 9, "early_stop": 2, "lr": 0.0}
    result = run(data, tmp_path / "run", **options)
    last = checkpoint.load(tmp_path / "run" / "last.pt")
    assert last["step"] < 18 and last["stale"] == 2
    said = capfd.readouterr().out
    assert "until 2 validations without a better metric" in said and f"complete    {last['step']} steps" in said
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda *_: pytest.fail("it trains on"))
        assert run(data, tmp_path / "run", **options) == result
    said = capfd.readouterr().out
    assert f"is complete: {last['step']} steps; train.early_stop=2 ended it; set a larger value or 0 to resume" in said


def test_early_stopping_without_validations_is_refused(data, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="^early_stop=3: requires validation data"):
        run(data, tmp_path / "run", with_val=False, early_stop=3)
    with pytest.raises(UserError, match="^early_stop=3: requires val_every above 0"):
        run(data, tmp_path / "run", val_every=0, early_stop=3)
    assert not (tmp_path / "run").exists()
