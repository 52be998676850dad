"""Batch sampling as a pure function of the optimizer step."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from video_rs.errors import UserError
from video_rs.rng import keyed_rng


class SampleKey(NamedTuple):
    """The key of a sample. A sample depends only on its key and the seed.

    Attributes:
        epoch: number of the pass over the dataset, from 0.
        index: index of the record in the dataset.
        copy: distinguishes repeated uses of one index in one epoch. With repeats, copies ``R * u`` to ``R * u + R - 1``
            belong to use ``u`` and share its decode.
        phase: number of the phase, which selects the size of the clip; 0 for the main phase. Random draws do not
            depend on it.
    """

    epoch: int
    index: int
    copy: int = 0
    phase: int = 0


@dataclass(eq=False)
class BatchStream:
    """Batch sampler of a whole run: yields a list of :class:`SampleKey` per micro-batch of this rank.

    The samples form an endless sequence with one permutation per epoch, and step ``s`` takes positions
    ``s * batch_size`` to ``(s + 1) * batch_size``. No sample is dropped at the end of an epoch, and neither the number
    of ranks nor an interruption changes the samples of a step.

    Args:
        num_samples: size of the dataset.
        batch_size: size of the global batch.
        num_steps: number of optimizer steps of the whole run.
        seed: seed of the run.
        start_step: the first step to yield.
        micro_batch: number of samples per forward pass; 0 for the whole per-rank batch.
        rank, world_size: this rank and the number of ranks. Each rank takes a contiguous range of micro-batches.
        labels: ``[num_samples]``; if given, an epoch draws the classes evenly, with replacement.
        repeats: number of consecutive copies (R) of each sample, for repeated augmentation (arXiv 1901.09335). An epoch
            is still one pass over the dataset, so it has R times as many samples.
        shards: int64, the index of the first sample of each shard, ascending from 0, for data in shards. An epoch then
            visits blocks of random shards and shuffles the samples within each block, so only a few shards are read
            at a time. Cannot be combined with `labels`, which draw from the whole dataset.
        block: minimum number of samples in a block. A dataset that fits in one block is shuffled as a whole.
        phase_ends: ascending steps at which phases end. Steps before the first one belong to phase 1, and so on; steps
            after the last one belong to phase 0.

    Raises:
        UserError: the batch cannot be divided into equal per-rank batches of whole micro-batches.
    """

    num_samples: int
    _: KW_ONLY
    batch_size: int
    num_steps: int
    seed: int
    start_step: int = 0
    micro_batch: int = 0
    rank: int = 0
    world_size: int = 1
    labels: np.ndarray | None = None
    repeats: int = 1
    shards: np.ndarray | None = None
    block: int = 1
    phase_ends: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError("cannot draw batches from an empty dataset")
        self._per_rank, self.micro_batch = divide_batch(self.batch_size, self.micro_batch, self.world_size)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)  # a batch can span two epochs

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step) * (self._per_rank // self.micro_batch)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        first = self.rank * self._per_rank
        for step in range(self.start_step, self.num_steps):
            keys = self.keys(step)
            for start in range(first, first + self._per_rank, self.micro_batch):
                yield keys[start : start + self.micro_batch]

    def keys(self, step: int) -> list[SampleKey]:
        """Return the keys of the global batch of one step, in order."""
        first, phase, keys = step * self.batch_size, self.phase(step), []
        for position in range(first, first + self.batch_size):
            use, repeat = divmod(position, self.repeats)
            epoch, place = divmod(use, self.num_samples)
            indices, uses = self._epoch(epoch)
            keys.append(SampleKey(epoch, int(indices[place]), int(uses[place]) * self.repeats + repeat, phase))
        return keys

    def phase(self, step: int) -> int:
        """Return the number of the phase of a step; 0 after the last one."""
        over = bisect.bisect_right(self.phase_ends, step)
        return over + 1 if over < len(self.phase_ends) else 0

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of one epoch in order, and the number of earlier occurrences of each."""
        rng = keyed_rng(self.seed, "order", epoch)
        if self.labels is None:
            order = np.concatenate([block[rng.permutation(len(block))] for block in self._draw_blocks(epoch)])
            return order, np.zeros(self.num_samples, np.int64)
        classes, label_of, counts = np.unique(self.labels, return_inverse=True, return_counts=True)
        weights = 1.0 / (len(classes) * counts[label_of])
        indices = rng.choice(self.num_samples, self.num_samples, p=weights)
        return indices, _occurrences(indices)

    def _draw_blocks(self, epoch: int) -> Iterator[np.ndarray]:
        """Yield the samples of each block in ascending order. A remainder is added to the last block."""
        starts = np.zeros(1, np.int64) if self.shards is None else self.shards
        ends = np.append(starts[1:], self.num_samples)
        block: list[np.ndarray] = []
        count, left = 0, self.num_samples
        for shard in keyed_rng(self.seed, "shards", epoch).permutation(len(ends)):
            block.append(np.arange(starts[shard], ends[shard]))
            count, left = count + len(block[-1]), left - len(block[-1])
            if not left or (count >= self.block and left >= self.block):
                yield np.sort(np.concatenate(block))
                block, count = [], 0


def divide_batch(batch_size: int, micro_batch: int = 0, world_size: int = 1) -> tuple[int, int]:
    """Return the sizes of the per-rank batch and the micro-batch.

    Args:
        batch_size: size of the global batch.
        micro_batch: maximum number of samples per forward pass; 0 for the whole per-rank batch.
        world_size: number of ranks.

    Raises:
        UserError: the batch cannot be divided into equal per-rank batches of whole micro-batches.
    """
    per_rank, rest = divmod(batch_size, world_size)
    if rest or not per_rank:
        near = " or ".join(str(size * world_size) for size in (per_rank, per_rank + 1) if size)
        raise UserError(
            f"train.batch_size={batch_size} does not divide over {world_size} processes: set it to {near}, or start "
            "another number of processes"
        )
    micro = min(micro_batch or per_rank, per_rank)
    if per_rank % micro:
        near = [size for size in range(1, per_rank + 1) if per_rank % size == 0]
        raise UserError(
            f"train.micro_batch={micro_batch} does not divide the {per_rank} samples that each of {world_size} "
            f"process(es) takes of train.batch_size={batch_size}: set it to "
            f"{max(size for size in near if size < micro)} or {min(size for size in near if size > micro)}"
        )
    return per_rank, micro


def _occurrences(values: np.ndarray) -> np.ndarray:
    """Return the number of earlier occurrences of each value: ``[7, 3, 7, 7] -> [0, 0, 1, 2]``."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    counts = np.empty(len(values), np.int64)
    counts[order] = np.arange(len(values)) - np.searchsorted(ranked, ranked)  # minus the first equal value's
    return counts
