"""The training loop.

All that a run needs to go on is in ``Run.state_dict()``; all that is random is a function of (seed, step). Hence a run
that was stopped at any step and resumed ends with the same weights, bit for bit, as one that was never stopped. Several
processes walk through the loop in step: once in each step they agree on who has failed, who was told to stop, and
whether a checkpoint is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from video_rs.distributed.device import finishes_within
from video_rs.errors import PeerFailed, StuckWorker, UserError, VideoRSError
from video_rs.training.checkpointer import Checkpointer, newest_before
from video_rs.training.incidents import ADVICE, BAD_STEPS, Incidents, Suspect
from video_rs.training.log import RunLog, StepClock
from video_rs.training.signals import Interrupted, StopSignals
from video_rs.training.trainer import Trainer

Validate = Callable[[nn.Module, Callable[[], None]], dict[str, float]]


class Run:
    """A trainer on its way through the steps of its schedule.

    Args:
        trainer: of the network, alone or as one of several processes.
        folder: gets ``last.pt``, ``best.pt`` and ``checkpoints/``.
        log: of the run; a silent one in all processes but the first.
        identity: what every checkpoint carries besides the state: config, model_args, data config, ...
        loader_from: returns the micro-batches of this process from a step (from 0) on.
        validate: called with the network to validate and a function to call often, which raises when the run is to
            stop; returns ``top1``, or ``map`` where samples have several labels (0 to 1), and other metrics.
        samples_of: the samples of a step's (from 0) global batch, in order.
        prepare: of the network to validate, and the same function, makes the one that is validated and kept.
        keep: how many checkpoints are.
        incidents: files that cannot be read and steps that were not finite, with their limits.

    Attributes:
        signals: notes those that ask the run to stop, in ``fit`` and wherever else it is entered.
        saved: the last step whose state is on its way to ``last.pt``; -1 before the first.
        is_on_disk: whether the state of this moment is.
        best: figure of merit and minus the loss of the best validation.
        validated: the last step that was validated.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        folder: Path,
        log: RunLog,
        identity: Mapping[str, Any],
        loader_from: Callable[[int], Iterable[dict[str, Any]]],
        validate: Validate,
        samples_of: Callable[[int], Sequence[Suspect]] = lambda step: (),
        prepare: Callable[[nn.Module, Callable[[], None]], nn.Module] = lambda model, check: model,
        keep: int = 3,
        incidents: Incidents | None = None,
    ) -> None:
        self.trainer, self.schedule, self.world = trainer, trainer.schedule, trainer.world
        self._folder, self._log, self._identity = folder, log, identity
        self._loader_from, self._samples_of = loader_from, samples_of
        self._validation, self._prepare = validate, prepare
        self._checkpointer, self.signals = Checkpointer(folder, keep), StopSignals()
        self.incidents = incidents or Incidents()
        self.monitored = "map" if trainer.model.data_config.multi_label else "top1"  # what the best weights are best in
        self.saved, self.best, self.validated = -1, (-1.0, 0.0), 0
        self._broken: list[tuple[str, str]] = []  # replacements in this step, by this process
        self._logged = 0  # step of the last log line
        self._stop = self._save_is_due = self._files_broke = 0

    step = property(lambda self: self.trainer.step, doc="Steps done.")
    is_on_disk = property(lambda self: self._checkpointer.written == self.step)

    def fit(self) -> None:
        """Trains from ``self.step`` to the end.

        Raises:
            Interrupted: a signal came; the state is saved.
            StuckWorker: a training file hangs; the state is saved, and the file is not opened when the run is resumed.
            MachineError: a loader process was killed, the state is saved; another process is lost, the same if the
                device still answers; a checkpoint cannot be written; or a whole row of validation files hangs.
            PeerFailed: one of these happened in another process.
            UserError: too many files are broken, the state is saved; or too many steps or the weights are not finite,
                the last good checkpoint is intact.
        """
        with self.signals, self._checkpointer:
            try:
                if self.step and self.schedule.validates(self.step) and self.validated < self.step:
                    self._validate()  # the run was stopped before or in this validation
                self._train()
            except VideoRSError as error:
                self._leave(error)
                raise

    def _train(self) -> None:
        clock, self._saved_at = StepClock(self.step), time.monotonic()
        self._check_files()
        batches = iter(self._loader_from(self.step))
        while self.step < self.schedule.num_steps:
            self._take_step(batches, clock)
            self._log.bar.advance()
            if self.step % self.schedule.log_every == 0 or self.step == self.schedule.num_steps:
                self._report(clock)
                clock = StepClock(self.step)
            if self.schedule.ends_epoch(self.step) or self._save_is_due:
                self.save()
            if self.schedule.validates(self.step):
                self._validate()
                clock = StepClock(self.step)
            if self.world.size == 1:  # nobody to ask
                self._stop = self.signals.received
            if self._stop and self.validated < self.schedule.num_steps:
                self.save()
                raise Interrupted(self._stop)
            self._checkpointer.poll()

    def _take_step(self, batches: Iterator[dict[str, Any]], clock: StepClock) -> None:
        self._broken = []
        self.trainer.train_step(self._micro_batches(batches, clock))
        if self._files_broke:
            for broken in self.world.gather(self._broken, "the broken files"):
                self.incidents.note_files(broken)
            self._check_files()

    def _micro_batches(self, batches: Iterator[dict[str, Any]], clock: StepClock) -> Iterator[dict[str, Any]]:
        """The micro-batches of a step; each comes once all processes have theirs, for the network may need them all."""
        for _ in range(self.schedule.accumulation_steps):
            batch, error, asked = None, None, time.monotonic()
            try:
                batch = next(batches)
                self._broken += batch["broken"]
            except VideoRSError as failure:
                error = failure
            clock.waited += time.monotonic() - asked
            self._agree(error)
            yield batch

    def _agree(self, error: VideoRSError | None) -> None:
        """Has anybody failed, was told to stop, is a checkpoint due, were files broken?"""
        due = self.saved < 0 or time.monotonic() - self._saved_at > 60 * self.schedule.checkpoint_minutes
        flags = [error is not None, self.signals.received or 0, due and self.world.is_main, bool(self._broken)]
        failed, self._stop, self._save_is_due, self._files_broke = self.world.agree(flags, f"step {self.step + 1}")
        if failed:
            with self.world.together(f"step {self.step + 1}"):
                if error:
                    raise error

    def _leave(self, error: VideoRSError) -> None:
        """The run ends early: its state is saved, of a first step only what another start would mend."""
        if not (self.world.size == 1 or error.is_shared or isinstance(error, (Interrupted, PeerFailed))):
            if self.step > self.saved and finishes_within(self.trainer.device, 10):  # another process is lost
                self._write()
            return
        self._collect_bad_steps()
        hung = error.path if isinstance(error, StuckWorker) else ""
        for path in (paths := [path for path in self.world.gather(hung, "the hanging files") if path]):
            self.incidents.note_hung(path)
        if paths or self.step > max(self.saved, 0):
            self._write()
        with self.world.together("the last checkpoint"):  # or a launcher would end the process that writes it
            self._checkpointer.wait()
        self._check_files()  # to start again would be no use
        if self._stop and error.exit_code != 2 and not isinstance(error, Interrupted):  # a restart can help
            raise Interrupted(self._stop) from error

    def _check_files(self) -> None:
        if self.incidents.too_many_files:
            if self.saved < self.step:
                self._write()
            with self.world.together("the files of the training split"):
                self.incidents.check_files(self._folder, self.step)

    def _validate(self) -> None:
        if self.world.agree([not self.trainer.is_finite()], "the weights to validate")[0]:
            self._fail_not_finite()
        self._log.status.validating()
        averaged = self.trainer.ema.model if self.trainer.ema else self.trainer.model
        model = self._prepare(averaged, self.signals.check)
        metrics = self._validation(model, self.signals.check)
        self.validated, found = self.step, (metrics[self.monitored], -metrics["loss"])
        is_best, self.best = found > self.best, max(self.best, found)
        if is_best and self.world.is_main:
            best = {**self._identity, "model": model.state_dict(), "ema": None, "step": self.step, "metrics": metrics}
            self._checkpointer.save_best(best)
        self._log.validated(self.schedule, self.step, metrics, is_best)
        self.save()

    def _report(self, clock: StepClock) -> None:
        self._collect_bad_steps()
        loss, correct = self.trainer.metrics.means()
        self.trainer.metrics.clear()
        hit = "hit1" if self.monitored == "map" else "accuracy"  # hit1: the top class is one of the sample's
        metrics = {"loss": loss, hit: correct} if loss == loss else {}  # nan: no step was taken
        metrics |= {
            "lr": self.trainer.learning_rate(self.step - 1),
            **clock.metrics(self.step, self.schedule.batch_size),
        }
        self._log.trained(self.schedule, self.step, metrics)
        bad = [step for step in sorted(self.incidents.steps) if step > self._logged]
        if bad:
            steps = ", ".join(map(str, bad))
            self._log.info(f"not finite and skipped: step {steps}; {self._folder / BAD_STEPS}")
        if self.world.is_main:
            self.incidents.write(self._folder)
        if streaks := [step for step in bad if self.incidents.too_many_steps(step)]:
            self._fail_not_finite(streaks[-1])
        self._logged = self.step

    def _collect_bad_steps(self) -> None:
        """Note the steps that were skipped since the last call, the same ones in all processes."""
        found = self.trainer.metrics.bad_steps()
        parts = self.world.gather(found, "the steps that were not finite") if found else []
        for step in found:
            samples = self._samples_of(step)
            positions = [rank * self.schedule.per_rank_batch + p for rank, part in enumerate(parts) for p in part[step]]
            self.incidents.note_step(step + 1, [samples[p] for p in positions if p < len(samples)] or samples)

    def _fail_not_finite(self, streak: int = 0) -> None:
        """Raise UserError on all ranks, naming the newest checkpoint from before the bad steps.

        ``streak`` is the step up to which too many were bad; 0 if the weights themselves are not finite.
        """
        self._collect_bad_steps()
        what = f"step {self.step}: weights or gradients are not finite"
        if streak:
            bad, window = len(self.incidents.recent_steps(streak)), self.incidents.window
            what = f"step {streak}: {bad} of the last {window} steps are not finite"
        with self.world.together("the last checkpoint"):
            if self.world.is_main:
                self.incidents.write(self._folder)
                self._checkpointer.wait()
                good = newest_before(self._folder, self.incidents.first_doubtful(self.step, self._logged))
                start = f"start with another out={f' and train.init_from={good}' if good else ''}"
                raise UserError(f"{what}; {ADVICE}; {start}")

    def save(self) -> None:
        """Write a checkpoint, unless this step was skipped: a row of bad steps must leave older ones.

        Raises:
            UserError: the weights are not finite.
        """
        self._collect_bad_steps()
        if self.step in self.incidents.steps and self.step < self.schedule.num_steps:
            return
        if self.world.agree([not self._write()], "the weights to save")[0]:  # one process's own may be spoilt
            self._fail_not_finite()

    def _write(self) -> bool:
        """Write a checkpoint without synchronizing; return False, and write nothing, if a weight is not finite."""
        if not self.trainer.is_finite():
            return False
        if self.world.is_main:
            doubtful = self.incidents.first_doubtful(self.step, self._logged)
            self._checkpointer.save({**self._identity, **self.state_dict()}, self.step, doubtful)
            self.incidents.write(self._folder)
        self.saved, self._saved_at = self.step, time.monotonic()
        return True

    def state_dict(self) -> dict[str, Any]:
        """All that changes during a run."""
        own = {"best": self.best, "validated": self.validated}
        return {**self.trainer.state_dict(), **own, **self.incidents.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.trainer.load_state_dict(state)
        self.incidents.load_state_dict(state)
        self.saved = self._checkpointer.written = state["step"]
        self._logged = state["step"] - state["step"] % self.schedule.log_every
        self.best, self.validated = tuple(state["best"]), state["validated"]
