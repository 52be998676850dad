"""Loaders with workers that hang: in a real file that takes minutes to decode, or because they are stopped."""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import video_rs.data.loader as loader_module
from tests import faults
from tests.data import crashing
from tests.data.hanging import write_hanging_video
from video_rs.data import clip_datasets, watchdog
from video_rs.data.clip_datasets import ClipDataset, ViewDataset
from video_rs.data.clips import TemporalSampling
from video_rs.data.loader import MAX_FAILED, ViewLoader, clip_loader
from video_rs.data.sampler import BatchStream
from video_rs.data.sources.records import Records
from video_rs.data.transforms.crops import TrainTransform, ViewTransform
from video_rs.data.watchdog import Heartbeats, Watchdog, worker_errors
from video_rs.errors import DeadWorker, MachineError, StuckWorker

SAMPLING = TemporalSampling(4, 2)


@pytest.fixture(scope="module")
def paths(make_video, tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    return [str(make_video(root / f"{i}.mp4", 20 + i, 32, 48)) for i in range(6)]


@pytest.fixture(scope="module")
def hanging_video(tmp_path_factory):
    return str(write_hanging_video(tmp_path_factory.mktemp("hanging") / "hanging.mkv"))


def records_of(paths):
    return Records(paths, [i % 2 for i in range(len(paths))], ["a", "b"])


def clip_batches(paths, *, transform=None, workers=2, timeout=1.0, steps=4, skip=None):
    """Return the loader of `steps` batches of 4; an epoch has six files."""
    transform = transform or TrainTransform(24)
    dataset = ClipDataset(records_of(paths), sampling=SAMPLING, transform=transform, seed=3, skip=skip or {})
    stream = BatchStream(len(paths), batch_size=4, num_steps=steps, seed=3, micro_batch=2)
    return clip_loader(dataset, stream, workers=workers, timeout=timeout)


def views(paths, **options):
    dataset = ViewDataset(records_of(paths), sampling=SAMPLING, clips=1, transform=ViewTransform(32, 24))
    return ViewLoader(dataset, **{"workers": 2, "timeout": 1.0, **options})


def taken_until_stuck(loader):
    batches = []
    with pytest.raises(StuckWorker) as error:
        for batch in loader:
            batches.append(batch)
    return batches, error.value


def assert_no_worker_left():
    listed = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "comm="], capture_output=True, text=True).stdout
    assert not [name for name in listed.split() if name.startswith("pt_")]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_a_video_that_takes_minutes_is_named(paths, hanging_video, workers):
    reference = list(clip_batches(paths, workers=0))
    batches, stuck = taken_until_stuck(clip_batches([*paths[:4], hanging_video, paths[5]], workers=workers))
    assert (stuck.index, stuck.path) == (4, hanging_video)
    assert hanging_video in str(stuck) and "data.timeout=1; restart" in str(stuck) and stuck.seconds > 1
    for batch, expected in zip(batches, reference):  # the batches before it are unchanged
        assert 4 not in expected["index"] and torch.equal(batch["clip"], expected["clip"])
    assert 4 in reference[len(batches)]["index"]
    assert_no_worker_left()


@pytest.mark.slow
def test_without_the_file_it_goes_on(paths, hanging_video):
    reference = list(clip_batches(paths, workers=0))
    batches = list(clip_batches([hanging_video, *paths[1:]], skip={hanging_video: "hung the decoder"}))
    for batch, expected in zip(batches, reference, strict=True):
        assert [path for path, _ in batch["broken"]] == [hanging_video] * int((expected["index"] == 0).sum())
        for i, index in enumerate(expected["index"]):
            assert torch.equal(batch["clip"][i], expected["clip"][i]) == (index != 0)


class Stopping(TrainTransform):
    """Stop the worker, as a debugger or a scheduler does, at its second clip."""

    count = 0

    def finish(self, clip, rng):
        self.count += 1
        if self.count == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().finish(clip, rng)


@pytest.mark.exhaustive
def test_a_worker_that_is_stopped_in_a_file(paths):
    _, stuck = taken_until_stuck(clip_batches(paths, transform=Stopping(24), workers=1))
    assert stuck.path in paths
    assert_no_worker_left()


