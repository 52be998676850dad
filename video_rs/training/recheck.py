"""Decode unreadable files again when a run starts, and forget those that can be read."""

from __future__ import annotations

from collections.abc import Callable

from video_rs.data.tools.recheck import decode_again
from video_rs.data.video_dataset import VideoDataset
from video_rs.distributed.world import World
from video_rs.errors import truncate
from video_rs.files import stamp
from video_rs.training.incidents import Incidents

TIMEOUT = 600.0  # seconds, if `data.timeout` is off


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
    """Decode the unreadable files again on rank 0, and update `incidents` on all ranks.

    Files that hung or killed a worker are decoded only if they have changed. Files that are no longer in the data are
    removed.

    Args:
        check: called after each file; raises if the run must stop.
        workers, timeout: as for training.
        info: function to log a line.
    """
    if not incidents.files:
        return

    def progress() -> None:
        world.heartbeat()
        check()

    found = None
    with world.together("the unreadable files", heartbeats=True):
        if world.is_main and (doubtful := incidents.files_to_recheck()):
            info(f"decoding {len(doubtful)} unreadable files again")
            options = {"decoder": train.decoder, "workers": workers, "timeout": timeout or TIMEOUT}
            bad, hung = decode_again(train.records, doubtful, progress=progress, **options)
            found = list(doubtful), bad, {path: stamp(path) for path in hung}
            if whole := [path for path in doubtful if path not in bad]:
                info(f"{len(whole)} of them can be read now: {truncate(whole)}")
    if found := world.gather(found, "the unreadable files")[0]:
        incidents.update(*found)
