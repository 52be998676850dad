"""The training loop: fetch, step, log, save, validate.

All random numbers are a function of (seed, step), and the state dict of the run contains everything that a step
changes. Therefore a run that is interrupted at any step and resumed ends with bit-identical weights. Ranks stay in
step: before every micro-batch they reduce their flags (failure, stop signal, checkpoint due, unreadable files), and all
ranks act on the result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from torch import nn

from video_rs.distributed.device import finishes_within
from video_rs.errors import EXIT_USER, PeerFailed, VideoRSError, WorkerFailed
from video_rs.files import stamp
from video_rs.signals import Interrupted, StopSignals
from video_rs.terminal import counted
from video_rs.training.incidents import BAD_STEPS
from video_rs.training.log import RunLog, StepClock
from video_rs.training.run_state import RunState
from video_rs.training.run_status import NAMES

Check = Callable[[], None]


class Agreed(NamedTuple):
    """Flags of a step, reduced to the maximum over all ranks. ``stop`` is a signal number, 0 for none."""

    failed: int = 0
    stop: int = 0
    save_due: int = 0
    unreadable_files: int = 0


@dataclass(eq=False, repr=False, kw_only=True)
class Run(RunState):
    """A training run: the steps of a schedule, with logging, checkpoints and validations.

    Args:
        trainer: the trainer of this rank.
        folder: the run folder for ``last.pt``, ``best.pt`` and ``checkpoints/``.
        log: the log of the run; a silent log on all ranks except the first.
        identity: entries of every checkpoint in addition to the state: config, model_args, data_config, ...
        loader_from: called with a step (from 0); returns the micro-batches of this rank from that step on.
        validate: called with a network and a function that it must call often, which raises if the run must stop.
            Returns metrics: ``top1`` (``map`` with several labels per sample) in [0, 1], ``loss`` and others. The loss
            is NaN if no output is finite.
        samples_of: called with a step (from 0); returns the samples of its global batch, in order.
        recheck: called before the first step with a function as for ``validate``; removes unreadable files that can
            be read now from the list.
        prepare: called like ``validate``; returns the network to validate and to save as the best one.
        keep: number of checkpoints to keep.
        incidents: unreadable files and non-finite steps, with their limits.

    Attributes:
        signals: the stop signals received in :meth:`fit` and in other blocks ``with run.signals``.
    """

    log: RunLog
    loader_from: Callable[[int], Iterable[dict[str, Any]]]
    validate: Callable[[nn.Module, Check], dict[str, float]]
    recheck: Callable[[Check], None] = lambda check: None
    prepare: Callable[[nn.Module, Check], nn.Module] = lambda model, check: model

    def __post_init__(self) -> None:
        super().__post_init__()
        self.signals = StopSignals()
        self._agreed, self._clock = Agreed(), StepClock(self.step)
        self._unreadable: list[tuple[str, str]] = []  # files replaced in this step on this rank

    def fit(self) -> None:
        """Train from the current step to the last one, or until the monitored metric stops improving.

        Raises:
            Interrupted: a signal was received. A checkpoint is saved.
            WorkerFailed: a training file hangs or kills a loader process. A checkpoint is saved, and a resumed run does
                not open the file.
            MachineError: a loader process was killed (a checkpoint is saved), a rank was lost (a checkpoint is saved if
                the device still responds), a checkpoint cannot be written, or many consecutive validation files hang or
                kill loader processes.
            PeerFailed: one of these happened on another rank.
            UserError: too many files are unreadable (a checkpoint is saved), or the weights or too many steps are
                non-finite (the last good checkpoint is intact).
        """
        with self.signals, self.checkpointer:
            try:
                if self.step and self.schedule.validates(self.step) and self.validated < self.step:
                    self._validate()  # the run was interrupted before or during this validation
                self._train()
            except VideoRSError as error:
                self._save_before_exit(error)
                raise

    def _train(self) -> None:
        self.recheck(self.signals.check)
        self.write_incidents()
        self.check_files()
        batches, self._clock = iter(self.loader_from(self.step)), StepClock(self.step)
        while not self.is_complete:
            self.trainer.train_step(self._fetch(batches))  # forward, backward, optimizer, EMA
            self._note_unreadable_files()
            self.log.bar.advance()
            if self.schedule.logs(self.step):
                self._log_step()
            if self.schedule.ends_epoch(self.step) or self._agreed.save_due:
                self.save()
            if self.schedule.validates(self.step):
                self._validate()
            if self._stop and not self.is_complete:
                self.save()
                raise Interrupted(self._stop)
            self.checkpointer.poll()
        if self.stops_early:
            self._log_bad_steps()
            best = f"{NAMES[self.monitored]} than {100 * self.best[0]:.2f} %"
            stale = counted(self.stale, "validation")
            self.log.info(f"stopped early at step {self.step}: {stale} without a better {best}")

    def _fetch(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the micro-batches of a step. Wait for all ranks each time, as the network may reduce over ranks."""
        self._unreadable = []
        for _ in range(self.schedule.accumulation_steps):
            batch, error, start = None, None, time.monotonic()
            try:
                batch = next(batches)
                self._unreadable += batch["broken"]
            except VideoRSError as failure:
                error = failure
            self._clock.waited += time.monotonic() - start
            self._agree(error)
            yield batch

    def _agree(self, error: VideoRSError | None) -> None:
        """Reduce the flags of this step over all ranks: failure, stop signal, checkpoint due, unreadable files."""
        what, due = f"step {self.step + 1}", self.world.is_main and self.checkpointer.is_due()
        flags = [error is not None, self.signals.received or 0, due, bool(self._unreadable)]
        self._agreed = Agreed(*self.world.agree(flags, what))
        if self._agreed.failed:
            with self.world.together(what):
                if error:
                    raise error

    @property
    def _stop(self) -> int:
        """Number of the stop signal that all ranks agreed on; 0 for none."""
        return (self.signals.received or 0) if self.world.size == 1 else self._agreed.stop

    def _note_unreadable_files(self) -> None:
        if self._agreed.unreadable_files:
            for files in self.world.gather(self._unreadable, "the unreadable files"):
                self.incidents.note_files(files)
            self.check_files()

    def _log_step(self) -> None:
        loss, accuracy = self.trainer.metrics.means()
        self.trainer.metrics.clear()
        name = "hit1" if self.monitored == "map" else "accuracy"  # hit1: the top class is one of the sample's
        metrics = {"loss": loss, name: accuracy} if loss == loss else {}  # nan: all steps were skipped
        metrics |= {"lr": self.trainer.learning_rate(self.step - 1)}
        self.log.trained(self.schedule, self.step, metrics | self._clock.metrics(self.step, self.schedule.batch_size))
        self._log_bad_steps()
        self._clock = StepClock(self.step)

    def _log_bad_steps(self) -> None:
        """Log the bad steps since the last call. Raise UserError for too many, or for weights that are not finite."""
        self.collect_bad_steps()
        if bad := [step for step in sorted(self.incidents.steps) if step > self.logged]:
            self.log.info(f"skipped non-finite steps: {', '.join(map(str, bad))}; see {self.folder / BAD_STEPS}")
        self.write_incidents()
        self.require_finite("the weights to log")
        self.check_steps(bad)
        self.logged = self.step

    def _validate(self) -> None:
        self.log.status.validating()
        network = self.trainer.ema.model if self.trainer.ema else self.trainer.model
        network = self.prepare(network, self.signals.check)
        self.require_finite("the weights to validate", network.state_dict())
        metrics = self.validate(network, self.signals.check)
        if math.isnan(metrics.get("loss", 0.0)):
            self.fail_not_finite(self.step, "no validation output is finite", last_good=self.validated)
        is_best = self.keep_best(network, metrics)
        self.log.validated(self.schedule, self.step, metrics, is_best)
        self.save()
        self._clock = StepClock(self.step)

    def _save_before_exit(self, error: VideoRSError) -> None:
        """Save the state of a run that ends early, if there was a step and a restart without changes can help."""
        if not (self.world.size == 1 or error.is_shared or isinstance(error, (Interrupted, PeerFailed))):
            if self.step > self.checkpointer.saved and finishes_within(self.trainer.device, 10):  # another rank is lost
                self.write()
            return
        self.collect_bad_steps()
        files = error.files if isinstance(error, WorkerFailed) else {}
        found = [(path, reason, stamp(path)) for path, reason in files.items()]
        found_by_all = list(chain(*self.world.gather(found, "the hanging files")))
        for file in found_by_all:
            self.incidents.note_hung(*file)
        if found_by_all or self.step > max(self.checkpointer.saved, 0):
            self.write()
        with self.world.together("the last checkpoint"):  # otherwise a launcher could kill the rank that writes it
            self.checkpointer.wait()
        self.check_files()  # a restart would not help
        if self._stop and error.exit_code != EXIT_USER and not isinstance(error, Interrupted):  # a restart can help
            raise Interrupted(self._stop) from error
