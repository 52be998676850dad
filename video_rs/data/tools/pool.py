"""Call a function in several processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.pool import ExceptionWithTraceback
from typing import Any, TypeVar

from video_rs.errors import MachineError

T, R = TypeVar("T"), TypeVar("R")
Progress = Callable[[Iterable, int], Iterable]
"""Wraps the results of a job, given their number, to show how far it is."""
_HEARTBEAT = object()
_SPAWN = multiprocessing.get_context("spawn")  # threads of the caller do not survive a fork


def no_progress(items: Iterable[T], total: int) -> Iterable[T]:
    """Return the items: a ``Progress`` that shows nothing."""
    return items


def map_in_processes(function: Callable[[T], R], todo: Sequence[T], workers: int) -> Iterator[R]:
    """Yield ``function(item)`` of each item in order, for calls that take milliseconds and do not hang.

    After Ctrl-C or an exception of a call, each process finishes the calls that it has been given, up to 32. Processes
    end with their parent.

    Raises:
        BrokenProcessPool: a process was killed.
        Exception: of a call.
    """
    if workers == 1 or len(todo) < 64:  # starting processes takes longer
        yield from map(function, todo)
        return
    with ProcessPoolExecutor(workers, _SPAWN, initializer=_init_process) as pool:
        try:
            yield from pool.map(function, todo, chunksize=16)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass(frozen=True)
class Lost:
    """The result of a call that hung or whose process died, with the reason."""

    reason: str


def watched_calls(
    function: Callable[[T, Callable[[], None]], R], todo: Iterable[T], workers: int, timeout: float
) -> Iterator[tuple[T, R | Lost]]:
    """Yield ``(item, function(item, beat))`` as the calls end, in no order, for calls that may hang or crash.

    A call that hangs or whose process dies gives a ``Lost`` and does not affect other calls. Closing this generator,
    Ctrl-C included, kills the processes at once. Processes end with their parent.

    Args:
        function: importable; it calls ``beat()`` as it makes progress.
        todo: items, none of which is None. They are read as they are needed.
        workers: number of processes. Each has one call at a time.
        timeout: seconds without a heartbeat after which a process is killed; 0 for no limit.

    Raises:
        MachineError: a process died before its first call.
        Exception: of a call.
    """
    left, tick = iter(todo), min(1.0, timeout / 4) if timeout else None
    team: list[_Worker] = []
    try:
        for _ in range(workers):
            team.append(_Worker(function, tick))
        before = time.monotonic()
        while team:
            for pipe in wait([worker.pipe for worker in team], tick):
                worker = next(each for each in team if each.pipe is pipe)
                item, result = worker.item, worker.receive()
                if result is _HEARTBEAT:
                    continue
                if item is not None:
                    yield item, result
                if isinstance(result, Lost):
                    team[team.index(worker)] = worker.replaced()
                elif (upcoming := next(left, None)) is not None:
                    worker.give(upcoming)
                else:
                    worker.end()
                    team.remove(worker)
            now = time.monotonic()
            passed, before = min(now - before, tick or 0.0), now  # do not count the time of a suspended job
            for worker in list(team) if timeout else ():
                if worker.silent_for(passed) >= timeout:
                    yield worker.item, Lost(f"no progress for {timeout:g} s; the decoder or the storage hangs")
                    team[team.index(worker)] = worker.replaced()
    finally:
        for worker in team:
            worker.end()


class _Worker:
    """A process and the item that it works on. Its first message, before any item, reports that it has started."""

    def __init__(self, function: Callable[[Any, Callable[[], None]], Any], tick: float | None) -> None:
        self._function, self._tick = function, tick
        self.pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_work, args=(function, theirs, tick), daemon=True)
        with _sigint_blocked():
            self._process.start()
        theirs.close()  # otherwise the pipe stays open when the process dies
        self.item, self._started, self._silence = None, False, 0.0

    def give(self, item: Any) -> None:
        self.item, self._silence = item, 0.0
        with contextlib.suppress(OSError):  # receive() reports a process that has died
            self.pipe.send(item)

    def receive(self) -> Any:
        """Return the result, a heartbeat, or a ``Lost`` if the process has died. Raise the exception of the call."""
        try:
            kind, result = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            how = f"(exit code {self._process.exitcode})"
            if self._started:
                return Lost(f"the process that read it died {how}")
            raise MachineError(f"a process died as it started {how}, perhaps out of memory; use fewer") from None
        self._started, self._silence = True, 0.0
        if kind == "beat":
            return _HEARTBEAT
        self.item = None
        if kind == "error":
            raise result
        return result

    def silent_for(self, passed: float) -> float:
        """Return the seconds without a heartbeat in a call, `passed` of them since this was last called."""
        self._silence += passed if self.item is not None else 0.0
        return self._silence

    def end(self) -> None:
        self._process.kill()  # before the pipe closes, or it would print a BrokenPipeError
        self.pipe.close()
        self._process.join(5)  # a process that is stuck in the kernel is left behind

    def replaced(self) -> _Worker:
        self.end()
        return _Worker(self._function, self._tick)


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT, also in processes that are started in the block: their parent handles Ctrl-C."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it later would unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(function: Callable[[Any, Callable[[], None]], Any], pipe: Connection, tick: float | None) -> None:
    _init_process()
    sent = time.monotonic()

    def beat() -> None:  # called hundreds of times a second
        nonlocal sent
        if tick and time.monotonic() - sent >= tick:
            sent = time.monotonic()
            pipe.send(("beat", None))

    pipe.send(("started", None))
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            answer = "done", function(item, beat)
        except Exception as error:
            answer = "error", ExceptionWithTraceback(error, error.__traceback__)
        pipe.send(answer)


def _init_process() -> None:
    """Ignore SIGINT in a new process, which the parent handles, and exit when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
