"""Decode unreadable files again when a run starts, and remove those that can be read."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

from video_rs.data.clip_datasets import open_record
from video_rs.data.segments import frame_range
from video_rs.data.sources.records import Records
from video_rs.data.tools.check_file import check_file
from video_rs.data.tools.pool import Beat, Lost, watched_calls
from video_rs.data.video_dataset import VideoDataset
from video_rs.distributed.world import World
from video_rs.errors import MediaError, StorageError, VideoRSError, truncate
from video_rs.files import stamp
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
            timeout, end = timeout or world.timeout / 2, time.monotonic() + SECONDS
            limits = [math.inf if path in incidents.hung else timeout / 2 for path in doubtful]
            files = zip([indices[path] for path in doubtful], limits, strict=True)
            decode = partial(_problem, train.records, train.decoder)
            calls = watched_calls(decode, files, max(1, min(workers, len(doubtful))), timeout)
            with contextlib.closing(calls):
                for (numbers, _), problem in calls:
                    path = train.records.path(numbers[0])
                    if isinstance(problem, Lost):
                        hung[path], problem = stamp(path), problem.reason
                    elif isinstance(problem, MediaError | StorageError):
                        problem = train.records.fault(problem, numbers[0])
                    found[path] = problem
                    world.heartbeat()
                    check()
                    if time.monotonic() > end:
                        break
            if whole := [path for path in doubtful if found.get(path) == ""]:
                info(f"{len(whole)} of them can be read now: {truncate(whole)}")
    incidents.update(*world.gather((found, hung), "the unreadable files")[0])


def _problem(records: Records, decoder: str, item: tuple[Sequence[int], float], beat: Beat) -> str:
    """Return the reason why a file cannot be read, or "". `beat` is not called, so the timeout is that of a whole file.

    Args:
        item: the records of the file, and seconds after which it is not decoded further if it has no problem so far.
    """
    indices, limit = item
    end = time.monotonic() + limit

    def stop_in_time() -> None:
        if time.monotonic() > end:
            raise _TimeIsUp

    with contextlib.suppress(_TimeIsUp):
        if problem := check_file(records.file(indices[0]), stop_in_time).problem:
            return problem
    for index in indices:  # as training does
        with open_record(records, index, decoder) as video:
            frame_range(video, *records.segment(index))
    return ""


class _TimeIsUp(VideoRSError):
    """Raised to stop decoding."""