class Pausing(Stopping):
    """The same, and continue it later: after the timeout, but within the timeout of each check."""

    def finish(self, clip, rng):
        if not self.count:
            subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {os.getpid()}"])
        return super().finish(clip, rng)


@pytest.mark.slow
def test_workers_that_are_stopped_between_files(paths):
    loader = clip_batches(paths, workers=2, timeout=3.0, steps=100)
    batches = iter(loader)
    next(batches)
    time.sleep(0.2)
    while loader.heartbeats.busy():  # workers prefetch two batches each
        time.sleep(0.01)
    for worker in torch.multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(StuckWorker, match="made no progress") as error:
        list(batches)
    assert (error.value.index, error.value.path) == (-1, "")
    assert_no_worker_left()


@pytest.mark.slow
def test_slow_is_not_stuck(paths):
    """Files take less than the timeout, batches take more, and the consumer is slow."""

    class Slow(TrainTransform):
        def finish(self, clip, rng):
            time.sleep(1.3)
            return super().finish(clip, rng)

    for batch in clip_batches(paths, transform=Slow(24), workers=1, timeout=2.5, steps=1):
        assert batch["clip"].shape == (2, 4, 24, 24, 3)
        time.sleep(2.6)


@pytest.mark.exhaustive
def test_without_a_timeout_it_waits(paths):
    reference = list(clip_batches(paths, workers=0))
    batches = list(clip_batches(paths, transform=Pausing(24), workers=1, timeout=0))
    assert all(torch.equal(a["clip"], b["clip"]) for a, b in zip(batches, reference, strict=True))


@pytest.mark.slow
def test_views_of_the_others_when_some_hang(paths, hanging_video, tmp_path, monkeypatch):
    os.link(hanging_video, tmp_path / "another.mkv")
    mixed = [paths[0], hanging_video, paths[2], paths[3], str(tmp_path / "another.mkv"), paths[5]]
    loader = views(mixed)
    items = list(loader)
    assert [item["index"] for item in items] == list(range(6))
    assert [item["error"] for item in items] == [None, "hung the decoder", None, None, "hung the decoder", None]
    for item, expected in zip(items, views(paths, workers=0)):
        assert item["label"] == expected["label"]
        assert item["error"] or torch.equal(item["views"], expected["views"])
    assert_no_worker_left()
    looks = []
    monkeypatch.setattr("video_rs.data.watchdog.Watchdog._kill_stuck", lambda self, waited: looks.append(waited))
    assert [item["error"] is None for item in loader] == [True, False, True, True, False, True]
    assert not looks  # no second wait for the same files


@pytest.mark.exhaustive
def test_a_disk_that_is_gone_ends_the_views(hanging_video, tmp_path):
    links = [str(tmp_path / f"{i}.mkv") for i in range(MAX_FAILED + 3)]
    for link in links:
        os.link(hanging_video, link)
    with pytest.raises(MachineError, match=f"^{MAX_FAILED + 1} consecutive videos .*the last one: {tmp_path}.*; check"):
        list(views(links, timeout=0.1))
    assert_no_worker_left()


@pytest.mark.slow
def test_an_end_does_not_wait_for_workers_that_hang(paths, hanging_video):
    batches = iter(clip_batches([paths[0], *[hanging_video] * 5], workers=4, timeout=120, steps=50))
    other = iter(clip_batches(paths, workers=3, transform=Stopping(24), timeout=120))
    for loader in (batches, other):
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)  # as a Ctrl-C while the loader waits
        signal.alarm(3)
        start = time.monotonic()
        try:
            with pytest.raises(KeyboardInterrupt):
                list(loader)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert time.monotonic() - start < 3 + 4
    assert_no_worker_left()


