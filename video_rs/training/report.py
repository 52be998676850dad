"""The lines of a run's log: what the steps since the last line, or a validation, have brought."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from video_rs.training.plan import Plan
from video_rs.training.status import duration

SHOWN = {"map": "mAP", "hit1": "hit@1"}  # figures that a log file calls otherwise


class StepClock:
    """Since when, and from which step, the next log line counts.

    Attributes:
        waited: seconds that the steps have waited for data.
    """

    def __init__(self, step: int) -> None:
        self.waited, self._started, self._step = 0.0, time.monotonic(), step

    def figures(self, step: int, batch_size: int) -> dict[str, float]:
        """Clips a second, and the part of the time that went into waiting for data."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        clips = (step - self._step) * batch_size
        return {"clips_per_second": clips / elapsed, "data_wait": self.waited / elapsed}


def train_line(step: int, plan: Plan, figures: Mapping[str, float], seconds_left: float) -> str:
    """Loss, accuracy and speed of the last steps; without the first two where no step was taken."""
    parts = []
    for name, value in figures.items():
        if name in ("accuracy", "hit1"):
            parts.append(f"{SHOWN.get(name, name)} {100 * value:.1f} %")
        elif name in ("loss", "lr"):
            parts.append(f"{name} {value:.4f}" if name == "loss" else f"lr {value:.4g}")
    parts.append(f"{figures['clips_per_second']:.1f} clips/s")
    parts.append(f"waiting for data {100 * figures['data_wait']:.0f} %")
    if seconds_left < math.inf:
        parts.append(f"{duration(seconds_left)} left")
    return "  ".join([f"step {step}/{plan.num_steps}", f"epoch {plan.epoch(step):.2f}", *parts])


def validation_line(epoch: float, figures: Mapping[str, float], is_best: bool) -> str:
    """The figures of a validation, and whether they are the best so far."""
    text = "  ".join(
        f"{name} {value:.4f}" if name == "loss" else f"{SHOWN.get(name, name)} {100 * value:.2f} %"
        for name, value in figures.items()
    )
    return f"epoch {epoch:.2f}  validation: {text}{'  (best)' if is_best else ''}"
