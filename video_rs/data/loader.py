"""DataLoaders with a watchdog: a worker that hangs in a file is detected, named and killed."""

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
from multiprocessing import queues
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from video_rs.data import limits, storage
from video_rs.data.chunk_dataset import ChunkDataset
from video_rs.data.clip_datasets import ClipDataset, ViewDataset
from video_rs.data.sampler import BatchStream, SampleKey
from video_rs.data.sources.records import Records
from video_rs.data.watchdog import Heartbeats, Watchdog, kill_and_join, resource_code, worker_errors
from video_rs.distributed.launcher import START_METHOD
from video_rs.errors import MachineError, UserError, VideoRSError, WorkerFailed, first_line, missing_resource
from video_rs.files import stamp
from video_rs.signals import blocked_signals, ignore_stop_signals, interruptible

MAX_FAILED = 10  # consecutive videos that hang or kill workers


def clip_loader(
    dataset: ClipDataset, stream: BatchStream, *, workers: int = 0, pin_memory: bool = False, timeout: float = 0.0
) -> DataLoader:
    """Return a loader of the micro-batches of a run.

    Args:
        dataset: the dataset of clips.
        stream: the batch sampler.
        workers: number of decoding processes with one thread each; 0 to decode in this process, without a watchdog.
        pin_memory: pin the memory of batches, for fast copies to a GPU.
        timeout: maximum seconds that a worker may spend in one file while no batch arrives; 0 for no limit.

    Returns:
        An iterable of dicts: clip uint8 ``[N, T, H, W, C]``, label int64 ``[N]``, index int64 ``[N]``, broken
        ``[(path, reason)]``. It reraises ``VideoRSError`` from workers, and raises ``StuckWorker`` if a worker hangs,
        ``DeadWorker`` if one crashed in a file and ``MachineError`` if one was killed.
    """
    return _Loader(dataset, workers, timeout, sampler=stream, pin_memory=pin_memory)


class ViewLoader:
    """Load the items of a :class:`ViewDataset`, one test video at a time, in order; or of a ``ChunkDataset``.

    The chunks of a file are in order, but files of several workers come as they are read.

    New workers continue after a video that hangs or kills a worker. Such a video is added to ``dataset.skip``. The next
    iteration reads it again only if the file has changed. Other files that were partly read start again.

    Iteration raises ``MachineError`` if many consecutive videos do so (a failed disk) or a worker was killed, and
    ``StuckWorker`` if the workers hang while no video is open.

    Args:
        dataset: the dataset of views or chunks.
        workers, timeout: as for :func:`clip_loader`.
        rank, world_size: this rank, which reads every ``world_size``-th video.
        indices: numbers of the videos that the ranks read together; None for all videos.
    """

    def __init__(
        self,
        dataset: ViewDataset | ChunkDataset,
        *,
        workers: int = 0,
        timeout: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
        indices: Sequence[int] | None = None,
    ) -> None:
        self.dataset, self.workers, self.timeout = dataset, workers, timeout
        self.indices = (range(len(dataset)) if indices is None else indices)[rank::world_size]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        skip, stamps = self.dataset.skip, self.dataset.stamps
        changed = {path for path, before in stamps.items() if stamp(path) != before}
        self.dataset.skip = {path: reason for path, reason in skip.items() if path not in changed}
        left, failed_in_a_row = dict.fromkeys(self.indices), 0
        while left:
            workers = min(self.workers, len(left))
            try:
                for item in _Loader(self.dataset, workers, self.timeout, indices=list(left)):
                    if item.get("is_last", True):
                        del left[item["index"]]
                    failed_in_a_row *= bool(item["error"])
                    yield item
            except WorkerFailed as failure:
                if not failure.files:
                    raise
                failed_in_a_row += 1
                if failed_in_a_row > MAX_FAILED:
                    last = next(iter(failure.files))
                    raise MachineError(
                        f"{failed_in_a_row} consecutive videos hung or killed the decoder, the last one: {last}; "
                        "check their disk and the decoder"
                    ) from failure
                self.dataset.skip = {**self.dataset.skip, **failure.files}
                stamps |= {path: stamp(path) for path in failure.files}


