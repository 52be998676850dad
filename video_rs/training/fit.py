"""Train a network: ``fit(model, train, val, epochs=10, out="runs/mine")``, in a script, a notebook or a command.

A run folder contains ``last.pt``, ``best.pt``, ``checkpoints/``, ``log.txt``, ``metrics.jsonl``, ``status.json`` and
``tensorboard/``. The same call on the folder of an interrupted run resumes it with bit-identical results. On the folder
of a complete run it returns the result.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from video_rs import checkpoint
from video_rs.data.video_dataset import VideoDataset
from video_rs.distributed.device import select_device
from video_rs.distributed.world import World, check_same, code_version, start_world
from video_rs.errors import (
    EXIT_INTERRUPTED,
    EXIT_REQUEUE,
    EXIT_USER,
    PeerFailed,
    Preempted,
    UserError,
    VideoRSError,
    truncate,
)
from video_rs.files import atomic_write, expand_path
from video_rs.signals import Interrupted
from video_rs.training import recipe
from video_rs.training.job import Job
from video_rs.training.log import RunLog
from video_rs.training.loop import Run
from video_rs.training.options import MAY_CHANGE, Options, without_sections
from video_rs.training.pages import end_page, start_page
from video_rs.training.recheck import recheck
from video_rs.training.run_folder import FOLDER, Differences, find_saved, lock
from video_rs.training.run_status import NAMES


@dataclass(frozen=True)
class Result:
    """The best validation of a complete run.

    Attributes:
        metrics: ``top1`` and ``top5`` (``map`` and ``hit1`` with several labels per sample) in [0, 1], and ``loss``.
            Empty without validation data.
        path: path of ``best.pt``, for ``video_rs.load``.
    """

    metrics: dict[str, float]
    path: Path


@dataclass(frozen=True)
class Caller:
    """The caller of a run: its config, and the commands for its log.

    Attributes:
        config: nested plain values to store in every checkpoint.
        differences: called with the config of a checkpoint; returns changed keys that prevent resuming, ``{key: (saved,
            now)}``.
        yaml: content of ``config.yaml``; "" for none.
        resume: command to resume the run.
        test: command to test the result.
        predict: command to use the result, logged instead of `test` for a run without validation data.
        must_resume: raise UserError if there is no checkpoint to resume from.
    """

    config: Mapping[str, Any]
    differences: Differences
    yaml: str = ""
    resume: str = ""
    test: str = ""
    predict: str = ""
    must_resume: bool = False

    @staticmethod
    def of_options(options: Options, out: Path) -> Caller:
        """Return the caller of a run without a config."""
        now = {name: value for name, value in options.to_dict().items() if name not in MAY_CHANGE}

        def differences(config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
            if "fit" not in config:
                raise UserError(f"{out} was started with a config: use another out=, or the command to resume it")
            saved = config["fit"]
            return {name: (saved.get(name), value) for name, value in now.items() if saved.get(name) != value}

        call, load = f'video_rs.fit(..., out="{out}")', f'video_rs.load("{out / "best.pt"}")'
        return Caller({"fit": options.to_dict()}, differences, resume=call, test=load)


def fit(
    model: nn.Module,
    train: VideoDataset,
    val: VideoDataset | None = None,
    *,
    epochs: float,
    out: str | Path,
    world: World | None = None,
    **options: Any,
) -> Result:
    """Train a network and return its best validation.

    Args:
        model: a network from ``create_model``. It is trained in place. The best weights (their EMA) are in ``best.pt``.
        train: training data: ``VideoDataset(root, "train", create_transform(**model.data_config, is_training=True))``.
        val: validation data: ``VideoDataset(root, "val", create_transform(**model.data_config))``; None for none.
        epochs: number of passes over the training data.
        out: the run folder.
        world: the ranks of the run; None to use the processes started by torchrun or SLURM, if any.
        options: fields of :class:`video_rs.training.options.Options`, such as ``batch_size=32``, ``lr=0.8``,
            ``optimizer="adamw"``, ``workers=4`` or ``init_from="best.pt"``.

    Raises:
        UserError: model, data and options are incompatible, or the folder contains another run.
        KeyboardInterrupt: Ctrl-C. A checkpoint is saved, and the same call resumes.
        Preempted: SIGTERM or SIGUSR1. A checkpoint is saved, and the same call resumes.
        VideoRSError: see :meth:`video_rs.training.loop.Run.fit`.
    """
    options, out = Options.of({"epochs": epochs, **options}), Path(expand_path(out))
    try:
        with contextlib.ExitStack() as closing:
            if world is None:
                world = start_world(select_device(options.device), options.peer_timeout)
                closing.callback(world.close)
            return run_in_folder(lambda: (model, train, val), options, out, world, Caller.of_options(options, out))
    except VideoRSError as error:
        error.args = (without_sections(str(error)),)
        raise


def run_in_folder(
    make_parts: Callable[[], tuple[nn.Module, VideoDataset, VideoDataset | None]],
    options: Options,
    out: Path,
    world: World,
    caller: Caller,
) -> Result:
    """Train as :func:`fit` does; ``make_parts`` returns its first three arguments once the run folder is checked."""
    with contextlib.ExitStack() as closing:
        check_same(world, {"code": code_version(), "options": replace(options, workers=0, threads=0).to_dict()})
        with world.together("the run folder"):
            is_locked = world.is_main and (out / FOLDER).exists()
            if is_locked:  # before choosing the checkpoint, because another process may still be writing one
                closing.enter_context(lock(out))
        saved, path = find_saved(out, caller.differences, world, must_resume=caller.must_resume)
        with world.together("the start"):
            job = Job(*make_parts(), options, world, saved)
            if saved:
                job.check_data(saved, out)
        check_same(world, {"data": job.fingerprints()})
        with world.together("the run folder"):
            if world.is_main and not is_locked:  # only now, so that a failed start does not create a folder
                closing.enter_context(lock(out))
                if saved is None and (out / "last.pt").exists():
                    raise UserError(f"another process trained in {out} in the meantime; restart to resume")
            log = _open_log(job, saved, out, caller) if world.is_main else RunLog.silent()
        closing.callback(log.close)
        run = Run(
            job.trainer,
            folder=out,
            log=log,
            identity=job.identity(caller.config),
            loader_from=job.loader,
            validate=partial(job.validate, info=log.info),
            samples_of=job.samples,
            recheck=partial(recheck, job.incidents, job.train, world, info=log.info, **job.loading()),
            prepare=job.prepare,
            keep=job.options.keep_checkpoints,
            incidents=job.incidents,
        )
        if saved:
            run.load_state_dict(saved)
            del saved  # its tensors were copied to the run
        with run.signals, closing.pop_all():  # to the end: a launcher signals all when the first process has exited
            _train(run, job, caller, path)
            return Result(dict(run.best_metrics), out / "best.pt")


def _open_log(job: Job, saved: Mapping[str, Any] | None, out: Path, caller: Caller) -> RunLog:
    step, validated = (saved["step"], saved["validated"]) if saved else (0, 0)
    config = checkpoint.redact_config(caller.config)
    others = {"is_mixed": recipe.is_mixed(job.options), "wandb": job.options.wandb, "config": config}
    return RunLog(out, step, job.trainer.schedule.num_steps, validated, **others)


def _train(run: Run, job: Job, caller: Caller, resumed_from: str) -> None:
    """Train to the end, and log the description of the run and its summary."""
    log, folder, num_steps = run.log, run.folder, run.schedule.num_steps
    is_complete = run.is_complete
    next_command = caller.test if run.schedule.has_validation else caller.predict or caller.test
    try:
        if not is_complete:
            if run.world.is_main and caller.yaml:
                with atomic_write(folder / "config.yaml", "w") as file:
                    file.write(caller.yaml)
            for line in start_page(job, folder, resumed_from):
                log.info(line)
        log.status.begin(run.step, num_steps, caller.resume)
        if not is_complete:
            run.fit()
        log.status.end("complete", next_command)
    except Exception as error:
        _log_end(error, run, caller.resume)
        if isinstance(error, Interrupted):
            raise _exception(error, run) from None
        raise
    if not run.world.is_main:
        return
    if is_complete:
        best = f"weights in {folder / 'best.pt'}"
        if run.best_metrics:
            best = f"best validation {NAMES[run.monitored]} {100 * run.best[0]:.2f} %, {best}"
        new = "for a new run, use another out= or delete the folder"
        if run.stops_early:
            new = f"train.early_stop={run.schedule.early_stop} ended it; set a larger value or 0 to resume; {new}"
        page = [f"{folder} is complete: {run.step} steps; {new}", best, f"next: {next_command}"]
    else:
        schedule = replace(run.schedule, num_steps=run.step)  # may have stopped early
        page = end_page(schedule, log.status, folder, run.incidents, next_command)
    for line in page:
        log.info(line)


def _log_end(error: Exception, run: Run, resume: str) -> None:
    """Log why a run ended early, and how to resume it."""
    states = {EXIT_INTERRUPTED: "interrupted", EXIT_REQUEUE: "preempted"}
    code = getattr(error, "exit_code", None)  # None: a bug
    text = f"{type(error).__name__}: {error}" if code is None else str(error)
    run.log.status.end(states.get(code, "failed"), resume, text)
    if run.is_on_disk and code not in (None, EXIT_USER):  # otherwise the message says what to do
        what = "interrupted" if code == EXIT_INTERRUPTED or not text else text
        how = f"Resume without {truncate(list(error.files))}" if getattr(error, "files", None) else "Resume"
        run.log.info(f"{what}; checkpoint saved at step {run.step}. {how} with: {resume}")
    elif code == EXIT_INTERRUPTED:
        run.log.info(f"interrupted; {_last_checkpoint(run)}")


def _last_checkpoint(run: Run) -> str:
    step = run.step if run.is_on_disk else run.checkpointer.saved
    return f"checkpoint saved at step {step} in {run.folder}" if step > 0 else f"no step was done in {run.folder}"


def _exception(stop: Interrupted, run: Run) -> BaseException:
    """Return the exception for a received signal: KeyboardInterrupt for SIGINT, otherwise Preempted."""
    message = f"received {stop.signal.name}; {_last_checkpoint(run)}"
    if stop.exit_code == EXIT_INTERRUPTED:
        return KeyboardInterrupt(message)
    return Preempted(message) if run.world.is_main else PeerFailed(0, message, stop.exit_code)


def _signature() -> inspect.Signature:
    """Return the signature of ``fit`` with all options, for ``help`` and notebook completion."""
    own = inspect.signature(fit).parameters
    fields = inspect.signature(Options).parameters
    named = [p for name, p in own.items() if name != "options"]
    extra = [p.replace(kind=p.KEYWORD_ONLY) for name, p in fields.items() if name not in own]
    return inspect.Signature([*named, *extra], return_annotation=Result)


fit.__signature__ = _signature()
