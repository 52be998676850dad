"""A watchdog for loader workers, which detects a hanging worker, reports the file it reads, and kills it.

Workers write a heartbeat to shared memory when they open a file. A thread in the main process checks the heartbeats
when no batch has arrived within the timeout.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor

from video_rs.errors import (
    OUT_OF_MEMORY,
    RESOURCES,
    SHARED_MEMORY,
    DeadWorker,
    MachineError,
    StuckWorker,
    VideoRSError,
    missing_resource,
)

CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
"""Signals of crashes in native code, which damaged files can cause."""
_FIRST_CODE = 100  # exit code for the first of ``RESOURCES``


class Heartbeats:
    """The state of each worker, in shared memory.

    int64 ``[workers, 3]``: the index of the current record (-1 for none), its start time (nanoseconds of the monotonic
    clock), and the process id.
    """

    def __init__(self, workers: int) -> None:
        self.table = torch.full((workers, 3), -1).share_memory_()

    def clear(self) -> None:
        """Remove all workers."""
        self.table.fill_(-1)

    def register(self, worker: int, pid: int) -> Callable[[int], None]:
        """Set the process id of a worker. Return a function that the worker calls with the index of each record."""
        self.table[worker, 2] = pid
        return partial(_write, self.table[worker])

    def busy(self) -> dict[int, tuple[int, float]]:
        """Return ``{process id: (index, seconds)}`` for the workers that are reading a record."""
        now = time.monotonic_ns()
        return {pid: (index, (now - since) / 1e9) for index, since, pid in self.table.tolist() if index >= 0}


def _write(row: Tensor, index: int) -> None:
    row[1] = time.monotonic_ns()  # set first: a new record with the time of an old one would look stuck
    row[0] = index


class Watchdog(threading.Thread):
    """Context manager that keeps the main process from waiting for a worker that hangs or died.

    A blocking read of a batch cannot be interrupted if the worker has sent only a part of it, so a thread checks the
    heartbeats and kills a worker that hangs. The death of a worker interrupts only this wait.

    Args:
        workers: the processes; it may be entered before they start.
        heartbeats: heartbeats of the workers.
        timeout: maximum seconds that a worker may read one record while no batch arrives; 0 for no limit.
        path: returns the path of a record.
    """

    def __init__(
        self, workers: Sequence[BaseProcess], heartbeats: Heartbeats, timeout: float, path: Callable[[int], str]
    ) -> None:
        super().__init__(name="loader watchdog", daemon=True)
        self._workers, self._heartbeats, self._timeout, self._path = workers, heartbeats, timeout, path
        self._tick = min(5.0, timeout / 4)
        self._lock, self._end = threading.Lock(), threading.Event()
        self._batches, self._waiting = 0, False
        self._stuck: StuckWorker | None = None
        self._killed: list[BaseProcess] = []
        self._exit = ExitStack()

    def __enter__(self) -> Watchdog:
        if self._timeout:
            self.start()
            self._exit.callback(self.join)
        if threading.current_thread() is threading.main_thread():
            self._exit.callback(signal.signal, signal.SIGCHLD, signal.signal(signal.SIGCHLD, self._on_death))
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._exit.close()

    def run(self) -> None:
        waited, before = 0.0, 0
        while not self._end.wait(self._tick) and not self._stuck:
            with self._lock:
                # add up ticks, because clocks advance while a job is suspended
                waited = waited + self._tick if self._waiting and self._batches == before else 0.0
                before = self._batches
                if waited >= self._timeout:
                    self._kill_stuck(waited)

    def _kill_stuck(self, waited: float) -> None:
        busy = self._heartbeats.busy()
        index, seconds = max(busy.values(), key=lambda record: record[1], default=(-1, waited))
        if seconds >= self._timeout:
            # while one reads a record, idle workers may be writing a message
            self._killed = [worker for worker in self._workers if worker.pid in busy] or list(self._workers)
            self._stuck = StuckWorker(index, self._path(index) if busy else "", seconds, self._timeout)
            for worker in self._killed:
                worker.kill()

    def batches(self, iterator: Iterator) -> Iterator[Any]:
        """Yield the items of an iterator. Raise ``StuckWorker`` if a worker hangs; see also :func:`worker_errors`."""
        while True:
            self._batches, self._waiting = self._batches + 1, True
            try:
                self._on_death()  # a death since the last batch sends no further signal
                batch = next(iterator, None)
                with self._lock:
                    self._waiting = False
            except BaseException as error:
                self._waiting = False
                if not isinstance(error, Exception):
                    raise
                if self._stuck:  # the error comes from a killed worker, or from its incomplete message
                    kill_and_join(self._killed)
                    raise self._stuck from None
                with worker_errors(self._workers, self._heartbeats, self._path):
                    raise
            if batch is None:
                return
            yield batch

    def _on_death(self, *_: object) -> None:
        # exit code 0: torch ends workers after the last batch
        if self._waiting and any(worker.exitcode for worker in self._workers):
            self._waiting = False  # one error is enough
            raise ChildProcessError("a worker died")


@contextmanager
def worker_errors(workers: Sequence[BaseProcess], heartbeats: Heartbeats, path: Callable[[int], str]) -> Iterator[None]:
    """Replace an error in this context if its cause is a dead worker, or a lack of memory or descriptors.

    Raises:
        DeadWorker: workers crashed in native code while reading files.
        MachineError: a worker was killed in another way, or died while it had no file open.
    """
    try:
        yield
    except Exception as error:
        if found := missing_resource(error):
            raise MachineError(found) from error
        # the connection closes before the exit code of a worker is available
        end = time.monotonic() + (5.0 if isinstance(error, OSError | EOFError) else 0.0)
        while not (codes := {worker.pid: worker.exitcode for worker in workers if worker.exitcode}):
            if time.monotonic() >= end:
                raise
            time.sleep(0.02)
        opened = {pid: path(index) for pid, (index, _) in heartbeats.busy().items()}
        raise _death(codes, opened) from error


def resource_code(missing: str) -> int:
    """Return the exit code of a worker for a result of ``missing_resource``."""
    return _FIRST_CODE + RESOURCES.index(missing)


def _death(codes: Mapping[int, int], opened: Mapping[int, str]) -> VideoRSError:
    """Return the error for exit codes of workers and the files that workers have open, both by process id."""
    crashed = {
        opened[pid]: signal.Signals(-code).name for pid, code in codes.items() if -code in CRASHES and pid in opened
    }
    if crashed and not {-signal.SIGKILL, -signal.SIGBUS} & set(codes.values()):
        return DeadWorker(crashed)
    for code in codes.values():
        if code >= _FIRST_CODE:
            return MachineError(RESOURCES[code - _FIRST_CODE])
    how = " and ".join(f"by signal {-code}" if code < 0 else f"with exit code {code}" for code in set(codes.values()))
    cause = SHARED_MEMORY if -signal.SIGBUS in codes.values() else f"perhaps {OUT_OF_MEMORY}"
    return MachineError(f"a loader process died ({how}), {cause}")


def kill_and_join(workers: Sequence[BaseProcess]) -> None:
    """Kill the started workers and wait until they have exited."""
    for worker in workers:
        if worker.pid:
            worker.kill()
            worker.join(5)
