"""Real commands in restricted environments. Each one ends with the documented exit code.

The table in tests/README.md lists these environments. To add one, add a row to ``ENVIRONMENTS`` and to the table.
"""

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import video_rs
from tests import commands, environments, faults
from tests.environments import close, limit, make_read_only, mount, settings, user, write_to
from tests.integration.conftest import REPOSITORY, process
from tests.integration.test_bad_input import assert_one_line
from video_rs.distributed.forks import check_fork
from video_rs.errors import UserError


class Environment(NamedTuple):
    """An environment, and how a training run ends in it.

    Attributes:
        setup: called in the process of the command, with the temporary folder of the test as the working folder. Or a
            function of that folder which returns it.
        code: the exit code.
        words: words of the error line; of a warning if the exit code is 0.
        overrides: overrides of the config.
        mounts: True if `setup` mounts file systems.
    """

    setup: environments.Setup
    code: int = 0
    words: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    mounts: bool = False


def _long_folder():
    folder = Path("x" * 120).absolute()
    folder.mkdir()
    settings(TMPDIR=str(folder))()


def _deleted_folder():
    os.mkdir("deleted")
    os.chdir("deleted")
    os.rmdir("../deleted")


def _read_only_home():
    os.mkdir("home")
    settings(HOME=os.path.abspath("home"), XDG_CACHE_HOME=None, VIDEO_RS_CACHE=None)()
    make_read_only("home")()


def _home_of_another_user():
    os.mkdir("home", 0)
    settings(HOME=os.path.abspath("home"), XDG_CACHE_HOME=None, VIDEO_RS_CACHE=None)()


def _no_user():
    settings(HOME=None, USER=None, LOGNAME=None, XDG_CACHE_HOME=None, VIDEO_RS_CACHE=None)()
    user(12345)


def _read_only_working_folder():
    os.mkdir("cwd")
    os.chdir("cwd")
    make_read_only(os.getcwd())()
    os.chdir(os.getcwd())  # into the mount


def _one_cpu():
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])


def _few_descriptors():
    gap = next(number for number in range(1000) if not os.path.exists(f"/proc/self/fd/{number}"))
    limit("NOFILE", gap + 10)()


def _small_address_space():
    environments.address_space(20_000_000)


def _small_disk():
    os.mkdir("disk")
    mount("disk", "size=1m")()


def _read_only_disk():
    os.mkdir("disk")
    make_read_only("disk")()


def _read_only_temporary_folder():
    os.mkdir("tmp")
    settings(TMPDIR=os.path.abspath("tmp"))()
    make_read_only("tmp")()


ENVIRONMENTS = {
    "a long TMPDIR": Environment(_long_folder, 3, ("TMPDIR",)),
    "64 descriptors": Environment(limit("NOFILE", 64)),
    "few descriptors": Environment(_few_descriptors, 3, ("ulimit -n",)),
    "64 MB of /dev/shm": Environment(mount("/dev/shm", "size=64m"), mounts=True),
    "64 kB of /dev/shm": Environment(mount("/dev/shm", "size=64k"), 3, ("--shm-size", "data.workers"), mounts=True),
    "a read-only /dev/shm": Environment(mount("/dev/shm", read_only=True), 3, ("/dev/shm",), mounts=True),
    "no /dev/shm": Environment(environments.no_shared_memory, 3, ("/dev/shm is missing",), mounts=True),
    "no /dev/shm and no workers": Environment(environments.no_shared_memory, 0, (), ("data.workers=0",), mounts=True),
    "no /proc": Environment(mount("/proc"), mounts=True),
    "a full disk": Environment(_small_disk, 3, ("cannot be written", "No space"), ("out=disk/run",), mounts=True),
    "a limit of file sizes": Environment(limit("FSIZE", 100_000), 3, ("cannot be written",)),
    "a read-only run folder": Environment(_read_only_disk, 3, ("Read-only",), ("out=disk/run",), mounts=True),
    "a read-only working folder": Environment(_read_only_working_folder, mounts=True),
    "a deleted working folder": Environment(_deleted_folder, 2, ("working folder",)),
    "a read-only temporary folder": Environment(_read_only_temporary_folder, mounts=True),
    "a read-only home": Environment(_read_only_home, mounts=True),
    "the home of another user": Environment(_home_of_another_user),
    "no home and no user name": Environment(_no_user, mounts=True),
    "a small stack": Environment(limit("STACK", 256 * 1024)),
    "a small address space": Environment(_small_address_space, 3, ("memory",), ("data.workers=0", "model.width=1")),
    "one CPU": Environment(_one_cpu, 0, (), ("data.workers=-1",)),
    "a umask of 077": Environment(lambda: os.umask(0o077) and None),
    "stdout closed": Environment(close(1)),
    "stderr closed": Environment(close(2)),
    "all streams closed": Environment(close(0, 1, 2)),
    "stdout read by head": Environment(write_to("|", 1)),
    "both streams read by head": Environment(write_to("|", 1, 2)),
    "stdout on a full disk": Environment(write_to("/dev/full", 1, 2)),
}


