"""Leaving a run well: signals are noticed between two steps, so that a checkpoint can be written."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from video_rs.errors import VideoRSError

PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send: SLURM before a time limit, or to make room for another job."""


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Where there is nothing to save yet, what schedulers send ends the process with 75: please requeue it."""

    def leave(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        os.write(2, f"error: asked to leave ({name}) before the first step: start again\n".encode())
        raise SystemExit(75)

    before = {number: signal.signal(number, leave) for number in PREEMPTION_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interrupted(VideoRSError):
    """Raised between two steps, or inside a validation, once a signal has come.

    Attributes:
        signal: which.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}")
        self.exit_code = 75 if self.signal in PREEMPTION_SIGNALS else 130


class StopSignals:
    """Context that turns the first SIGINT, SIGTERM or SIGUSR1 into a request to stop; a second SIGINT acts at once.

    It may be entered again inside of itself.

    Attributes:
        received: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: list[dict[signal.Signals, object]] = []

    def __enter__(self) -> StopSignals:
        self._before.append(
            {number: signal.signal(number, self._note) for number in (signal.SIGINT, *PREEMPTION_SIGNALS)}
        )
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.pop().items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if number == signal.SIGINT:  # os.write, for the signal may have come in the middle of a print
            os.write(2, b"\nstopping after this step, with its state saved; Ctrl-C again stops at once\n")

    def check(self) -> None:
        """Raises :class:`Interrupted` when a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)
