"""The loop's arithmetic: plans, accumulation, averages, and what happens when the loss is not finite."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from video_rs import checkpoint
from video_rs.contract import DataContract
from video_rs.errors import UserError
from video_rs.training.ema import EMA
from video_rs.training.log import RunLog, duration
from video_rs.training.loop import Plan, Trainer
from video_rs.training.losses import BinaryCrossEntropy, CrossEntropy
from video_rs.training.optim import learning_rate, sgd


class MeanColour(nn.Module):
    """The smallest network with the face of a real one: no batch norm, so micro-batches must not matter."""

    contract = DataContract(num_frames=1, stride=1)
    num_classes = 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 3)

    def forward(self, clips, keys=None):
        return self.head(clips.mean((2, 3, 4)))


def plan(**changes):
    return Plan(**{"num_samples": 12, "num_steps": 6, "batch_size": 4, "micro_batch": 4, **changes})


def trainer(plan, **options):
    model = MeanColour().double()
    optimizer = sgd(model, momentum=0.9, nesterov=True, weight_decay=1e-4)
    rate = learning_rate(0.5, plan.num_steps, 0)
    return Trainer(
        model,
        plan,
        criterion=CrossEntropy(0.1),
        optimizer=optimizer,
        learning_rate=rate,
        precision="float64",
        **options,
    )


def batches(plan, start=0):
    for step in range(start, plan.num_steps):
        generator = torch.Generator().manual_seed(step)
        clips = torch.randint(0, 256, (plan.batch_size, 1, 2, 2, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 3, (plan.batch_size,), generator=generator)
        for i in range(0, plan.batch_size, plan.micro_batch):
            part = slice(i, i + plan.micro_batch)
            yield {"clip": clips[part], "label": labels[part], "broken": []}


def fit(job, folder, validate=lambda model, check: {"top1": 0.5, "loss": 1.0}, batches=batches):
    log = RunLog(Path(folder), job.step, job.plan.num_steps)
    try:
        job.fit(lambda step: batches(job.plan, step), validate, folder=Path(folder), log=log, identity={})
    finally:
        log.close()
    return job.model.state_dict()


def test_micro_batches_add_up(tmp_path):
    whole = fit(trainer(plan()), tmp_path / "whole")
    parts = fit(trainer(plan(micro_batch=1)), tmp_path / "parts")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-12, atol=1e-12)


def test_the_gradient_is_clipped_as_a_whole(tmp_path):
    job = trainer(plan(), clip_grad_norm=1e-3)
    job.train_step(list(batches(job.plan))[:1])
    norm = torch.cat([p.grad.flatten() for p in job.model.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-4)


def test_the_learning_rate_of_every_step(tmp_path):
    job, rates = trainer(plan()), []
    for batch in batches(job.plan):
        job.train_step([batch])
        rates.append(job.optimizer.param_groups[1]["lr"])
    assert rates == pytest.approx([0.5 * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])


def test_the_average_is_validated_and_kept(tmp_path):
    job = trainer(plan())
    job.ema = EMA(job.model, 0.9)
    seen = []
    fit(job, tmp_path, lambda model, check: seen.append(model) or {"top1": len(seen) / 10, "loss": 1.0})
    assert seen == [job.ema.model] * 2  # 12 samples, 4 a step: an epoch is 3 steps
    best = checkpoint.load(tmp_path / "best.pt")
    assert torch.equal(best["model"]["head.weight"], job.ema.model.head.weight)
    assert not torch.equal(best["model"]["head.weight"], job.model.head.weight)


@pytest.mark.parametrize(("figures", "kept"), [([(0.5, 1.0), (0.4, 0.5)], 3), ([(0.5, 1.0), (0.5, 0.5)], 6)])
def test_the_best_is_by_accuracy_then_loss(tmp_path, figures, kept):
    results = iter(figures)
    fit(trainer(plan()), tmp_path, lambda model, check: dict(zip(("top1", "loss"), next(results))))
    assert checkpoint.load(tmp_path / "best.pt")["step"] == kept


def test_a_loss_that_is_not_finite_stops_and_spoils_nothing(tmp_path):
    def poisoned(plan, start):
        for step, batch in enumerate(batches(plan, start), start):
            if step == 4:
                job.model.head.weight.data.fill_(float("nan"))
            yield batch

    job = trainer(plan())
    with pytest.raises(UserError, match="no longer finite.*optim.lr"):
        fit(job, tmp_path, batches=poisoned)
    saved = checkpoint.load(tmp_path / "last.pt")
    assert saved["step"] == 3
    assert torch.isfinite(saved["model"]["head.weight"]).all()


def test_weights_that_overflow_are_not_saved(tmp_path):
    """The loss is of the weights before the update: a last update may spoil them while every loss is finite."""
    job = trainer(plan(num_samples=4))
    job.learning_rate = lambda step: 1e308 if step == 2 else 0.1
    with pytest.raises(UserError, match="no longer finite"):
        fit(job, tmp_path)
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2


def test_replaced_files_are_counted():
    job = trainer(plan())
    for batch in list(batches(job.plan))[:3]:
        job.train_step([{**batch, "broken": [("a.mp4", "empty")]}])
    assert job.ledger.files == {"a.mp4": ["empty", 3]}


@given(st.integers(1, 50), st.integers(1, 60), st.integers(1, 40), st.integers(0, 3))
def test_every_epoch_ends_once(num_samples, batch_size, num_steps, val_every):
    p = plan(num_samples=num_samples, batch_size=batch_size, num_steps=num_steps, val_every=val_every)
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


@pytest.mark.parametrize(("seconds", "text"), [(5, "5s"), (75, "1m15s"), (7500, "2h05m")])
def test_duration(seconds, text):
    assert duration(seconds) == text


# Several classes a sample --------------------------------------------------------------------------------------------


def of_several(plan, **options):
    """A trainer of a network of three classes; the data have two: red is bright, green is bright."""
    job = trainer(plan, **options)
    job.model.contract = dataclasses.replace(job.model.contract, multi_label=True)
    job = Trainer(
        job.model,
        plan,
        criterion=BinaryCrossEntropy(),
        optimizer=job.optimizer,
        learning_rate=lambda step: 3.0,
        precision="float64",
        **options,
    )
    return job


def coloured(plan, start=0):
    for step in range(start, plan.num_steps):
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(0, 2, (plan.batch_size, 2), generator=generator).float()
        clips = torch.zeros(plan.batch_size, 1, 2, 2, 3, dtype=torch.uint8)
        clips[..., :2] = (255 * labels).byte().view(-1, 1, 1, 1, 2)
        for i in range(0, plan.batch_size, plan.micro_batch):
            part = slice(i, i + plan.micro_batch)
            yield {"clip": clips[part], "label": labels[part], "broken": []}


def test_several_classes_are_learned_each_by_itself(tmp_path):
    seen = iter([0.2, 0.6, 0.4])
    steps = plan(num_steps=60, num_samples=80, log_every=60)
    job = of_several(steps)
    fit(job, tmp_path, lambda model, check: {"map": next(seen), "hit1": 0.1, "loss": 1.0}, coloured)
    colours = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]).double().view(4, 3, 1, 1, 1)
    found = job.model(colours).sigmoid() > 0.5
    assert found.int().tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert job.best == (0.6, -1.0) and checkpoint.load(tmp_path / "best.pt")["step"] == 40


@pytest.mark.parametrize(("colour", "expected"), [(0, 2 / 4), (1, 3 / 4), (2, 0)])
def test_a_hit_is_a_top_class_among_the_labels(tmp_path, colour, expected):
    job = of_several(plan(num_steps=1))
    with torch.no_grad():
        job.model.head.bias.copy_(100 * torch.eye(3)[colour])  # whatever is shown
    labels = torch.tensor([[1.0, 1.0], [0, 1], [1, 1], [0, 0]])
    batch = {"clip": torch.zeros(4, 1, 2, 2, 3, dtype=torch.uint8), "label": labels, "broken": []}
    figures = {"map": 0.5, "loss": 1.0}
    fit(job, tmp_path, lambda model, check: figures, lambda plan, start: iter([batch]))
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = next(each for each in logged if each["kind"] == "train")
    assert train["hit1"] == expected and "accuracy" not in train


def test_label_sets_are_mixed(tmp_path):
    """What a mixed clip shows, it shows to the share it has: the targets are mixed as the pixels are."""
    job, seen = of_several(plan(num_steps=1), mixup=1.0), []
    criterion = job.criterion
    job.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mean((2, 3, 4))))
    job.criterion = lambda logits, targets: seen.append(targets) or criterion(logits, targets)
    fit(job, tmp_path, lambda model, check: {"map": 0.5, "loss": 1.0}, coloured)
    colours, targets = seen[:2]
    assert targets.shape == (4, 3) and targets.dtype == torch.float64
    torch.testing.assert_close(colours, targets)
    assert ((targets > 0.01) & (targets < 0.99)).any()
