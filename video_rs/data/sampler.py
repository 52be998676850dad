"""Which samples make a batch, as a pure function of the optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
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
    """

    epoch: int
    index: int
    copy: int = 0


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
    ) -> None:
        if num_samples < 1:
            raise UserError("cannot draw batches from an empty dataset")
        if batch_size < 1 or batch_size % world_size:
            raise UserError(f"train.batch_size={batch_size} does not divide over {world_size} processes")
        share = batch_size // world_size
        self.micro_batch = micro_batch or share
        if share % self.micro_batch:
            raise UserError(
                f"train.micro_batch={micro_batch} does not divide the {share} samples that each of {world_size} "
                f"process(es) takes of train.batch_size={batch_size}"
            )
        self.num_samples, self.batch_size, self.num_steps, self.seed = num_samples, batch_size, num_steps, seed
        self.start_step, self.repeats = start_step, repeats
        self._share = slice(rank * share, (rank + 1) * share)
        self._labels = None if labels is None else np.asarray(labels)
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
        first = step * self.batch_size
        keys = []
        for position in range(first, first + self.batch_size):
            use, repeat = divmod(position, self.repeats)
            epoch, place = divmod(use, self.num_samples)
            indices, uses = self._epoch(epoch)
            keys.append(SampleKey(epoch, int(indices[place]), int(uses[place]) * self.repeats + repeat))
        return keys

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = keyed_rng(self.seed, "order", epoch)
        if self._labels is None:
            return rng.permutation(self.num_samples), np.zeros(self.num_samples, np.int64)
        classes, label_of, counts = np.unique(self._labels, return_inverse=True, return_counts=True)
        weights = 1.0 / (len(classes) * counts[label_of])
        indices = rng.choice(self.num_samples, self.num_samples, p=weights)
        return indices, _occurrences(indices)


def _occurrences(values: np.ndarray) -> np.ndarray:
    """How often each value has come before in the array: ``[7, 3, 7, 7] -> [0, 0, 1, 2]``."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    runs = np.diff(np.r_[starts, len(values)])
    counts = np.empty(len(values), np.int64)
    counts[order] = np.arange(len(values)) - np.repeat(starts, runs)
    return counts
