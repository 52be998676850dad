"""Batches from worker processes, which are watched: one that hangs in a file must not stop the run for good."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from copy import copy
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from video_rs.data.dataset import MAX_REPLACEMENTS, ClipDataset, ViewDataset
from video_rs.data.sampler import BatchStream
from video_rs.data.watchdog import Slots, Watch, kill_and_join, name_deaths
from video_rs.errors import MachineError, StuckWorker, VideoRSError

# Workers are forked on Linux: they share the list of records, its index and all imports at no cost. Python 3.14 no
# longer forks by default, because a child deadlocks if another thread held a lock at the fork. Workers take none of
# those locks: they decode, and log nothing; and the watchdog kills one that never opens a file. All that the package
# itself gives to workers can be pickled, so that it works without the fork; a caller's transform need not be on Linux.
START_METHOD = "fork" if sys.platform.startswith("linux") else "spawn"


def clip_loader(
    dataset: ClipDataset, stream: BatchStream, *, workers: int = 0, pin_memory: bool = False, timeout: float = 0.0
) -> DataLoader:
    """The micro-batches of a run.

    Args:
        dataset: of the clips.
        stream: which samples, in which order.
        workers: processes that decode, one thread each; 0 decodes in this one, without a watchdog.
        pin_memory: for batches on their way to a GPU.
        timeout: seconds that a worker may spend in one file while nothing arrives; 0: for ever.

    Returns:
        an iterable of dicts: clip uint8 ``[N, T, H, W, C]``, label int64 ``[N]``, index int64 ``[N]``, broken
        ``[(path, reason)]``. Errors for the user come out of it as they were raised in the worker, ``StuckWorker``
        where one hangs, and ``MachineError`` where one was killed.
    """
    return _Loader(dataset, workers, timeout, batch_sampler=stream, pin_memory=pin_memory)


def view_loader(
    dataset: ViewDataset, *, workers: int = 0, timeout: float = 0.0, rank: int = 0, world_size: int = 1
) -> ViewLoader:
    """One test video at a time: the dicts of :class:`ViewDataset`.

    Of several processes each takes every ``world_size``-th video. Other arguments as for :func:`clip_loader`.
    """
    return ViewLoader(dataset, workers, timeout, range(rank, len(dataset), world_size))


class ViewLoader:
    """The videos in order. One that hangs a worker joins ``dataset.skip``, and the rest come from new workers.

    ``MachineError`` comes out of it when many hang in a row, as on a disk that is gone, or a worker was killed, and
    ``StuckWorker`` when the workers stand still in none.
    """

    def __init__(self, dataset: ViewDataset, workers: int, timeout: float, indices: range) -> None:
        self.dataset, self.workers, self.timeout, self.indices = dataset, workers, timeout, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        done = hung_in_a_row = 0
        while done < len(self):
            rest = self.indices[done:]
            try:
                for item in _Loader(self.dataset, self.workers, self.timeout, sampler=rest, batch_size=None):
                    done += 1
                    hung_in_a_row *= item["views"] is None
                    yield item
            except StuckWorker as stuck:
                if not stuck.path:
                    raise
                hung_in_a_row += 1
                if hung_in_a_row > MAX_REPLACEMENTS:
                    raise MachineError(
                        f"{hung_in_a_row} videos in a row hung the decoder, the last: {stuck.path}: check the disk "
                        "that they are on"
                    ) from stuck
                self.dataset.skip |= {stuck.path}


class _Loader(DataLoader):
    def __init__(self, dataset: ClipDataset | ViewDataset, workers: int, timeout: float, **options: Any) -> None:
        self.slots, self.patience = Slots(workers), timeout
        self.processes: list[BaseProcess] = []
        if workers:
            # imported here once for all forked workers; the time that each would take counts as time in its first file
            for name in ("torchvision.transforms.v2.functional", *["decord"] * (dataset.decoder == "decord")):
                with contextlib.suppress(Exception):  # a missing or broken package is reported where it is used
                    importlib.import_module(name)
            options |= {"worker_init_fn": partial(_start_worker, self.slots), "num_workers": workers}
            options |= {"prefetch_factor": 2 if "batch_sampler" in options else 1}
            options |= {"multiprocessing_context": _recording_context(self.processes)}
        super().__init__(_Guarded(dataset), collate_fn=_as_is, **options)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._watched() if self.num_workers else super().__iter__():
            if isinstance(batch, VideoRSError):
                raise batch
            yield batch

    def _watched(self) -> Iterator[Any]:
        self.slots.clear()
        self.processes.clear()
        with ExitStack() as stack:
            stack.callback(kill_and_join, self.processes)
            with name_deaths(self.processes):  # torch itself raises an error for a worker that dies early
                batches = super().__iter__()
                watch = Watch(self.processes, self.slots, self.patience, self.dataset.dataset.records.path)
                stack.enter_context(watch)
            end = partial(_end_workers, batches, self.processes, self.slots)
            atexit.register(end)  # an abandoned iterator stays open; at exit Python waits for workers, torch does not
            stack.callback(atexit.unregister, end)
            stack.callback(end)
            yield from watch.batches(batches)


def _recording_context(processes: list[BaseProcess]) -> BaseContext:
    """Return a context for ``multiprocessing`` that adds each process it makes to a list."""
    context = copy(multiprocessing.get_context(START_METHOD))

    def make(*args: Any, **options: Any) -> BaseProcess:
        processes.append(type(context).Process(*args, **options))
        return processes[-1]

    context.Process = make
    return context


class _Guarded(Dataset):
    """Hands errors for the user over as values: a DataLoader would wrap them in a traceback of the worker."""

    def __init__(self, dataset: ClipDataset | ViewDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self._item_or_error(self.dataset.__getitem__, index)

    def __getitems__(self, keys: list) -> Any:
        return self._item_or_error(self.dataset.__getitems__, keys)

    @staticmethod
    def _item_or_error(get: Callable[[Any], Any], key: Any) -> Any:
        try:
            return get(key)
        except VideoRSError as error:
            return error


def _as_is(item: Any) -> Any:
    return item


def _start_worker(slots: Slots, worker: int) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # else every collection goes through all that was imported, and makes copies of the parent's pages
    # Ctrl-C and a scheduler's SIGTERM reach every process of a job. The main process saves, then ends the workers; they
    # leave without a word, also when it hangs up while it takes a batch from one of them (multiprocessing reports that
    # through sys.excepthook).
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = _report_unless_hung_up
    get_worker_info().dataset.dataset.watch = slots.of(worker, os.getpid())


def _end_workers(batches: Iterator, workers: Sequence[BaseProcess], slots: Slots) -> None:
    """End the workers at once, also those that hang: torch would wait for each, and they ignore its SIGTERM.

    The two private names of torch are what its own iterator ends with. Idle workers are not killed first: one that dies
    in the middle of a message would block the thread that pins memory.
    """
    batches._workers_done_event.set()  # they start no other file
    busy = slots.busy()
    kill_and_join([worker for worker in workers if worker.pid in busy])
    batches._shutdown_workers()
    kill_and_join(workers)


def _report_unless_hung_up(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)
