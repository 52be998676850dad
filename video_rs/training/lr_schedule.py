"""The learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def learning_rate(
    base: float,
    num_steps: int,
    warmup_steps: float,
    schedule: str = "cosine",
    drops: Sequence[float] = (),
    factor: float = 0.1,
) -> Callable[[int], float]:
    """Return the learning rate as a function of the optimizer step.

    It grows linearly from 0 to the value of the schedule at ``warmup_steps``, then follows the schedule, which is not
    shifted by the warm-up (TF Model Garden's ``LinearWarmup`` over ``CosineDecay``).

    Args:
        base: peak learning rate, already scaled to the batch size.
        num_steps: number of steps of the whole run, at which the cosine schedule reaches 0.
        warmup_steps: number of warm-up steps, can be fractional. Limited to half of the run.
        schedule: ``cosine``, ``constant`` or ``step``.
        drops: ascending steps at which ``step`` multiplies the learning rate by ``factor``.
        factor: factor of each drop.
    """
    warmup_steps = min(warmup_steps, num_steps / 2)

    def curve(step: float) -> float:
        if schedule == "cosine":
            return base * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        return base * factor ** sum(step >= drop for drop in drops) if schedule == "step" else base

    def at(step: int) -> float:
        return step / warmup_steps * curve(warmup_steps) if step < warmup_steps else curve(step)

    return at


def drop_epochs(epochs: float) -> list[int]:
    """Return the epochs at which the released TPU code divides the learning rate by 10: 30, 60 and 80 of 90.

    Source: ``resnet_main.get_lr_schedule`` of the ResNet-RS repository, which has no cosine schedule.
    """
    return [math.floor(epochs * of_90 / 90 + 1e-9) for of_90 in (30, 60, 80)]
