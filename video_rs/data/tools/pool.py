"""Call a function in several processes."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.pool import ExceptionWithTraceback
from typing import Any, NamedTuple, TypeVar

from video_rs.distributed.launcher import START_METHOD, can_start_processes
from video_rs.errors import MachineError, MediaError, StorageError
from video_rs.signals import blocked_signals, ignore_stop_signals, interruptible

T, R = TypeVar("T"), TypeVar("R")
Progress = Callable[[Iterable, int], Iterable]
"""Called with the results of a job and their number; returns an iterator that displays the progress."""
Beat = Callable[[], None]
"""Called by a job as it makes progress."""
_CONTEXT = multiprocessing.get_context(START_METHOD)
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}  # of native code, on damaged files


def no_progress(items: Iterable[T], total: int) -> Iterable[T]:
    """Return the items unchanged: a ``Progress`` without a display."""
    return items


class Lost(NamedTuple):
    """The result of a call that hung or died, with the reason."""

    reason: str


def watched_calls(
    function: Callable[[T, Beat], R],
    todo: Iterable[T],
    workers: int,
    timeout: float,
    name: Callable[[T], object] = str,
) -> Iterator[tuple[T, R | Lost | MediaError | StorageError]]:
    """Yield ``(item, function(item, beat))`` in the order of completion, for calls that may hang or crash.

    The result of a call that hangs or crashes is a ``Lost``. The result of a call that raises ``MediaError`` or
    ``StorageError`` is the error, because the caller can compare with other files. Other calls are not affected.
    Closing this generator, or Ctrl-C, kills the processes immediately. Processes exit when their parent exits. A call
    costs 50 microseconds.

    In a daemonic process, the calls are made one after another in this process, and a hang or crash is not detected.

    Args:
        function: an importable function, which calls ``beat()`` as it makes progress.
        todo: the items, which are read as needed and must not be None.
        workers: number of processes, with one call at a time each.
        timeout: seconds without a heartbeat after which a process is killed; 0 for no limit.
        name: returns the name of an item for messages.

    Raises:
        MachineError: a process died before its first call, or was killed from outside, such as for lack of memory.
        Exception: any other exception of a call.
    """
    if not can_start_processes():
        yield from ((item, _result(function, item, lambda: None)) for item in todo)
        return
    left, tick = iter(todo), min(1.0, timeout / 4) if timeout else None
    team: list[_Worker] = []
    try:
        for _ in range(workers):
            team.append(_Worker(function, tick))
        before = time.monotonic()
        while team:
            workers_of = {worker.pipe: worker for worker in team}
            with interruptible():
                ready = wait(workers_of, tick)
            for worker in map(workers_of.get, ready):
                kind, result = worker.receive()
                if kind == "beat":
                    continue
                if kind == "killed":
                    raise MachineError(f"{str(name(worker.item))[-100:]}: {result}")
                if worker.item is not None:
                    yield worker.item, result
                if kind == "lost":
                    team[team.index(worker)] = worker.replaced()
                elif not worker.give(next(left, None)):
                    team.remove(worker)
            now = time.monotonic()
            passed, before = min(now - before, tick or 0.0), now  # do not count the time in which the job is suspended
            for worker in list(team):
                worker.silence += passed
                if timeout and worker.item is not None and worker.silence >= timeout:
                    yield worker.item, Lost(f"hung the decoder (no progress for {timeout:g} s)")
                    team[team.index(worker)] = worker.replaced()
    finally:
        for worker in team:
            worker.end()


class _Worker:
    """A process and its current item. The first message reports that the process has started."""

    def __init__(self, function: Callable[[Any, Beat], Any], tick: float | None) -> None:
        self._job = function, tick
        self.item, self.silence = None, 0.0
        self.pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_work, args=(*self._job, theirs), daemon=True)
        with blocked_signals():
            self._process.start()
        theirs.close()  # otherwise the pipe stays open when the process dies

    def give(self, item: Any) -> bool:
        """Send an item to the process, or end the process if the item is None. Return True if it continues."""
        self.item = item
        if item is None:
            self.end()
            return False
        with contextlib.suppress(OSError):  # receive() reports a process that has died
            self.pipe.send(item)
        return True

    def receive(self) -> tuple[str, Any]:
        """Return kind and content of a message: "lost" for a crash, "killed". Raise the exception of a call."""
        self.silence = 0.0
        try:
            kind, result = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            how = signal.Signals(-code).name if -code in list(signal.Signals) else f"exit code {code}"
            if self.item is None:
                raise MachineError(f"a process died at start-up ({how}), perhaps out of memory; use fewer") from None
            if code >= 0 or -code in _CRASHES:
                return "lost", Lost(f"killed the decoder ({how})")
            cause = "/dev/shm may be full (see --shm-size)" if -code == signal.SIGBUS else "possibly out of memory"
            return "killed", f"its process was killed ({how}), {cause}; use fewer workers"
        if kind == "error":
            raise result
        return kind, result

    def end(self) -> None:
        self._process.kill()  # before closing the pipe; otherwise it would print a BrokenPipeError
        self.pipe.close()
        self._process.join(1)  # give up on a process that is stuck in the kernel

    def replaced(self) -> "_Worker":
        self.end()
        return _Worker(*self._job)


def _work(function: Callable[[Any, Beat], Any], tick: float | None, pipe: Connection) -> None:
    ignore_stop_signals()  # the parent handles them
    warnings.filterwarnings("ignore", module="PIL")  # about damaged metadata
    with contextlib.suppress(RuntimeError):  # no thread can be started
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    sent = time.monotonic()

    def beat() -> None:  # called hundreds of times per second
        nonlocal sent
        if tick and time.monotonic() - sent >= tick:
            sent = time.monotonic()
            pipe.send(("beat", None))

    pipe.send(("started", None))
    with contextlib.suppress(EOFError):
        while True:
            item = pipe.recv()
            try:
                answer = "done", _result(function, item, beat)
            except Exception as error:
                answer = "error", ExceptionWithTraceback(error, error.__traceback__)
            pipe.send(answer)


def _result(function: Callable[[T, Beat], R], item: T, beat: Beat) -> R | MediaError | StorageError:
    try:
        return function(item, beat)
    except (MediaError, StorageError) as error:
        return error


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
