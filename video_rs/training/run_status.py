"""Write the status of a run to ``status.json``, and read it from the run folder on any machine, even after a kill.

This module does not import torch, to make ``video-rs status`` fast.
"""

from __future__ import annotations

import csv
import math
import os
import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from video_rs.errors import VideoRSError
from video_rs.files import read_json, read_run_metrics, write_json

FILE = "status.json"
SIGNS = (FILE, "metrics.jsonl", "last.pt")  # a folder with one of these is a run folder
MONITORED = ("map", "top1")  # a validation has one of these
NAMES = {"map": "mAP", "top1": "top-1", "top5": "top-5", "hit1": "hit@1", "accuracy": "accuracy"}
"""Names of metrics between 0 and 1."""
ENDED = ("complete", "interrupted", "preempted", "failed")
SECONDS_BETWEEN_WRITES = 5.0  # for log steps: a write waits for the disk, and steps may take milliseconds
SILENCE, BEFORE_LOG, FIRST_VALIDATION = 120.0, 1800.0, 3600.0
"""Normal seconds without an update: in training, before the first log line, and in the first validation."""
NUMBERS = ("steps", "time", "seconds", "seconds_left", "log_seconds", "validation_seconds")  # in addition to step


class Status:
    """Write ``status.json``. A disk error is ignored here, because writing the next checkpoint will report it.

    Args:
        folder: the run folder; None writes nothing, for ranks other than 0.

    Attributes:
        values: the content of the file, null if unknown:

            - ``format``: 2; ``folder``: the run folder; ``time``: time of this write, seconds since 1970;
            - ``state``: running, validating, complete, interrupted, preempted or failed; ``error``: one line;
            - ``step``, ``steps``: completed and total steps; ``seconds_left``; ``seconds``: wall time of all starts;
            - ``log_seconds``: time between the last two log lines, at first since the start;
            - ``validation_seconds``: duration of the last validation;
            - ``command``: the command to resume a stopped run, or the next step of a complete run.
        first_step: first step of this start.
        seconds_before: wall time of earlier starts.
        seconds_in_validation: time spent in validations in this start.
    """

    def __init__(self, folder: Path | None) -> None:
        self.values: dict[str, Any] = {}
        self.first_step, self.seconds_before, self.seconds_in_validation = 0, 0.0, 0.0
        self._folder, self._started = folder, time.monotonic()
        self._validation_started = self._started
        self._written = self._logged = -math.inf

    @property
    def seconds(self) -> float:
        """Wall time of this start."""
        return time.monotonic() - self._started

    @property
    def validation_seconds(self) -> float:
        """Wall time of the last validation, or 0 before the first one."""
        return self.values.get("validation_seconds") or 0.0

    def begin(self, step: int, steps: int, command: str) -> None:
        """Record the start of a run at ``step`` of ``steps``, and the command to resume it."""
        before = read(self._folder) if self._folder else {}
        self.first_step, self.seconds_before, self._started = step, before.get("seconds") or 0.0, time.monotonic()
        self.values = {
            "format": 2,
            "folder": str(self._folder and self._folder.resolve()),
            "state": "running",
            "error": "",
            "step": step,
            "steps": steps,
            "seconds_left": None,
            "log_seconds": None,
            "validation_seconds": before.get("validation_seconds"),
            "command": _from_here(command),
        }
        self._write()

    def trained(self, step: int, seconds_left: float) -> None:
        """Record that a log line was written."""
        now = time.monotonic()
        interval = now - self._logged
        if not math.isfinite(interval):  # the first log line, or the first after a validation
            interval = self.values.get("log_seconds") or self.seconds
        left = seconds_left if math.isfinite(seconds_left) else None
        self.values.update(step=step, seconds_left=left, log_seconds=interval)
        self._logged = now
        if now - self._written > SECONDS_BETWEEN_WRITES:
            self._write()

    def validating(self) -> None:
        """Record the start of a validation."""
        self._validation_started = time.monotonic()
        self.values["state"] = "validating"
        self._write()

    def validated(self, step: int) -> None:
        """Record the end of a validation."""
        seconds = time.monotonic() - self._validation_started
        self.seconds_in_validation += seconds
        self._logged = -math.inf  # the interval to the next log line includes the validation
        self.values.update(state="running", step=step, validation_seconds=seconds)
        self._write()

    def end(self, state: str, command: str, error: str = "") -> None:
        """Record the end of the run: a state in ``ENDED``, the next command, and the error of a failed run."""
        if "Traceback" in error:  # a loader worker's error has its traceback in it
            error = error.strip().splitlines()[-1]
        newest = _newest_checkpoint(self._folder) if self._folder else None
        step = max(self.values.get("step", 0), (newest or {}).get("step") or 0)
        self.values.update(state=state, step=step, command=_from_here(command), error=" ".join(error.split()))
        self._write()

    def _write(self) -> None:
        self.values.update(time=time.time(), seconds=self.seconds_before + self.seconds)
        self._written = time.monotonic()
        if self._folder is None or "format" not in self.values:  # the run has not started
            return
        with suppress(VideoRSError):
            write_json(self._folder / FILE, self.values)


