"""Frames through decord (https://github.com/dmlc/decord), where it is installed and right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CHUNK = 16  # frames that are in memory at full size together


class Unsuitable(Exception):
    """decord is missing, cannot open or decode the file, or numbers its frames differently."""


class DecordReader:
    """Make it in the process that reads from it: a reader made before a fork can hang (decord issues 76, 294).

    Args:
        path: of the file.
        num_frames: the file's, as its packets tell.

    Raises:
        Unsuitable: see there.
    """

    def __init__(self, path: str | Path, num_frames: int) -> None:
        try:
            import decord
        except (ImportError, OSError) as error:
            raise Unsuitable("decord is not installed") from error
        decord.logging.set_level(decord.logging.QUIET)
        self._errors = decord.DECORDError  # a plain Exception
        try:
            self._reader = decord.VideoReader(str(path), num_threads=1)
        except self._errors as error:
            raise Unsuitable("decord cannot open it") from error
        self.num_frames = len(self._reader)
        if self.num_frames != num_frames:
            raise Unsuitable(f"decord finds {self.num_frames} frames of {num_frames}")

    def frames(self, indices: np.ndarray) -> Iterator[Tensor]:
        for first in range(0, len(indices), CHUNK):
            try:
                batch = self._reader.get_batch(indices[first : first + CHUNK].tolist())
            except self._errors as error:
                raise Unsuitable("decord fails: the file is damaged, or not for decord") from error
            # other packages set decord's bridge, a global, to torch
            yield batch if isinstance(batch, Tensor) else torch.from_numpy(batch.asnumpy())

    def close(self) -> None:
        self._reader = None
