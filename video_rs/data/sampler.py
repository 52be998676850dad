"""Which samples make a batch, as a pure function of the optimizer step."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from video_rs.errors import UserError
from video_rs.rng import keyed_rng


class SampleKey(NamedTuple):
    """All that a sample depends on besides the seed.

    Attributes:
        epoch: how often the dataset has been gone through.
        index: into the dataset.
        copy: tells repeated uses of one index in one epoch apart; with repeats, the R copies ``R*u`` to ``R*u + R-1``
            are of use ``u`` and share its decode.
        phase: which sizes a clip has: 0 the main ones, else the phase of this number. Nothing random depends on it.
    """

    epoch: int
    index: int
    copy: int = 0
    phase: int = 0


class BatchStream:
    """Batch sampler of a whole run: lists of :class:`SampleKey`, one per micro-batch of this rank.

    The samples come in one endless order, the epochs' permutations one after the other, and step ``s`` takes positions
    ``s * batch_size`` to ``(s + 1) * batch_size``: nothing is dropped at the end of an epoch, and neither the number of
    processes nor an interruption changes what a step sees.

    Args:
        num_samples: in the dataset.
        batch_size: the global batch.
        num_steps: optimizer steps of the whole run.
        seed: of the run.
        start_step: where to go on.
        micro_batch: samples per device step; 0 takes a rank's whole share at once.
        rank, world_size: of the processes that share the batch; each takes one contiguous run of whole micro-batches.
        labels: ``[num_samples]``; when given, an epoch draws classes evenly, with replacement.
        repeats: R copies of each sample, one after the other: repeated augmentation (arXiv 1901.09335). An epoch still
            goes once over the dataset, and so is R times as long.
        shards: int64, the first sample of each shard, ascending from 0, where samples lie in shards. An epoch then goes
            through blocks of shards drawn at random, and mixes the samples within each: all others are not touched
            meanwhile. Does not go together with `labels`, which draw from everything.
        phase_ends: ascending steps; those before the first are of phase 1, and so on, those after the last of phase 0.
        block: least number of samples in a block. While one block is enough for all, the order is that without shards.

    Raises:
        UserError: the batch does not divide into equal shares of whole micro-batches.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        num_steps: int,
        seed: int,
        start_step: int = 0,
        micro_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        labels: np.ndarray | None = None,
        repeats: int = 1,
        shards: np.ndarray | None = None,
        block: int = 1,
        phase_ends: Sequence[int] = (),
    ) -> None:
        if num_samples < 1:
            raise UserError("cannot draw batches from an empty dataset")
        share, self.micro_batch = shares(batch_size, micro_batch, world_size)
        self.num_samples, self.batch_size, self.num_steps, self.seed = num_samples, batch_size, num_steps, seed
        self.start_step, self.repeats = start_step, repeats
        self._share = slice(rank * share, (rank + 1) * share)
        self._phase_ends = tuple(phase_ends)
        self._labels = None if labels is None else np.asarray(labels)
        self._shards, self._block = np.zeros(1, np.int64) if shards is None else np.asarray(shards), block
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)  # a batch may lie across two epochs

    def __len__(self) -> int:
        micro_batches = (self._share.stop - self._share.start) // self.micro_batch
        return max(0, self.num_steps - self.start_step) * micro_batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in range(self.start_step, self.num_steps):
            share = self.keys(step)[self._share]
            for first in range(0, len(share), self.micro_batch):
                yield share[first : first + self.micro_batch]

    def keys(self, step: int) -> list[SampleKey]:
        """The global batch of one step, in order."""
        first, phase, keys = step * self.batch_size, self.phase(step), []
        for position in range(first, first + self.batch_size):
            use, repeat = divmod(position, self.repeats)
            epoch, place = divmod(use, self.num_samples)
            indices, uses = self._epoch(epoch)
            keys.append(SampleKey(epoch, int(indices[place]), int(uses[place]) * self.repeats + repeat, phase))
        return keys

    def phase(self, step: int) -> int:
        """The number of the phase that a step is in; 0 after the last."""
        over = bisect.bisect_right(self._phase_ends, step)
        return over + 1 if over < len(self._phase_ends) else 0

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = keyed_rng(self.seed, "order", epoch)
        if self._labels is None:
            order = np.concatenate([block[rng.permutation(len(block))] for block in self._draw_blocks(epoch)])
            return order, np.zeros(self.num_samples, np.int64)
        classes, label_of, counts = np.unique(self._labels, return_inverse=True, return_counts=True)
        weights = 1.0 / (len(classes) * counts[label_of])
        indices = rng.choice(self.num_samples, self.num_samples, p=weights)
        return indices, _occurrences(indices)

    def _draw_blocks(self, epoch: int) -> Iterator[np.ndarray]:
        """The samples of each block, ascending; what is too little for one more block belongs to the last."""
        ends = np.append(self._shards[1:], self.num_samples)
        block: list[np.ndarray] = []
        count, left = 0, self.num_samples
        for shard in keyed_rng(self.seed, "shards", epoch).permutation(len(ends)):
            block.append(np.arange(self._shards[shard], ends[shard]))
            count, left = count + len(block[-1]), left - len(block[-1])
            if not left or (count >= self._block and left >= self._block):
                yield np.sort(np.concatenate(block))
                block, count = [], 0


def shares(batch_size: int, micro_batch: int = 0, world_size: int = 1) -> tuple[int, int]:
    """How a global batch is divided: samples of a process, and of one of its micro-batches.

    Args:
        batch_size: the global batch.
        micro_batch: most samples on a device at once; 0: a process's whole share.
        world_size: processes.

    Raises:
        UserError: it does not divide into equal shares of whole micro-batches.
    """
    share, rest = divmod(batch_size, world_size)
    if rest or not share:
        near = " or ".join(str(size * world_size) for size in (share, share + 1) if size)
        raise UserError(
            f"train.batch_size={batch_size} does not divide over {world_size} processes: set it to {near}, or start "
            "another number of processes"
        )
    part = min(micro_batch or share, share)
    if share % part:
        near = [size for size in range(1, share + 1) if share % size == 0]
        raise UserError(
            f"train.micro_batch={micro_batch} does not divide the {share} samples that each of {world_size} "
            f"process(es) takes of train.batch_size={batch_size}: set it to "
            f"{max(size for size in near if size < part)} or {min(size for size in near if size > part)}"
        )
    return share, part


def _occurrences(values: np.ndarray) -> np.ndarray:
    """How often each value has come before in the array: ``[7, 3, 7, 7] -> [0, 0, 1, 2]``."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    runs = np.diff(np.r_[starts, len(values)])
    counts = np.empty(len(values), np.int64)
    counts[order] = np.arange(len(values)) - np.repeat(starts, runs)
    return counts
