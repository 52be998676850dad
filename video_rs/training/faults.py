"""Leaving a run well: Ctrl-C and SIGTERM are noticed between two steps, so that a checkpoint can be written."""

from __future__ import annotations

import os
import signal
from types import FrameType


class Interrupted(Exception):
    """Raised between two steps, or inside a validation, once a signal has come."""


class StopSignals:
    """Context that turns the first SIGINT or SIGTERM into a request to stop; a second SIGINT acts at once.

    Attributes:
        received: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
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
            raise Interrupted
