"""Each pair of recipe keys is refused, or is trained together and compared with a plain torch loop.

The verdicts are in the tables of docs/recipe.md. They are checked against the errors of the config and against the runs
below. Each pair that is not refused is on in at least one run.
"""

import re
from itertools import combinations, product
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
LOSSES = {  # alternatives that exclude each other, with the keys that each one turns off
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
    """Return a function that loads a config with some keys on. All runs share three classes and their first weights."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "recipe.yaml").write_text("")
    files = {split: sorted((unequal / split).rglob("*.mp4")) for split in ("train", "val")}
    for split, names in files.items():  # each file also has the third class
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


def table(start):
    """Return the rows of a table of the page, after a line that begins with `start`: the keys in each cell, verdict."""
    lines = PAGE.read_text(encoding="utf-8").partition(f"\n{start}")[2].partition("|---|")[2].partition("\n\n")[0]
    cells = [line.strip("|").split("|") for line in lines.splitlines()[1:]]
    return [(*(re.findall(r"`([\w.]+)", cell) for cell in row[:-1]), row[-1].strip()) for row in cells]


def verdicts():
    """Return ``{pair: verdict}`` of the rows that name their keys, and the verdict of all other pairs."""
    found = {}
    *named, (_, _, otherwise) = table("The verdict of each pair")
    for keys, others, verdict in named:
        for pair in product(keys, others or ON.keys() - set(keys)):  # without others: every other key
            assert frozenset(pair) not in found, pair
            found[frozenset(pair)] = verdict
    return found, otherwise


def test_the_tables_have_every_key_and_every_pair_once():
    keys = re.findall(r"`([\w.]+)", "".join(cell for _, cell in table("Every pair of these")))
    assert sorted(keys) == sorted(ON) and len(keys) == 22
    named, otherwise = verdicts()
    assert named.keys() < set(map(frozenset, combinations(ON, 2)))
    assert "::test_a_run_equals_the_plain_loop" in otherwise


def test_every_pair_is_refused_or_trained_together(start):
    together = {frozenset(pair) for keys in RUNS.values() for pair in combinations(keys, 2)}
    named, otherwise = verdicts()
    for pair in map(frozenset, combinations(ON, 2)):
        if not named.get(pair, otherwise).startswith("refused"):
            assert pair in together
            continue
        with pytest.raises(ConfigError) as error:
            start(pair)
        assert any(key.partition(".")[2] in str(error.value) for key in pair)


def test_the_tests_that_the_page_names_exist():
    named = set(re.findall(r"`([\w./]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8")))
    assert len(named) >= 10
    assert not [name for file, name in named if f"def {name}(" not in (PAGE.parents[1] / "tests" / file).read_text()]
