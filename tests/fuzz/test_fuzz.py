"""Damaged files: no traceback, crash, hang or lack of memory, and no contradicting results."""

import csv
import os
import subprocess
import sys

import pytest
import yaml

from tests.commands import REPOSITORY
from tests.fuzz.calls import OTHERS
from tests.fuzz.run import Fuzzer

SEED = 16
FEW, MANY = 100, 2000
COMMAND_SECONDS = 240
CONFIG = {
    "model": {"name": "resnet3d_rs_26", "width": 0.125},
    "data": {
        "num_frames": 4,
        "stride": 2,
        "train_size": 32,
        "short_side": 36,
        "test_size": 32,
        "workers": 1,
        "max_broken": 1.0,
    },
    "optim": {"lr": 0.01, "warmup_epochs": 0},
    "train": {"epochs": 1, "batch_size": 8, "threads": 1, "device": "cpu"},
    "test": {"clips": 2, "crops": 1},
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    return Fuzzer(tmp_path_factory.mktemp("fuzz"))


def require_none(found):
    print(found.summary())
    assert not found.failures, "\n".join([found.summary(), *found.failures[:20]])


def test_damaged_videos(fuzzer):
    require_none(fuzzer.run("videos", SEED, range(FEW)))


@pytest.mark.exhaustive
def test_many_damaged_videos(fuzzer):
    require_none(fuzzer.run("videos", SEED + 1, range(MANY)))


@pytest.mark.parametrize("kind", OTHERS)
def test_other_damaged_files(fuzzer, kind):
    require_none(fuzzer.run(kind, SEED, range(FEW // 2)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", OTHERS)
def test_many_other_damaged_files(fuzzer, kind):
    require_none(fuzzer.run(kind, SEED + 1, range(MANY)))


def test_commands_on_folders_of_mutants(fuzzer, tmp_path):
    root, out = tmp_path / "videos", tmp_path / "out"
    for number in range(FEW):
        mutant = fuzzer.make("videos", SEED + 2, number)
        place = root / ("train", "train", "val")[number % 3] / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / mutant.name).write_bytes(mutant.data)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"out": str(out / "run")}))
    data = ["--cfg", tmp_path / "config.yaml", f"data.root={root}"]

    command("index_dataset.py", 0, *data)
    command("check_dataset.py", 2, *data, "--out", out / "check")
    kinds = {row["path"]: row["problems"].split(";") for row in rows(out / "check/files.csv")}
    good = {path for path, problems in kinds.items() if "broken" not in problems}
    assert 0 < len(good) < len(kinds)

    command("prepare_dataset.py", 0, *data, "--out", out / "prepared", "--short-side", 32)
    assert good.isdisjoint(row["path"] for row in rows(out / "prepared/failed.csv"))
    command("train_net.py", 0, *data)
    assert good.isdisjoint(row["path"] for row in rows(out / "run/broken_files.csv"))
    command("test_net.py", 0, *data)
    errors = command("predict.py", 2, "--weights", out / "run/best.pt", "--json", root)
    assert not [path for path in good if f"error: {path}" in errors]


def command(name, code, *arguments):
    """Run a command in a separate process. Require an exit code and no traceback."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tools" / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=COMMAND_SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stderr[-4000:] + done.stdout[-1000:]
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    return done.stderr


def rows(file):
    with open(file, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))
