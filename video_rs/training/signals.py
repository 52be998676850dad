"""Stop signals: a run notices them between two steps, where a checkpoint can be written.

The ranks agree on a stop in ``video_rs.training.loop.Run._agree``, so all of them stop after the same step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from video_rs.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, VideoRSError

PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals of schedulers. SLURM sends them before a time limit or for preemption."""


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Exit with code 75 (requeue) at a scheduler's signal before there is anything to save."""

    def leave(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        os.write(2, f"error: received {name} before the first step; restart to begin\n".encode())
        raise SystemExit(EXIT_REQUEUE)

    before = {number: signal.signal(number, leave) for number in PREEMPTION_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interrupted(VideoRSError):
    """A stop signal was received. Raised between two steps or during a validation.

    Attributes:
        signal: the signal that was received.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"received {self.signal.name}")
        self.exit_code = EXIT_REQUEUE if self.signal in PREEMPTION_SIGNALS else EXIT_INTERRUPTED


class StopSignals:
    """Context manager for stop signals. The first SIGINT, SIGTERM or SIGUSR1 is recorded, a second SIGINT is raised.

    It can be nested. Outside of the main thread, where Python does not handle signals, it does nothing.

    Attributes:
        received: the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: list[dict[signal.Signals, object]] = []

    def __enter__(self) -> StopSignals:
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, *PREEMPTION_SIGNALS) if is_main else ()
        self._before.append({number: signal.signal(number, self._note) for number in numbers})
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.pop().items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if number == signal.SIGINT:  # os.write: the signal may interrupt a print
            os.write(2, b"\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once\n")

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal was received."""
        if self.received is not None:
            raise Interrupted(self.received)
