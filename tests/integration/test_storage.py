"""Real commands on failing storage: the whole disk, one file, or temporarily."""

import csv
import errno
import shutil
import sys

import pytest

from tests import faults
from tests.conftest import same
from tests.integration.conftest import REPOSITORY, TINY
from video_rs import checkpoint

STEPS = 24  # of a training run


@pytest.fixture(scope="module")
def run():
    commands = faults.Commands()
    yield commands
    commands.close()


@pytest.fixture
def data(tiny_videos, tmp_path):
    """Return a copy of the videos that a test can damage."""
    return shutil.copytree(tiny_videos, tmp_path / "data")


@pytest.fixture
def config(tiny_config, data):
    """Return a function for the arguments of a command: a config without retries, and overrides."""

    def write(*overrides, **changes):
        return "--cfg", tiny_config(data__root=str(data), data__retries=0, **changes), *overrides

    return write


@pytest.fixture(scope="module")
def weights(tiny_videos, tmp_path_factory, run):
    """Return a checkpoint of the tiny network."""
    import yaml

    folder = tmp_path_factory.mktemp("trained")
    values = {**TINY, "out": str(folder / "run"), "data": {**TINY["data"], "root": str(tiny_videos)}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    done = run("train_net.py", "--cfg", folder / "tiny.yaml", "train.max_steps=2", "train.val_every=0")
    assert done.returncode == 0, done.stderr
    return folder / "run" / "best.pt"


def failed(done, *words):
    """Assert that a command ended with one line about the storage."""
    assert done.returncode == 3, (done.stdout, done.stderr)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr and all(str(word) in line for word in words), line


def files(root, split):
    return sorted(path for path in (root / split).rglob("*.mp4"))


def rows(path):
    with open(path, newline="") as file:
        return [*csv.DictReader(file)]


def away(root, split="*", **options):
    """Return the faults of a failing disk: no file of a split can be opened."""
    return faults.environment(f"{root}/{split}/*.mp4", errno.EIO, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_missing_storage_ends_training(run, config, data, tmp_path, workers):
    done = run("train_net.py", *config(f"data.workers={workers}"), **away(data))
    failed(done, data / "train", "cannot be read (Input/output error); other files", "is mounted")
    assert not (tmp_path / "run" / "broken_files.csv").exists()


def test_missing_storage_ends_a_validation_in_training(run, config, data, tmp_path):
    arguments = config("train.epochs=1", "data.workers=1")
    failed(run("train_net.py", *arguments, **away(data, "val")), data / "val", "other files")
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    assert saved["step"] == 3 and not (tmp_path / "run" / "broken_files.csv").exists()
    done = run("train_net.py", *arguments)
    assert done.returncode == 0 and "not scored" not in done.stdout


def test_missing_storage_ends_the_test(run, config, data, weights, tmp_path):
    for workers in (0, 1):
        done = run("test_net.py", *config(f"weights={weights}", f"data.workers={workers}"), **away(data, "test"))
        failed(done, data / "test", "other files")
    assert not list((tmp_path / "run").glob("test*/*"))


def test_missing_storage_ends_predict(run, config, data, weights):
    for inputs in ([data / "test"], files(data, "test")[:3], files(data, "test")[:1]):
        done = run("predict.py", "--weights", weights, *inputs, **away(data), VIDEO_RS_RETRIES="1")
        same = "; other files cannot be read either" if len(inputs) > 1 or inputs[0].is_dir() else ""
        failed(done, data / "test", f"cannot be read (Input/output error){same}; check that the storage is mounted")
        assert done.stderr.count("\n") == 1


def test_missing_storage_ends_prepare(run, config, data, tmp_path):
    out = tmp_path / "prepared"
    arguments = *config("data.workers=1"), "--out", out, "--short-side", 32
    failed(run("prepare_dataset.py", *arguments, **away(data)), data, "other files")
    assert not (out / "failed.csv").exists() and not (out / "train.csv").exists()


def test_missing_storage_ends_check(run, config, data, tmp_path):
    done = run("check_dataset.py", *config("data.workers=1"), **away(data))
    failed(done, data, "other files")
    assert not list((tmp_path / "run" / "check").glob("*"))


def test_missing_storage_ends_index(run, config, data, monkeypatch, tmp_path):
    done = run("index_dataset.py", *config("data.workers=1"), VIDEO_RS_CACHE=str(tmp_path / "cache"), **away(data))
    failed(done, data, "other files")
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_missing_storage_ends_show_clips(run, config, data):
    failed(run("show_clips.py", *config(), **away(data)), data, "other files")


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ENOENT])
def test_a_single_failing_file_is_recorded_as_unreadable(run, config, data, tmp_path, error):
    """In training and validation; other files can be read."""
    bad = [files(data, split)[5] for split in ("train", "val")]
    one = faults.environment(f"{data}/[tv][ra]*/{bad[0].parent.name}/{bad[0].name}", error)
    done = run("train_net.py", *config("train.epochs=1"), **one)
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path / "run" / "broken_files.csv")
    assert row["path"] == str(bad[0]) and row["reason"]


