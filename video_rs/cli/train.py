"""Trains a network from a config.

tools/train_net.py --cfg k400_rs50.yaml data.root=/data/k400
tools/train_net.py --cfg motion_rs.yaml
tools/train_net.py --cfg finetune_rs50.yaml data.root=/data/mine train.init_from=runs/k400_rs50/best.pt
tools/train_net.py --cfg k400_rs50.yaml data.root=/data/k400 --dry-run

A run folder that holds a checkpoint of the same config is resumed where it stopped.
"""

from __future__ import annotations

import fcntl
import signal
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from video_rs import config as configs
from video_rs.cli.common import command, config_parser
from video_rs.config import Config
from video_rs.errors import MachineError, Preempted, StuckWorker, UserError

if TYPE_CHECKING:
    from video_rs.training.log import RunLog
    from video_rs.training.loop import Trainer


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
    return train(config, again, must_resume=args.resume)


def train(config: Config, argv: list[str], *, must_resume: bool = False) -> int:
    """The whole run; ``argv`` is only for the commands that are printed."""
    from video_rs.cli.job import Job
    from video_rs.training.faults import Interrupted
    from video_rs.training.log import RunLog

    folder = Path(config.out)
    saved = _saved_run(folder, config, must_resume)
    job = Job(config, saved)
    resumed = saved is not None
    del saved  # its tensors are in the job now
    lock = _lock(folder)  # only now, so that a start that fails leaves no folder behind
    step, steps, validated = job.trainer.step, job.trainer.plan.num_steps, job.trainer.validated
    log = RunLog(folder, step, steps, validated)
    try:
        if resumed and validated == steps:
            log.say(f"{folder} is complete: {steps} steps. For another run choose another out=, or delete the folder")
        else:
            (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
            for line in job.summary():
                log.say(line)
            log.say(
                f"{'resuming' if resumed else 'starting'} at step {step} of {steps}; everything is written to {folder}"
            )
            job.fit(folder, log)
        _report_broken(job.trainer, folder, log)
        merit = "mAP" if config.data.multi_label else "top-1"
        log.say(f"best validation {merit} {100 * job.trainer.best[0]:.2f} %, weights in {folder / 'best.pt'}")
        log.say(f"next: {command('test', *argv)}")
    except Interrupted as stop:
        log.say(
            f"interrupted; the state after step {job.trainer.step} is saved. Resume with: {command('train', *argv)}"
        )
        if stop.args[0] == signal.SIGTERM:
            raise Preempted(f"asked to leave (SIGTERM) at step {job.trainer.step}; saved in {folder}") from None
        return 130
    except StuckWorker as stuck:
        on = f"Go on without {stuck.path}" if stuck.path else "Go on"
        log.say(f"{stuck}; the state after step {job.trainer.step} is saved. {on} with: {command('train', *argv)}")
        raise
    except MachineError as error:
        if job.trainer.saved == job.trainer.step:  # the disk may be what failed
            log.say(f"{error}; the state after step {job.trainer.step} is saved. Go on with: {command('train', *argv)}")
        raise
    finally:
        log.close()
        lock.close()
    return 0


def dry_run(config: Config) -> int:
    """One micro-batch of real data, forth and back, and what the whole run would take; writes nothing."""
    from video_rs import runtime
    from video_rs.cli.job import Job
    from video_rs.training.log import duration

    job = Job(config)
    trainer, plan = job.trainer, job.trainer.plan
    print("\n".join(job.summary()))
    batch = next(iter(job.loader(0)))
    print(f"micro-batch: clips {list(batch['clip'].shape)} {batch['clip'].dtype}, labels {list(batch['label'].shape)}")
    if trainer.device.type == "cuda":
        trainer.train_step([batch])  # the first one also chooses kernels
        runtime.synchronize(trainer.device)
    start = time.monotonic()
    trainer.train_step([batch])
    runtime.synchronize(trainer.device)
    parts = plan.batch_size // plan.micro_batch
    seconds = (time.monotonic() - start) * parts
    loss = trainer.mean_loss()
    memory = runtime.peak_memory(trainer.device)
    print(f"loss {loss:.4f}, peak memory {memory:.2f} GiB")
    print(f"one step of {parts} micro-batches: {seconds:.2f} s without data loading")
    print(f"{plan.num_steps} steps at that rate: {duration(seconds * plan.num_steps)}, validations not counted")
    return 0


def _lock(folder: Path) -> IO[str]:
    """Makes the run folder, and keeps other processes out until the file is closed or this process ends in any way."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = open(folder / ".lock", "w", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process trains in {folder}; wait for it, or choose another out=") from None
    for unfinished in folder.glob(".*.pt.*"):  # what a killed process was writing
        unfinished.unlink()
    return handle


def _saved_run(folder: Path, config: Config, must_resume: bool) -> dict[str, Any] | None:
    """The checkpoint in the run folder, after a check that it is of this config."""
    path = folder / "last.pt"
    if not path.exists():
        if must_resume:
            raise UserError(f"--resume: {path} does not exist; leave --resume out, or name the run folder with out=")
        return None
    from video_rs import checkpoint, download

    try:
        saved = checkpoint.load_run(path)
    except UserError as error:
        hint = f"delete it to start over, or go on from train.init_from={folder / 'best.pt'} with another out="
        raise UserError(f"{error}: {hint}") from None
    if "optimizer" not in saved:
        raise UserError(f"{path} holds weights without a training state; start from it with train.init_from={path}")
    changed = configs.differences(saved["config"], config)
    if changed:
        shown = {key: map(download.shown, pair) if key == "train.init_from" else pair for key, pair in changed.items()}
        text = ", ".join("{} was {!r}, is now {!r}".format(key, *pair) for key, pair in shown.items())
        raise UserError(f"{folder} holds a run of another config ({text}); choose another out=, or delete the folder")
    return saved


def _report_broken(trainer: Trainer, folder: Path, log: RunLog) -> None:
    ledger = trainer.ledger
    if not ledger.files:
        return
    log.say(f"{len(ledger.files)} files could not be read and were replaced by others of their class:")
    for path, (reason, times) in sorted(ledger.files.items())[:10]:
        log.say(f"  {path} ({times}x): {reason}")
    log.say(f"all of them are in {ledger.path(folder)}")
