"""Batches from worker processes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from video_rs.data.dataset import ClipDataset, ViewDataset
from video_rs.data.sampler import BatchStream
from video_rs.errors import VideoRSError


def clip_loader(dataset: ClipDataset, stream: BatchStream, *, workers: int = 0, pin_memory: bool = False) -> DataLoader:
    """The micro-batches of a run.

    Args:
        dataset: of the clips.
        stream: which samples, in which order.
        workers: processes that decode, one thread each; 0 decodes in this one.
        pin_memory: for batches on their way to a GPU.

    Returns:
        an iterable of dicts: clip uint8 ``[N, T, H, W, C]``, label int64 ``[N]``, index int64 ``[N]``, broken
        ``[(path, reason)]``. Errors for the user come out of it as they were raised in the worker.
    """
    return _Loader(
        _Guarded(dataset), batch_sampler=stream, collate_fn=_collate, pin_memory=pin_memory, **_options(workers)
    )


def view_loader(dataset: ViewDataset, *, workers: int = 0) -> DataLoader:
    """One test video at a time, in order: the dicts of :class:`ViewDataset`."""
    return _Loader(_Guarded(dataset), batch_size=None, collate_fn=_as_is, **_options(workers, prefetch=1))


def _options(workers: int, prefetch: int = 2) -> dict[str, Any]:
    options: dict[str, Any] = {"num_workers": workers}
    if workers:
        options |= {"worker_init_fn": _start_worker, "prefetch_factor": prefetch}
    return options


class _Loader(DataLoader):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = super().__iter__()
        try:
            for batch in batches:
                if isinstance(batch, VideoRSError):
                    raise batch
                yield batch
        finally:
            _end_workers(batches)


class _Guarded(Dataset):
    """Hands errors for the user over as values: a DataLoader would wrap them in a traceback of the worker."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except VideoRSError as error:
            return error


def _collate(samples: list[Any]) -> Any:
    for sample in samples:
        if isinstance(sample, VideoRSError):
            return sample
    return {
        "clip": torch.stack([sample["clip"] for sample in samples]),
        "label": torch.tensor([sample["label"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
        "broken": [entry for sample in samples for entry in sample["broken"]],
    }


def _as_is(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and a scheduler's SIGTERM reach every process of a job. The main process saves, then ends the workers; they
    # leave without a word, also when it hangs up while it takes a batch from one of them (multiprocessing reports that
    # through sys.excepthook).
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = _report_unless_hung_up


def _end_workers(batches: Iterator) -> None:
    """Ends the workers at once, also one that hangs in a file."""
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()
        for worker in batches._workers:
            worker.kill()


def _report_unless_hung_up(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)
