"""The memory check before the first step, and the time that a dry run prints."""

import re
import time

import pytest

from tests import small_machine
from tests.integration.test_bad_input import assert_one_line
from video_rs.data import clip_datasets
from video_rs.distributed.world import World
from video_rs.errors import MachineError
from video_rs.experiment import run
from video_rs.experiment.config import load_config
from video_rs.training import memory
from video_rs.training.job import Job
from video_rs.training.trainer import Trainer

LARGE = {  # about 28 MiB of activations per clip
    **{"data__num_frames": 8, "data__train_size": 96, "data__short_side": 96, "data__test_size": 96},
    **{"model__width": 0.5, "train__max_steps": 1},
}


def test_the_dry_run_of_the_readme_on_a_machine_with_23_gib(tiny_videos, run_tool, monkeypatch, tmp_path):
    small_machine.has(monkeypatch, tmp_path, 23)
    arguments = [
        f"data.root={tiny_videos}",
        "train.device=cpu",
        "data.workers=2",
        f"out={tmp_path / 'run'}",
        "--dry-run",
    ]
    done = run_tool("train_net.py", "--cfg", "finetune_rs50.yaml", *arguments)
    assert_one_line(done, 3, "train.micro_batch=16: a step needs about 28", "23.0 GiB are free", "train.micro_batch=8")
    assert not (tmp_path / "run").exists()


def test_training_compares_a_step_with_the_limit_of_its_container(tiny_config, run_tool, monkeypatch, tmp_path):
    """The micro-batch that is named fits."""
    small_machine.group(tmp_path / "groups", memory_max=3 * 2**26)
    mount = f"36 31 0:33 / {tmp_path / 'groups'} rw - cgroup2 cgroup2 rw"
    small_machine.has(monkeypatch, tmp_path, 23, "0::/\n", (mount,))
    path = tiny_config(**LARGE)
    done = run_tool("train_net.py", "--cfg", path)
    assert_one_line(done, 3, "not enough memory for train.micro_batch=8: a step needs about 0.", "0.2 GiB are free")
    assert not (tmp_path / "run").exists()
    fits = re.search(r"restart with train.micro_batch=(\d)", done.stderr)[1]
    done = run_tool("train_net.py", "--cfg", path, f"train.micro_batch={fits}")
    assert done.returncode == 0, done.stderr


def test_no_micro_batch_fits(tiny_config, run_tool, monkeypatch, tmp_path):
    small_machine.has(monkeypatch, tmp_path, 0.03)
    done = run_tool("train_net.py", "--cfg", tiny_config(**LARGE), "--dry-run")
    assert_one_line(done, 3, "0.0 GiB are free: no smaller one fits; lower data.num_frames")


@pytest.mark.parametrize(
    ("setting", "fits"),
    [
        ("train.activation_checkpointing=[1, 2, 3, 4]", True),
        ("train.precision=float64", False),
        ("data.workers=256", False),  # 512 batches in shared memory
        ("train.compile=true", True),  # not checked
    ],
)
def test_settings_that_need_more_or_less_memory(tiny_config, setting, fits, monkeypatch, tmp_path):
    small_machine.has(monkeypatch, tmp_path, 0.4 if not fits else 0.15)
    path = tiny_config(**{**LARGE, "train__max_steps": 1000})
    config = load_config(path, [setting])
    if fits:
        run.make_job(config)
        return
    with pytest.raises(MachineError, match="not enough memory"):
        run.make_job(config)


def test_processes_on_one_machine_share_its_memory(tiny_config, monkeypatch, tmp_path):
    job = run.make_job(load_config(tiny_config(**LARGE)))
    small_machine.has(monkeypatch, tmp_path, 0.4)
    memory.check_memory(job)
    job.world = World(local_size=4)
    with pytest.raises(MachineError, match="0.1 GiB are free"):
        memory.check_memory(job)


class Clock:
    """A clock that advances when the loader and the trainer work, by given seconds."""

    def __init__(self, monkeypatch, loads, steps):
        self.now, train_step, loader = 0.0, Trainer.train_step, Job.loader
        loads, steps = iter(loads), iter(steps)

        def stepping(trainer, batches):
            train_step(trainer, batches)
            self.now += next(steps)

        def loading(*args, **options):
            for batch in loader(*args, **options):
                self.now += next(loads)
                yield batch

        monkeypatch.setattr(Trainer, "train_step", stepping)
        monkeypatch.setattr(Job, "loader", loading)
        monkeypatch.setattr(run.time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(
    ("loads", "steps", "seconds", "loading"),
    [
        ([9, 1, 9, 2, 2, 2], [50, 3, 40, 5], 7, 1),  # the median of 3 + 2, 40 + 2 and 5 + 2
        ([9, 8, 0, 0, 0, 0], [50, 3, 3, 3], 8, 8),  # batches that were loaded in advance hide no slow loader
    ],
)
def test_the_time_of_a_dry_run(tiny_config, run_tool, monkeypatch, loads, steps, seconds, loading):
    """The median of three steps after the first one, with data loading."""
    Clock(monkeypatch, loads, steps)
    path = tiny_config(train__micro_batch=4, train__max_steps=1)
    done = run_tool("train_net.py", "--cfg", path, "--dry-run")
    assert done.returncode == 0, done.stderr
    expected = f"{2 * seconds}.00 s with data loading (median of 3; loading alone {2 * loading}.00 s)"
    assert f"one step of 2 micro-batches: {expected}" in done.stdout
    assert f"1 steps at that rate: {2 * seconds}s" in done.stdout


def test_the_dry_run_has_the_largest_clips(tiny_config, run_tool, tmp_path):
    done = run_tool("train_net.py", "--cfg", tiny_config(), "data.phases=[[1, 2, 16]]", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "micro-batch: clips [8, 4, 32, 32, 3]" in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_dry_run_does_not_ask_for_a_restart_when_a_file_hangs(tiny_config, run_tool, tmp_path, monkeypatch):
    """A run would leave the file out at its next start. The workers inherit the replaced function."""
    monkeypatch.setattr(clip_datasets, "open_video", lambda *args, **options: time.sleep(60))
    path = tiny_config(data__workers=1, data__timeout=1)
    done = run_tool("train_net.py", "--cfg", path, "--dry-run")
    assert_one_line(done, 3, ".mp4 hung the decoder; remove it, or start the run, which omits it")
    assert not (tmp_path / "run").exists()
