"""Missing resources and SIGTERM: commands end within seconds, with one line and the right exit code."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from tests import commands, faults
from tests.integration.test_bad_input import assert_one_line
from video_rs import checkpoint, create_model
from video_rs.distributed.device import check_threads
from video_rs.errors import MachineError


def environment(**settings):
    return {**os.environ, "OMP_NUM_THREADS": "1", "LD_PRELOAD": str(faults.library()), **settings}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"FAULT_FORKS": "1"}, "no more processes or threads can be started", id="the second process"),
        pytest.param({"FAULT_THREADS": "0"}, "no more processes or threads can be started", id="no thread"),
        pytest.param({"FAULT_ACCEPTS": "0"}, "too many open files: raise `ulimit -n`", id="a socket in a worker"),
        pytest.param({"TMPDIR": "long"}, "the path of TMPDIR is too long for a socket: set TMPDIR=/tmp", id="TMPDIR"),
    ],
)
@pytest.mark.slow
def test_a_missing_resource_ends_the_run_at_once(tiny_config, tmp_path, settings, words):
    """The watchdog would need 600 seconds, and report a hanging loader that a restart could help."""
    if "TMPDIR" in settings:
        settings = {"TMPDIR": str(tmp_path / ("x" * 100))}
        os.mkdir(settings["TMPDIR"])
    start = time.monotonic()
    command = [sys.executable, commands.REPOSITORY / "tools/train_net.py", "--cfg", tiny_config(data__workers=2)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**settings), timeout=120)
    assert_one_line(done, 3, words)
    assert time.monotonic() - start < 60  # 10 seconds and the start of a process, on a busy machine


def test_threads_that_torch_cannot_start_are_noticed_first(monkeypatch):
    """OpenMP would end the process with code 1, in the first operation that uses its threads."""
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(MachineError, match="^no more processes or threads can be started: raise `ulimit -u`"):
        check_threads(1000)
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", pytest.param("400k", marks=pytest.mark.exhaustive)])
def test_full_storage_ends_the_run(tiny_config, tmp_path, size):
    """The run folder is on a separate file system, which is full from the start or at the first checkpoint."""
    (tmp_path / "run").mkdir()
    command = f"{sys.executable} {commands.REPOSITORY}/tools/train_net.py --cfg {tiny_config(data__workers=1)}"
    done = faults.in_namespace(f"mount -t tmpfs -o size={size} tmpfs {tmp_path}/run && exec {command}")
    assert_one_line(done, 3, "cannot be written: No space left on device")


HANGING = {  # command: its arguments, the files that hang
    "train": (["train_net.py", "data.workers=2"], "*/train/*.mp4"),
    "train in this process": (["train_net.py", "data.workers=0"], "*/train/*.mp4"),
    "validate": (["train_net.py", "data.workers=1"], "*/val/*.mp4"),
    "test": (["test_net.py", "data.workers=1", "weights={weights}"], "*/test/*.mp4"),
    "predict": (["predict.py", "--weights={weights}", "{videos}/test"], "*/test/*.mp4"),
    "check": (["check_dataset.py", "--workers=2"], "*/train/*.mp4"),
    "index": (["index_dataset.py", "data.workers=2"], "*/train/*.mp4"),
    "prepare": (["prepare_dataset.py", "--workers=2", "--out={folder}/copy"], "*/train/*.mp4"),
    "start": (["train_net.py"], "*/fit.*"),  # while modules are imported
}


@pytest.fixture(scope="module")
def weights(tiny_videos, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    model = create_model("resnet3d_rs_26", width=0.125, num_classes=8)
    data_config = replace(model.data_config, num_frames=4, stride=2, short_side=36, test_size=32)
    checkpoint.save(
        path, checkpoint.from_weights({**model.model_args, "num_classes": 8}, data_config, model.state_dict())
    )
    return path


IN_SLOW_TIER, SLOW, EXHAUSTIVE = {"train in this process", "test"}, pytest.mark.slow, pytest.mark.exhaustive


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW if name in IN_SLOW_TIER else EXHAUSTIVE) for name in HANGING]
)
def test_sigterm_while_a_file_hangs(tiny_config, tiny_videos, weights, tmp_path, name):
    """The call never returns to Python. No process is left, not even one that hangs."""
    words, pattern = HANGING[name]
    hung = tmp_path / "hung"
    values = {"weights": weights, "videos": tiny_videos, "folder": tmp_path}
    script, *arguments = [word.format(**values) for word in words]
    if script != "predict.py":
        arguments += ["--cfg", tiny_config()]
    settings = environment(FAULT_HANG=pattern, FAULT_HUNG=str(hung))
    command = [sys.executable, commands.REPOSITORY / "tools" / script, *arguments]
    process = commands.start(command, env=settings, stderr=subprocess.PIPE)
    while not hung.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGTERM)
    start = time.monotonic()
    done = subprocess.CompletedProcess(command, process.wait(60))
    assert time.monotonic() - start < 5
    done.stdout, done.stderr = process.communicate(timeout=5)  # ends when no process has the pipes open
    assert_one_line(done, 75, "received SIGTERM")
