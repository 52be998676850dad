"""Decode unreadable files again, completely, in watched processes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch.utils.data import Dataset

from video_rs.data.clip_datasets import open_record
from video_rs.data.loader import ViewLoader
from video_rs.data.segments import frame_range
from video_rs.data.sources.records import Records
from video_rs.data.tools.check_file import check_file
from video_rs.errors import MediaError, StorageError, VideoRSError


class _TimeIsUp(VideoRSError):
    """Raised to stop decoding."""


@dataclass(eq=False)
class _Files(Dataset):
    """A dataset of the reasons why files cannot be read.

    Args:
        records, decoder, skip: as for ``ClipDataset``.
        indices: the indices of each file in the records, several if it has several segments.
        limits: seconds after which a file that has no problem so far is not decoded further.
    """

    records: Records
    decoder: str
    indices: Sequence[Sequence[int]]
    limits: Sequence[float]
    skip: Mapping[str, str] = field(default_factory=dict)
    stamps: dict[str, tuple[int, int]] = field(default_factory=dict)

    def heartbeat(self, index: int) -> None:
        """Do nothing; see ``ClipDataset``."""

    def __getitem__(self, number: int) -> dict[str, str]:
        index = self.indices[number][0]
        path = self.records.path(index)
        reason = self.skip.get(path)
        if reason is None:
            self.heartbeat(index)
            try:
                reason = self._problem(number)
            except (MediaError, StorageError) as error:
                reason = self.records.fault(error, index)
            self.heartbeat(-1)
        return {"path": path, "error": reason}

    def _problem(self, number: int) -> str:
        end = time.monotonic() + self.limits[number]

        def beat() -> None:
            if time.monotonic() > end:
                raise _TimeIsUp

        with contextlib.suppress(_TimeIsUp):
            if problem := check_file(self.records.file(self.indices[number][0]), beat).problem:
                return problem
        for index in self.indices[number]:  # as training does
            with open_record(self.records, index, self.decoder) as video:
                frame_range(video, *self.records.segment(index))
        return ""


def decode_again(
    records: Records,
    hung: Mapping[str, bool],
    *,
    decoder: str = "pyav",
    workers: int = 1,
    timeout: float = 120.0,
    progress: Callable[[], None] = lambda: None,
) -> tuple[dict[str, str], set[str]]:
    """Decode files completely, as ``video-rs check`` does.

    Args:
        records: contain the files.
        hung: ``{path: True}`` for files that hung or killed a worker before, False for others.
        decoder: see ``ClipDataset``.
        workers: number of processes.
        timeout: maximum seconds in one file. Files that did not hang before are decoded for at most half
            of it, and can be read if there is no problem until then.
        progress: called after each file.

    Returns:
        ``{path: reason}`` for the files that cannot be read, and the paths of those that hung or killed a worker now.
        A path that is not in the records is left out.

    Raises:
        MachineError: a process was killed, or the storage fails.
    """
    indices: dict[str, list[int]] = {}
    for index in range(len(records)):
        if (path := records.path(index)) in hung:
            indices.setdefault(path, []).append(index)
    limits = [math.inf if hung[path] else timeout / 2 for path in indices]
    files, found = _Files(records, decoder, list(indices.values()), limits), {}
    for item in ViewLoader(files, max(1, min(workers, len(indices))), timeout, range(len(indices))):
        found[item["path"]] = item["error"]
        progress()
    return {path: reason for path, reason in found.items() if reason}, set(files.skip)
