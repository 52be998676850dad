"""Convert a config to the arguments of ``fit``."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from video_rs.data.video_dataset import VideoDataset
from video_rs.distributed import launcher
from video_rs.distributed.device import configure_torch, peak_memory, select_device, synchronize, warmup_steps
from video_rs.distributed.world import World, check_same, start_world
from video_rs.errors import MachineError, UserError, WorkerFailed
from video_rs.experiment import build
from video_rs.experiment.checks import check_timeouts
from video_rs.experiment.config import Config, differences, flatten
from video_rs.experiment.schema import options_of
from video_rs.terminal import duration
from video_rs.training.fit import Caller, Result, run_in_folder
from video_rs.training.job import Job
from video_rs.training.pages import start_page

OF_A_MACHINE = {"data.root", "data.train", "data.val", "data.test", "data.list", "data.workers", "train.threads"}
"""Keys that may differ between the ranks of a run."""
MEASURED = 3  # number of measured steps of a dry run; their median is printed


def build_parts(config: Config) -> tuple[nn.Module, VideoDataset, VideoDataset | None]:
    """Create the model and the datasets of a config, the arguments of ``fit``. Raise UserError if one is invalid."""
    configure_torch(config.train.threads, config.train.deterministic)
    records = build.build_records(config, ("train", "val"))
    model = build.build_model(config, build.class_names(config, records["train"]))
    train = build.video_dataset(config, records["train"], is_training=True)
    val = build.video_dataset(config, records["val"], is_training=False) if "val" in records else None
    return model, train, val


def make_job(config: Config, saved: Mapping[str, Any] | None = None, world: World | None = None) -> Job:
    """Create the objects of a run without starting it. ``saved`` is the checkpoint to resume from."""
    job = Job(*build_parts(config), options=options_of(config), world=world, saved=saved)
    if saved:
        job.check_data(saved, config.out)
    return job


def run(config: Config, *, resume: str, test: str, predict: str, must_resume: bool = False) -> Result:
    """Train with a config, in one process or as one of several ranks.

    Args:
        config: config of the run.
        resume, test, predict: the commands to resume the run, and to test or use its result, for the log.
        must_resume: raise UserError if there is no run to resume.

    Raises:
        UserError, MachineError, Preempted, KeyboardInterrupt: see :func:`video_rs.training.fit.fit`.
    """
    world = start_world(select_device(config.train.device), config.train.peer_timeout)
    try:
        check_timeouts(config, world.size)
        check_same(world, {"config": {key: v for key, v in flatten(config).items() if key not in OF_A_MACHINE}})
        changed = partial(differences, new=config)
        caller = Caller(config.to_dict(), changed, config.to_yaml(), resume, test, predict, must_resume)
        return run_in_folder(partial(build_parts, config), options_of(config), Path(config.out), world, caller)
    finally:
        world.close()


def dry_run(config: Config) -> None:
    """Train on a few micro-batches of full size, and print the memory and time of the run. Write nothing."""
    if launcher.processes() > 1:
        raise UserError("--dry-run supports a single process: run it without torchrun, with the batch of one process")
    start_world(select_device(config.train.device))
    job = make_job(config)
    print("\n".join(start_page(job, config.out)))
    try:
        loading, seconds = _time_of_micro_batch(job)
    except WorkerFailed as error:  # asks for a restart, which helps a run but not a dry run
        files = "; ".join(f"{path} {reason}" for path, reason in error.files.items())
        raise MachineError(f"{files}; remove it, or start the run, which omits it" if files else str(error)) from error
    trainer, schedule = job.trainer, job.trainer.schedule
    count, total = schedule.accumulation_steps, seconds * schedule.accumulation_steps
    loss, _ = trainer.metrics.means()
    print(f"loss {loss:.4f}, peak memory {peak_memory(trainer.device):.2f} GiB")
    alone = f"median of {MEASURED}; loading alone {loading * count:.2f} s"
    print(f"one step of {count} micro-batches: {total:.2f} s with data loading ({alone})")
    print(f"{schedule.num_steps} steps at that rate: {duration(total * schedule.num_steps)}, validations not counted")


def _time_of_micro_batch(job: Job) -> tuple[float, float]:
    """Return the seconds per micro-batch of the loader alone, and of training with data loading."""
    trainer, workers = job.trainer, max(1, job.loading()["workers"])
    warmup = 1 + warmup_steps(trainer.device)
    # measure clips of full size, also in a run with phases. A short run has fewer batches
    batches = iter(job.loader(0, num_steps=1 + workers + warmup + MEASURED, phase_ends=()))
    batch = next(batches)
    print(f"micro-batch: clips {list(batch['clip'].shape)} {batch['clip'].dtype}, labels {list(batch['label'].shape)}")

    def step() -> None:
        trainer.train_step([next(batches)])
        synchronize(trainer.device)

    loading = _seconds(lambda: deque(itertools.islice(batches, workers), maxlen=0)) / workers  # one batch per worker
    for _ in range(warmup):
        step()
    seconds = statistics.median(_seconds(step) for _ in range(MEASURED))
    return loading, max(loading, seconds)  # the steps may have taken batches that were loaded in advance


def _seconds(function: Callable[[], object]) -> float:
    start = time.monotonic()
    function()
    return time.monotonic() - start