@pytest.mark.slow
def test_a_single_failing_file_is_named_by_each_tool(run, config, data, weights, tmp_path):
    bad = files(data, "test")[3]
    one = faults.environment(str(bad), errno.EIO)
    done = run("test_net.py", *config(f"weights={weights}"), **one)
    assert done.returncode == 0 and f"not scored: {bad}: cannot be read (Input/output error)" in done.stdout
    done = run("predict.py", "--weights", weights, data / "test", **one)
    assert done.returncode == 2 and f"error: {bad}: cannot be read" in done.stderr and "1 of 8" in done.stderr
    done = run("check_dataset.py", *config("data.workers=1"), **one)
    assert done.returncode == 2 and "1 x broken" in done.stderr
    assert [row["path"] for row in rows(tmp_path / "run" / "check" / "problems.csv") if row["kind"] == "broken"] == [
        str(bad)
    ]
    done = run("index_dataset.py", *config("data.workers=1"), VIDEO_RS_CACHE=str(tmp_path / "cache"), **one)
    assert done.returncode == 0 and f"{bad}: cannot be read" in done.stdout


def test_a_single_failing_file_is_left_out_by_prepare(run, config, data, tmp_path):
    bad = files(data, "test")[3]
    arguments = *config("data.workers=1"), "--out", tmp_path / "prepared", "--short-side", 32
    done = run("prepare_dataset.py", *arguments, **faults.environment(str(bad), errno.EIO))
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path / "prepared" / "failed.csv")
    assert row == {"path": str(bad), "reason": "cannot be read (Input/output error)"}


def test_a_file_is_read_after_two_failures(run, config, data, tmp_path):
    bad, arguments = files(data, "train")[5], ("train.epochs=1", "train.val_every=0", "data.retries=3")
    states = []
    for calls in ("", "open", "read"):
        out, values = tmp_path / f"out_{calls}", faults.environment(str(bad), errno.EIO, times=2, calls=calls)
        done = run("train_net.py", *config(*arguments, f"out={out}"), **(values if calls else {}))
        assert done.returncode == 0 and not (out / "broken_files.csv").exists(), done.stderr
        states.append(checkpoint.load(out / "last.pt")["model"])
    assert same(states[0], states[1]) and same(states[0], states[2])


def test_read_errors_in_decord_fall_back_to_pyav(run, config, data, tmp_path):
    pytest.importorskip("decord")
    failed(run("train_net.py", *config("data.decoder=decord"), **away(data)), data, "other files")


def test_a_wrong_path_of_a_command_is_a_user_error(run, weights, data):
    good = files(data, "test")[0]
    for inputs in ([data / "none.mp4"], [data / "none.mp4", data / "no.mp4"], [good, data / "none.mp4"]):
        done = run("predict.py", "--weights", weights, *inputs)
        assert done.returncode == 2 and f"error: {data / 'none.mp4'}: no such file" in done.stderr


TRAIN_UNTIL_AWAY = """
{python} {tool} --cfg {config} > {log} 2> {errors} &
until grep -q 'step 2/' {log}; do kill -0 $!; sleep 0.05; done
mount -t tmpfs none {data}
wait $! && code=0 || code=$?
exit $code
"""


@pytest.mark.slow
def test_training_resumes_after_the_storage_was_unmounted(tiny_config, data, tmp_path, run_tool):
    """Unmounted during training: a checkpoint and exit code 3. After remounting, the run resumes bit for bit."""
    settings = {"data__root": str(data), "data__workers": 1, "train__max_steps": STEPS, "train__val_every": 0}
    path, log, errors = tiny_config(**settings), tmp_path / "log.txt", tmp_path / "errors.txt"
    words = {"python": sys.executable, "tool": REPOSITORY / "tools" / "train_net.py", "config": path}
    done = faults.in_namespace(TRAIN_UNTIL_AWAY.format(**words, log=log, errors=errors, data=data))
    line = errors.read_text()
    assert done.returncode == 3 and line.count("\n") == 1, (line, done.stderr)
    assert line.startswith(f"error: {data}/train/") and "no such file; other files in" in line
    out = tmp_path / "run"
    saved = checkpoint.load(out / "last.pt")
    assert 2 <= saved["step"] < STEPS and f"checkpoint saved at step {saved['step']}" in log.read_text()
    assert not (out / "broken_files.csv").exists()
    assert run_tool("train_net.py", "--cfg", path).returncode == 0
    assert run_tool("train_net.py", "--cfg", path, f"out={tmp_path / 'whole'}").returncode == 0
    ended = [checkpoint.load(folder / "last.pt")["model"] for folder in (out, tmp_path / "whole")]
    assert same(*ended)


@pytest.mark.slow
def test_unmounted_storage_at_the_start_is_an_error(tiny_config, data, weights, tmp_path):
    """The folder is empty: one line, and an earlier run stays intact."""
    path = tiny_config(data__root=str(data))
    tool = f"{sys.executable} {REPOSITORY}/tools"
    for command in (f"train_net.py --cfg {path}", f"test_net.py --cfg {path} weights={weights}"):
        done = faults.in_namespace(f"mount -t tmpfs none {data}; {tool}/{command}")
        assert done.returncode in (2, 3) and done.stderr.count("\n") == 1 and str(data) in done.stderr
