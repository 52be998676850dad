"""The folder of a run: its lock, and the checkpoint to resume from."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from video_rs import checkpoint
from video_rs.distributed.world import World
from video_rs.errors import UserError
from video_rs.files import locked
from video_rs.hub import redact_url
from video_rs.training.checkpointer import FOLDER, newest_valid, remove_unfinished

Differences = Callable[[Mapping[str, Any]], Mapping[str, tuple[Any, Any]]]


def lock(folder: Path) -> contextlib.ExitStack:
    """Make a run folder and lock it until the result is closed or this process ends.

    Raises:
        UserError: another process trains in the folder, or it cannot be written.
    """
    held = contextlib.ExitStack()
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        if not os.access(folder / FOLDER, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder / FOLDER))
        held.enter_context(locked(folder))
    except BlockingIOError:
        raise UserError(f"another process trains in {folder}; wait for it, or choose another out=") from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{error.filename}: {error.strerror}; the run needs its folder: choose another out=") from None
    remove_unfinished(folder)
    return held


def find_saved(
    folder: Path, differences: Differences, world: World, *, must_resume: bool = False
) -> tuple[dict[str, Any] | None, str]:
    """Return the newest valid checkpoint of a run folder and its path; None and "" to start at step 0.

    Args:
        folder: of the run.
        differences: given the config of the checkpoint, returns values that may not differ: ``{key: (saved, now)}``.
        world: the ranks of the run; rank 0 chooses.
        must_resume: raise if there is none.

    Raises:
        UserError: the checkpoint is of another config, no checkpoint can be read, or only ``best.pt`` is left.
    """
    with world.together("the checkpoint"):
        found = newest_valid(folder) if world.is_main else None
        if world.is_main and not found:
            _check_new(folder, must_resume)
        for path, reason in found.skipped if found else ():
            print(f"skipping {path}: {reason}", flush=True)
    path = world.gather(found and found.path, "the checkpoint")[0]
    if path is None:
        return None, ""
    with world.together("the checkpoint"):
        saved = found.state if found else checkpoint.load_run(path)
        if changed := differences(saved["config"]):
            text = ", ".join(f"{key} was {_shown(old)}, is now {_shown(new)}" for key, (old, new) in changed.items())
            raise UserError(f"{folder} was started with another config ({text}): use another out= or delete the folder")
    return saved, str(path)


def _check_new(folder: Path, must_resume: bool) -> None:
    """Raise UserError if a run must not start at step 0 in this folder."""
    if must_resume:
        raise UserError(
            f"--resume: {folder / 'last.pt'} does not exist; omit --resume, or name the run folder with out="
        )
    if (best := folder / "best.pt").exists():
        raise UserError(
            f"{folder} has a best.pt and no checkpoint to resume from: choose another out=, with "
            f"train.init_from={best} to start from it, or delete the folder to start over"
        )


def _shown(value: Any) -> str:
    return repr(redact_url(value) if isinstance(value, str) else value)
