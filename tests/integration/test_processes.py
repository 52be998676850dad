"""Several processes train as one does, and a run survives the loss of any of them."""

import contextlib
import csv
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import commands, corpus
from tests.data import crashing
from tests.data.hanging import write_hanging_video
from tests.integration.conftest import REPOSITORY, tool
from tests.integration.test_resume import assert_same, run
from video_rs import checkpoint
from video_rs.errors import UserError
from video_rs.experiment import run as experiment_run
from video_rs.experiment.config import load_config
from video_rs.training import fit, recipe
from video_rs.training.run_folder import newest_valid

EXACT = {"train__precision": "float64", "train__sync_bn": True}


def environment(**variables):
    return {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in variables.items()}}


def start(path, processes, *overrides, script=REPOSITORY / "tools" / "train_net.py"):
    """Start the documented command, through ``torchrun`` if there are several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, script, "--cfg", path, *overrides]
    return commands.start(command, stderr=subprocess.STDOUT, env=environment())


def finish(process):
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def train(path, processes):
    """Train to the end; a single process is this one."""
    if processes > 1:
        finish(start(path, processes))
    else:
        done = tool("train_net.py", "--cfg", path)
        assert done.returncode == 0, done.stderr


def wait_for(process, word):
    seen = []
    for line in process.stdout:
        seen.append(line)
        if word in line:
            return
    raise AssertionError("".join(seen))


def wait_until(condition, processes):
    """Wait until the condition is true, while the processes run."""
    end = time.monotonic() + 100
    while not condition():
        ended = [process.communicate()[0] for process in processes if process.poll() is not None]
        assert time.monotonic() < end and not ended, ended
        time.sleep(0.02)


def newest_step(folder):
    return max((int(path.stem.removeprefix("step-")) for path in folder.glob("checkpoints/step-*.pt")), default=0)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def saved(folder):
    return checkpoint.load(folder / "last.pt")


def assert_close(a, b, tolerance):
    for part in ("model", "ema"):
        for name, value in a[part].items():
            torch.testing.assert_close(b[part][name], value, rtol=tolerance, atol=tolerance, msg=f"{part} {name}")


def children(process):
    """Return the ids of torchrun's training processes."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in found if b"train_net.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


# The same as one process ---------------------------------------------------------------------------------------------


def test_two_processes_equal_one(tiny_config, tmp_path):
    """Losses, weights, EMA, and a validation of 9 clips, each counted once."""
    runs, logs = [], []
    for processes in (1, 2):
        folder = tmp_path / f"run{processes}"
        train(tiny_config(**EXACT, out=str(folder), data__val="train", train__epochs=1), processes)
        runs.append(saved(folder))
        logs.append([line.split('"lr"')[0] for line in (folder / "metrics.jsonl").read_text().splitlines()])
    assert_close(*runs, 1e-9)
    assert logs[0] == logs[1]
    with pytest.raises(AssertionError):  # it can fail: the other weights of one run
        assert_close({"model": runs[0]["model"], "ema": {}}, {"model": runs[0]["ema"], "ema": {}}, 1e-9)


@pytest.mark.slow
def test_fifty_steps_of_one_two_and_four_processes(tiny_config, tmp_path):
    steps = {"train__max_steps": 50, "train__val_every": 5, "train__log_every": 5}
    for precision, max_steps, tolerance in (("float64", 50, 1e-9), ("float32", 10, 1e-5)):
        runs = []
        for processes in (1, 2, 4):
            folder = tmp_path / f"{precision}{processes}"
            changes = {**EXACT, **steps, "train__max_steps": max_steps, "train__precision": precision}
            train(tiny_config(**changes, optim__lr=0.005, out=str(folder)), processes)
            runs.append(saved(folder))
        assert runs[0]["step"] == max_steps
        for other in runs[1:]:
            assert_close(runs[0], other, tolerance)


