"""Compute the rows of a table, such as features or probabilities, from the clips of files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from video_rs.data.chunk_dataset import Selection
from video_rs.errors import UserError
from video_rs.evaluation.multiview import OUTPUT_NOT_FINITE

POOLS = ("mean", "mean+std", "max")


class FileRows(NamedTuple):
    """The rows of one file.

    Attributes:
        index: number of the file in the list.
        values: float32 ``[R, D]``; ``[0, 0]`` if there are none.
        times: start and end of each row in seconds, float64 ``[R, 2]``; None if a row is a whole file.
        reason: why there are no values, else "".
        gaps: a warning if frames of the file are in no window, else "". Only with its first rows.
        is_last: False if more rows of the file follow.
    """

    index: int
    values: np.ndarray
    times: np.ndarray | None = None
    reason: str = ""
    gaps: str = ""
    is_last: bool = True


def compute_rows(
    compute: Callable[[Tensor], Tensor],
    chunks: Iterable[dict[str, Any]],
    *,
    batch_size: int = 8,
    pool: str = "mean",
    stream: bool = False,
    on_chunk: Callable[[], Any] = lambda: None,
) -> Iterator[FileRows]:
    """Yield the rows of each file when the outputs of all its views are computed, or earlier with `stream`.

    A batch can have views of several files. Rows do not depend on the batch size, up to rounding.

    Args:
        compute: returns the outputs of views, ``[n, T, H, W, C] -> [n, D]``.
        chunks: items of a :class:`video_rs.data.chunk_dataset.ChunkDataset`, file by file in each worker.
        batch_size: number of views in a batch. The last batch may be smaller.
        pool: how the outputs of one row are combined: "mean"; "mean+std", both side by side ``[2 D]``; or "max".
        stream: yield rows as soon as they are complete, so a file comes in several parts. If a worker dies in the
            middle of a file, its first rows are yielded twice.
        on_chunk: called after each chunk has been read.
    """
    check_pool(pool)
    started: dict[int, _File] = {}
    views: list[Tensor] = []
    owners: list[tuple[_File, int]] = []

    def finished() -> Iterator[FileRows]:
        outputs = compute(torch.stack(views)).double().numpy()
        for (file, group), output in zip(owners, outputs, strict=True):
            file.add(group, output)
        files = {id(file): file for file, _ in owners if file.has_rows and (stream or file.is_complete)}
        views.clear()
        owners.clear()
        return (file.take() for file in files.values())

    for chunk in chunks:
        on_chunk()
        index = chunk["index"]
        if chunk.get("error"):
            started.pop(index, None)
            yield FileRows(index, np.empty((0, 0), np.float32), reason=chunk["error"])
            continue
        if chunk["selection"] is not None:  # the first chunk, also of a file that starts again after a worker died
            started[index] = _File(index, chunk["selection"], pool)
        file = started.pop(index) if chunk["is_last"] else started[index]
        file.missing += len(chunk["views"])
        file.is_read = chunk["is_last"]
        groups = np.repeat(chunk["groups"], len(chunk["views"]) // len(chunk["groups"]))
        for view, group in zip(chunk["views"], groups.tolist(), strict=True):
            views.append(view)
            owners.append((file, group))
            if len(views) == batch_size:
                yield from finished()
    if views:
        yield from finished()


def check_pool(pool: str) -> None:
    """Raise UserError for an unknown way to combine outputs."""
    if pool not in POOLS:
        raise UserError(f"pool={pool!r}: must be one of {', '.join(POOLS)}")


class _File:
    """The outputs of one file, combined as they arrive."""

    def __init__(self, index: int, selection: Selection, pool: str) -> None:
        self.index, self.selection, self.pool = index, selection, pool
        self.missing, self.is_read = 0, False  # number of views without outputs
        self._values: list[np.ndarray] = []  # of complete groups that `take` has not returned
        self._first = 0  # number of the first such group
        self._group: _Group | None = None

    @property
    def is_complete(self) -> bool:
        return self.is_read and not self.missing

    @property
    def has_rows(self) -> bool:
        """True if a group is complete. Views are in order: a group is complete when the next one begins."""
        return self.is_complete or bool(self._values)

    def add(self, group: int, output: np.ndarray) -> None:
        self.missing -= 1
        if self._group is not None and group == self._first + len(self._values):
            self._group.add(output)
            return
        self._finish_group()
        self._group = _Group(output)

    def _finish_group(self) -> None:
        if self._group is not None:
            self._values.append(self._group.result(self.pool).astype(np.float32))

    def take(self) -> FileRows:
        """Return the complete rows that have not been returned before."""
        if self.is_complete:
            self._finish_group()
        first, end, selection = self._first, self._first + len(self._values), self.selection
        rows = (selection.rows >= first) & (selection.rows < end)
        values = np.stack(self._values)[selection.rows[rows] - first]
        self._values, self._first = [], end
        if not np.isfinite(values).all():
            return FileRows(self.index, np.empty((0, 0), np.float32), reason=OUTPUT_NOT_FINITE)
        times = None if selection.times is None else selection.times[rows]
        return FileRows(self.index, values, times, gaps="" if first else selection.gaps, is_last=self.is_complete)


class _Group:
    """Running sum, sum of squares and maximum of outputs.

    The sums are of differences from the first output, for accuracy.
    """

    def __init__(self, first: np.ndarray) -> None:
        self.first, self.count, self.max = first, 1, first
        self.sum, self.squares = np.zeros_like(first), np.zeros_like(first)

    def add(self, output: np.ndarray) -> None:
        difference = output - self.first
        self.count += 1
        self.sum += difference
        self.squares += difference**2
        self.max = np.maximum(self.max, output)

    def result(self, pool: str) -> np.ndarray:
        if pool == "max":
            return self.max
        mean = self.sum / self.count
        if pool == "mean":
            return self.first + mean
        deviation = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
        return np.concatenate([self.first + mean, deviation])
