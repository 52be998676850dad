"""All pairs of the keys of a recipe: refused, or trained together and compared with a plain torch loop.

docs/recipe.md has the table of pairs with their verdicts. It is checked against the errors of the config and against
the runs below, which have each pair of keys on together at least once.
"""

import re
from itertools import combinations
from pathlib import Path

import pytest
import torch

from tests.training import plain
from video_rs import checkpoint
from video_rs.errors import ConfigError
from video_rs.experiment.config import load_config
from video_rs.experiment.run import make_job
from video_rs.training.pages import start_page

ON = {
    "train.loss": "bce",
    "train.label_smoothing": 0.2,
    "train.class_weights": "balanced",
    "train.balanced_sampling": "true",
    "data.multi_label": "true",
    "data.mixup": 0.4,
    "data.cutmix": 1,
    "data.repeats": 2,
    "data.phases": "[[0.5, 2, 16]]",
    "train.micro_batch": 4,
    "train.ema_decay": 0.99,
    "model.bn_momentum": 0.1,
    "train.sync_bn": "true",
    "train.precise_bn": 8,
    "train.freeze": 2,
    "train.linear_probe": "true",
    "optim.layer_decay": 0.7,
    "optim.name": "adamw",
    "optim.weight_decay": 0.01,
    "optim.clip_grad_norm": 0.5,
    "optim.warmup_epochs": 0.5,
    "optim.schedule": "step",
}
OFF = {"train.label_smoothing": 0, "train.ema_decay": 0, "optim.weight_decay": 0, "optim.warmup_epochs": 0}
LOSSES = {  # choices that exclude each other, and what they exclude
    "weights": {"train.loss", "train.balanced_sampling", "data.multi_label"},
    "balanced": {"train.class_weights", "data.multi_label"},
    "several labels": {"train.class_weights", "train.balanced_sampling"},
}
FROZEN = {"stages": {"train.linear_probe"}, "all but the head": {"train.freeze"}}
RUNS = {f"{a}, {b}": ON.keys() - LOSSES[a] - FROZEN[b] for a in LOSSES for b in FROZEN}
PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"


def settings(keys):
    """Return the overrides that turn some keys on and all others off."""
    return [f"{key}={value}" for key, value in {**OFF, **{key: ON[key] for key in ON if key in keys}}.items()]


@pytest.fixture(scope="session")
def start(unequal, tmp_path_factory):
    """Return what all runs share: small clips of three classes, and weights to start from."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "recipe.yaml").write_text("")
    files = {split: sorted((unequal / split).rglob("*.mp4")) for split in ("train", "val")}
    for split, names in files.items():  # the third class is in addition to another one
        labels = [name.parent.name for name in names]
        others = sorted(set(labels))
        rows = [f"{name},{label};{others[2]}" for name, label in zip(names, labels)]
        (folder / f"{split}.csv").write_text("\n".join(["path,label", *rows]))
    common = ["data.workers=0", "data.num_frames=4", "data.stride=1", "data.train_size=24", "data.short_side=24"]
    common += ["data.test_size=24", "model.name=resnet3d_rs_26", "model.width=0.125", "model.dropout=0.3"]
    common += ["model.drop_path=0.2", "train.device=cpu", "train.epochs=2", "train.batch_size=8", "optim.lr=0.3"]
    common += ["optim.lr_batch=32", "train.seed=7", "train.precision=float64", f"out={folder / 'run'}"]

    def load(*overrides, sources=(f"data.root={unequal}",)):
        return load_config(folder / "recipe.yaml", [*common, *sources, *overrides])

    first = make_job(load())
    checkpoint.save(folder / "first.pt", {**first.identity(), **first.trainer.state_dict()})
    lists = [f"data.{split}={folder / split}.csv" for split in files]

    def load_with(keys, *more):
        sources = lists if "data.multi_label" in keys else [f"data.root={unequal}"]
        return load(f"train.init_from={folder / 'first.pt'}", *settings(keys), *more, sources=sources)

    return load_with


FAST = ("weights, stages", "balanced, stages", "several labels, all but the head")


@pytest.mark.parametrize(
    "keys",
    [
        *(pytest.param(keys, id=name, marks=[] if name in FAST else pytest.mark.slow) for name, keys in RUNS.items()),
        pytest.param(frozenset(), id="none", marks=pytest.mark.slow),
    ],
)
def test_a_run_equals_the_plain_loop(start, keys):
    config = start(keys)
    job, twin = make_job(config), make_job(config)
    frozen = {name for name, p in job.model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in job.model.named_parameters() if plain.is_frozen(name, config.train)}
    weights, average, rates, *logged = plain.train(twin, config, iter(twin.loader(0)), steps=3)
    batches = iter(job.loader(0))
    for step in range(3):
        job.trainer.train_step([next(batches) for _ in range(job.trainer.schedule.accumulation_steps)])
        assert max(group["lr"] for group in job.trainer.optimizer.param_groups) == pytest.approx(rates[step], rel=1e-12)
    torch.testing.assert_close(dict(job.model.state_dict()), dict(weights), rtol=1e-8, atol=1e-10)
    if job.trainer.ema:
        torch.testing.assert_close(dict(job.trainer.ema.state_dict()), average, rtol=1e-8, atol=1e-10)
    assert job.trainer.metrics.means() == pytest.approx(logged, rel=1e-9)


def test_the_start_of_the_log_names_small_batches_and_long_warm_ups(start):
    page = "\n".join(start_page(make_job(start({"train.micro_batch"}, "optim.warmup_epochs=5")), "run"))
    assert "statistics of 4 samples at a time; fewer than 8 lower the accuracy: raise train.micro_batch" in page
    assert "warm-up in the first half of the run (optim.warmup_epochs=5 is longer), then cosine" in page
    page = "\n".join(start_page(make_job(start(())), "run"))
    assert "batch norm" not in page and "warm-up" not in page


def rows():
    """Return the rows of the table: a key, other keys, the verdict."""
    table = PAGE.read_text(encoding="utf-8").partition("## Pairs of keys")[2]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:3] == "| `"]
    return [(key.strip("`"), re.findall(r"`([^`]+)`", others), verdict) for key, others, verdict in found]


def test_the_table_has_every_pair_once():
    pairs = [frozenset((key, other)) for key, others, _ in rows() for other in others]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == set(map(frozenset, combinations(ON, 2)))


def test_every_pair_is_refused_or_trained_together(start):
    together = {frozenset(pair) for keys in RUNS.values() for pair in combinations(keys, 2)}
    for key, others, verdict in rows():
        for other in others:
            if not verdict.startswith("refused"):
                assert frozenset((key, other)) in together
                continue
            with pytest.raises(ConfigError) as error:
                start({key, other})
            assert any(each.partition(".")[2] in str(error.value) for each in (key, other))


def test_the_tests_that_the_page_names_exist():
    named = set(re.findall(r"`([\w./]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8")))
    assert len(named) >= 10
    assert not [name for file, name in named if f"def {name}(" not in (PAGE.parents[1] / "tests" / file).read_text()]
