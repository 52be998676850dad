"""What can be seen of a run from its folder alone, from any machine, while it trains or long after it was killed."""

from __future__ import annotations

import math
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from video_rs.training import status
from video_rs.training.status import duration

SIGNS = (status.FILE, "metrics.jsonl", "last.pt")  # a folder with one of these is a run's
CHECKPOINT = re.compile(r"step-(\d+)\.pt")
LEAST_PATIENCE, AT_START, IN_VALIDATION = 120.0, 1800.0, 3600.0
"""Seconds of silence that mean nothing; while a run that has yet to log starts, or validates for the first time."""


@dataclass
class Sight:
    """A run, seen at one moment.

    Attributes:
        verdict: running, stopped (without a word: killed, or its machine died), complete, interrupted, preempted,
            failed.
        text: the same in words, with the reason.
        age: seconds since the last sign of life; None when there was none.
        step, steps, epoch, clips_per_second, seconds_left: None where it cannot be told.
        train, val, best: the last and the best figures, see ``Status``.
        checkpoint: ``path``, ``step`` (None if unknown), ``time``, ``bytes`` and ``kept`` (how many there are).
        warnings: lines.
        command: goes on with the run, or follows it; "" where it cannot be told. ``cwd``: where to call it.
    """

    folder: str
    verdict: str = "stopped"
    text: str = ""
    age: float | None = None
    step: int | None = None
    steps: int | None = None
    epoch: float | None = None
    clips_per_second: float | None = None
    seconds_left: float | None = None
    train: dict[str, Any] = field(default_factory=dict)
    val: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    checkpoint: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    command: str = ""
    cwd: str = ""


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return any((folder / name).is_file() for name in SIGNS)


def look(folder: Path, now: float | None = None) -> Sight:
    """A run from its files; those that are missing, half-written or of an earlier version tell what they can.

    Args:
        now: seconds since 1970; None for the clock's.
    """
    now = time.time() if now is None else now
    values, lines = status.read(folder), status.read_metrics(folder)
    sight = Sight(str(folder))
    if values.get("state"):
        _from_status(sight, values, now)
    else:
        if (folder / status.FILE).exists():
            sight.warnings.append(f"{status.FILE} cannot be read; this is from the other files")
        _from_log(sight, folder, lines, now)
    _figures(sight, lines)
    sight.checkpoint = _checkpoint(sight, folder, values)
    _warn(sight, folder, values)
    return sight


def _from_status(sight: Sight, values: dict[str, Any], now: float) -> None:
    age = max(0.0, now - (_number(values, "time") or 0.0))
    sight.age, sight.step, sight.steps = age, _whole(values, "step"), _whole(values, "steps")
    sight.epoch, sight.clips_per_second = _number(values, "epoch"), _number(values, "clips_per_second")
    sight.train, sight.val, sight.best = (_dict(values, key) for key in ("train", "val", "best"))
    if values.get("folder") in (None, str(Path(sight.folder).resolve())):  # else it was moved or copied
        sight.command = str(values.get("command", ""))
    sight.cwd = str(values.get("cwd", ""))
    state, host = str(values["state"]), str(values.get("host", "another machine"))
    if state in status.ENDED:
        error = str(values.get("error") or "")
        sight.verdict, sight.text = state, f"{state}: {error}" if error else state
        return
    silent, usual = age > _patience(values), _number(values, "log_seconds")
    too_long = f"silent for {duration(age)}" + (f", usually it logs every {duration(usual)}" if usual else "")
    doing = "running" if state == "running" else "running (in a validation)"
    if host == socket.gethostname() and values.get("namespace", "") == status.namespace():
        pid = _whole(values, "pid") or 0
        if not _is_alive(pid, values.get("pid_start")):
            sight.text = f"stopped without saying so: process {pid} is gone, it was killed or this machine restarted"
            return
        sight.text = f"{doing} here, process {pid}"
        if silent:
            sight.warnings.append(f"{too_long}: it may hang")
    elif silent:
        sight.text = f"stopped without saying so, as it seems: {too_long} on {host}"
        return
    else:
        sight.text = f"{doing} on {host}"
    sight.verdict = "running"
    if (left := _number(values, "seconds_left")) is not None:
        sight.seconds_left = max(0.0, left - age)