class _Loader(DataLoader):
    def __init__(
        self,
        dataset: ClipDataset | ViewDataset | ChunkDataset,
        workers: int,
        timeout: float,
        indices: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        check_timeout(dataset.records, timeout)
        self.processes: list[BaseProcess] = []
        self.hang_timeout = timeout  # `timeout` is an attribute of DataLoader
        with worker_errors((), Heartbeats(0), dataset.records.path):
            self.heartbeats = Heartbeats(workers)
        if workers:
            # import before the fork; otherwise the import counts towards the timeout of each worker's first file
            for name in ("torchvision.transforms.v2.functional", *["decord"] * (dataset.decoder == "decord")):
                with contextlib.suppress(Exception):  # a missing or broken package is reported when it is used
                    importlib.import_module(name)
            options |= {"worker_init_fn": partial(_start_worker, self.heartbeats), "num_workers": workers}
            options |= {"prefetch_factor": 2 if isinstance(dataset, ClipDataset) else 1}
            options |= {"multiprocessing_context": _recording_context(self.processes)}
        items = _ErrorsAsValues(dataset)
        if isinstance(dataset, ChunkDataset):
            dataset.indices, items = indices, _ChunksAndErrors(dataset)
            options["in_order"] = False  # a slow file delays only its own worker
        elif indices is not None:
            options["sampler"] = indices
        super().__init__(items, batch_size=None, collate_fn=_identity, **options)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = self._watched() if self.num_workers else super().__iter__()
        try:
            while True:
                with interruptible():
                    batch = next(batches, None)
                if batch is None:
                    return
                if isinstance(batch, VideoRSError):
                    raise batch
                yield batch
        finally:
            del batches  # end the workers now, not when the traceback of an error is deleted

    def _get_iterator(self) -> Iterator[Any]:
        return _Iterator(self) if self.num_workers else super()._get_iterator()

    def _watched(self) -> Iterator[Any]:
        self.heartbeats.clear()
        self.processes.clear()
        path = self.dataset.dataset.records.path
        with ExitStack() as stack:
            with blocked_signals(), worker_errors(self.processes, self.heartbeats, path):
                watchdog = Watchdog(self.processes, self.heartbeats, self.hang_timeout, path)
                stack.enter_context(watchdog)
                stack.callback(kill_and_join, self.processes)
                batches = super().__iter__()
                end = partial(_end_workers, batches, self.processes, self.heartbeats)
                atexit.register(end)  # Python waits at exit for the workers of an iterator that was not exhausted
                stack.callback(atexit.unregister, end)
                stack.callback(end)
            yield from watchdog.batches(batches)


class _Iterator(_MultiProcessingDataLoaderIter):
    """torch's iterator with two changes, which use its private attributes.

    It does not handle SIGCHLD, because torch's handler raises an error at any point of the main process; the watchdog
    detects dead workers instead. If it was only partly created, for lack of descriptors or processes, it can be deleted
    without an error.
    """

    def __init__(self, loader: DataLoader) -> None:
        before, signal_handling._SIGCHLD_handler_set = signal_handling._SIGCHLD_handler_set, True
        try:
            super().__init__(loader)
        finally:
            signal_handling._SIGCHLD_handler_set = before

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            super().__del__()


def check_timeout(records: Records, timeout: float) -> None:
    """Raise UserError if `timeout` is too short for the storage: slow files would be skipped as hanging ones."""
    slow = storage.is_remote(records.path(0)) or limits.retries() > limits.RETRIES
    wait = storage.longest_wait(records.path(0)) if slow else 0
    if 0 < timeout <= wait:
        raise UserError(
            f"data.timeout={timeout:g}: must be 0, or more than the {wait:g} s for which a failing read is retried "
            f"(data.retries={limits.retries()})"
        )


def _recording_context(processes: list[BaseProcess]) -> BaseContext:
    """Return a ``multiprocessing`` context with :class:`_Queue` that appends each process it starts to a list."""
    context = copy(multiprocessing.get_context(START_METHOD))

    def make(target: Callable, args: Sequence[Any]) -> BaseProcess:
        processes.append(type(context).Process(target=_run_worker, args=(target, *args)))
        return processes[-1]

    context.Process, context.Queue = make, partial(_Queue, ctx=context)
    return context


class _Queue(queues.Queue):
    """A queue that sends an error instead of an item that cannot be sent: the main process would wait forever."""

    def _on_queue_feeder_error(self, error: Exception, item: Any) -> None:
        if get_worker_info() is not None:
            reason = missing_resource(error) or f"a loader process cannot send a batch: {first_line(error)}"
            self.put((item[0], MachineError(reason)))
        elif not isinstance(error, OSError):  # otherwise the worker has died, which the watchdog reports
            super()._on_queue_feeder_error(error, item)


class _ErrorsAsValues(Dataset):
    """Return errors of this package and of the machine as values. A DataLoader would add the worker's traceback."""

    def __init__(self, dataset: ClipDataset | ViewDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: int | list[SampleKey]) -> Any:
        try:
            return self.dataset.__getitems__(key) if isinstance(key, list) else self.dataset[key]
        except (VideoRSError, MemoryError, OSError, RuntimeError) as error:
            return _as_value(error)


class _ChunksAndErrors(IterableDataset):
    """As :class:`_ErrorsAsValues`, for the chunks of files."""

    def __init__(self, dataset: ChunkDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.dataset
        except (VideoRSError, MemoryError, OSError, RuntimeError) as error:
            yield _as_value(error)


def _as_value(error: Exception) -> VideoRSError:
    """Return an error of this package or of the machine. Reraise any other."""
    if isinstance(error, VideoRSError):
        return error
    if found := missing_resource(error):
        return MachineError(found)
    raise error


def _identity(item: Any) -> Any:
    return item


def _run_worker(loop: Callable, *args: Any) -> None:
    try:
        loop(*args)
    except Exception as error:
        _report_error(type(error), error, error.__traceback__)
        sys.exit(1)


def _start_worker(heartbeats: Heartbeats, worker: int) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # otherwise each collection touches, and so copies, the memory pages shared with the parent
    ignore_stop_signals()  # the main process ends the workers, after saving
    for number in (signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV):
        signal.signal(number, signal.SIG_DFL)  # torch's handlers print a line; the main process reports the death
    sys.excepthook = _report_error  # multiprocessing calls it for errors in the thread that sends descriptors
    get_worker_info().dataset.dataset.heartbeat = heartbeats.register(worker, os.getpid())


def _end_workers(batches: Iterator, workers: Sequence[BaseProcess], heartbeats: Heartbeats) -> None:
    """Kill the workers. torch would wait for each, and they ignore its SIGTERM.

    This uses two private attributes of torch's iterator, as its own shutdown does. Workers are told to stop first,
    because a worker that is killed in the middle of a message would block the thread that pins memory.
    """
    batches._workers_done_event.set()  # workers open no further file
    busy = heartbeats.busy()
    kill_and_join([worker for worker in workers if worker.pid in busy])
    with contextlib.suppress(RuntimeError):  # no thread can be started
        batches._shutdown_workers()
    kill_and_join(workers)


def _report_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """End a worker that lacks a resource. Print other errors, unless the main process has closed the connection."""
    if missing := missing_resource(error):
        os._exit(resource_code(missing))
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)
