"""The log of a run: terminal, ``log.txt``, ``metrics.jsonl``, ``status.json``, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from video_rs import terminal
from video_rs.errors import printable
from video_rs.files import atomic_write, open_append, read_run_metrics
from video_rs.training.run_status import NAMES, Status, metrics_text
from video_rs.training.schedule import Schedule
from video_rs.training.wandb import WandbLog


class RunLog:
    """The log of a run folder. A disk error is ignored here, because writing the next checkpoint will report it.

    ``metrics.jsonl`` has a line per log step, ``{"kind": "train", "step", "epoch", "loss", "accuracy", "lr",
    "clips_per_second", "data_wait"}``, and per validation ``{"kind": "val", "step", "epoch", "top1", "top5", "loss"}``.
    With several labels per sample it has "hit1" (the top class is one of them) and "map" instead of accuracies.

    Args:
        folder: the run folder.
        step: step that the run starts from. Lines of later steps, from an interrupted run, are removed.
        num_steps: number of steps of the whole run.
        validated: last step that was validated. Lines of later validations are removed.
        is_mixed: True if the accuracy in training is that of mixed clips.
        wandb: project of Weights & Biases; "" for none.
        config: config of the run, for Weights & Biases.

    Attributes:
        status: the writer of ``status.json``.

    Raises:
        UserError: Weights & Biases cannot be used, see ``WandbLog``.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        num_steps: int,
        validated: int = 0,
        *,
        is_mixed: bool = False,
        wandb: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.status = Status(folder)
        self._text = open_append(folder / "log.txt")
        _drop_beyond(folder / "metrics.jsonl", {"train": step, "val": validated})
        self._metrics = open_append(folder / "metrics.jsonl")
        self._events: SummaryWriter | None = None
        self._start, self._lines, self._is_mixed = step, 0, is_mixed
        self.bar = terminal.Bar(num_steps, done=step)
        self._wandb = WandbLog(wandb, folder, config or {}, self.info) if wandb else None

    @staticmethod
    def silent() -> RunLog:
        """Return a log that writes nothing, for ranks other than 0."""
        return _SilentLog()

    def info(self, text: str) -> None:
        """Write a line to the terminal, above the progress bar, and, with a timestamp, to ``log.txt``."""
        text = printable(text)
        terminal.write(text)
        with suppress(OSError):
            self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def trained(self, schedule: Schedule, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of the steps since the last call, up to ``step``."""
        rate, validation_seconds = metrics["clips_per_second"], self.status.validation_seconds
        seconds_left = schedule.seconds_left(step, rate, validation_seconds)
        self.metrics("train", step, schedule.epoch(step), metrics)
        self.status.trained(step, seconds_left)
        line = train_line(step, schedule, metrics, seconds_left, is_mixed=self._is_mixed)
        self.bar.note(line.partition("  ")[2])
        self.info(line)
        self._lines += 1
        if self._lines == 2:  # the first interval includes the start of the loader
            self.info(time_line(schedule, step, rate, validation_seconds))

    def validated(self, schedule: Schedule, step: int, metrics: Mapping[str, float], is_best: bool) -> None:
        """Log a validation. Without metrics, record only its time."""
        self.status.validated(step)
        if not metrics:
            return
        self.metrics("val", step, schedule.epoch(step), metrics)
        best = "  (best)" if is_best else ""
        self.info(f"epoch {schedule.epoch(step):.2f}  validation: {metrics_text(metrics)}{best}")

    def metrics(self, kind: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Write metrics to ``metrics.jsonl``, TensorBoard and Weights & Biases."""
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        epoch = round(epoch, 4)
        with suppress(OSError):
            self._metrics.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **rounded}) + "\n")
        with suppress(OSError):
            if self._events is None:  # created here, so that a complete run adds no file
                self._events = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._start + 1)
            for name, value in values.items():
                self._events.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb:
            self._wandb.log(kind, step, epoch, values)

    def close(self) -> None:
        """Flush and close all files."""
        self.bar.close()
        if self._wandb:
            self._wandb.close()
        for file in (self._metrics, self._events, self._text):
            with suppress(OSError):
                if file:
                    file.close()


class StepClock:
    """Measure the steps since the last log line.

    Attributes:
        waited: seconds spent waiting for data.
    """

    def __init__(self, step: int) -> None:
        self.waited, self._started, self._step = 0.0, time.monotonic(), step

    def metrics(self, step: int, batch_size: int) -> dict[str, float]:
        """Return clips per second, and the fraction of the time spent waiting for data."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        return {"clips_per_second": (step - self._step) * batch_size / elapsed, "data_wait": self.waited / elapsed}


class _SilentLog(RunLog):
    def __init__(self) -> None:
        self._lines, self._is_mixed = 0, False
        self.status = Status(None)
        self.bar = terminal.Bar(None, hidden=True)

    def info(self, text: str) -> None:
        """Do nothing."""

    def metrics(self, kind: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _drop_beyond(path: Path, last: dict[str, int]) -> None:
    if path.is_file():
        kept = [values for values in read_run_metrics(path) if values["step"] <= last[values["kind"]]]
        with atomic_write(path, "w") as handle:
            handle.writelines(f"{json.dumps(values)}\n" for values in kept)


def train_line(
    step: int,
    schedule: Schedule,
    metrics: Mapping[str, float],
    seconds_left: float,
    *,
    is_mixed: bool = False,
) -> str:
    """Format loss, accuracy and speed of the last steps. Omit loss and accuracy if all steps were skipped."""
    parts = [f"step {step}/{schedule.num_steps}", f"epoch {schedule.epoch(step):.2f}"]
    if "loss" in metrics:
        parts.append(f"loss {metrics['loss']:.4f}")
    clips = " of mixed clips" * is_mixed
    parts += [f"{NAMES[name]}{clips} {100 * value:.1f} %" for name, value in metrics.items() if name in NAMES]
    parts.append(f"lr {metrics['lr']:.4g}")
    parts.append(f"{metrics['clips_per_second']:.1f} clips/s")
    parts.append(f"waiting for data {100 * metrics['data_wait']:.0f} %")
    if seconds_left < math.inf:
        parts.append(f"{terminal.duration(seconds_left)} left")
    return "  ".join(parts)


def time_line(
    schedule: Schedule, step: int, rate: float, validation_seconds: float = 0.0, now: float | None = None
) -> str:
    """Format the remaining time: "at 45.3 clips/s the run takes 3h05m more, until Tue 24 Nov 14:30".

    Args:
        rate: clips per second.
        validation_seconds: seconds of one validation; 0 if unknown.
        now: seconds since 1970; None for the current time.
    """
    seconds = schedule.seconds_left(step, rate, validation_seconds)
    end = time.strftime("%a %d %b %H:%M", time.localtime((time.time() if now is None else now) + seconds))
    without = " (validations not counted)" if schedule.validations_left(step) and not validation_seconds else ""
    return f"at {rate:.1f} clips/s the run takes {terminal.duration(seconds)} more, until {end}{without}"
