"""The lines of a run's log."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from video_rs.training.schedule import Schedule

NAMES = {"map": "mAP", "top1": "top-1", "top5": "top-5", "hit1": "hit@1", "accuracy": "accuracy"}
"""Metrics between 0 and 1, as people write them."""


class StepClock:
    """Measure the steps since the last log line.

    Attributes:
        waited: seconds that the steps have waited for data.
    """

    def __init__(self, step: int) -> None:
        self.waited, self._started, self._step = 0.0, time.monotonic(), step

    def figures(self, step: int, batch_size: int) -> dict[str, float]:
        """Return clips per second, and the fraction of the time spent waiting for data."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        return {"clips_per_second": (step - self._step) * batch_size / elapsed, "data_wait": self.waited / elapsed}


def train_line(step: int, schedule: Schedule, figures: Mapping[str, float], seconds_left: float) -> str:
    """Format loss, accuracy and speed of the last steps; without the first two where all steps were skipped."""
    parts = [f"step {step}/{schedule.num_steps}", f"epoch {schedule.epoch(step):.2f}"]
    if "loss" in figures:
        parts.append(f"loss {figures['loss']:.4f}")
    parts += [f"{NAMES[name]} {100 * value:.1f} %" for name, value in figures.items() if name in NAMES]
    parts.append(f"lr {figures['lr']:.4g}")
    parts.append(f"{figures['clips_per_second']:.1f} clips/s")
    parts.append(f"waiting for data {100 * figures['data_wait']:.0f} %")
    if seconds_left < math.inf:
        parts.append(f"{duration(seconds_left)} left")
    return "  ".join(parts)


def metrics_text(figures: Mapping[str, Any]) -> str:
    """Format the metrics of a validation: "top-1 87.50 %  top-5 99.00 %  loss 0.4321"."""
    parts = [f"{text} {100 * figures[name]:.2f} %" for name, text in NAMES.items() if figures.get(name) is not None]
    if figures.get("loss") is not None:
        parts.append(f"loss {figures['loss']:.4f}")
    return "  ".join(parts)


def time_line(
    schedule: Schedule, step: int, rate: float, validation_seconds: float = 0.0, now: float | None = None
) -> str:
    """Return when the run will end: "at 45.3 clips/s the run takes 3h05m more, until Tue 24 Nov 14:30".

    Args:
        rate: clips per second.
        validation_seconds: of one validation; 0: not known yet, which the line says.
        now: seconds since 1970; None for the clock's.
    """
    seconds = schedule.seconds_left(step, rate, validation_seconds)
    end = time.strftime("%a %d %b %H:%M", time.localtime((time.time() if now is None else now) + seconds))
    without = " (validations not counted)" if schedule.validations_left(step) and not validation_seconds else ""
    return f"at {rate:.1f} clips/s the run takes {duration(seconds)} more, until {end}{without}"


def duration(seconds: float) -> str:
    """Format seconds: ``75`` -> ``1m15s``, ``7500`` -> ``2h05m``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
