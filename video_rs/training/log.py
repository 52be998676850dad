"""What a run writes about itself: the terminal, ``log.txt``, ``metrics.jsonl``, ``status.json``, TensorBoard events."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from video_rs import terminal
from video_rs.files import atomic_write
from video_rs.training.log_lines import metrics_text, time_line, train_line
from video_rs.training.run_status import Status
from video_rs.training.schedule import Schedule
from video_rs.training.wandb import WandbLog


class RunLog:
    """Log of one run folder. A disk that refuses a line ends no run: that is for the checkpoints to tell.

    ``metrics.jsonl`` has a line per log step, ``{"kind": "train", "step", "epoch", "loss", "accuracy", "lr",
    "clips_per_second", "data_wait"}``, and per validation ``{"kind": "val", "step", "epoch", "top1", "top5", "loss"}``.
    Where a sample may be of several classes, "hit1" (the top class is one of them) and "map" stand for the accuracies.

    Args:
        folder: the run folder.
        step: the step the run starts from; what an interrupted run logged beyond it is dropped, so that each step is
            there once.
        num_steps: of the whole run.
        validated: the last step whose validation counts.
        wandb: project of Weights & Biases, empty for off.
        config: what it shows beside the figures.

    Attributes:
        status: writes ``status.json``.

    Raises:
        UserError: Weights & Biases was asked for and is not there, see ``WandbLog``.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        num_steps: int,
        validated: int = 0,
        *,
        wandb: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.status = Status(folder)
        self._text = open(folder / "log.txt", "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
        _drop_beyond(folder / "metrics.jsonl", {"train": step, "val": validated})
        self._metrics = open(folder / "metrics.jsonl", "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._events: SummaryWriter | None = None
        self._start, self._lines = step, 0
        self.bar = terminal.Bar(num_steps, done=step)
        self._wandb = WandbLog(wandb, folder, config or {}, self.say) if wandb else None

    @staticmethod
    def silent() -> RunLog:
        """A log for the processes that write nothing, with the same face."""
        return _SilentLog()

    def say(self, text: str) -> None:
        """Write one line for people: on the terminal (above the bar) and, with the time, in log.txt."""
        terminal.write(text)
        with suppress(OSError):
            self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def trained(self, schedule: Schedule, step: int, figures: Mapping[str, float]) -> None:
        """Log the steps since the last call, up to ``step``, in all places."""
        rate, validation_seconds = figures["clips_per_second"], self.status.validation_seconds
        seconds_left = schedule.seconds_left(step, rate, validation_seconds)
        self.metrics("train", step, schedule.epoch(step), figures)
        self.status.trained(step, seconds_left)
        line = train_line(step, schedule, figures, seconds_left)
        self.bar.note(line.partition("  ")[2])
        self.say(line)
        self._lines += 1
        if self._lines == 2:  # the first line includes the start of the loader
            self.say(time_line(schedule, step, rate, validation_seconds))

    def validated(self, schedule: Schedule, step: int, figures: Mapping[str, float], is_best: bool) -> None:
        """Log a validation in all places."""
        self.metrics("val", step, schedule.epoch(step), figures)
        self.status.validated(step)
        self.say(
            f"epoch {schedule.epoch(step):.2f}  validation: {metrics_text(figures)}{'  (best)' if is_best else ''}"
        )

    def metrics(self, kind: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Write one line for machines, and the same as TensorBoard scalars and for Weights & Biases."""
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        epoch = round(epoch, 4)
        with suppress(OSError):
            self._metrics.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **rounded}) + "\n")
        with suppress(OSError):
            if self._events is None:  # only now, or a run that has nothing to add would leave an empty file
                self._events = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._start + 1)
            for name, value in values.items():
                self._events.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb:
            self._wandb.log(kind, step, epoch, values)

    def close(self) -> None:
        """Flushes and closes everything."""
        self.bar.close()
        if self._wandb:
            self._wandb.close()
        for file in (self._metrics, self._events, self._text):
            with suppress(OSError):
                if file:
                    file.close()


class _SilentLog(RunLog):
    def __init__(self) -> None:
        self._lines = 0
        self.status = Status(None)
        self.bar = terminal.Bar(None, hidden=True)

    def say(self, text: str) -> None:
        """Nothing."""

    def metrics(self, kind: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _drop_beyond(path: Path, last: dict[str, int]) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            values = json.loads(line)
            if values["step"] <= last[values["kind"]]:
                kept.append(line)
        except (ValueError, KeyError):  # the line that a killed process was writing
            continue
    with atomic_write(path, "w") as handle:
        handle.writelines(kept)
