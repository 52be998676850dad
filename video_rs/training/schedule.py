"""The schedule of a run: samples, steps, micro-batches, validations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from video_rs.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """Numbers of samples, steps and micro-batches, and the intervals of logs, validations and checkpoints.

    Attributes:
        num_samples: number of samples in an epoch: training files times repeats.
        num_steps: number of optimizer steps of the whole run.
        batch_size: number of samples per optimizer step, over all ranks.
        micro_batch: number of samples per forward pass, a divisor of the per-rank batch.
        world_size: number of ranks.
        repeats: number of consecutive copies of a sample in the batch.
        seed: seed of the run.
        val_every: epochs between validations; 0 to validate only at the end.
        early_stop: validations without a better monitored metric until the run stops; 0 for never.
        log_every: steps between log lines.
        checkpoint_minutes: minutes between checkpoints, in addition to those at epoch ends.
        has_validation: False without validation data.
    """

    num_samples: int
    num_steps: int
    batch_size: int
    micro_batch: int
    world_size: int = 1
    repeats: int = 1
    seed: int = 0
    val_every: int = 1
    early_stop: int = 0
    log_every: int = 20
    checkpoint_minutes: float = 10.0
    has_validation: bool = True

    @property
    def per_rank_batch(self) -> int:
        """Number of samples per step on one rank."""
        return self.batch_size // self.world_size

    @property
    def accumulation_steps(self) -> int:
        """Number of micro-batches per step on one rank."""
        return self.per_rank_batch // self.micro_batch

    def epoch(self, step: int) -> float:
        """Return the number of passes over the data after ``step`` steps."""
        return step * self.batch_size / self.num_samples

    def ends_epoch(self, step: int) -> bool:
        """Return True if step number ``step`` (from 1) completes an epoch or the run."""
        return step == self.num_steps or self._crosses(step, 1)

    def logs(self, step: int) -> bool:
        """Return True if a log line follows step number ``step`` (from 1)."""
        return step == self.num_steps or step % self.log_every == 0

    def validates(self, step: int) -> bool:
        """Return True if a validation follows step number ``step`` (from 1)."""
        return step == self.num_steps or bool(self.val_every) and self._crosses(step, self.val_every)

    def _crosses(self, step: int, epochs: int) -> bool:
        """Return True if step number ``step`` reaches a multiple of ``epochs``."""
        return math.floor(self.epoch(step) / epochs) > math.floor(self.epoch(step - 1) / epochs)

    def validations_left(self, step: int) -> int:
        """Return the number of validations after ``step``. The last step always has one if there is data."""
        if step >= self.num_steps or not self.has_validation:
            return 0
        if not self.val_every:
            return 1
        first, last = (math.floor(self.epoch(at) / self.val_every) for at in (step, self.num_steps - 1))
        return last - first + 1

    def seconds_left(self, step: int, rate: float, validation_seconds: float = 0.0) -> float:
        """Return the remaining time after ``step`` at ``rate`` clips per second, including validations; inf at 0."""
        if not rate:
            return math.inf
        steps = (self.num_steps - step) * self.batch_size / rate
        return steps + self.validations_left(step) * validation_seconds


def num_steps(num_samples: int, batch_size: int, epochs: float) -> int:
    """Return the number of optimizer steps in ``epochs``, rounded up. Batches can span two epochs."""
    return max(1, math.ceil(epochs * num_samples / batch_size))


def check_pairs(micro_batch: int, repeats: int, *, is_mixed: bool) -> None:
    """Raise ConfigError if mixup or cutmix, which use pairs of files, would mix samples of two micro-batches."""
    unit = 2 * repeats
    if is_mixed and micro_batch % unit:
        raise ConfigError(
            f"a micro-batch of {micro_batch}: must be a multiple of {unit} for data.mixup and data.cutmix with "
            f"data.repeats={repeats}; change train.micro_batch or train.batch_size"
        )