class Dying(TrainTransform):
    def finish(self, clip, rng):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "method",
    [
        "fork",
        pytest.param("forkserver", marks=pytest.mark.slow),
        pytest.param("spawn", marks=pytest.mark.exhaustive),
    ],
)
def test_every_start_method(paths, method, monkeypatch):
    """Batches, a hanging worker and a killed worker behave the same with each start method."""
    monkeypatch.setattr("video_rs.data.loader.START_METHOD", method)
    multiprocessing.set_forkserver_preload(["video_rs.data.loader", "torchvision.transforms.v2.functional"])
    reference = list(clip_batches(paths, workers=0))
    for batch, expected in zip(clip_batches(paths, timeout=60), reference, strict=True):
        assert torch.equal(batch["clip"], expected["clip"]) and torch.equal(batch["index"], expected["index"])
    for item, expected in zip(views(paths[:2], timeout=60), views(paths[:2], workers=0), strict=True):
        assert torch.equal(item["views"], expected["views"])
    timeout = 15 if method == "spawn" else 3  # each worker imports torch first
    _, stuck = taken_until_stuck(clip_batches(paths, transform=Stopping(24), workers=1, timeout=timeout))
    assert stuck.path in paths
    with pytest.raises(MachineError, match="a loader process died .by signal 9"):
        list(clip_batches(paths, transform=Dying(24), workers=1, timeout=60))
    assert_no_worker_left()


def test_a_worker_that_is_killed_is_another_thing(paths):
    with pytest.raises(MachineError, match=r"a loader process died \(by signal 9.*data.workers"):
        list(clip_batches(paths, transform=Dying(24)))


@pytest.fixture
def crashing_videos(paths, tmp_path, monkeypatch):
    """Return a function that replaces some videos by ones that kill their reader, ``{index: signal}``."""
    monkeypatch.setattr(clip_datasets, "open_video", crashing.open_video)

    def make(signals):
        bad = {
            i: str(crashing.write_crashing_video(tmp_path / f"{i}.mp4", paths[i], name)) for i, name in signals.items()
        }
        return [bad.get(i, path) for i, path in enumerate(paths)]

    return make


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGFPE", "SIGILL"])
def test_a_file_that_crashes_its_worker_is_named(paths, crashing_videos, capfd, name):
    mixed = crashing_videos({4: name})
    with pytest.raises(DeadWorker) as error:
        list(clip_batches(mixed, timeout=60))
    assert error.value.files == {mixed[4]: f"killed the decoder ({name})"}
    assert str(error.value) == f"{mixed[4]}: killed a loader worker ({name}); restart to leave it out"
    assert error.value.exit_code == 75
    assert "in worker" not in capfd.readouterr().err  # the line that torch prints
    assert_no_worker_left()
    skip = error.value.files
    assert len(list(clip_batches(mixed, skip=skip))) == 8


@pytest.mark.parametrize(
    ("name", "words"),
    [("SIGKILL", "by signal 9.*out of memory.*data.workers"), ("SIGBUS", "/dev/shm.*--shm-size.*data.workers")],
)
def test_a_killed_worker_is_a_machine_error(crashing_videos, name, words):
    """A lack of memory and full shared memory can kill a worker in any file."""
    with pytest.raises(MachineError, match=f"^a loader process died .*{words}"):
        list(clip_batches(crashing_videos({4: name}), timeout=60))
    with pytest.raises(MachineError, match=words):
        list(views(crashing_videos({4: name}), timeout=60))


class Crashing(BatchStream):
    """Kill the idle workers."""

    def __iter__(self):
        for number, keys in enumerate(super().__iter__()):
            if number == 7:
                time.sleep(1)
                for worker in torch.multiprocessing.active_children():
                    os.kill(worker.pid, signal.SIGSEGV)
            yield keys


def test_a_worker_that_dies_without_an_open_file(paths, monkeypatch):
    monkeypatch.setitem(globals(), "BatchStream", Crashing)
    with pytest.raises(MachineError, match="^a loader process died .by signal 11"):
        list(clip_batches(paths, timeout=60))


@pytest.mark.parametrize(
    ("deaths", "named"),
    [
        ([(-11, 4)], [4]),
        ([(-11, 4), (-6, 1)], [1, 4]),
        ([(-11, 4), (-11, -1)], [4]),  # the second between two files
        ([(-11, 4), (-9, 1)], None),  # too little memory can cause both
        ([(-11, 4), (-7, 1)], None),
        ([(-11, -1)], None),
        ([(-15, 4)], None),
        ([(1, 4)], None),
    ],
)
def test_several_dead_workers(deaths, named):
    heartbeats, workers = Heartbeats(len(deaths)), [Worker(100 + i) for i in range(len(deaths))]
    for number, (worker, (code, index)) in enumerate(zip(workers, deaths)):
        worker.code = code
        heartbeats.register(number, worker.pid)(index)
    expected = MachineError if named is None else DeadWorker
    with pytest.raises(expected) as error, worker_errors(workers, heartbeats, str):
        raise RuntimeError("a worker died")
    assert named is None or sorted(error.value.files) == list(map(str, named))


