"""Batches from worker processes, which are watched: one that hangs in a file must not stop the run for good."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from video_rs.data.dataset import MAX_REPLACEMENTS, ClipDataset, ViewDataset
from video_rs.data.sampler import BatchStream
from video_rs.errors import StuckWorker, VideoRSError


def clip_loader(
    dataset: ClipDataset, stream: BatchStream, *, workers: int = 0, pin_memory: bool = False, timeout: float = 0.0
) -> DataLoader:
    """The micro-batches of a run.

    Args:
        dataset: of the clips.
        stream: which samples, in which order.
        workers: processes that decode, one thread each; 0 decodes in this one, which nobody watches.
        pin_memory: for batches on their way to a GPU.
        timeout: seconds that a worker may spend in one file while nothing arrives; 0: for ever.

    Returns:
        an iterable of dicts: clip uint8 ``[N, T, H, W, C]``, label int64 ``[N]``, index int64 ``[N]``, broken
        ``[(path, reason)]``. Errors for the user come out of it as they were raised in the worker, and ``StuckWorker``
        where one hangs.
    """
    return _Loader(dataset, workers, timeout, batch_sampler=stream, pin_memory=pin_memory)


def view_loader(dataset: ViewDataset, *, workers: int = 0, timeout: float = 0.0) -> ViewLoader:
    """One test video at a time: the dicts of :class:`ViewDataset`. Arguments as for :func:`clip_loader`."""
    return ViewLoader(dataset, workers, timeout)


class ViewLoader:
    """The videos in order. One that hangs a worker joins ``dataset.skip``, and the rest come from new workers.

    ``StuckWorker`` comes out of it when many hang in a row, as on a disk that is gone.
    """

    def __init__(self, dataset: ViewDataset, workers: int, timeout: float) -> None:
        self.dataset, self.workers, self.timeout = dataset, workers, timeout

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        done = hung_in_a_row = 0
        while done < len(self):
            rest = range(done, len(self))
            try:
                for item in _Loader(self.dataset, self.workers, self.timeout, sampler=rest, batch_size=None):
                    done += 1
                    hung_in_a_row *= item["views"] is None
                    yield item
            except StuckWorker as stuck:
                hung_in_a_row += 1
                if not stuck.path or hung_in_a_row > MAX_REPLACEMENTS:
                    raise
                self.dataset.skip |= {stuck.path}


class _Loader(DataLoader):
    """A DataLoader whose workers tell in ``slots``, which all processes share, what they are at: int64
    ``[workers, 2]``, the index of the record (-1: in none) and since when, in nanoseconds of the monotonic clock."""

    def __init__(self, dataset: ClipDataset | ViewDataset, workers: int, timeout: float, **options: Any) -> None:
        self.patience = timeout
        self.slots = torch.full((workers, 2), -1).share_memory_()
        if workers:
            options |= {"worker_init_fn": partial(_start_worker, self.slots), "num_workers": workers}
            options |= {"prefetch_factor": 2 if "batch_sampler" in options else 1}
            options |= {"timeout": min(5.0, timeout / 4)}  # how often it looks whether a worker hangs
        super().__init__(_Guarded(dataset), collate_fn=_as_is, **options)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.slots.fill_(-1)
        batches = super().__iter__()
        try:
            for batch in self._watched(batches):
                if isinstance(batch, VideoRSError):
                    raise batch
                yield batch
        finally:
            self._end_workers(batches)

    def _watched(self, batches: Iterator) -> Iterator[Any]:
        """The batches; raises ``StuckWorker``."""
        waited = 0.0
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader timed out" not in str(error):
                    raise
                waited += self.timeout  # added up, for while a job is suspended the clocks run on
                if waited >= self.patience:
                    self._look_for_stuck(waited)
            else:
                waited = 0.0
                yield batch

    def _look_for_stuck(self, waited: float) -> None:
        busy = [(self._age(slot), int(slot[0])) for slot in self.slots if slot[0] >= 0]
        if not busy:  # stopped or dead-locked between two files
            raise StuckWorker(-1, "", waited)
        age, index = max(busy)
        if age > self.patience:
            raise StuckWorker(index, self.dataset.dataset.records.path(index), age)

    @staticmethod
    def _age(slot: Tensor) -> float:
        return (time.monotonic_ns() - int(slot[1])) / 1e9

    def _end_workers(self, batches: Iterator) -> None:
        """Ends the workers at once, also one that hangs in a file."""
        if not self.num_workers:
            return
        for slot, worker in zip(self.slots, batches._workers):
            if self.patience and slot[0] >= 0 and self._age(slot) > self.patience:
                with contextlib.suppress(RuntimeError):  # torch's, raised when a worker is killed
                    worker.kill()
                    worker.join(5)
                worker.join(5)
        batches._shutdown_workers()
        for worker in batches._workers:
            worker.kill()


class _Guarded(Dataset):
    """Hands errors for the user over as values: a DataLoader would wrap them in a traceback of the worker."""

    def __init__(self, dataset: ClipDataset | ViewDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except VideoRSError as error:
            return error

    def __getitems__(self, keys: list) -> Any:
        try:
            return _collate([self.dataset[key] for key in keys])
        except VideoRSError as error:
            return error


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "clip": torch.stack([sample["clip"] for sample in samples]),
        "label": torch.tensor([sample["label"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
        "broken": [entry for sample in samples for entry in sample["broken"]],
    }


def _as_is(item: Any) -> Any:
    return item


def _start_worker(slots: Tensor, worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and a scheduler's SIGTERM reach every process of a job. The main process saves, then ends the workers; they
    # leave without a word, also when it hangs up while it takes a batch from one of them (multiprocessing reports that
    # through sys.excepthook).
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = _report_unless_hung_up
    get_worker_info().dataset.dataset.watch = partial(_tell, slots[worker])


def _tell(slot: Tensor, index: int) -> None:
    """The time first: the new one with the old record is harmless, the old one with the new record looks stuck."""
    slot[1] = time.monotonic_ns()
    slot[0] = index


def _report_unless_hung_up(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)
