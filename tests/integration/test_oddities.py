"""Commands on a folder of videos with twenty odd files: each one is used or reported."""

import csv
import re

import pytest

from tests.oddities import BROKEN, LEFT_OUT, USED, plant


@pytest.fixture(scope="module")
def odd_dataset(tmp_path_factory, make_video):
    """Return two classes of videos, and how each odd file in the first one is treated."""
    root = tmp_path_factory.mktemp("odd")
    for label in ("run", "sit"):
        for number in range(12):
            make_video(root / label / f"{number:02d}.mp4", 25, first_number=100 * number)
    return root, plant(root / "run", root / "run/00.mp4")


def paths_of(fates, fate):
    return {name for name, each in fates.items() if each == fate}


@pytest.mark.slow
def test_check_reports_all_odd_files(odd_dataset, tmp_path, run_tool, tiny_config):
    root, fates = odd_dataset
    config = tiny_config(data__root=str(root))
    done = run_tool("check_dataset.py", "--cfg", config, "--out", tmp_path / "check", "--workers", 1)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    with open(tmp_path / "check/files.csv", newline="") as file:
        rows = {row["path"].removeprefix(f"{root}/run/"): row["problems"] for row in csv.DictReader(file)}
    listed = {name: problems for name, problems in rows.items() if name in fates}
    broken = {name for name, problems in listed.items() if "broken" in problems}
    assert set(listed) - broken == paths_of(fates, USED)
    assert broken == paths_of(fates, BROKEN)
    count = len(paths_of(fates, LEFT_OUT))
    assert re.search(rf"\b{count} files or folders are left out", done.stdout + done.stderr), done.stdout


@pytest.mark.slow
def test_training_and_testing_continue(odd_dataset, tmp_path, run_tool, tiny_config):
    root, fates = odd_dataset
    config = tiny_config(data__root=str(root), data__max_broken=0.9, data__workers=1)
    done = run_tool("train_net.py", "--cfg", config, "data.val_fraction=0.3")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "run/broken_files.csv", newline="") as file:
        unreadable = {row["path"].removeprefix(f"{root}/run/") for row in csv.DictReader(file)}
    assert unreadable and unreadable <= paths_of(fates, BROKEN)


def test_predict_reports_each_file(odd_dataset, tmp_path, run_tool, tiny_config):
    root, fates = odd_dataset
    run_tool("train_net.py", "--cfg", tiny_config(), "train.epochs=1")
    done = run_tool("predict.py", "--weights", tmp_path / "run/best.pt", "--csv", root / "run")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    predicted = {row["path"].removeprefix(f"{root}/run/") for row in csv.DictReader(done.stdout.splitlines())}
    assert paths_of(fates, USED) <= predicted
    for name in paths_of(fates, BROKEN):
        assert name in done.stderr, name
