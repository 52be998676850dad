"""The arithmetic of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How many samples, steps and micro-batches, and how often things are done.

    Attributes:
        num_samples: of an epoch: the training files, as often as each is used.
        num_steps: optimizer steps of the whole run.
        batch_size: the global batch.
        micro_batch: samples on the device at once; divides a process's share of the batch.
        world_size: processes that share the batch.
        repeats: copies of a use of a sample, which follow each other in the batch.
        seed: of the run.
        val_every: epochs between validations; 0: only at the end.
        log_every: steps between log lines.
        checkpoint_minutes: between checkpoints, besides those at epoch ends.
    """

    num_samples: int
    num_steps: int
    batch_size: int
    micro_batch: int
    world_size: int = 1
    repeats: int = 1
    seed: int = 0
    val_every: int = 1
    log_every: int = 20
    checkpoint_minutes: float = 10.0

    @property
    def per_rank_batch(self) -> int:
        """Samples of a step that one process takes."""
        return self.batch_size // self.world_size

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of a step, in one process."""
        return self.per_rank_batch // self.micro_batch

    def epoch(self, step: int) -> float:
        """Passes over the data after ``step`` steps."""
        return step * self.batch_size / self.num_samples

    def ends_epoch(self, step: int) -> bool:
        """Whether step number ``step`` (from 1) was the one that completed an epoch, or the run."""
        return step == self.num_steps or math.floor(self.epoch(step)) > math.floor(self.epoch(step - 1))

    def logs(self, step: int) -> bool:
        """Return True if step number ``step`` (from 1) is followed by a log line."""
        return step == self.num_steps or step % self.log_every == 0

    def validates(self, step: int) -> bool:
        """Whether a validation follows step number ``step`` (from 1)."""
        if step == self.num_steps:
            return True
        epochs = self.val_every
        return bool(epochs) and math.floor(self.epoch(step) / epochs) > math.floor(self.epoch(step - 1) / epochs)

    def validations_left(self, step: int) -> int:
        """Return how many validations follow the steps after ``step``; the last step always has one."""
        if step >= self.num_steps:
            return 0
        if not self.val_every:
            return 1
        first, last = (math.floor(self.epoch(at) / self.val_every) for at in (step, self.num_steps - 1))
        return last - first + 1

    def seconds_left(self, step: int, rate: float, validation_seconds: float = 0.0) -> float:
        """Return the time from ``step`` to the end at ``rate`` clips per second, validations included; inf at 0."""
        if not rate:
            return math.inf
        steps = (self.num_steps - step) * self.batch_size / rate
        return steps + self.validations_left(step) * validation_seconds
