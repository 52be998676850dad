"""Work spread over processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")


def map_in_processes(function: Callable[[T], R], todo: Sequence[T], workers: int) -> Iterator[R]:
    """The results in order, as they come; what a call raises is raised here.

    Ctrl-C and such an error end it once each process is through with what it has been given: up to 32 calls.
    ``BrokenProcessPool`` is raised when a process is killed. No process outlives its parent.
    """
    if workers == 1 or len(todo) < 64:  # not worth starting processes for
        yield from map(function, todo)
        return
    with _executor(workers) as pool:
        try:
            yield from pool.map(function, todo, chunksize=16)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def long_calls(function: Callable[[T], R], todo: Iterable[T], workers: int) -> Iterator[R]:
    """The results of calls that take seconds or minutes, as they end, in no order; what a call raises is raised here.

    Whatever ends it early, Ctrl-C too, kills the processes at once, wherever they are. ``BrokenProcessPool`` is raised
    when a process is killed. No process outlives its parent.
    """
    if workers == 1:
        yield from map(function, todo)
        return
    others, left = set(multiprocessing.active_children()), iter(todo)
    with _executor(workers) as pool:
        try:
            running: set[Future] = set()
            while True:
                running |= {pool.submit(function, each) for each in islice(left, 2 * workers - len(running))}
                if not running:
                    break
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


def _executor(workers: int) -> ProcessPoolExecutor:
    # Processes are spawned: the caller may have threads of its own, which do not survive a fork.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=begin_process)


def begin_process() -> None:
    """In a new process: Ctrl-C is the parent's; and it does not wait for work of a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()


def _leave_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
