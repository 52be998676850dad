"""Who hangs: loader workers tell what they are at, and a thread of the main process looks when nothing comes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor

from video_rs.errors import MachineError, StuckWorker


class Slots:
    """The state of each worker, in memory that all processes share.

    int64 ``[workers, 3]``: the index of the record that it reads (-1: none), since when (nanoseconds of the monotonic
    clock), and its process id.
    """

    def __init__(self, workers: int) -> None:
        self.table = torch.full((workers, 3), -1).share_memory_()

    def clear(self) -> None:
        """Forget all workers."""
        self.table.fill_(-1)

    def of(self, worker: int, pid: int) -> Callable[[int], None]:
        """Note the process of a worker; return the function that it calls with the index of each record it opens."""
        self.table[worker, 2] = pid
        return partial(_tell, self.table[worker])

    def busy(self) -> dict[int, tuple[int, float]]:
        """Process id to (index, seconds), of the workers that are in a record."""
        now = time.monotonic_ns()
        return {pid: (index, (now - since) / 1e9) for index, since, pid in self.table.tolist() if index >= 0}


def _tell(slot: Tensor, index: int) -> None:
    slot[1] = time.monotonic_ns()  # first: a new record with the time of an old one would look stuck
    slot[0] = index


class Watch(threading.Thread):
    """A context in which the main process reads the batches of its workers, and never waits for one that hangs or died.

    The main process may wait for good in a message of which a worker has sent a part. So a thread looks whether one
    hangs in a record, and kills it; and a worker that dies breaks off the waiting, and nothing else: torch would raise
    its error wherever the main process is, in the middle of a training step too.

    Args:
        workers: started.
        slots: what they are at.
        timeout: seconds that a worker may be in one record, and the main process without a batch; 0: for ever.
        path: of a record.
    """

    def __init__(
        self, workers: Sequence[BaseProcess], slots: Slots, timeout: float, path: Callable[[int], str]
    ) -> None:
        super().__init__(name="watch of the loader", daemon=True)
        self._workers, self._slots, self._timeout, self._path = workers, slots, timeout, path
        self._tick = min(5.0, timeout / 4)
        self._lock, self._end = threading.Lock(), threading.Event()
        self._asked, self._waiting = 0, False
        self._stuck: StuckWorker | None = None
        self._killed: list[BaseProcess] = []
        self._restore: Callable[[], Any] | None = None

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGCHLD, self._on_death)
            self._restore = partial(signal.signal, signal.SIGCHLD, before)
        if self._timeout:
            self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        if self._timeout:
            self.join()
        if self._restore:
            self._restore()

    def run(self) -> None:
        waited, before = 0.0, 0
        while not self._end.wait(self._tick) and not self._stuck:
            with self._lock:
                # added up, since the clocks run on while a job is suspended
                waited = waited + self._tick if self._waiting and self._asked == before else 0.0
                before = self._asked
                if waited >= self._timeout:
                    self._look(waited)

    def _look(self, waited: float) -> None:
        busy = self._slots.busy()
        index, seconds = max(busy.values(), key=lambda record: record[1], default=(-1, waited))
        if seconds >= self._timeout:
            # while one is in a record, those that are in none may be writing a message
            self._killed = [worker for worker in self._workers if worker.pid in busy] or list(self._workers)
            self._stuck = StuckWorker(index, self._path(index) if busy else "", seconds, self._timeout)
            for worker in self._killed:
                worker.kill()

    def batches(self, iterator: Iterator) -> Iterator[Any]:
        """What comes out of the iterator. Raises ``StuckWorker``, and ``MachineError`` when a worker died."""
        while True:
            self._asked, self._waiting = self._asked + 1, True
            try:
                self._on_death()  # of one that died meanwhile, nothing tells any more
                batch = next(iterator, None)
                with self._lock:
                    self._waiting = False
            except BaseException as error:
                self._waiting = False
                if not isinstance(error, Exception):
                    raise
                if self._stuck:  # the error is of a death, or of a message that breaks off
                    kill_and_join(self._killed)
                    raise self._stuck from None
                with name_deaths(self._workers):
                    raise
            if batch is None:
                return
            yield batch

    def _on_death(self, *_: object) -> None:
        # exit code 0: torch sends them home after the last batch
        if self._waiting and any(worker.exitcode for worker in self._workers):
            self._waiting = False  # one error is enough
            raise _Died


class _Died(Exception):
    """A worker died."""


@contextmanager
def name_deaths(workers: Sequence[BaseProcess]) -> Iterator[None]:
    """Raise ``MachineError`` instead of an error of the block where a worker died."""
    try:
        yield
    except Exception as error:
        # the connection to a worker breaks before the process can be seen to have ended
        end = time.monotonic() + (5.0 if isinstance(error, OSError | EOFError) else 0.0)
        while not (dead := [worker.exitcode for worker in workers if worker.exitcode]):
            if time.monotonic() >= end:
                raise
            time.sleep(0.02)
        how = " and ".join(f"by signal {-code}" if code < 0 else f"with exit code {code}" for code in dead)
        raise MachineError(
            f"a loader process died ({how}), perhaps for want of memory: lower train.micro_batch "
            "(test.batch_size, when testing) or data.workers"
        ) from error


def kill_and_join(workers: Sequence[BaseProcess]) -> None:
    """Kill the workers that were started, and wait for their end."""
    for worker in workers:
        if worker.pid:
            worker.kill()
            worker.join(5)
