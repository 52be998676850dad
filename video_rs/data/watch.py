"""Who hangs: loader workers tell what they are at, and a thread of the main process looks when nothing comes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor

from video_rs.errors import StuckWorker


class Slots:
    """What each worker is at, in memory that all processes share: the index of a record (-1: in none) and since when,
    in nanoseconds of the monotonic clock; int64 ``[workers, 2]``."""

    def __init__(self, workers: int) -> None:
        self.table = torch.full((workers, 2), -1).share_memory_()

    def clear(self) -> None:
        """All are in no record."""
        self.table.fill_(-1)

    def of(self, worker: int) -> Callable[[int], None]:
        """The function with which a worker tells the record that it goes to."""
        return partial(_tell, self.table[worker])

    def busy(self) -> dict[int, tuple[int, float]]:
        """Worker to (index, seconds), of those that are in a record."""
        now = time.monotonic_ns()
        table = enumerate(self.table.tolist())
        return {worker: (index, (now - since) / 1e9) for worker, (index, since) in table if index >= 0}


def _tell(slot: Tensor, index: int) -> None:
    slot[1] = time.monotonic_ns()  # first: a new record with the time of an old one would look stuck
    slot[0] = index


class Watch(threading.Thread):
    """Kills the workers when one hangs in a record: then whatever the main process waits for from them ends.

    Its own thread has to look, for the main one may wait for good in a message of which a worker has sent a part.

    Args:
        workers: started.
        slots: what they are at.
        timeout: seconds that a worker may be in one record, and the main process without a batch.
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
            self._killed = [self._workers[number] for number in busy or range(len(self._workers))]
            self._stuck = StuckWorker(index, self._path(index) if busy else "", seconds, self._timeout)
            for worker in self._killed:
                worker.kill()

    def batches(self, iterator: Iterator) -> Iterator[Any]:
        """What comes out of the iterator. Raises ``StuckWorker``."""
        while True:
            self._asked, self._waiting = self._asked + 1, True
            try:
                batch = next(iterator, None)
                with self._lock:
                    self._waiting = False
            except Exception:  # a message breaks off, or torch notices that a worker was killed
                if not self._stuck:
                    raise
            if self._stuck:
                bury(self._killed)
                raise self._stuck
            if batch is None:
                return
            yield batch

    def end(self) -> None:
        """Looks no more."""
        self._end.set()
        self.join()


def bury(workers: Sequence[BaseProcess]) -> None:
    """Kills workers. Torch raises an error wherever the main process is when one dies: it is to be here."""
    for worker in workers:
        with contextlib.suppress(RuntimeError):
            worker.kill()
            worker.join(5)
        worker.join(5)