def test_views_continue_after_videos_that_crash_workers(paths, crashing_videos):
    loader = views(crashing_videos({1: "SIGSEGV", 4: "SIGABRT"}), timeout=60)
    items = list(loader)
    assert [item["index"] for item in items] == list(range(6))
    killed = [None, "killed the decoder (SIGSEGV)", None, None, "killed the decoder (SIGABRT)", None]
    assert [item["error"] for item in items] == killed
    for item, expected in zip(items, views(paths, workers=0)):
        assert item["error"] or torch.equal(item["views"], expected["views"])
    assert_no_worker_left()


def test_views_reread_a_crashing_video_after_it_changes(paths, crashing_videos, monkeypatch):
    mixed, deaths, explained = crashing_videos({1: "SIGSEGV"}), [], watchdog._death
    monkeypatch.setattr(watchdog, "_death", lambda *arguments: deaths.append(1) or explained(*arguments))
    loader = views(mixed, timeout=60)
    for _ in range(2):
        assert [item["index"] for item in loader if item["error"]] == [1]
    assert len(deaths) == 1  # no second death in the same file
    shutil.copy(paths[1], mixed[1])
    assert not [item for item in loader if item["error"]]


class Limiting(TrainTransform):
    """Allow no new descriptors once both clips of a batch are read: the thread that sends the batch fails."""

    read = []

    def finish(self, clip, rng):
        self.read.append(1)
        if len(self.read) == 2:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return super().finish(clip, rng)


@pytest.mark.parametrize("timeout", [0, 60])
def test_a_batch_that_cannot_be_sent_is_an_error(paths, capfd, timeout):
    with pytest.raises(MachineError, match="^too many open files: raise `ulimit -n`, or lower data.workers$"):
        list(clip_batches(paths, transform=Limiting(24), workers=1, timeout=timeout))
    assert capfd.readouterr().err == ""


