"""Trains a network from a config.

tools/train_net.py --cfg k400_rs50.yaml data.root=/data/k400
tools/train_net.py --cfg motion_rs.yaml
tools/train_net.py --cfg finetune_rs50.yaml data.root=/data/mine train.init_from=runs/k400_rs50/best.pt
tools/train_net.py --cfg k400_rs50.yaml data.root=/data/k400 --dry-run

A run folder that holds a checkpoint of the same config is resumed where it stopped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_rs import hub as download
from video_rs.cli.common import command, config_parser
from video_rs.distributed import launcher
from video_rs.errors import Preempted, StuckWorker, UserError, VideoRSError
from video_rs.experiment import config as configs
from video_rs.experiment.checks import check_timeouts
from video_rs.experiment.config import Config

if TYPE_CHECKING:
    from video_rs.distributed.world import World
    from video_rs.experiment.run import Job
    from video_rs.training.log import RunLog
    from video_rs.training.loop import Run


def main(argv: list[str]) -> int:
    """Entry point of ``tools/train_net.py`` and ``video-rs train``."""
    parser = config_parser("train", __doc__)
    parser.add_argument("--dry-run", action="store_true", help="build everything, run one batch, tell what a run costs")
    parser.add_argument("--resume", action="store_true", help="insist that there is a run to resume")
    args = parser.parse_intermixed_args(argv)
    config = configs.load_config(args.cfg, args.overrides)

    if args.dry_run:
        return dry_run(config)
    again = [arg for arg in argv if arg != "--resume"]
    if any(arg != download.redact_url(arg) for arg in again):  # the folder's config keeps the secret of an address
        again = ["--cfg", f"{config.out}/config.yaml", f"out={config.out}"]
    return train(config, again, must_resume=args.resume)


def train(config: Config, argv: list[str], *, must_resume: bool = False) -> int:
    """The whole run, alone or as one of several processes; ``argv`` is only for the commands that are printed."""
    from video_rs.training.signals import exit_on_signals

    with exit_on_signals():
        from video_rs.distributed import device as runtime
        from video_rs.distributed import world as distributed

        world = distributed.start_world(runtime.select_device(config.train.device).type, config.train.peer_timeout)
        try:
            return _train(config, argv, world, must_resume)
        finally:
            world.close()


def _train(config: Config, argv: list[str], world: World, must_resume: bool) -> int:
    from video_rs.distributed import world as distributed
    from video_rs.experiment.run import Job
    from video_rs.training.checkpointer import FOLDER
    from video_rs.training.log import RunLog

    check_timeouts(config, world.size)
    distributed.check_same(world, {"config": _shared(config), "code": distributed.code_version()})
    folder = Path(config.out)
    with contextlib.ExitStack() as closing:
        with world.together("the run folder"):
            is_ours = world.is_main and (folder / FOLDER).exists()
            if is_ours:  # before the checkpoint is chosen: another process may still be writing one
                closing.enter_context(_lock(folder))
        saved, path = _saved_run(folder, config, must_resume, world)
        with world.together("the start"):
            job = Job(config, saved, world)
        distributed.check_same(world, {"data": job.identity()["fingerprint"]})
        with world.together("the run folder"):
            if world.is_main and not is_ours:  # only now: a start that fails leaves no folder behind
                closing.enter_context(_lock(folder))
                if saved is None and (folder / "last.pt").exists():
                    raise UserError(f"another process has trained in {folder} meanwhile; start again to go on from it")
            step, validated = (saved["step"], saved["validated"]) if saved else (0, 0)
            log = job.log(folder, step, validated) if world.is_main else RunLog.silent()
        closing.callback(log.close)
        run = job.run(folder, log)
        del saved  # its tensors are in the run now
        with run.signals:  # to the last line: a launcher sends one to all when the first process has left
            return _fit(run, job, log, argv, resumed_from=path)


def _fit(run: Run, job: Job, log: RunLog, argv: list[str], resumed_from: str) -> int:
    """The run from its first line to its last; the exit code."""
    from video_rs.experiment.summary import end_page, start_page
    from video_rs.training.signals import Interrupted

    config, world, folder, go_on = job.config, job.world, Path(job.config.out), command("train", *argv)
    try:
        if run.validated == run.schedule.num_steps:
            log.info(
                f"{folder} is complete: {run.step} steps. For another run choose another out=, or delete the folder"
            )
            monitored = "mAP" if config.data.multi_label else "top-1"
            log.info(f"best validation {monitored} {100 * run.best[0]:.2f} %, weights in {folder / 'best.pt'}")
            log.info(f"next: {command('test', *argv)}")
            log.status.begin(run.step, run.schedule.num_steps, go_on)
            log.status.end("complete", command("test", *argv))
            return 0
        if world.is_main:
            (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        for line in start_page(job, resumed_from):
            log.info(line)
        log.status.begin(run.step, run.schedule.num_steps, go_on)
        run.fit()
        log.status.end("complete", command("test", *argv))
        if world.is_main:
            for line in end_page(run.schedule, log.status, folder, run.incidents, command("test", *argv)):
                log.info(line)
    except Interrupted as stop:
        _report_end(stop, run, log, go_on)
        if stop.exit_code == 75 and world.is_main:
            step = run.step if run.is_on_disk else run.checkpointer.saved
            what = f"the state after step {step} is saved" if step > 0 else "no step was done"
            raise Preempted(f"asked to leave ({stop.signal.name}); {what} in {folder}") from None
        return stop.exit_code
    except VideoRSError as error:
        _report_end(error, run, log, go_on)
        raise
    except Exception as error:
        log.status.end("failed", go_on, f"{type(error).__name__}: {error}")
        raise
    return 0


def _report_end(error: VideoRSError, run: Run, log: RunLog, go_on: str) -> None:
    """What the first process says of a run that has not come to its end, if its state is saved."""
    states = {130: "interrupted", 75: "preempted"}
    log.status.end(states.get(error.exit_code, "failed"), go_on, str(error))
    if run.is_on_disk and error.exit_code != 2:  # else the disk may be what failed, or the message says what to do
        what = "interrupted" if error.exit_code == 130 or not str(error) else str(error)
        on = f"Go on without {error.path}" if isinstance(error, StuckWorker) and error.path else "Resume"
        log.info(f"{what}; the state after step {run.step} is saved. {on} with: {go_on}")


def _shared(config: Config) -> dict[str, Any]:
    """What must be the same in all processes: all but where each finds the data, and how many hands it has."""
    own = {"data.root", "data.train", "data.val", "data.test", "data.workers", "train.threads"}
    return {key: value for key, value in configs.flatten(config).items() if key not in own}


def dry_run(config: Config) -> int:
    """One micro-batch of real data, forth and back, and what the whole run would take; writes nothing."""
    from video_rs.distributed import device as runtime
    from video_rs.distributed import world as distributed
    from video_rs.experiment.run import Job
    from video_rs.experiment.summary import start_page
    from video_rs.terminal import duration

    if launcher.processes() > 1:
        raise UserError("--dry-run is for one process: call it without torchrun, with the batch of one process")
    distributed.start_world(runtime.select_device(config.train.device).type)
    job = Job(config)
    trainer, schedule = job.trainer, job.trainer.schedule
    print("\n".join(start_page(job)))
    batch = next(iter(job.loader(0)))
    print(f"micro-batch: clips {list(batch['clip'].shape)} {batch['clip'].dtype}, labels {list(batch['label'].shape)}")
    for _ in range(runtime.traits(trainer.device).warmup_steps):
        trainer.train_step([batch])
        runtime.synchronize(trainer.device)
    start = time.monotonic()
    trainer.train_step([batch])
    runtime.synchronize(trainer.device)
    seconds = (time.monotonic() - start) * schedule.accumulation_steps
    loss, _ = trainer.metrics.means()
    print(f"loss {loss:.4f}, peak memory {runtime.peak_memory(trainer.device):.2f} GiB")
    print(f"one step of {schedule.accumulation_steps} micro-batches: {seconds:.2f} s without data loading")
    print(f"{schedule.num_steps} steps at that rate: {duration(seconds * schedule.num_steps)}, validations not counted")
    return 0


def _lock(folder: Path) -> contextlib.ExitStack:
    """Make the run folder, and keep other processes out until the result is closed or this process ends in any way."""
    from video_rs.files import locked
    from video_rs.training.checkpointer import FOLDER, remove_unfinished

    held = contextlib.ExitStack()
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        if not os.access(folder / FOLDER, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder / FOLDER))
        held.enter_context(locked(folder))
    except BlockingIOError:
        raise UserError(f"another process trains in {folder}; wait for it, or choose another out=") from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{error.filename}: {error.strerror}; the run needs its folder: choose another out=") from None
    remove_unfinished(folder)
    return held


def _saved_run(folder: Path, config: Config, must_resume: bool, world: World) -> tuple[dict[str, Any] | None, str]:
    """The newest valid checkpoint of the run folder and its name, after a check that it is of this config."""
    from video_rs import checkpoint
    from video_rs.training.checkpointer import newest_valid

    with world.together("the checkpoint"):
        found = newest_valid(folder) if world.is_main else None
        if must_resume and world.is_main and not found:
            raise UserError(
                f"--resume: {folder / 'last.pt'} does not exist; leave --resume out, or name the run folder with out="
            )
        if world.is_main and not found and (best := folder / "best.pt").exists():
            raise UserError(
                f"{folder} has a best.pt and no checkpoint to go on from: choose another out=, with "
                f"train.init_from={best} to start from it, or delete the folder to start over"
            )
        for path, reason in found.skipped if found else ():
            print(f"{path} is passed over: {reason}", flush=True)
    path = world.gather(found and found.path, "the checkpoint")[0]
    if path is None:
        return None, ""
    with world.together("the checkpoint"):
        saved = found.state if found else checkpoint.load_run(path)
        _check_config(saved, config, folder)
    return saved, str(path)


def _check_config(saved: dict[str, Any], config: Config, folder: Path) -> None:
    changed = configs.differences(saved["config"], config)
    if changed:
        shown = {
            key: map(download.redact_url, pair) if key == "train.init_from" else pair for key, pair in changed.items()
        }
        text = ", ".join("{} was {!r}, is now {!r}".format(key, *pair) for key, pair in shown.items())
        raise UserError(f"{folder} holds a run of another config ({text}); choose another out=, or delete the folder")