def _patience(values: dict[str, Any]) -> float:
    """How long a run may be silent."""
    usual = _number(values, "log_seconds")
    allowed = [LEAST_PATIENCE, AT_START if usual is None else 5 * usual]
    if values["state"] == "validating":
        allowed.append(3 * (_number(values, "validation_seconds") or IN_VALIDATION / 3))
    return max(allowed)


def _is_alive(pid: int, start: Any) -> bool:
    """Whether a process of this machine is the one that started then: ids are used again."""
    found = status.start_of(pid)
    return found is not None and (found == start or not (found and start))


def _from_log(sight: Sight, folder: Path, lines: dict[str, dict[str, Any]], now: float) -> None:
    """A run of an earlier version: when its log was written, and what it says."""
    times = [(folder / name).stat().st_mtime for name in ("log.txt", *SIGNS) if (folder / name).exists()]
    sight.age = max(0.0, now - max(times)) if times else None
    text = _tail(folder / "log.txt")
    if counts := re.findall(r"\bstep (\d+)(?:/| of )(\d+)\b", text):
        sight.step, sight.steps = map(int, counts[-1])
    validated = lines.get("val", {}).get("step")
    last = text.rpartition("\n")[2]
    if sight.steps and validated == sight.steps:
        sight.verdict = sight.text = "complete"
    elif "interrupted; the state after" in last:
        sight.verdict = sight.text = "interrupted"
    elif sight.age is not None and sight.age < LEAST_PATIENCE:
        sight.verdict, sight.text = "running", "running, as it seems"
    else:
        sight.text = "stopped without saying so, as it seems"
    _time_left(sight, folder, lines.get("train", {}))


def _time_left(sight: Sight, folder: Path, line: dict[str, Any]) -> None:
    rate = sight.clips_per_second = _number(line, "clips_per_second")
    try:
        batch = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["train"]["batch_size"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return
    if sight.verdict == "running" and sight.steps and rate and isinstance(batch, int):
        sight.seconds_left = (sight.steps - (sight.step or 0)) * batch / rate


def _figures(sight: Sight, lines: dict[str, dict[str, Any]]) -> None:
    """The metrics are written more often than the status."""
    for kind, line in lines.items():
        known = getattr(sight, kind)
        if line["step"] >= (_number(known, "step") or 0):
            setattr(sight, kind, {key: value for key, value in line.items() if key != "kind"})
        if line["step"] > (sight.step if sight.step is not None else -1):
            sight.step, sight.epoch = line["step"], _number(line, "epoch")
    if sight.epoch is None and (line := lines.get("train")):
        sight.epoch = _number(line, "epoch")


def _checkpoint(sight: Sight, folder: Path, values: dict[str, Any]) -> dict[str, Any] | None:
    found = [
        (int(match[1]), path) for path in _in(folder / "checkpoints") if (match := CHECKPOINT.fullmatch(path.name))
    ]
    step, path = max(found, default=(None, folder / "last.pt"))
    try:
        info = path.stat()
    except OSError:  # another is there by now, or none was written yet
        return None
    if step is None:
        step = _whole(_dict(values, "checkpoint"), "step")
    if info.st_size == 0:
        sight.warnings.append(f"{path} is empty; the one before it will be used, if there is one")
    about = {"time": info.st_mtime, "bytes": info.st_size, "kept": max(1, len(found))}
    return {"path": str(path), "step": step, **about}


def _warn(sight: Sight, folder: Path, values: dict[str, Any]) -> None:
    broken = _whole(values, "broken_files")
    if broken is None and (text := _tail(folder / "broken_files.csv")):
        broken = len(text.splitlines()) - 1
    if broken:
        sight.warnings.append(f"{broken} files could not be read: {folder / 'broken_files.csv'}")
    if bad := _whole(values, "bad_steps"):
        sight.warnings.append(f"{bad} steps were not finite and skipped: {folder / 'bad_steps.csv'}")
    if sight.checkpoint is None and (sight.step or 0) > 0:
        sight.warnings.append("there is no checkpoint to go on from")


def _in(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _tail(path: Path, size: int = 1 << 16) -> str:
    try:
        with open(path, "rb") as handle:
            handle.seek(max(0, path.stat().st_size - size))
            return handle.read().decode(errors="replace").rstrip()
    except OSError:
        return ""


def _number(values: dict[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _whole(values: dict[str, Any], key: str) -> int | None:
    value = _number(values, key)
    return None if value is None else int(value)


def _dict(values: dict[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}
