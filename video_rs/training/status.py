"""``status.json``: where a run is, in one small file that is read from anywhere, also after the run was killed.

Nothing here needs torch, so that ``video-rs status`` answers at once.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from video_rs.errors import VideoRSError
from video_rs.files import atomic_write, json_values
from video_rs.training.plan import Plan

FILE = "status.json"
ENDED = ("complete", "interrupted", "preempted", "failed")
SECONDS_BETWEEN_WRITES = 5.0  # of log steps: each write waits for the disk, and steps may take milliseconds
MERITS = {"map": "mAP", "top1": "top-1"}  # the figure that the best weights are best in, as a person calls it


class Status:
    """What a run tells of itself; safe to call from several threads.

    Writing it never ends a run: a disk that refuses shows in the checkpoints.

    Args:
        folder: the run folder; None for the processes that write nothing.

    Attributes:
        values: what the file holds:

            - ``state``: running, validating, complete, interrupted, preempted or failed; ``error``: its one line;
            - ``host``, ``pid``, ``pid_start``, ``namespace``: the process; ``processes`` of the whole run;
            - ``started``, ``time``: of this start and of this file, seconds since 1970; ``seconds``: wall time of all
              starts; ``first_step``: where this start began;
            - ``step``, ``steps``, ``epoch``, ``batch_size``, ``seconds_left``, ``clips_per_second``;
            - ``train``, ``val``: the last figures, with their ``step``; ``best``: ``step``, ``epoch``, ``name`` and
              ``figure`` of the best validation;
            - ``log_seconds``: from one log line to the next; ``validation_seconds``: of the last validation;
            - ``checkpoint``: ``step`` and ``time`` of the newest;
            - ``broken_files``, ``bad_steps``: counts;
            - ``command``: what goes on with the run when it has stopped, or follows when it is complete; ``cwd``: the
              folder to call it in; ``folder``: of the run.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.values: dict[str, Any] = read(folder) if folder else {}
        self._plan: Plan | None = None
        self._lock = threading.Lock()
        self._written = self._logged = -math.inf
        self._clock = time.monotonic()
        self._seconds_before = self._validation_started = self._validating = 0.0
        self._log_lines, self._estimated = 0, False

    def begin(self, plan: Plan, step: int, command: str, *, processes: int = 1, **counts: int) -> None:
        """The run starts, or goes on, after ``step`` steps.

        Args:
            command: that goes on with the run, should it stop.
            counts: see :meth:`note`.
        """
        before = self.values
        self._plan, self._clock = plan, time.monotonic()
        self._seconds_before = _number(before.get("seconds"))
        kept = {key: before[key] for key in ("val", "best") if _step(before.get(key)) <= step and before.get(key)}
        if seconds := _number(before.get("validation_seconds")):
            kept["validation_seconds"] = seconds
        if step and before.get("checkpoint"):
            kept["checkpoint"] = before["checkpoint"]
        if step and (rate := _number(before.get("clips_per_second"))):
            kept["clips_per_second"] = rate
            kept["seconds_left"] = seconds_left(plan, step, rate, seconds)
        self.values = {
            **{"format": 1, "state": "running", "error": ""},
            **_this_process(),
            **{"processes": processes, "started": time.time(), "first_step": step},
            **{"step": step, "steps": plan.num_steps, "epoch": plan.epoch(step), "batch_size": plan.batch_size},
            **{"broken_files": 0, "bad_steps": 0, **counts},
            **{"command": command, "cwd": os.getcwd(), "folder": str(self.folder.resolve()) if self.folder else ""},
            **kept,
        }
        self._write()

    def trained(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        """A log step; ``clips_per_second`` among the figures says how long the rest will take."""
        now, rate = time.monotonic(), figures.get("clips_per_second", 0.0)
        self._log_lines += 1
        values: dict[str, Any] = {"step": step, "epoch": epoch, "train": {"step": step, **figures}}
        if self._plan and rate:
            values["clips_per_second"] = rate
            values["seconds_left"] = seconds_left(self._plan, step, rate, self.validation_seconds)
        if math.isfinite(self._logged):
            values["log_seconds"] = now - self._logged
        self._logged = now
        self._set(values, at_once=now - self._written > SECONDS_BETWEEN_WRITES)

    def validating(self) -> None:
        """A validation begins."""
        self._validation_started = time.monotonic()
        self._set({"state": "validating"})

    def validated(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        """A validation has ended well; :meth:`validating` began it."""
        values: dict[str, Any] = {"state": "running", "val": {"step": step, "epoch": epoch, **figures}}
        if self._validation_started:
            values["validation_seconds"] = seconds = time.monotonic() - self._validation_started
            self._validating += seconds
            self._validation_started = 0.0
        self._logged = -math.inf  # the next log line has the validation in its interval
        self._set({"step": step, "epoch": epoch, **values})

    def best(self, step: int, epoch: float, name: str, figure: float) -> None:
        """The best validation so far, whose weights are in ``best.pt``."""
        self._set({"best": {"step": step, "epoch": epoch, "name": name, "figure": figure}})

    def checkpoint(self, step: int) -> None:
        """A checkpoint is on the disk."""
        self._set({"checkpoint": {"step": step, "time": time.time()}})

    def note(self, **counts: int) -> None:
        """How many ``broken_files`` and ``bad_steps`` (not finite) there were so far."""
        if any(self.values.get(name) != count for name, count in counts.items()):
            self._set(counts)

    def end(self, state: str, command: str, error: str = "") -> None:
        """The last word of this start.

        Args:
            state: complete, interrupted, preempted or failed.
            command: the next one: that goes on with the run, or that follows a complete one.
            error: its one line, when it failed.
        """
        assert state in ENDED, state
        self._set({"state": state, "command": command, "error": " ".join(error.split())})

    def estimate(self) -> str:
        """When the run will be done, see :func:`time_line`; once, as soon as it can be told, else "".

        Of a run that is resumed that is at once. The first log line of a fresh one counts the start of the loader.
        """
        rate = _number(self.values.get("clips_per_second"))
        if self._estimated or self._plan is None or not rate or self._log_lines == 1 and not self.values["first_step"]:
            return ""
        self._estimated = True
        return time_line(self._plan, self.values["step"], rate, self.validation_seconds)

    @property
    def validation_seconds(self) -> float:
        """How long the last validation took, also before this start; 0 before the first."""
        return _number(self.values.get("validation_seconds"))

    @property
    def seconds(self) -> float:
        """Wall time of this start."""
        return time.monotonic() - self._clock

    @property
    def seconds_of_all_starts(self) -> float:
        """Wall time of this start and of those before it."""
        return self._seconds_before + self.seconds

    @property
    def clips_per_second(self) -> float:
        """Mean of this start, validations not counted; 0 before the first step."""
        steps = self.values.get("step", 0) - self.values.get("first_step", 0)
        return max(0, steps) * self.values.get("batch_size", 0) / max(self.seconds - self._validating, 1e-9)

    def _set(self, values: Mapping[str, Any], at_once: bool = True) -> None:
        with self._lock:
            self.values.update(values)
        if at_once:
            self._write()

    def _write(self) -> None:
        if self.folder is None or self._plan is None:  # without a beginning there is no run to tell of
            return
        with self._lock:
            self.values.update(time=time.time(), seconds=self.seconds_of_all_starts)
            self._written = time.monotonic()
            try:
                with atomic_write(self.folder / FILE, "w") as handle:
                    handle.write(json.dumps(json_values(self.values), indent=1) + "\n")
            except VideoRSError:
                pass


def read(folder: Path) -> dict[str, Any]:
    """The values of a run's ``status.json``; empty when there is none, or none that can be understood."""
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def read_metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """The last line of each kind, ``train`` and ``val``, in a run's ``metrics.jsonl``."""
    last: dict[str, dict[str, Any]] = {}
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return last
    for line in lines:
        try:
            values = json.loads(line)
            last[values["kind"]] = {**values, "step": int(values["step"])}
        except (ValueError, KeyError, TypeError):  # the line that is being written, or that a killed process left
            continue
    return last


def seconds_left(plan: Plan, step: int, rate: float, validation_seconds: float = 0.0) -> float:
    """What a run takes from ``step`` to its end at ``rate`` clips a second, validations included; inf at rate 0."""
    if not rate:
        return math.inf
    return (plan.num_steps - step) * plan.batch_size / rate + validations_left(plan, step) * validation_seconds


def validations_left(plan: Plan, step: int) -> int:
    """How many validations follow the steps after ``step``; the last step has one always."""
    if step >= plan.num_steps:
        return 0
    periods = [
        math.floor(plan.epoch(at) / plan.val_every) if plan.val_every else 0 for at in (step, plan.num_steps - 1)
    ]
    return periods[1] - periods[0] + 1


def time_line(plan: Plan, step: int, rate: float, validation_seconds: float = 0.0, now: float | None = None) -> str:
    """When the run will be done: "at 45.3 clips/s the run takes 3h05m more, until Tue 24 Nov 14:30".

    Args:
        rate: clips a second, see :func:`read_metrics` for that of a run that is resumed.
        validation_seconds: of one validation, see :class:`Status`; 0: not known yet, which the line says.
        now: seconds since 1970; None for the clock's.
    """
    seconds = seconds_left(plan, step, rate, validation_seconds)
    end = time.strftime("%a %d %b %H:%M", time.localtime((time.time() if now is None else now) + seconds))
    without = " (validations not counted)" if validations_left(plan, step) and not validation_seconds else ""
    return f"at {rate:.1f} clips/s the run takes {duration(seconds)} more, until {end}{without}"


def duration(seconds: float) -> str:
    """``75`` -> ``1m15s``, ``7500`` -> ``2h05m``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


def shown(figures: Mapping[str, Any]) -> str:
    """Figures of a validation, to be read: "top-1 87.50 %  top-5 99.00 %  loss 0.4321"."""
    names = {**MERITS, "top5": "top-5", "hit1": "hit@1", "accuracy": "accuracy"}
    parts = [f"{text} {100 * figures[name]:.2f} %" for name, text in names.items() if _is_number(figures.get(name))]
    parts += [f"loss {figures['loss']:.4f}"] if _is_number(figures.get("loss")) else []
    return "  ".join(parts)


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "namespace": namespace(), "pid": pid, "pid_start": start_of(pid)}


def namespace() -> str:
    """In which process ids mean something: containers may share a host's name. "" where it cannot be told."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def start_of(pid: int) -> int | None:
    """When a process of this machine started, in the kernel's ticks; None if it is gone, 0 where it cannot be told."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else int(fields[18])
    except (OSError, ValueError):
        pass
    if os.path.exists("/proc/self/stat"):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _number(value: Any) -> float:
    return float(value) if _is_number(value) else 0.0


def _step(values: Any) -> float:
    return values["step"] if isinstance(values, dict) and _is_number(values.get("step")) else math.inf