def look(folder: Path, now: float | None = None) -> dict[str, Any]:
    """Return the status of a run from its folder. Missing or incomplete files are ignored.

    Args:
        folder: the run folder.
        now: seconds since 1970; None for the current time.

    Returns:
        A dict with these keys:

        - ``folder``; ``verdict``: running, silent (probably stopped), complete, interrupted, preempted or failed;
          ``text``: the same with the error; ``age``: seconds since the last update;
        - ``step``, ``steps``, ``epoch``, ``seconds_left``: None if unknown;
        - ``train``, ``val``, ``best``: see :func:`read_metrics`;
        - ``checkpoint``: ``path``, ``step``, ``time`` and ``bytes`` of the newest checkpoint, or None;
        - ``warnings``: a list of lines; ``command``: see :class:`Status`, "" if unknown.
    """
    values, metrics, checkpoint = read(folder), read_metrics(folder), _newest_checkpoint(folder)
    written = values.get("time") or max(_modified(folder / name) for name in SIGNS)
    age = max(0.0, (time.time() if now is None else now) - written)
    verdict, text = _verdict(values, age)
    newest = max(metrics["train"], metrics["val"], key=lambda line: line.get("step", -1))
    step, left = max(values.get("step", 0), newest.get("step", 0)), values.get("seconds_left")
    warnings = _warnings(folder)
    if not values and (folder / FILE).exists():
        warnings.append(f"{FILE} cannot be read; the status is derived from other files")
    if checkpoint is None and step:
        warnings.append("there is no checkpoint to resume from")
    return {
        **{"folder": str(folder), "verdict": verdict, "text": text, "age": age},
        **{"step": step, "steps": values.get("steps"), "epoch": newest.get("epoch")},
        "seconds_left": max(0.0, left - age) if verdict == "running" and left is not None else None,
        **metrics,
        **{"checkpoint": checkpoint, "warnings": warnings, "command": _command(values, folder)},
    }


def _verdict(values: Mapping[str, Any], age: float) -> tuple[str, str]:
    """Return the verdict on a run. For a run without an end, it depends on the age."""
    state, interval = values.get("state", "running"), values.get("log_seconds")
    if state in ENDED:
        return state, f"{state}: {values['error']}" if values.get("error") else state
    normal = BEFORE_LOG if interval is None else max(SILENCE, 5 * interval)
    if state == "validating":
        last = values.get("validation_seconds")
        normal = max(normal, 3 * last if last else FIRST_VALIDATION)
    if age > normal:
        return "silent", "silent, probably stopped"
    return "running", "running, in a validation" if state == "validating" else "running"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _command(values: Mapping[str, Any], folder: Path) -> str:
    """Return the recorded command, or "" if the folder was moved or copied."""
    command = str(values.get("command", ""))
    if values.get("folder") != str(folder.resolve()):
        return f'video_rs.fit(..., out="{folder}")' if command.startswith("video_rs.") else ""
    if "cwd" in values:  # format 1 has the working folder as an entry of its own
        command = f"cd {shlex.quote(str(values['cwd']))} && {command}"
    return command.removeprefix(_from_here(""))


def _from_here(command: str) -> str:
    if command.startswith("video_rs."):  # Python
        return command
    return f"cd {shlex.quote(os.getcwd())} && {command}"


def _warnings(folder: Path) -> list[str]:
    lines = []
    for name, what in (("broken_files", "files could not be read"), ("bad_steps", "non-finite steps were skipped")):
        path = folder / f"{name}.csv"
        try:
            with open(path, encoding="utf-8", errors="replace", newline="") as handle:
                first_column = {row[0] for row in list(csv.reader(handle))[1:] if row}
        except (OSError, csv.Error):
            continue
        if first_column:
            lines.append(f"{len(first_column)} {what}: {path}")
    return lines


def _newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    path = max((folder / "checkpoints").glob("step-*.pt"), default=folder / "last.pt")  # steps have leading zeros
    step = path.stem.removeprefix("step-")
    try:
        info = path.stat()
    except OSError:  # not written yet, or replaced meanwhile
        return None
    step = int(step) if step.isdecimal() else None
    return {"path": str(path), "step": step, "time": info.st_mtime, "bytes": info.st_size}


def read(folder: Path) -> dict[str, Any]:
    """Return the values in a run's ``status.json``; empty if it is missing or a value has the wrong type."""
    try:
        values = read_json(folder / FILE)
        numbers = [values["step"], *(values[key] for key in NUMBERS if values.get(key) is not None)]
        is_whole = isinstance(values["state"], str) and isinstance(values["step"], int)
        return values if is_whole and all(map(_is_number, numbers)) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e15


def read_metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the last ``train`` and ``val`` line of ``metrics.jsonl``, and the ``best`` validation; {} if unknown.

    ``best`` has the ``name`` and ``value`` of the monitored metric. Non-finite values are None.
    """
    lines: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    with suppress(OSError):
        for line in read_run_metrics(folder / "metrics.jsonl"):
            numbers = {key: value for key, value in line.items() if value is None or _is_number(value)}
            lines[line["kind"]].append(numbers)
    monitored = [
        {**line, "name": name, "value": line[name]} for line in lines["val"] for name in MONITORED if name in line
    ]
    best = max((line for line in monitored if line["value"] is not None), key=_best_key, default={})
    return {**{kind: found[-1] if found else {} for kind, found in lines.items()}, "best": best}


def _best_key(line: Mapping[str, Any]) -> tuple[float, float]:
    return line["value"], -math.inf if line.get("loss") is None else -line["loss"]


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """Format the metrics of a validation: "top-1 87.50 %  top-5 99.00 %  loss 0.4321"."""
    parts = [f"{text} {100 * metrics[name]:.2f} %" for name, text in NAMES.items() if metrics.get(name) is not None]
    if metrics.get("loss") is not None:
        parts.append(f"loss {metrics['loss']:.4f}")
    return "  ".join(parts)
