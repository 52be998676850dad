"""Calls in processes of their own, for work that may hang or crash in foreign code: such a call is lost, no other."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from video_rs.errors import MachineError
from video_rs.pool import begin_process

T = TypeVar("T")
_CONTEXT = multiprocessing.get_context("spawn")  # the caller may have threads, which do not survive a fork


@dataclass(frozen=True)
class Lost:
    """What became of a call that never came back."""

    reason: str


def watched_calls(
    function: Callable[[T, Callable[[], None]], Any], todo: Iterable[T], workers: int, timeout: float
) -> Iterator[tuple[T, Any]]:
    """Each item with the result of ``function(item, beat)``, as the calls end, in no order; what one raises is raised.

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
    team = [_Worker(function) for _ in range(workers)]
    try:
        while team:
            for pipe in wait([worker.pipe for worker in team], tick):
                worker = next(each for each in team if each.pipe is pipe)
                item, (alive, result) = worker.item, worker.receive()
                if item is not None:
                    yield item, result
                upcoming = next(left, None)
                if upcoming is None:
                    worker.end()
                    team.remove(worker)
                    continue
                if alive:
                    worker.give(upcoming)
                else:
                    left = chain([upcoming], left)
                    worker.end()
                    team[team.index(worker)] = _Worker(function)  # asks for an item when it has started
            for worker in team if timeout else ():
                worker.kill_if_stuck(timeout)
    finally:
        for worker in team:
            worker.end()


class _Worker:
    """A process and what it is at. Its first message, before any item, says that it has started."""

    def __init__(self, function: Callable[[Any, Callable[[], None]], Any]) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self._beats = _CONTEXT.RawValue("Q", 0)
        self._process = _CONTEXT.Process(target=_work, args=(function, theirs, self._beats), daemon=True)
        self._process.start()
        theirs.close()  # else its death would not end the pipe
        self.item, self._started, self._reason = None, False, ""
        self._seen, self._since = 0, time.monotonic()

    def give(self, item: Any) -> None:
        self.item, self._since = item, time.monotonic()
        with contextlib.suppress(OSError):  # of one that has died since, receive() tells
            self.pipe.send(item)

    def receive(self) -> tuple[bool, Any]:
        """Whether it lives, and its result. Raises what the call raised."""
        try:
            kind, result = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            if not self._started:
                raise MachineError(
                    f"a process ended with code {self._process.exitcode} as it started, perhaps for want of memory: "
                    "use fewer of them"
                ) from None
            return False, Lost(self._reason or f"the process that read it died (exit code {self._process.exitcode})")
        self._started, self.item = True, None
        if kind == "error":
            raise result
        return True, result

    def kill_if_stuck(self, timeout: float) -> None:
        now = time.monotonic()
        if self._beats.value != self._seen or self.item is None:
            self._seen, self._since = self._beats.value, now
        elif now - self._since >= timeout:
            self._reason = f"nothing came from it for {timeout:g} s: its decoder or its storage hangs"
            self._process.kill()

    def end(self) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.join(5)  # one that is stuck in the kernel is left behind


def _work(function: Callable[[Any, Callable[[], None]], Any], pipe: Connection, beats: Any) -> None:
    begin_process()

    def beat() -> None:
        beats.value += 1

    pipe.send(("started", None))
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            answer = "done", function(item, beat)
        except Exception as error:
            answer = "error", error
        pipe.send(answer)
