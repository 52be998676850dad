"""The state of a run, which is saved only if its weights are finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from video_rs.errors import UserError
from video_rs.training.checkpointer import Checkpointer
from video_rs.training.incidents import ADVICE, Incidents, Suspect
from video_rs.training.run_folder import newest_before
from video_rs.training.trainer import PROBLEMS, Trainer, is_finite


@dataclass(eq=False, repr=False)
class RunState:
    """Trainer, incidents and best validation of a run, with the checkpoints in its folder.

    All ranks have the same state. Rank 0 writes it.

    Args:
        trainer, folder, identity, samples_of, keep, incidents: see :class:`video_rs.training.loop.Run`.

    Attributes:
        monitored: name of the metric that selects the best weights.
        best: monitored metric and negative loss of the best validation; below 0 before the first.
        best_metrics: all metrics of that validation; empty without validation data.
        validated: last step that was validated.
        stale: number of validations since the last one with a better monitored metric.
        logged: last step that was logged.
    """

    trainer: Trainer
    folder: Path
    identity: Mapping[str, Any]
    samples_of: Callable[[int], Sequence[Suspect]] = lambda step: ()
    keep: int = 3
    incidents: Incidents = field(default_factory=Incidents)

    def __post_init__(self) -> None:
        self.schedule, self.world = self.trainer.schedule, self.trainer.world
        minutes = self.schedule.checkpoint_minutes
        self.checkpointer = Checkpointer(self.folder, self.keep, minutes=minutes, writes=self.world.is_main)
        self.monitored = "map" if self.trainer.model.data_config.multi_label else "top1"
        self.best, self.best_metrics, self.validated, self.stale, self.logged = (-1.0, 0.0), {}, 0, 0, 0

    step = property(lambda self: self.trainer.step, doc="Number of completed steps.")
    is_on_disk = property(lambda self: self.checkpointer.written == self.step, doc="True if this step's checkpoint is.")

    @property
    def stops_early(self) -> bool:
        """True if the monitored metric has not improved for ``schedule.early_stop`` validations."""
        return 0 < self.schedule.early_stop <= self.stale

    @property
    def is_complete(self) -> bool:
        """True after the last validation."""
        return self.stops_early or self.validated == self.schedule.num_steps

    def save(self) -> None:
        """Write a checkpoint, unless this step was skipped: many bad steps must not displace older checkpoints.

        Raises:
            UserError: a weight is not finite.
        """
        self.collect_bad_steps()
        if self.step in self.incidents.steps and self.step < self.schedule.num_steps and not self.stops_early:
            return
        self._check(self.write(), "the weights to save")

    def write(self) -> list[bool]:
        """Write a checkpoint without synchronizing ranks, unless there is a problem. Return ``trainer.problems()``."""
        problems = self.trainer.problems()
        if not any(problems):
            first_doubtful = self.incidents.first_doubtful(self.step, self.logged)
            self.checkpointer.save({**self.identity, **self.state_dict()}, self.step, first_doubtful)
            self.write_incidents()
        return problems

    def keep_best(self, model: nn.Module, metrics: Mapping[str, float]) -> bool:
        """Record a validation of this step. If it is the best one, write ``best.pt`` and return True.

        Without metrics the last weights are the best ones.
        """
        result = (metrics[self.monitored], -metrics.get("loss", 0.0)) if metrics else self.best
        is_best, self.validated = not metrics or result > self.best, self.step
        self.stale = 0 if not metrics or result[0] > self.best[0] else self.stale + 1
        if is_best:
            self.best, self.best_metrics = result, dict(metrics)
            weights = {"model": model.state_dict(), "ema": None}
            self.checkpointer.save_best({**self.identity, **weights, "step": self.step, "metrics": dict(metrics)})
        return is_best

    def collect_bad_steps(self) -> None:
        """Record the steps that were skipped since the last call, on all ranks."""
        found = self.trainer.metrics.bad_steps()
        by_rank = self.world.gather(found, "the steps that were not finite") if found else []
        for step in found:
            samples, size = self.samples_of(step), self.schedule.per_rank_batch
            positions = [rank * size + position for rank, of_rank in enumerate(by_rank) for position in of_rank[step]]
            self.incidents.note_step(step + 1, [samples[p] for p in positions if p < len(samples)] or samples)

    def write_incidents(self) -> None:
        """Write the csv files of unreadable files and bad steps, on rank 0."""
        if self.world.is_main:
            self.incidents.write(self.folder)

    def check_files(self) -> None:
        """Save the state and raise UserError if too many files are unreadable."""
        if self.incidents.too_many_files:
            if self.checkpointer.saved < self.step:
                self.write()
            with self.world.together("the files of the training split"):
                self.incidents.check_files(self.folder, self.step)

    def check_steps(self, bad: Sequence[int]) -> None:
        """Raise UserError if too many steps up to one of `bad` were bad, or if all steps of the run were bad."""
        for step in reversed(bad):
            if self.incidents.too_many_steps(step):
                recent, window = len(self.incidents.recent_steps(step)), self.incidents.window
                self.fail_not_finite(step, f"{recent} of the last {window} steps are not finite")
        if len(self.incidents.steps) == self.schedule.num_steps:
            self.fail_not_finite(self.step, "no step of the run is finite", last_good=0)

    def require_finite(self, what: str, weights: Mapping[str, Any] | None = None) -> None:
        """Raise UserError on all ranks if training cannot continue, or if `weights` are not finite."""
        found, *others = self.trainer.problems()
        self._check([found or not is_finite(weights), *others], what)

    def _check(self, problems: Sequence[bool], what: str) -> None:
        """Raise UserError on all ranks if there is a problem on any rank."""
        for reason, found in zip(PROBLEMS, self.world.agree(problems, what), strict=True):
            if found:
                self.fail_not_finite(self.step, reason)

    def fail_not_finite(self, step: int, reason: str, *, last_good: int | None = None) -> None:
        """Raise UserError on all ranks. Name the newest good checkpoint, or else ``best.pt``.

        Checkpoints up to step ``last_good`` are good, by default those from before the bad steps.
        """
        self.collect_bad_steps()
        with self.world.together("the last checkpoint"):
            if self.world.is_main:
                self.write_incidents()
                self.checkpointer.wait()
                if last_good is None:
                    last_good = self.incidents.first_doubtful(self.step, self.logged) - 1
                good = newest_before(self.folder, last_good + 1)
                if last_good and self.validated and not good:
                    good = self.folder / "best.pt"
                start = f"start with another out={f' and train.init_from={good}' if good else ''}"
                raise UserError(f"step {step}: {reason}; {ADVICE}; {start}")

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes during a run."""
        own = {name: getattr(self, name) for name in ("best", "best_metrics", "validated", "stale")}
        return {**self.trainer.state_dict(), **own, **self.incidents.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.trainer.load_state_dict(state)
        self.incidents.load_state_dict(state)
        self.checkpointer.saved = self.checkpointer.written = state["step"]
        self.logged = state["step"] - state["step"] % self.schedule.log_every
        self.best, self.validated, self.stale = tuple(state["best"]), state["validated"], state.get("stale", 0)
        known = {self.monitored: self.best[0], "loss": -self.best[1]} if self.best[0] >= 0 else {}
        self.best_metrics = state.get("best_metrics", known)  # checkpoints of earlier versions have no metrics
