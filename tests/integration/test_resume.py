"""An interrupted and resumed run ends with the weights of an uninterrupted one, bit for bit."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from tests import commands, corpus
from video_rs import checkpoint
from video_rs.cli import train as train_command
from video_rs.experiment import config
from video_rs.training import fit, run_folder
from video_rs.training.trainer import Trainer

RECIPE = {"data__mixup": 0.2, "data__cutmix": 0.5, "train__micro_batch": 4, "train__label_smoothing": 0.1}
STEPS = 6  # 24 clips, batches of 8, 2 epochs


def run(path, *overrides):
    return train_command.train(config.load_config(path, overrides))


def interrupt_after(monkeypatch, step):
    """Send SIGINT to this process right after a step."""
    original = Trainer.train_step

    def train_step(self, micro_batches):
        original(self, micro_batches)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def assert_same(a, b):
    for part in ("model", "ema"):
        assert a[part].keys() == b[part].keys()
        for name in a[part]:
            assert torch.equal(a[part][name], b[part][name]), (part, name)
    assert (a["step"], a["ema_updates"], a["best"]) == (b["step"], b["ema_updates"], b["best"])
    for i, state in a["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], b["optimizer"]["state"][i]["momentum_buffer"])


@pytest.fixture
def undisturbed(tiny_config, tmp_path):
    """The last checkpoint of an uninterrupted run, trained once for all tests."""

    def make(file):
        assert run(tiny_config(**RECIPE, out=str(tmp_path / "undisturbed"))) == 0
        shutil.copy(tmp_path / "undisturbed" / "last.pt", file)

    return checkpoint.load(corpus.shared(make, "undisturbed.pt", RECIPE))


@pytest.mark.parametrize(
    ("steps", "workers"), [((2, 3), 0), pytest.param(range(1, STEPS), 2, id="all", marks=pytest.mark.slow)]
)
def test_interrupted_at_every_step(tiny_config, tmp_path, undisturbed, steps, workers):
    """Step 3 ends an epoch."""
    for step in steps:
        path = tiny_config(**RECIPE, out=str(tmp_path / f"interrupted{step}"))
        with pytest.MonkeyPatch.context() as patch:
            interrupt_after(patch, step)
            assert run(path) == 130
        folder = tmp_path / f"interrupted{step}"
        assert checkpoint.load(folder / "last.pt")["step"] == step
        assert run(path, f"data.workers={workers}") == 0
        assert_same(checkpoint.load(folder / "last.pt"), undisturbed)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, STEPS + 1))


def test_different_seeds_differ(tiny_config, tmp_path, undisturbed):
    """The comparison above can fail."""
    run(tiny_config(**RECIPE, out=str(tmp_path / "other"), train__seed=1))
    with pytest.raises(AssertionError):
        assert_same(checkpoint.load(tmp_path / "other" / "last.pt"), undisturbed)


def start(path):
    program = "from video_rs.cli.train import main; from video_rs.cli.common import run; import sys"
    command = [sys.executable, "-c", f"{program}; sys.exit(run(main, ['--cfg', {str(path)!r}]))"]
    return commands.start(command, stderr=subprocess.STDOUT)


def wait_for(process, word):
    seen = []
    for line in process.stdout:
        seen.append(line)
        if word in line:
            return "".join(seen)
    raise AssertionError("".join(seen))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_signals_to_the_whole_process_group(tiny_config, tmp_path, undisturbed, number, code):
    path = tiny_config(**RECIPE, data__workers=2)
    process = start(path)
    wait_for(process, "step 2/6")
    os.killpg(process.pid, number)
    rest = process.stdout.read()
    assert process.wait(60) == code, rest
    assert "Resume with: " in rest
    assert "Traceback" not in rest
    assert run(path) == 0
    assert_same(checkpoint.load(tmp_path / "run" / "last.pt"), undisturbed)


@pytest.mark.parametrize(
    "kills", [pytest.param(1, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.exhaustive)]
)
def test_killed_at_random_moments(tiny_config, tmp_path, undisturbed, kills):
    """After SIGKILL there is a valid checkpoint, or none yet."""
    path = tiny_config(**RECIPE, train__checkpoint_minutes=0)
    for _ in range(kills):
        process = start(path)
        wait_for(process, "begins ")
        time.sleep(random.uniform(0, 0.6))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if (tmp_path / "run" / "last.pt").exists():
            checkpoint.load(tmp_path / "run" / "last.pt")
    assert run(path) == 0
    assert_same(checkpoint.load(tmp_path / "run" / "last.pt"), undisturbed)


@pytest.mark.slow
def test_a_killed_worker(tiny_config, tmp_path):
    """As when the kernel kills a worker for lack of memory: the run ends with a checkpoint."""
    process = start(tiny_config(data__workers=2, train__epochs=500, train__checkpoint_minutes=60))
    wait_for(process, "step 2/")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 3, rest
    assert "a loader process died (by signal 9)" in rest and "Traceback" not in rest
    step = checkpoint.load(tmp_path / "run" / "last.pt")["step"]
    assert f"checkpoint saved at step {step}. Resume with: " in rest


def test_another_config_is_refused_with_the_difference(tiny_config, run_tool):
    path = tiny_config()
    assert run(path, "train.max_steps=1") == 0
    done = run_tool("train_net.py", "--cfg", path, "train.max_steps=1", "optim.lr=0.07")
    assert done.returncode == 2
    assert "optim.lr was 0.05, now 0.07" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_token_of_an_address_is_not_printed(tiny_config, tmp_path, monkeypatch, capfd):
    """The printed command resumes with the address in config.yaml."""
    monkeypatch.setattr("video_rs.training.job.init_from", lambda model, source, method: "all of it")
    monkeypatch.setattr("video_rs.training.log.WandbLog", wandb := MagicMock())
    address = "https://h/a.pt?token=secret"
    start = ["--cfg", str(tiny_config(train__max_steps=2)), f"train.init_from={address}", "train.wandb=a"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 1)
        assert train_command.main(start) == 130
    out, err = capfd.readouterr()
    texts = [(tmp_path / "run" / name).read_text() for name in ("log.txt", "status.json")]
    assert "https://h/a.pt" in out and "secret" not in "".join((out, err, *texts))
    assert "https://h/a.pt" in str(wandb.call_args) and "secret" not in str(wandb.call_args)
    command, name, folder = shlex.split(json.loads(texts[1])["command"])[-3:]
    assert (command, name, folder) == ("train", "--cfg", str(tmp_path / "run"))
    assert config.load_config(folder) == config.load_config(start[1], start[2:])


def test_a_finished_run_says_so(tiny_config, tmp_path, capsys):
    path = tiny_config()
    assert run(path, "train.max_steps=1") == 0
    capsys.readouterr()
    status = tmp_path / "run" / "status.json"  # of a process that was killed after the last checkpoint
    status.write_text(status.read_text().replace('"complete"', '"running"'))
    assert run(path, "train.max_steps=1") == 0
    assert "is complete" in capsys.readouterr().out
    assert json.loads(status.read_text())["state"] == "complete"


def test_a_damaged_checkpoint_says_how_to_go_on(tiny_config, run_tool, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes(b"PK\x03\x04 and no more")
    done = run_tool("train_net.py", "--cfg", tiny_config())
    assert done.returncode == 2
    assert "last.pt is truncated" in done.stderr and "choose another out=" in done.stderr
    assert "best.pt" not in done.stderr  # there is none
    assert (tmp_path / "run" / "last.pt").exists()


def test_the_best_weights_of_a_run_without_checkpoints_stay(tiny_config, run_tool, tmp_path):
    path, folder = tiny_config(), tmp_path / "run"
    assert run(path, "train.max_steps=1") == 0
    shutil.rmtree(folder / "checkpoints")
    (folder / "last.pt").unlink()
    best = (folder / "best.pt").read_bytes()
    done = run_tool("train_net.py", "--cfg", path, "train.max_steps=1")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "has a best.pt and no checkpoint to resume from: choose another out=" in done.stderr
    assert (folder / "best.pt").read_bytes() == best


def test_two_processes_in_one_run_folder(tiny_config, run_tool):
    path = tiny_config(train__epochs=500)
    process = start(path)
    wait_for(process, "step 2/")
    done = run_tool("train_net.py", "--cfg", path)
    process.kill()
    assert done.returncode == 2
    assert "another process is training in" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_worker_that_outlives_its_run_does_not_lock_it(tiny_config, tmp_path):
    """As when the trainer is killed for lack of memory while a worker hangs in a file."""
    process = start(tiny_config(data__workers=1, train__epochs=500))
    wait_for(process, "step 2/")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    worker = next(int(pid) for pid in children if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(worker, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        with run_folder.lock(tmp_path / "run"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_folder_is_locked_before_its_checkpoint_is_chosen(tiny_config, monkeypatch):
    path, seen = tiny_config(), []
    assert run(path, "train.max_steps=1") == 0
    for name in ("lock", "find_saved"):
        original = getattr(fit, name)
        monkeypatch.setattr(fit, name, lambda *a, f=original, name=name, **k: seen.append(name) or f(*a, **k))
    assert run(path, "train.max_steps=1") == 0
    assert seen == ["lock", "find_saved"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_leave_before_the_first_step(tiny_config, tmp_path, monkeypatch, capfd, number):
    """For example while files are listed, which takes minutes for a large dataset."""
    monkeypatch.setattr(fit, "find_saved", lambda *given, **named: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as left:
        run(tiny_config())
    assert left.value.code == 75 and not (tmp_path / "run").exists()
    name = signal.Signals(number).name
    assert capfd.readouterr().err == f"error: received {name} before the first step; restart to begin\n"
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_start_that_fails_leaves_nothing_behind(tiny_config, run_tool, tmp_path):
    assert run_tool("train_net.py", "--cfg", tiny_config(), "data.root=/nowhere").returncode == 2
    assert not (tmp_path / "run").exists()


def test_resume_without_a_run(tiny_config, run_tool):
    done = run_tool("train_net.py", "--cfg", tiny_config(), "--resume")
    assert done.returncode == 2
    assert "last.pt does not exist" in done.stderr
