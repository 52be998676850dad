"""Work spread over processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")


def map_in_processes(function: Callable[[T], R], todo: Sequence[T], workers: int) -> Iterator[R]:
    """The results in order, as they come; what a call raises is raised here.

    Ctrl-C and such an error end it once each process is through with what it has been given: up to 32 calls.
    ``BrokenProcessPool`` is raised when a process is killed.
    """
    if workers == 1 or len(todo) < 64:  # not worth starting processes for
        yield from map(function, todo)
        return
    # Processes are spawned: the caller may have threads of its own, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_leave_ctrl_c_to_the_parent) as pool:
        try:
            yield from pool.map(function, todo, chunksize=16)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
