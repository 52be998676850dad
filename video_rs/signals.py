"""Stop signals: SIGTERM and SIGUSR1 of schedulers, and Ctrl-C.

A command ends at once, see :func:`exit_on_signals`. Training stops between two steps or while it waits for data, where
a checkpoint can be written, see :class:`StopSignals`. The ranks agree on a stop in
``video_rs.training.loop.Run._agree``, so all of them stop after the same step.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import ClassVar

from video_rs.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, VideoRSError

PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals of schedulers. SLURM sends them before a time limit or for preemption."""
STOP_SIGNALS = (signal.SIGINT, *PREEMPTION_SIGNALS)
GRACE = 3.0  # seconds after which a process is killed that has not exited, for example because a file hangs


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def ignore_stop_signals() -> None:
    """Ignore the stop signals in a child process. Schedulers and Ctrl-C send them to all processes of a job."""
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Block the stop signals while child processes start. The children inherit the blocked signals."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def exit_on_signals(advice: str = "; start the command again") -> Iterator[None]:
    """Exit with code 75 (requeue) at a scheduler's signal, within ``GRACE`` seconds. In a thread, do nothing.

    In a block ``with StopSignals()``, its handlers are used instead. Python runs handlers in the main thread when a
    call of native code returns. A second thread ends the process if that takes too long.
    """
    if not _is_main_thread():
        yield
        return
    ended, seen = threading.Event(), []

    def report(number: int, text: str = advice) -> None:
        if not seen:
            seen.append(number)
            os.write(2, f"error: received {signal.Signals(number).name}{text}\n".encode())  # may interrupt a print

    def leave(number: int, frame: FrameType | None) -> None:
        report(number)
        raise SystemExit(EXIT_REQUEUE)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watch = threading.Thread(target=_end_stuck, args=(reader, ended, report), name="stop signals", daemon=True)
    with contextlib.suppress(RuntimeError):  # no thread can be started: continue without it
        watch.start()
    before = {number: signal.signal(number, leave) for number in PREEMPTION_SIGNALS}
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    except Exception:
        if seen:  # raised by a library in place of SystemExit
            raise SystemExit(EXIT_REQUEUE) from None
        raise
    finally:
        ended.set()
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)  # ends the thread


def _end_stuck(reader: int, ended: threading.Event, report: Callable[..., None]) -> None:
    """Read the numbers of received signals, and end the process if its main thread does not."""
    with open(reader, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] not in PREEMPTION_SIGNALS:
                continue
            run = StopSignals.active
            if not ended.wait(GRACE) and (run is None or run.waiting or run.busy):
                report(number[0], *([f" while {run.busy or 'a file hangs'}; restart to resume"] if run else []))
                for child in multiprocessing.active_children():
                    child.kill()
                os._exit(EXIT_REQUEUE)


class Interrupted(VideoRSError):
    """A stop signal was received. Raised between two steps or while waiting for data.

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
        active: the instance whose block is being executed, or None.
        received: the first signal, or None.
        waiting: True in a block :func:`interruptible` until a signal is received.
        busy: what cannot be interrupted, in a block :func:`ended_by_signals`; "" elsewhere.
    """

    active: ClassVar[StopSignals | None] = None

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.waiting, self.busy = False, ""
        self._exits: list[contextlib.ExitStack] = []

    def __enter__(self) -> StopSignals:
        self._exits.append(contextlib.ExitStack())
        if _is_main_thread():
            self._exits[-1].callback(setattr, StopSignals, "active", StopSignals.active)
            for number in STOP_SIGNALS:
                self._exits[-1].callback(signal.signal, number, signal.signal(number, self._note))
            StopSignals.active = self
        return self

    def __exit__(self, *exception: object) -> None:
        self._exits.pop().close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if number == signal.SIGINT:  # os.write: the signal may interrupt a print
            os.write(2, b"\nstopping with a checkpoint; press Ctrl-C again to stop at once\n")
        if self.waiting:
            self.waiting = False
            self.check()

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal was received."""
        if self.received is not None:
            raise Interrupted(self.received)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Run a block that waits for data. Raise ``Interrupted`` as soon as the active ``StopSignals`` has a signal."""
    signals = StopSignals.active
    if signals is None or not _is_main_thread():
        yield
        return
    signals.waiting = True
    try:
        signals.check()
        yield
    finally:
        signals.waiting = False


@contextlib.contextmanager
def ended_by_signals(busy: str) -> Iterator[None]:
    """Run a block that takes minutes, and that an exception would leave in an undefined state.

    :func:`exit_on_signals` ends the process at a scheduler's signal, without a checkpoint.

    Args:
        busy: what the process does, for the message.
    """
    signals = StopSignals.active
    if signals is None or not _is_main_thread():
        yield
        return
    signals.busy = busy
    try:
        yield
    finally:
        signals.busy = ""
