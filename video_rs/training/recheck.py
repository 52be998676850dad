"""Decode unreadable files again when a run starts, and remove those that can be read."""

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
from video_rs.data.video_dataset import VideoDataset
from video_rs.distributed.world import World
from video_rs.errors import MediaError, StorageError, VideoRSError, truncate
from video_rs.training.incidents import Incidents

SECONDS = 600.0  # for all files; the next start continues with the rest


def recheck(
    incidents: Incidents,
    train: VideoDataset,
    world: World,
    check: Callable[[], None],
    *,
    workers: int = 1,
    timeout: float = 0.0,
    info: Callable[[str], None] = print,
) -> None:
    """Decode the unreadable files completely on rank 0, as ``video-rs check`` does, and update `incidents`.

    Files that hung or killed a worker are decoded only if they have changed. Other files are decoded for half of
    `timeout`; if there is no problem until then, they can be read. Files that are no longer in the data are removed.

    Args:
        check: called after each file; raises if the run must stop.
        workers, timeout: as for training.
        info: function to log a line.

    Raises:
        MachineError: a process was killed, or the storage fails.
    """
    if not incidents.files:
        return
    indices: dict[str, list[int]] = {}  # several if a file has several segments
    for index in range(len(train)):
        if (path := train.records.path(index)) in incidents.files:
            indices.setdefault(path, []).append(index)
    # data.root can differ between ranks
    missing = world.gather(incidents.files.keys() - indices.keys(), "the unreadable files")
    found = dict.fromkeys(set.intersection(*missing), "")
    hung: dict[str, tuple[int, int]] = {}
    with world.together("the unreadable files", heartbeats=True):
        if world.is_main and (doubtful := [path for path in incidents.files_to_recheck() if path in indices]):
            info(f"decoding {len(doubtful)} unreadable files again")
            timeout = timeout or world.timeout / 2
            limits = [math.inf if path in incidents.hung else timeout / 2 for path in doubtful]
            files = _Files(train.records, train.decoder, [indices[path] for path in doubtful], limits)
            workers = max(1, min(workers, len(doubtful)))
            items = iter(ViewLoader(files, workers, timeout, range(len(doubtful)), max_failed=len(doubtful)))
            end = time.monotonic() + SECONDS
            with contextlib.closing(items):
                for item in items:
                    found[item["path"]] = item["error"]
                    world.heartbeat()
                    check()
                    if time.monotonic() > end:
                        break
            hung = {path: version for path, version in files.stamps.items() if path in found}
            if whole := [path for path in doubtful if found.get(path) == ""]:
                info(f"{len(whole)} of them can be read now: {truncate(whole)}")
    incidents.update(*world.gather((found, hung), "the unreadable files")[0])


@dataclass(eq=False)
class _Files(Dataset):
    """A dataset of the reasons why files cannot be read, for a ``ViewLoader``.

    Args:
        records, decoder, skip, stamps: as for ``ViewDataset``.
        indices: the records of each file.
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


class _TimeIsUp(VideoRSError):
    """Raised to stop decoding."""
