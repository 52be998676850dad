"""Random numbers as a function of a key, never of a history.

A sample depends on (seed, epoch, index, copy) alone, and what is drawn for it on the device on (seed, step, position in
the global batch). No random state has to be saved, and neither workers, nor ranks, nor an interruption change what is
drawn.
"""

from __future__ import annotations

import zlib

import numpy as np


def keyed_rng(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Return a generator that depends on the arguments alone.

    Args:
        seed: of the run, 0 <= seed < 2**32.
        purpose: what is drawn ("sample", "order", ...); two purposes with the same key are independent.
        key: non-negative integers. Use the same number of them in all calls with one purpose: NumPy's seeding treats
            missing trailing entries as zeros.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *key])


def sample_keys(seed: int, step: int, positions: np.ndarray) -> np.ndarray:
    """Return one 64-bit key per sample of a batch, for what is drawn on the device (dropout, drop path).

    Args:
        seed: of the run.
        step: the optimizer step.
        positions: ``[N]``, of the samples in the global batch.

    Returns:
        ``[N]`` int64.
    """
    base = keyed_rng(seed, "device", step).integers(0, 2**63, dtype=np.uint64)
    z = base + np.asarray(positions, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).view(np.int64)
