"""Write checkpoints in the background."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from video_rs import checkpoint
from video_rs.training.run_folder import FOLDER, checkpoints


class Checkpointer:
    """Write checkpoints in a background thread and keep the newest ``keep``.

    ``last.pt`` is a hard link to the newest ``checkpoints/step-00000120.pt``; ``best.pt`` is a separate file. Writes
    are atomic, and old checkpoints are removed only after a new one is on disk. The caller may change the state as soon
    as a method returns. The end of the ``with`` block waits for all writes.

    Args:
        folder: the run folder.
        keep: number of checkpoints to keep.
        minutes: time between two checkpoints, see :meth:`is_due`.
        writes: False for ranks that only track which steps are saved.

    Attributes:
        saved: step of the last checkpoint that was passed to the thread; -1 if there is none.
        written: step of the last checkpoint on disk; -1 if there is none.
    """

    def __init__(self, folder: str | Path, keep: int = 3, *, minutes: float = 10.0, writes: bool = True) -> None:
        self.folder, self.keep, self.minutes, self.writes = Path(folder), keep, minutes, writes
        self.saved = self.written = -1
        self._saved_at = time.monotonic()
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future | None = None

    def __enter__(self) -> Checkpointer:
        self._saved_at = time.monotonic()
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._writer.shutdown()

    def is_due(self) -> bool:
        """Return True before the first checkpoint, and if the last one is older than ``minutes``."""
        return self.saved < 0 or time.monotonic() - self._saved_at > 60 * self.minutes

    def save(self, state: Mapping[str, Any], step: int, doubtful: float = math.inf) -> None:
        """Save the state after a step. Waits for an unfinished write, and raises the errors of :meth:`wait`.

        The newest checkpoint before step ``doubtful`` is also kept.
        """
        self._submit(self._write, state, step, doubtful)
        self.saved, self._saved_at = step, time.monotonic()

    def save_best(self, state: Mapping[str, Any]) -> None:
        """Save ``best.pt``. Waits for an unfinished write, and raises the errors of :meth:`wait`."""
        self._submit(lambda ready: checkpoint.save(self.folder / "best.pt", ready), state)

    def wait(self) -> None:
        """Wait for all writes. Raise MachineError if the disk fails, UserError for an invalid path."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def poll(self) -> None:
        """Raise the error of a write that failed. Does not wait."""
        if self._writing and self._writing.done():
            self.wait()

    def _submit(self, write: Any, state: Mapping[str, Any], *arguments: Any) -> None:
        self.wait()
        if not self.writes:
            return
        copied, ready = tree_map_only(torch.Tensor, _on_host, state), None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            ready = torch.cuda.Event()
            ready.record()  # after the copies, which are asynchronous

        def run() -> None:
            if ready:
                ready.synchronize()
            write(copied, *arguments)

        self._writing = self._writer.submit(run)

    def _write(self, state: Mapping[str, Any], step: int, doubtful: float) -> None:
        path = self.folder / FOLDER / f"step-{step:08d}.pt"
        checkpoint.save(path, state)
        link = self.folder / ".last.pt.link"
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
            link.replace(self.folder / "last.pt")
        except OSError:  # no hard links on this file system
            checkpoint.save(self.folder / "last.pt", state)
        older = [(number, file) for number, file in checkpoints(self.folder) if number <= step]
        last_good = next((number for number, _ in older if number < doubtful), None)
        for number, file in older[self.keep :]:
            if number != last_good:
                with contextlib.suppress(OSError):
                    file.unlink()
        self.written = step


def _on_host(value: torch.Tensor) -> torch.Tensor:
    """Return a copy on the CPU. Copies from a GPU are asynchronous."""
    value = value.detach()
    if value.is_cuda:
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
    return value.clone() if value.device.type == "cpu" else value.cpu()
