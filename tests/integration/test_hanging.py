"""A file that hangs the decoder, and more unreadable files than allowed: the real commands, on real files."""

import csv
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import corpus, faults
from tests.data import crashing
from tests.data.hanging import write_hanging_video
from tests.integration.test_bad_input import assert_one_line
from tests.integration.test_resume import start, wait_for
from video_rs import checkpoint
from video_rs.data import clip_datasets
from video_rs.files import stamp


@pytest.fixture
def hanging_video():
    return corpus.shared(write_hanging_video, "video.mkv")


@pytest.fixture
def dataset(tiny_videos, tmp_path):
    """A copy of the tiny dataset, for files to be damaged."""
    shutil.copytree(tiny_videos, tmp_path / "videos")
    return tmp_path / "videos"


def unreadable_files(folder):
    with open(folder / "broken_files.csv", newline="") as handle:
        return [tuple(row) for row in csv.reader(handle)][1:]


@pytest.mark.slow
def test_a_hanging_file_in_training_and_testing(tiny_config, run_tool, dataset, hanging_video, tmp_path):
    shutil.copy(hanging_video, dataset / "train" / "zoom_in" / "hanging.mkv")
    shutil.copy(hanging_video, dataset / "test" / "zoom_in" / "hanging.mkv")
    bad = dataset / "train" / "zoom_in" / "hanging.mkv"
    # 25 files: in two epochs the file comes twice
    path = tiny_config(data__root=str(dataset), data__workers=1, data__timeout=3, train__micro_batch=4)
    run = tmp_path / "run"

    done = run_tool("train_net.py", "--cfg", path)
    assert_one_line(done, 75, bad, "data.timeout")
    assert f"Resume without {bad} with: " in done.stdout
    assert unreadable_files(run) == [(str(bad), "hung the decoder", "0")]
    saved = checkpoint.load(run / "last.pt")
    assert saved["hung"] == [str(bad)]

    done = run_tool("train_net.py", "--cfg", path)
    assert done.returncode == 0, done.stderr
    assert f"at step {saved['step']} of 7" in done.stdout
    assert [(row[:2], int(row[2]) > 0) for row in unreadable_files(run)] == [((str(bad), "hung the decoder"), True)]
    assert "1 unreadable files were replaced" in done.stdout

    done = run_tool("test_net.py", "--cfg", path)
    assert done.returncode == 0, done.stderr
    assert "8 of 9 scored" in done.stdout
    assert f"not scored: {dataset / 'test' / 'zoom_in' / 'hanging.mkv'}: hung the decoder" in done.stdout


@pytest.mark.slow
def test_ctrl_c_while_a_file_hangs(tiny_config, dataset, hanging_video):
    """One Ctrl-C ends the run as interrupted, without waiting for the file."""
    for folder in (dataset / "train").iterdir():  # whatever comes first hangs
        for file in folder.iterdir():
            file.unlink()
            file.symlink_to(hanging_video)
    process = start(tiny_config(data__root=str(dataset), data__workers=2, data__timeout=600))
    wait_for(process, "starting at step")
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 130, rest
    assert "Traceback" not in rest and "Ctrl-C again to stop at once" in rest
    assert "interrupted; no step was done in" in rest.splitlines()[-1]


@pytest.fixture
def kill_worker(dataset, monkeypatch):
    """Return a function that turns a video of the dataset into one that sends a signal to its reader."""
    monkeypatch.setattr(clip_datasets, "open_video", crashing.open_video)
    return lambda path, name: crashing.write_crashing_video(dataset / path, dataset / path, name)


@pytest.mark.parametrize("name", ["SIGSEGV", pytest.param("SIGABRT", marks=pytest.mark.slow)])
def test_a_file_that_crashes_its_worker_is_left_out(tiny_config, run_tool, dataset, kill_worker, tmp_path, name):
    bad = [kill_worker(next((dataset / split / "zoom_in").iterdir()), name) for split in ("train", "val", "test")]
    path = tiny_config(data__root=str(dataset), data__workers=2)
    done = run_tool("train_net.py", "--cfg", path)
    assert_one_line(done, 75, f"{bad[0]}: killed a loader worker ({name}); restart to leave it out")
    assert f"Resume without {bad[0]} with: " in done.stdout
    reason = f"killed the decoder ({name})"
    assert unreadable_files(tmp_path / "run") == [(str(bad[0]), reason, "0")]

    done = run_tool("train_net.py", "--cfg", path)
    assert done.returncode == 0, done.stderr
    assert f"validation: 1 not scored, counted as wrong; the first: {bad[1]}: {reason}" in done.stdout
    assert unreadable_files(tmp_path / "run") == [(str(bad[0]), reason, "2")]
    done = run_tool("test_net.py", "--cfg", path)
    assert done.returncode == 0, done.stderr
    assert "7 of 8 scored" in done.stdout and f"not scored: {bad[2]}: {reason}" in done.stdout