RECORDER = """
import sys, zlib
from video_rs.cli.common import run
from video_rs.cli.train import main
from video_rs.training.trainer import Trainer
original = Trainer._forward_backward
def recorded(self, batch, number):
    first = self.world.rank * self.schedule.per_rank_batch + number * self.schedule.micro_batch
    with open(FILE, "a") as file:
        for i, (index, clip) in enumerate(zip(batch["index"].tolist(), batch["clip"])):
            file.write(f"{self.step} {first + i} {index} {zlib.crc32(clip.numpy().tobytes())}\\n")
    return original(self, batch, number)
Trainer._forward_backward = recorded
sys.exit(run(main, sys.argv[1:]))
"""


def recorder(folder, name):
    """Return a script that trains, and the file of its samples: step, position in the global batch, index, pixels."""
    script = folder / f"{name}.py"
    script.write_text(RECORDER.replace("FILE", repr(str(folder / f"{name}.txt"))))
    return script, folder / f"{name}.txt"


@pytest.mark.slow
def test_from_two_processes_to_one_and_back(tiny_config, tmp_path):
    """Stopped by SIGTERM, with another number of processes each time: same samples, same order, same weights."""
    script, expected = recorder(tmp_path, "undisturbed")
    finish(start(tiny_config(**EXACT, out=str(tmp_path / "undisturbed")), 1, script=script))
    path = tiny_config(**EXACT)
    script, seen = recorder(tmp_path, "disturbed")
    for processes, step, code in ((2, 2, None), (1, 4, 75)):
        process = start(path, processes, script=script)
        wait_for(process, f"step {step}/6")
        os.kill(process.pid, signal.SIGTERM)
        text, _ = process.communicate(timeout=100)
        assert (
            "received SIGTERM; checkpoint saved at step" in text
            and 'Traceback (most recent call last):\n  File "/tools' not in text
        )
        assert code is None or process.returncode == code
        assert saved(tmp_path / "run")["step"] >= step
    finish(start(path, 2, script=script))
    assert_close(saved(tmp_path / "undisturbed"), saved(tmp_path / "run"), 1e-9)
    samples = expected.read_text().splitlines()
    assert len(samples) == 6 * 8
    assert sorted(seen.read_text().splitlines()) == sorted(samples)  # no step was taken twice


# Processes that die --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_that_is_killed(tiny_config, tiny_videos, tmp_path):
    """The other rank ends too, with a checkpoint, and the resumed run ends with the same bits."""
    changes = {"train__epochs": 20, "train__val_every": 20, "train__max_steps": 40, "train__checkpoint_minutes": 60}
    changes["data__train"] = str(tmp_path / "long.csv")  # no epoch ends, and writes a checkpoint, before the kill
    rows = sorted((tiny_videos / "train").glob("*/*.mp4")) * 14
    (tmp_path / "long.csv").write_text("".join(f"{path} {path.parent.name}\n" for path in rows))
    finish(start(tiny_config(**changes, out=str(tmp_path / "undisturbed")), 2))
    path = tiny_config(**changes)
    process = start(path, 2)
    wait_for(process, "step 3/40")
    os.kill(children(process)[-1], signal.SIGKILL)
    text, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert 3 <= newest_valid(tmp_path / "run").state["step"] < 40, text
    finish(start(path, 2))
    assert_same(saved(tmp_path / "run"), saved(tmp_path / "undisturbed"))