SHARED_MEMORY = """
import sys
sys.path.insert(0, {repository!r})
from tests.data.test_loader import clip_batches, views
from video_rs.errors import MachineError
try:
    print(len(list({loader}({paths!r}, timeout=60))))
except MachineError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("kilobytes", "loader"),
    [
        pytest.param(8, "clip_batches", id="heartbeats", marks=pytest.mark.slow),
        pytest.param(48, "clip_batches", id="locks", marks=pytest.mark.slow),
        pytest.param(72, "clip_batches", id="batches"),
        pytest.param(64, "views", id="views", marks=pytest.mark.slow),
    ],
)
def test_full_shared_memory_is_a_machine_error(paths, tmp_path, kilobytes, loader):
    """A file system of this size is mounted over /dev/shm. Errors can also come from the queue of a worker."""
    if subprocess.run(["unshare", "-Urm", "true"]).returncode:
        faults.unavailable("needs user and mount namespaces (unshare -Urm)")
    code = SHARED_MEMORY.format(repository=str(crashing.REPOSITORY), paths=paths, loader=loader)
    (tmp_path / "script.py").write_text(code)
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-Urm", "sh", "-c", mount, "sh", sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "/dev/shm is full: raise its size (docker run --shm-size=8g), or lower data.workers\n"
    assert done.stderr == ""


class SlowStream(BatchStream):
    """Start after a second: a worker that dies at its start has ended before the first batch is requested."""

    handled = True

    def __iter__(self):
        if not self.handled:  # torch has its own handler while it starts workers
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        time.sleep(1)
        yield from super().__iter__()


@pytest.mark.parametrize("handled", [True, False])
def test_a_worker_that_is_killed_while_it_starts(paths, monkeypatch, handled):
    monkeypatch.setattr(loader_module, "_start_worker", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(SlowStream, "handled", handled)
    monkeypatch.setitem(globals(), "BatchStream", SlowStream)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(MachineError, match=r"a loader process died \(by signal 9"):
            list(clip_batches(paths, timeout=60))
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert_no_worker_left()


def test_processes_of_others_are_left_alone(paths, monkeypatch):
    """A process that another thread starts at the same time is not mistaken for a worker."""
    context, started = multiprocessing.get_context("fork"), []

    class Starting(BatchStream):
        def __iter__(self):
            if not started:
                started.append(context.Process(target=time.sleep, args=(60,)))
                started[0].start()
            return super().__iter__()

    monkeypatch.setitem(globals(), "BatchStream", Starting)
    try:
        assert len(list(clip_batches(paths, steps=1, timeout=60))) == 2
        assert started[0].is_alive()
    finally:
        started[0].kill()
        started[0].join()


def test_a_death_that_the_connection_tells_first():
    """The sockets of a worker close before its exit code can be read."""

    def broken_off():
        raise ConnectionResetError("connection reset by peer")
        yield

    worker = multiprocessing.get_context("fork").Process(target=lambda: time.sleep(0.5) or os._exit(9))
    worker.start()
    with Watchdog([worker], Heartbeats(1), 0.0, str) as watch, pytest.raises(MachineError, match="with exit code 9"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # without the signal handler
        next(watch.batches(broken_off()))


class Worker:
    killed, code = False, None

    def __init__(self, pid):
        self.pid = pid

    @property
    def exitcode(self):
        return -signal.SIGKILL if self.killed else self.code

    def join(self, timeout):
        pass

    def kill(self):
        self.killed = True


def test_the_one_that_is_longest_in_a_file_is_blamed():
    heartbeats, workers = Heartbeats(3), [Worker(pid) for pid in (12, 11, 10)]  # in any order
    tell = [heartbeats.register(worker, pid) for worker, pid in enumerate((10, 11, 12))]
    for worker, index in ((0, 7), (1, 8)):
        tell[worker](index)
        time.sleep(0.1)
    watch = Watchdog(workers, heartbeats, 0.15, str)
    watch._kill_stuck(1.0)
    with pytest.raises(StuckWorker, match="^7 has kept a loader worker busy"):
        next(watch.batches(iter([])))
    assert [worker.killed for worker in workers] == [False, True, True]  # the first may be writing a message


def script(paths, end, before="", decoder="pyav"):
    """Run a process that takes one batch from two workers and then executes `end`."""
    code = f"""
import sys
{before}
from video_rs.data.clips import TemporalSampling
from video_rs.data.clip_datasets import ClipDataset
from video_rs.data.loader import clip_loader
from video_rs.data.sources.records import Records
from video_rs.data.sampler import BatchStream
from video_rs.data.transforms.crops import TrainTransform

sampling, transform = TemporalSampling(4, 2), TrainTransform(32)  # frames of 32 lines are still resized
records = Records({paths!r}, [0] * {len(paths)}, ["a"])
dataset = ClipDataset(records, sampling=sampling, transform=transform, decoder={decoder!r})
assert not {{"decord", "torchvision"}} & {{name for name, module in sys.modules.items() if module}}
loader = clip_loader(dataset, BatchStream(len(records), batch_size=2, num_steps=1000, seed=3), workers=2)
batches = iter(loader)
{end}
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)


def imported(paths, **options):
    done = script(paths, "print({'decord', 'torchvision'} & {n for n, m in sys.modules.items() if m})", **options)
    assert done.returncode == 0, done.stderr
    return eval(done.stdout)


@pytest.mark.slow
def test_what_the_workers_need_is_imported_once(paths):
    assert imported(paths) == {"torchvision"}
    assert imported(paths, decoder="decord") == {"torchvision", "decord"}
    assert imported(paths, before="sys.modules |= {'torchvision': None}") == set()  # as if not installed


@pytest.mark.slow
def test_an_iterator_that_is_left_as_it_is_does_not_hold_up_the_exit(paths):
    start = time.monotonic()
    done = script(paths, "print(len(next(batches)['clip']))")
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")
    assert time.monotonic() - start < 60
