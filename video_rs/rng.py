"""Random numbers as a function of a key, without a state.

A sample depends only on (seed, epoch, index, copy), and random numbers drawn for it on the device depend only on (seed,
step, position in the global batch). No random state is saved, and the draws do not depend on workers, ranks or
interruptions.
"""

from __future__ import annotations

import zlib

import numpy as np


def keyed_rng(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Return a generator that depends only on the arguments.

    Args:
        seed: seed of the run, 0 <= seed < 2**32.
        purpose: purpose of the draws ("sample", "order", ...). Different purposes with the same key are independent.
        key: non-negative integers. Use the same number of integers in all calls with one purpose, because NumPy's
            seeding treats missing trailing entries as zeros.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *key])


def sample_keys(seed: int, step: int, positions: np.ndarray) -> np.ndarray:
    """Return a 64-bit key for each sample of a batch, for random numbers on the device (dropout, drop path).

    Args:
        seed: seed of the run.
        step: the optimizer step.
        positions: ``[N]``, positions of the samples in the global batch.

    Returns:
        ``[N]`` int64.
    """
    base = keyed_rng(seed, "device", step).integers(0, 2**63, dtype=np.uint64)
    z = base + np.asarray(positions, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).view(np.int64)