@pytest.mark.slow
def test_a_restart_on_two_machines(tiny_config, tmp_path):
    """Two agents of torchrun with one process each; one process is killed, and both agents restart theirs."""
    changes = {"train__epochs": 4, "train__checkpoint_minutes": 0}
    finish(start(tiny_config(**changes, out=str(tmp_path / "undisturbed")), 2))
    meeting = ["--nnodes=2", "--nproc_per_node=1", "--max-restarts=3", "--rdzv-backend=c10d"]
    meeting += [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", *meeting, str(REPOSITORY / "tools" / "train_net.py")]
    command += ["--cfg", str(tiny_config(**changes)), "train.peer_timeout=90", "data.timeout=60"]
    agents = [commands.start(command, stderr=subprocess.STDOUT, env=environment()) for _ in range(2)]
    wait_until(lambda: (tmp_path / "run" / "last.pt").exists(), agents)
    os.kill(children(agents[1])[0], signal.SIGKILL)
    texts = [finish(agent) for agent in agents]
    assert sum("resuming at step" in text for text in texts) == 1, texts
    assert_same(saved(tmp_path / "run"), saved(tmp_path / "undisturbed"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("processes", [1, 2])
def test_soak(tiny_config, tmp_path, processes):
    """SIGKILL of a rank, torchrun or all processes at random moments; the newest checkpoint is sometimes truncated."""
    changes = {"train__epochs": 40, "train__checkpoint_minutes": 0, "data__mixup": 0.2, "train__log_every": 4}
    train(tiny_config(**changes, out=str(tmp_path / "undisturbed")), processes)
    path, draw, folder = tiny_config(**changes), random.Random(processes), tmp_path / "run"
    had_one, seen, step = False, set(), 0
    for kill in range(20):
        process = start(path, processes)
        if kill % 5 == 4:  # at any moment of the start, also before the ranks have met
            time.sleep(draw.uniform(0.0, 4.0))
        else:
            step += draw.randrange(4)
            wait_until(lambda step=step: newest_step(folder) >= step, [process])
            time.sleep(draw.uniform(0.0, 0.2))
        if process.poll() is None:
            victims = children(process) if processes > 1 else []
            if victims and draw.random() < 0.6:
                os.kill(draw.choice([*victims, process.pid]), signal.SIGKILL)
            else:
                os.killpg(process.pid, signal.SIGKILL)
                for victim in victims:  # torchrun gives them sessions of their own
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
        process.communicate(timeout=100)
        found = newest_valid(folder)
        assert found or not had_one
        had_one = had_one or found is not None
        step = found.state["step"] if found else 0
        seen.add(step)
        if kill % 4 == 3 and len(list((folder / "checkpoints").glob("step-*.pt"))) > 1:
            os.truncate(found.path, 1000)
    assert len(seen) >= 5, seen  # it was training that was killed
    finish(start(path, processes))
    assert_same(saved(folder), saved(tmp_path / "undisturbed"))


# What a person can get wrong -----------------------------------------------------------------------------------------


def by_hand(path, ranks, *, size=2, port=None, overrides=None, **variables):
    """Start the ranks of a run by hand, and return stderr and exit code of each."""
    port = port or free_port()
    script = str(REPOSITORY / "tools" / "train_net.py")
    processes = []
    for rank in ranks:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, script, "--cfg", str(path), *(overrides or {}).get(rank, [])]
        processes.append(commands.start(command, stderr=subprocess.PIPE, env=environment(**{**own, **variables})))
    return [(process.communicate(timeout=100)[1], process.returncode) for process in processes]


def lines(text):
    return [line for line in text.splitlines() if not line.startswith("[")]  # torch's warnings begin so


@pytest.mark.slow
def test_ranks_with_different_configs(tiny_config, tmp_path):
    (first, code), (second, other) = by_hand(tiny_config(), [0, 1], overrides={1: ["optim.lr=0.07"]})
    assert (code, other) == (2, 2)
    assert len(lines(first)) == 1 and not lines(second)
    assert "optim.lr is 0.05 for rank 0 and 0.07 for rank 1" in first
    assert not (tmp_path / "run").exists()


def test_what_ranks_compare_at_the_start(tiny_config, monkeypatch):
    seen = {}
    for module in (experiment_run, fit):
        monkeypatch.setattr(module, "check_same", lambda world, values: seen.update(values))
    assert run(tiny_config(), "train.max_steps=1") == 0
    assert seen["config"]["optim.lr"] == 0.05 and "data.root" not in seen["config"]
    assert {"train", "val"} <= seen["data"].keys() and seen["code"]


@pytest.mark.slow
def test_a_rank_that_fails_at_its_start(tiny_config, tmp_path):
    (first, code), (second, other) = by_hand(tiny_config(), [0, 1], overrides={1: ["data.root=/nonexistent"]})
    assert (code, other) == (2, 2)
    assert not lines(first) and len(lines(second)) == 1
    assert "error: rank 1: " in second and "/nonexistent" in second


@pytest.mark.slow
def test_a_hanging_file_in_one_of_two_processes(tiny_config, tiny_videos, tmp_path):
    """The other rank learns of it before it waits in batch norm; both exit, and the next start skips the file."""
    dataset = tmp_path / "videos"
    shutil.copytree(tiny_videos, dataset)
    bad = corpus.copy(write_hanging_video, dataset / "train" / "zoom_in" / "hanging.mkv")
    sizes = {"train__micro_batch": 2, "train__sync_bn": True, "train__peer_timeout": 60}
    path = tiny_config(data__root=str(dataset), data__workers=1, data__timeout=3, **sizes)
    found = by_hand(path, [0, 1])
    assert [code for _, code in found] == [75, 75]
    assert sum(str(bad) in text for text, _ in found) == 1
    assert saved(tmp_path / "run")["hung"] == [str(bad)]
    assert [code for _, code in by_hand(path, [0, 1])] == [0, 0]


@pytest.mark.slow
def test_a_file_that_crashes_a_worker_of_one_of_two_processes(tiny_config, tiny_videos, tmp_path):
    """Both processes exit properly. The next start decodes the file again, because it has changed."""
    dataset = tmp_path / "videos"
    shutil.copytree(tiny_videos, dataset)
    bad = next((dataset / "train" / "zoom_in").iterdir())
    whole = bad.read_bytes()
    crashing.write_crashing_video(bad, bad, "SIGSEGV")
    plugin = crashing.write_plugin(tmp_path / "crashing_plugin.py")
    sizes = {"train__micro_batch": 2, "train__sync_bn": True, "train__peer_timeout": 60}
    path = tiny_config(data__root=str(dataset), data__workers=1, data__timeout=50, plugins=[str(plugin)], **sizes)
    found = by_hand(path, [0, 1])
    assert [code for _, code in found] == [75, 75]
    killed = f"{bad}: killed a loader worker (SIGSEGV)"
    assert sum(killed in text for text, _ in found) == 1
    assert saved(tmp_path / "run")["hung"] == [str(bad)]
    bad.write_bytes(whole)
    assert [code for _, code in by_hand(path, [0, 1])] == [0, 0]
    assert (saved(tmp_path / "run")["hung"], saved(tmp_path / "run")["broken"]) == ([], {})


POISON = """
import sys, torch
from video_rs.cli.common import run
from video_rs.cli.train import main
from video_rs.training.trainer import Trainer
original = Trainer._forward_backward
def poisoned(self, batch, number):
    criterion, spoilt = self.criterion, torch.where(batch["index"] == 5, float("nan"), 1.0)
    self.criterion = lambda logits, targets: criterion(logits, targets) * spoilt
    original(self, batch, number)
    self.criterion = criterion
Trainer._forward_backward = poisoned
sys.exit(run(main, sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_poisoned_file_in_one_of_two_processes(tiny_config, tmp_path):
    """Both ranks skip its step, and only this file is named."""
    (tmp_path / "poison.py").write_text(POISON)
    text = finish(start(tiny_config(train__micro_batch=2), 2, script=tmp_path / "poison.py"))
    rows = list(csv.DictReader((tmp_path / "run" / "bad_steps.csv").read_text().splitlines()))
    assert len(rows) == 2 and len({row["path"] for row in rows}) == 1  # once an epoch
    assert rows[0]["path"] in text
    assert [row["epoch"] for row in rows] == ["0", "1"]
    # one of the files that the records have at this place
    names = sorted(str(file) for file in Path(rows[0]["path"]).parents[1].rglob("*.mp4"))
    assert names[5] == rows[0]["path"]
    assert all(torch.isfinite(value).all() for value in saved(tmp_path / "run")["model"].values())


@pytest.mark.slow
def test_too_many_bad_steps_stop_both_processes(tiny_config, tmp_path):
    """One line from rank 0; both ranks end, and a checkpoint is saved."""
    (tmp_path / "poison.py").write_text(POISON)
    path = tiny_config(train__micro_batch=2, train__max_bad_steps=1, train__log_every=1)
    text, _ = start(path, 2, script=tmp_path / "poison.py").communicate(timeout=300)
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "1 of the last 2 steps" in line and "with another out=" in line
    codes = re.findall(r"exitcode  : (-?\d+)", text)  # torchrun ends the one that is slower to exit with SIGTERM
    assert codes.count("2") >= 1 and set(codes) <= {"2", "-15"} and len(codes) == 2, text
    assert saved(tmp_path / "run")["bad_steps"] and (tmp_path / "run" / "bad_steps.csv").exists()


@pytest.mark.slow
def test_workers_do_not_outlive_their_torchrun(tiny_config, tmp_path):
    process = start(tiny_config(train__epochs=500, train__val_every=0), 2)
    wait_for(process, "step 2/")
    text = kill_torchrun(process)
    assert "torchrun has ended" in text
    assert newest_valid(tmp_path / "run").state["step"] >= 2, text


@pytest.mark.slow
def test_ranks_that_are_not_connected_do_not_outlive_torchrun(tiny_config, tmp_path):
    process = start(tiny_config(), 2)
    wait_until(lambda: len(children(process)) == 2, [process])
    assert kill_torchrun(process).count("check that torchrun still runs there") == 2
    assert not (tmp_path / "run").exists()


def kill_torchrun(process):
    """Kill torchrun alone, wait at most a minute until its ranks have ended, and return their output."""
    assert len(children(process)) == 2
    process.kill()
    return process.communicate(timeout=60)[0]  # ends with the last process that can write to it


@pytest.fixture
def rank_0(monkeypatch):
    """A function that starts rank 0 of two in this process, and returns its exit code and stderr."""

    def start(path, port):
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2}
        for name, value in address.items():
            monkeypatch.setenv(name, str(value))
        done = tool("train_net.py", "--cfg", path)
        return done.returncode, done.stderr

    return start


def test_a_rank_that_never_arrives(tiny_config, tmp_path, rank_0):
    code, text = rank_0(tiny_config(train__peer_timeout=2), free_port())
    assert code == 3 and len(lines(text)) == 1
    assert "rank 1 did not arrive" in text and "train.peer_timeout" in text
    assert not (tmp_path / "run").exists()


def test_a_port_in_use(tiny_config, rank_0):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = rank_0(tiny_config(train__peer_timeout=2), port)
    assert code == 2 and f"port {port}" in text and "MASTER_PORT" in text and "Traceback" not in text


def test_processes_that_do_not_divide_the_batch(tiny_config):
    config = load_config(tiny_config(train__batch_size=9))
    with pytest.raises(UserError, match="train.batch_size=9 does not divide over 2 processes: set it to 8 or 10"):
        recipe.schedule(experiment_run.options_of(config), 24, world_size=2)


def test_half_of_the_variables(tiny_config, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = tool("train_net.py", "--cfg", tiny_config())
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "LOCAL_RANK, MASTER_ADDR, MASTER_PORT" in done.stderr and "torchrun" in done.stderr


@pytest.mark.slow
def test_a_test_in_two_processes(tiny_config, tmp_path):
    """Metrics and files are those of one process, and a mistake is one line."""
    path = tiny_config(train__epochs=1, test__save_views=True)
    train(path, 1)
    script = str(REPOSITORY / "tools" / "test_net.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    found = []
    for processes in (1, 2):
        if processes == 1:
            done = tool("test_net.py", "--cfg", path)
        else:
            command = [*torchrun, script, "--cfg", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("report: ") == 1
        folder = tmp_path / "run" / "test"
        texts = [(folder / name).read_text() for name in ("metrics.json", "predictions.csv")]
        with np.load(folder / "views.npz") as views:
            found.append((texts, {name: views[name].tolist() for name in views.files}))
    assert found[0] == found[1]
    done = subprocess.run([*torchrun, script, "--cfg", str(path), "weights=none.pt"], capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "none.pt does not exist" in errors[0]
