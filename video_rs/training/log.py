"""What a run writes about itself: the terminal, ``log.txt``, ``metrics.jsonl`` and TensorBoard events."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from video_rs.files import atomic_write


class RunLog:
    """Log of one run folder.

    ``metrics.jsonl`` has a line per log step, ``{"kind": "train", "step", "epoch", "loss", "accuracy", "lr",
    "clips_per_second", "data_wait"}``, and per validation ``{"kind": "val", "step", "epoch", "top1", "top5", "loss"}``.
    Where a sample may be of several classes, "hit1" (the top class is one of them) and "map" stand for the accuracies.

    Args:
        folder: the run folder.
        step: the step the run starts from; what an interrupted run logged beyond it is dropped, so that each step is
            there once.
        num_steps: of the whole run.
        validated: the last step whose validation counts.
    """

    def __init__(self, folder: Path, step: int, num_steps: int, validated: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _drop_beyond(folder / "metrics.jsonl", {"train": step, "val": validated})
        self._text = open(folder / "log.txt", "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
        self._metrics = open(folder / "metrics.jsonl", "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.bar = tqdm(
            total=num_steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
        )

    def say(self, text: str) -> None:
        """One line for people: on the terminal (above the bar) and, with the time, in log.txt."""
        if self.bar.disable:
            print(text, flush=True)
        else:
            self.bar.write(text)
        self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def metrics(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """One line for machines, and the same as TensorBoard scalars."""
        line = {
            "kind": kind,
            "step": step,
            "epoch": round(epoch, 4),
            **{k: float(f"{v:.6g}") for k, v in values.items()},
        }
        self._metrics.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flushes and closes everything."""
        self.bar.close()
        self._events.close()
        self._metrics.close()
        self._text.close()


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


def duration(seconds: float) -> str:
    """``75`` -> ``1m15s``, ``7500`` -> ``2h05m``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