@pytest.fixture(scope="module")
def trained(tiny_videos, tmp_path_factory):
    """A run of one epoch in this process, which imports everything that forked processes use."""
    folder = tmp_path_factory.mktemp("trained")
    done = commands.script("tools/train_net.py", *_arguments(tiny_videos, folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def _arguments(videos, folder, *overrides):
    """Return arguments of a run of one step with one worker in ``run`` of a folder."""
    from tests.integration.conftest import TINY

    config = folder / "tiny.json"  # JSON is YAML
    config.write_text(json.dumps({**TINY, "out": str(folder / "run")}))
    return ("--cfg", config, f"data.root={videos}", "train.epochs=0.34", "data.workers=1", *overrides)


def state(run):
    return json.loads((run / "status.json").read_text())["state"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_training_ends_with_the_listed_exit_code(name, trained, tiny_videos, tmp_path):
    environment = ENVIRONMENTS[name]
    if environment.mounts:
        environments.require_namespaces()
    arguments = _arguments(tiny_videos, tmp_path, *environment.overrides)
    start = time.monotonic()
    done = environments.run(lambda: os.chdir(tmp_path) or environment.setup(), "train_net.py", *arguments)
    assert done.returncode == environment.code, done.stderr
    assert "Traceback" not in done.stderr
    if environment.code:
        assert_one_line(done, environment.code, *environment.words)
        assert time.monotonic() - start < 60
    else:
        assert state(tmp_path / "run") == "complete" and (tmp_path / "run/best.pt").exists()
        assert all(word in done.stderr for word in environment.words)
    if "umask" in name:
        files = [file for file in (tmp_path / "run").rglob("*") if file.is_file() and file.name != ".lock"]
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_the_table_of_the_readme_has_every_environment():
    text = (REPOSITORY / "tests/README.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:4] for row in text.splitlines() if row.startswith("|")]
    listed = {name.strip(): code.strip().split()[0] for name, code, *_ in rows if code.strip()[:1].isdecimal()}
    assert {name: str(each.code) for name, each in ENVIRONMENTS.items()}.items() <= listed.items()
    assert len(listed) >= 30


def fit(videos, out, **options):
    """Train a small network for a step without a config; return 0."""
    network = video_rs.create_model("resnet3d_rs_26", width=0.125, num_classes=8)
    sizes = {"num_frames": 4, "stride": 2, "train_size": 32, "short_side": 36, "test_size": 32}
    network.data_config = dataclasses.replace(network.data_config, **sizes)
    training = video_rs.create_transform(**network.data_config, is_training=True)
    data = video_rs.VideoDataset(videos, "train", training)
    val = video_rs.VideoDataset(videos, "val", video_rs.create_transform(**network.data_config))
    options = {"epochs": 0.34, "batch_size": 8, "ema_decay": 0.9, "device": "cpu", "threads": 1} | options
    video_rs.fit(network, data, val, out=out, **options)
    return 0


def test_training_in_a_thread(trained, tiny_videos, tmp_path):
    def call():
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(fit, tiny_videos, tmp_path / "run", workers=1).result()

    done = environments.forked(call)
    assert done.returncode == 0, done.stderr
    assert state(tmp_path / "run") == "complete"


@pytest.mark.parametrize("script", ["train_net.py", "check_dataset.py", "index_dataset.py", "prepare_dataset.py"])
def test_commands_in_a_daemonic_process(script, trained, tiny_videos, tmp_path):
    arguments = _arguments(tiny_videos, tmp_path, f"out={tmp_path / 'run'}")
    if script[0] in "cp":
        arguments += ("--out", tmp_path / "out", "--workers", 2)

    def target():
        os.environ["VIDEO_RS_CACHE"] = str(tmp_path)
        sys.exit(environments.tool(script, *arguments))

    def call():
        daemon = multiprocessing.get_context("fork").Process(target=target, daemon=True)
        daemon.start()
        daemon.join()
        return daemon.exitcode

    done = environments.forked(call)
    assert (done.returncode, done.stderr) == (
        0,
        "warning: a daemonic process cannot start others; files are read in this process\n",
    )


def test_a_classifier_used_after_a_fork(trained, tiny_videos, monkeypatch):
    """As in the workers of gunicorn --preload. OpenMP would wait forever for the threads of the parent."""
    video = str(next(Path(tiny_videos, "test").rglob("*.mp4")))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        classifier = video_rs.load(trained, device="cpu")
        expected = classifier.predict(video)
        done = environments.forked(lambda: [print(classifier.predict(video)) for _ in range(2)] and 0, seconds=60)
    finally:
        torch.set_num_threads(threads)
    assert done.returncode == 0, done.stderr
    assert [line.split("score")[0] for line in done.stdout.splitlines()] == [str(expected).split("score")[0]] * 2
    assert done.stderr.count("a forked process computes with one thread") == len(done.stderr.splitlines()) == 1


def test_a_network_trained_after_a_fork(trained, tiny_videos, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.randn(512, 512) @ torch.randn(512, 512)
        done = environments.forked(lambda: fit(tiny_videos, tmp_path / "run", threads=2), seconds=60)
    finally:
        torch.set_num_threads(threads)
    assert done.returncode == 0, done.stderr


def test_a_gpu_that_the_parent_used_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)

    def call():
        with pytest.raises(UserError, match="device cuda: a parent process used it before the fork; .*--preload"):
            check_fork(torch.device("cuda"))
        return 0

    done = environments.forked(call)
    assert done.returncode == 0, done.stderr
    check_fork(torch.device("cuda"))  # no fork


@pytest.mark.slow
def test_a_stopped_and_continued_run_completes(trained, tiny_videos, tmp_path):
    """Longer than ``data.timeout``: no file is taken for one that hangs."""
    log = tmp_path / "run/log.txt"

    def during(pid):
        end = time.monotonic() + 60
        while not (log.exists() and "step 1/" in log.read_text()) and time.monotonic() < end:
            time.sleep(0.01)
        os.killpg(pid, signal.SIGSTOP)
        time.sleep(2.5)
        os.killpg(pid, signal.SIGCONT)

    arguments = _arguments(tiny_videos, tmp_path, "train.epochs=4", "data.timeout=2")
    done = environments.run(lambda: None, "train_net.py", *arguments, during=during)
    assert (done.returncode, done.stderr) == (0, "") and state(tmp_path / "run") == "complete"


@pytest.fixture(scope="module")
def preloaded():
    runner = faults.Commands()
    yield runner
    runner.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faults_of", "warning"),
    [
        pytest.param(lambda path: faults.environment(path, errno.ENOLCK, calls="flock"), "no locks", id="locks"),
        pytest.param(lambda path: faults.environment(path, errno.EINVAL, calls="fsync"), "", id="fsync"),
        pytest.param(lambda path: {"FAULT_CLOCK": "3600"}, "", id="clock"),
    ],
)
def test_training_without_locks_or_fsync_or_with_a_clock_set_back(preloaded, faults_of, warning, tiny_videos, tmp_path):
    """No locks, no fsync, and a clock that is set back by an hour whenever it is read."""
    arguments = _arguments(tiny_videos, tmp_path)
    done = preloaded("train_net.py", *arguments, **faults_of(f"{tmp_path}/*"))
    assert done.returncode == 0, done.stderr
    assert (warning in done.stderr) if warning else not done.stderr
    assert state(tmp_path / "run") == "complete"


@pytest.mark.slow
@pytest.mark.parametrize(("error", "code"), [(errno.EIO, 3), (errno.EMFILE, 3), (errno.EACCES, 2)])
@pytest.mark.parametrize("file", ["tiny.json", "last.pt"])
def test_a_config_or_checkpoint_that_cannot_be_opened(preloaded, trained, tiny_videos, tmp_path, file, error, code):
    """Only a wrong path is the user's fault."""
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    arguments = _arguments(tiny_videos, tmp_path, f"train.init_from={tmp_path / 'run/last.pt'}", f"out={tmp_path}/new")
    done = preloaded("train_net.py", *arguments, **faults.environment(f"{tmp_path}/*{file}", error))
    assert_one_line(done, code, file, "cannot be read", os.strerror(error))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["a bare container", "python -O", "closed by the shell"])
def test_commands_in_a_new_interpreter(case, trained, tiny_videos, tmp_path):
    """LC_ALL=C without a home and a user name; without assertions; ``<&- >&- 2>&-``."""
    video = next(Path(tiny_videos, "test").rglob("*.mp4"))
    odd = tmp_path / os.fsdecode(b"caf\xe9 \xc3\xa9.mp4")
    odd.write_bytes(video.read_bytes())
    if case == "a bare container":
        bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]}
        command = [sys.executable, REPOSITORY / "tools/predict.py", "--weights", trained, odd]
        started = commands.start(command, env=bare, preexec_fn=lambda: user(12345))
        out, _ = started.communicate(timeout=120)
        assert started.returncode == 0 and "caf" in out
    elif case == "python -O":
        command = [sys.executable, "-OO", REPOSITORY / "tools/train_net.py", *_arguments(tiny_videos, tmp_path)]
        started = commands.start(command)
        started.communicate(timeout=120)
        assert started.returncode == 0 and state(tmp_path / "run") == "complete"
    else:
        done = process("train_net.py", *_arguments(tiny_videos, tmp_path), preexec_fn=lambda: os.closerange(0, 3))
        assert done.returncode == 0 and state(tmp_path / "run") == "complete"


def test_predict_into_a_pipe_or_a_full_disk(trained, tiny_videos):
    """A command whose result is its output ends with it: 0 for ``| head``, 3 for a full disk."""
    arguments = ("--weights", trained, next(Path(tiny_videos, "test").rglob("*.mp4")))
    done = environments.run(write_to("|", 1), "predict.py", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    done = environments.run(write_to("/dev/full", 1), "predict.py", *arguments)
    assert_one_line(done, 3, "No space left on device")