@pytest.mark.parametrize("split", ["train", pytest.param("val", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "words"), [("SIGKILL", "out of memory"), ("SIGBUS", "--shm-size")])
def test_a_killed_worker_ends_the_run(tiny_config, run_tool, dataset, kill_worker, tmp_path, split, name, words):
    kill_worker(next((dataset / split / "zoom_in").iterdir()), name)
    done = run_tool("train_net.py", "--cfg", tiny_config(data__root=str(dataset), data__workers=2))
    assert_one_line(done, 3, "a loader process died", words, "data.workers")
    assert not (tmp_path / "run" / "broken_files.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [64, 256])
def test_full_shared_memory_ends_the_run(tiny_config, tmp_path, kilobytes):
    if subprocess.run(["unshare", "-Urm", "true"]).returncode:
        faults.unavailable("needs user and mount namespaces (unshare -Urm)")
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs /dev/shm && exec "$@"'
    command = [sys.executable, crashing.REPOSITORY / "tools" / "train_net.py", "--cfg", tiny_config(data__workers=2)]
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", mount, "sh", *command], capture_output=True, text=True)
    assert_one_line(done, 3, "/dev/shm is full", "--shm-size", "data.workers")
    assert not (tmp_path / "run" / "broken_files.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("descriptors", [44, 48, 52])
def test_too_few_descriptors_for_the_workers(tiny_config, run_tool, tmp_path, descriptors):
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    done = run_tool("train_net.py", "--cfg", tiny_config(data__workers=4), preexec_fn=limit)
    errors = [line for line in done.stderr.splitlines() if not line.endswith(("if necessary.", "rationality()"))]
    assert (done.returncode, errors) == (3, ["error: too many open files: raise `ulimit -n`, or lower data.workers"])


def test_an_unreadable_class_is_replaced(tiny_config, run_tool, dataset, tmp_path):
    """The size of the class does not matter, up to data.max_broken."""
    good = next((dataset / "train" / "zoom_out").iterdir())
    bad = sorted((dataset / "train" / "zoom_in").iterdir())
    bad += [shutil.copy(good, dataset / "train" / "zoom_in" / f"more{i}.mp4") for i in range(40)]
    for file in bad:
        Path(file).write_bytes(b"no video")
    path = tiny_config(data__root=str(dataset), train__max_steps=3)
    done = run_tool("train_net.py", "--cfg", path, "data.max_broken=0.7")
    assert done.returncode == 0, done.stderr
    assert {Path(row[0]) for row in unreadable_files(tmp_path / "run")} <= set(map(Path, bad))
    done = run_tool("train_net.py", "--cfg", path, f"out={tmp_path / 'another'}", "data.max_broken=0.1")
    assert_one_line(done, 2, "training files cannot be read", "data.max_broken=0.1 allows 6")


@pytest.mark.slow
def test_unreadable_files_are_decoded_again_at_the_start(tiny_config, run_tool, dataset, kill_worker, tmp_path):
    """Readable files are removed from the list; those that crashed a worker only if they have changed."""
    broken, damaged, killer, other = sorted(dataset.glob("train/*/*.mp4"))[:8:2]
    whole, run = {file: file.read_bytes() for file in (broken, damaged, killer, other)}, tmp_path / "run"
    for file in (broken, damaged):
        file.write_bytes(b"no video")
    for file in (killer, other):
        kill_worker(file, "SIGSEGV")
    path = tiny_config(data__root=str(dataset), data__workers=1, data__max_broken=0.5, train__epochs=4)
    for _ in range(2):
        assert run_tool("train_net.py", "--cfg", path).returncode == 75
    done = run_tool("train_net.py", "--cfg", path, "data.max_broken=0")
    assert_one_line(done, 2, "of 24 training files cannot be read, data.max_broken=0 allows 0")
    assert {Path(row[0]) for row in unreadable_files(run)} >= {killer, other}

    broken.write_bytes(whole[broken])
    killer.write_bytes(whole[killer])
    done = run_tool("train_net.py", "--cfg", path)
    assert done.returncode == 0, done.stderr
    assert "of them can be read now: " in done.stdout
    reasons = {Path(file): reason for file, reason, _ in unreadable_files(run)}
    assert reasons.keys() == {damaged, other} and reasons[other] == "killed the decoder (SIGSEGV)"
    assert "2 unreadable files were replaced" in done.stdout
    assert run_tool("run_status.py", run).stdout.count(f"2 files could not be read: {run / 'broken_files.csv'}") == 1
    saved = checkpoint.load(run / "last.pt")
    assert saved["hung"] == [str(other)] and saved["stamps"].keys() == {str(other)}


@pytest.mark.slow
def test_recovered_files_are_removed_from_the_list(tiny_config, run_tool, dataset, tmp_path):
    """Size and time of a file that was temporarily missing have not changed."""
    file = next(dataset.glob("train/*/*.mp4"))
    file.rename(dataset / "away")
    file.write_bytes(b"")
    path, run = tiny_config(data__root=str(dataset), data__workers=1), tmp_path / "run"
    assert_one_line(run_tool("train_net.py", "--cfg", path, "data.max_broken=0"), 2, "1 of 24 training files")
    (dataset / "away").rename(file)
    done = run_tool("train_net.py", "--cfg", path, "data.max_broken=0")
    assert done.returncode == 0, done.stderr
    assert f"1 of them can be read now: {file}" in done.stdout
    assert not (run / "broken_files.csv").exists() and "broken files" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("end", [b"SIGSEGV", b"SIGABRT", b"SIGSTOP"])
def test_a_changed_file_that_still_fails_stays_left_out(tiny_config, run_tool, dataset, kill_worker, tmp_path, end):
    """It is decoded in a separate process, with a time limit, and stays left out."""
    bad = kill_worker(next((dataset / "train" / "zoom_in").iterdir()), "SIGSEGV")
    path = tiny_config(data__root=str(dataset), data__workers=1, data__timeout=4)
    assert_one_line(run_tool("train_net.py", "--cfg", path), 75, bad)
    bad.write_bytes(bad.read_bytes() + end)
    done = run_tool("train_net.py", "--cfg", path)
    assert done.returncode == 0, done.stderr
    reason = "hung the decoder (no progress for 4 s)" if end == b"SIGSTOP" else f"killed the decoder ({end.decode()})"
    assert unreadable_files(tmp_path / "run") == [(str(bad), reason, "2")]
    assert checkpoint.load(tmp_path / "run" / "last.pt")["stamps"] == {str(bad): stamp(str(bad))}


@pytest.mark.exhaustive
def test_a_hanging_file_in_validation(tiny_config, run_tool, dataset, hanging_video, tmp_path):
    shutil.copy(hanging_video, dataset / "val" / "zoom_in" / "hanging.mkv")
    bad = dataset / "val" / "zoom_in" / "hanging.mkv"
    done = run_tool("train_net.py", "--cfg", tiny_config(data__root=str(dataset)), "data.workers=2", "data.timeout=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"validation: 1 not scored, counted as wrong; the first: {bad}: hung the decoder") == 2
    assert not (tmp_path / "run" / "broken_files.csv").exists()  # that is about training


@pytest.mark.slow
def test_the_limit_of_broken_files(tiny_config, run_tool, dataset, tmp_path):
    bad = sorted(dataset.glob("train/*/*.mp4"))[:6:2]
    for file in bad:
        file.write_bytes(b"")
    path, run = tiny_config(data__root=str(dataset), data__workers=1), tmp_path / "run"
    done = run_tool("train_net.py", "--cfg", path)
    assert_one_line(done, 2, "of 24 training files", "data.max_broken=0.05 allows 1", "empty", run / "broken_files.csv")
    assert {row[0] for row in unreadable_files(run)} <= set(map(str, bad)) and len(unreadable_files(run)) > 1
    step = checkpoint.load(run / "last.pt")["step"]
    assert step > 0

    done = run_tool("train_net.py", "--cfg", path, "data.max_broken=0.2")
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {step} of 6" in done.stdout
    assert {row[0] for row in unreadable_files(run)} == set(map(str, bad))


def test_a_small_dataset_bears_one_broken_file(tiny_config, run_tool, dataset):
    next(dataset.glob("train/*/*.mp4")).write_bytes(b"")
    done = run_tool("train_net.py", "--cfg", tiny_config(data__root=str(dataset)), "data.max_broken=0.001")
    assert done.returncode == 0, done.stderr
