"""Work spread over processes."""

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
_BEAT = object()
_SPAWN = multiprocessing.get_context("spawn")  # the caller may have threads of its own, which do not survive a fork


def map_in_processes(function: Callable[[T], R], todo: Sequence[T], workers: int) -> Iterator[R]:
    """The results in order, as they come; what a call raises is raised here.

    Ctrl-C and such an error end it once each process is through with what it has been given: up to 32 calls.
    ``BrokenProcessPool`` is raised when a process is killed. No process outlives its parent.
    """
    if workers == 1 or len(todo) < 64:  # not worth starting processes for
        yield from map(function, todo)
        return
    with ProcessPoolExecutor(workers, _SPAWN, initializer=_begin_process) as pool:
        try:
            yield from pool.map(function, todo, chunksize=16)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass(frozen=True)
class Lost:
    """What became of a call that never came back."""

    reason: str


def watched_calls(
    function: Callable[[T, Callable[[], None]], R], todo: Iterable[T], workers: int, timeout: float
) -> Iterator[tuple[T, R | Lost]]:
    """Each item with the result of ``function(item, beat)``, as the calls end, in no order; what one raises is raised.

    For calls that take seconds or minutes, or that may hang or crash in foreign code: such a call is lost, no other.
    Whatever ends it early, Ctrl-C too, kills the processes at once, wherever they are. No process outlives its parent.

    Args:
        function: of a module; it calls ``beat()`` whenever it has got on.
        todo: is read as the work goes on. No item is None.
        workers: processes, each with one call at a time.
        timeout: seconds without a beat after which a process is killed; 0: never. The result is then a ``Lost``, as it
            is where a process dies.

    Raises:
        MachineError: a process died before its first call.
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
                if result is _BEAT:
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
            passed, before = min(now - before, tick or 0.0), now  # a clock runs on while a job is suspended
            for worker in list(team) if timeout else ():
                if worker.silent_for(passed) >= timeout:
                    yield worker.item, Lost(f"nothing came from it for {timeout:g} s: its decoder or its storage hangs")
                    team[team.index(worker)] = worker.replaced()
    finally:
        for worker in team:
            worker.end()


class _Worker:
    """A process and what it is at. Its first message, before any item, says that it has started."""

    def __init__(self, function: Callable[[Any, Callable[[], None]], Any], tick: float | None) -> None:
        self._function, self._tick = function, tick
        self.pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_work, args=(function, theirs, tick), daemon=True)
        with _interrupts_held():
            self._process.start()
        theirs.close()  # else its death would not end the pipe
        self.item, self._started, self._silence = None, False, 0.0

    def give(self, item: Any) -> None:
        self.item, self._silence = item, 0.0
        with contextlib.suppress(OSError):  # of one that has died since, receive() tells
            self.pipe.send(item)

    def receive(self) -> Any:
        """The result, a beat, or a ``Lost`` where it has died. Raises what the call raised."""
        try:
            kind, result = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            how = f"(exit code {self._process.exitcode})"
            if self._started:
                return Lost(f"the process that read it died {how}")
            raise MachineError(
                f"a process died as it started {how}, perhaps for want of memory: use fewer of them"
            ) from None
        self._started, self._silence = True, 0.0
        if kind == "beat":
            return _BEAT
        self.item = None
        if kind == "error":
            raise result
        return result

    def silent_for(self, passed: float) -> float:
        """Seconds without a beat, in a call, where `passed` have gone by since the last look."""
        self._silence += passed if self.item is not None else 0.0
        return self._silence

    def end(self) -> None:
        self._process.kill()  # first, or it would find that nobody hears it, and say so
        self.pipe.close()
        self._process.join(5)  # one that is stuck in the kernel is left behind

    def replaced(self) -> _Worker:
        self.end()
        return _Worker(self._function, self._tick)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process that is started here holds them for good: Ctrl-C is the parent's, from its first moment on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(function: Callable[[Any, Callable[[], None]], Any], pipe: Connection, tick: float | None) -> None:
    _begin_process()
    told = time.monotonic()

    def beat() -> None:  # a call has hundreds a second; shared memory would need room on a disk that may be full
        nonlocal told
        if tick and time.monotonic() - told >= tick:
            told = time.monotonic()
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


def _begin_process() -> None:
    """In a new process: Ctrl-C is the parent's; and it does not wait for work of a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()


def _leave_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
