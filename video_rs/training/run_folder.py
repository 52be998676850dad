"""The folder of a run: its lock, its checkpoints, and the one to resume from."""

from __future__ import annotations

import contextlib
import errno
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from video_rs import checkpoint, terminal
from video_rs.distributed.world import World
from video_rs.errors import UserError, file_error, first_line, truncate
from video_rs.files import locked, refuse_links
from video_rs.hub import format_redacted

FOLDER = "checkpoints"
Differences = Callable[[Mapping[str, Any]], Mapping[str, tuple[Any, Any]]]


def lock(folder: Path) -> contextlib.ExitStack:
    """Create a run folder and lock it until the result is closed or this process exits.

    Raises:
        UserError: another process is training in the folder, the folder cannot be written, or a folder in it is a link.
    """
    held = contextlib.ExitStack()
    refuse_links(folder, *(folder / name for name in (FOLDER, "tensorboard", "wandb")))
    try:
        str(folder.absolute()).encode()
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        if not os.access(folder / FOLDER, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder / FOLDER))
        held.enter_context(locked(folder))
    except BlockingIOError:
        raise UserError(f"another process is training in {folder}; wait for it, or choose another out=") from None
    except UnicodeEncodeError:  # TensorBoard requires UTF-8
        raise UserError(f"out={folder}: the name is not UTF-8; choose another out=") from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{error.filename}: {error.strerror}; the run needs its folder: choose another out=") from None
    remove_unfinished(folder)
    return held


def find_saved(
    folder: Path, differences: Differences, world: World, *, must_resume: bool = False
) -> tuple[dict[str, Any] | None, str]:
    """Return the newest valid checkpoint in a run folder and its path, or None and "" to start at step 0.

    Args:
        folder: the run folder.
        differences: called with the config of the checkpoint; returns changed keys that prevent resuming, ``{key:
            (saved, now)}``.
        world: the ranks of the run. Rank 0 selects the checkpoint.
        must_resume: raise UserError if there is none.

    Raises:
        UserError: the checkpoint has another config, no checkpoint can be read, or there is only ``best.pt``.
    """
    with world.together("the checkpoint"):
        found = newest_valid(folder) if world.is_main else None
        if world.is_main and not found:
            _check_new(folder, must_resume)
        for path, reason in found.skipped if found else ():
            terminal.write(f"skipping {path}: {reason}")
    path = world.gather(found and found.path, "the checkpoint")[0]
    if path is None:
        return None, ""
    with world.together("the checkpoint"):
        saved = found.state if found else checkpoint.load_run(path)
        if changed := differences(saved["config"]):
            raise another_config(folder, changed)
    return saved, str(path)


def another_config(folder: object, changed: Mapping[str, tuple[Any, Any]]) -> UserError:
    """Return the error for a run folder whose run has other values: ``{key: (saved, now)}``."""
    values = {key: [*map(format_redacted, pair)] for key, pair in changed.items()}
    text = truncate([f"{key} was {old}, now {new}" for key, (old, new) in values.items()])
    return UserError(f"{folder} was started with another config ({text}): use another out= or delete the folder")


def _check_new(folder: Path, must_resume: bool) -> None:
    """Raise UserError if a new run must not start in this folder."""
    if must_resume:
        raise UserError(
            f"--resume: {folder / 'last.pt'} does not exist; omit --resume, or name the run folder with out="
        )
    if (best := folder / "best.pt").exists():
        raise UserError(
            f"{folder} has a best.pt and no checkpoint to resume from: choose another out=, with "
            f"train.init_from={best} to start from it, or delete the folder to start over"
        )


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return steps and files, newest first. Files with other names are ignored."""
    found = ((path.stem.removeprefix("step-"), path) for path in (folder / FOLDER).glob("step-*.pt"))
    return sorted(((int(step), path) for step, path in found if step.isdecimal()), reverse=True)


class Found(NamedTuple):
    """A valid checkpoint, its content, and newer invalid checkpoints as (path, reason)."""

    path: Path
    state: dict[str, Any]
    skipped: list[tuple[Path, str]]


def newest_before(folder: Path, step: int) -> Path | None:
    """Return the newest checkpoint before a step, or None."""
    return next((path for number, path in checkpoints(folder) if number < step), None)


def newest_valid(folder: str | Path) -> Found | None:
    """Return the newest valid checkpoint in a run folder, or None if there is no checkpoint.

    Runs of earlier versions have only ``last.pt``.

    Raises:
        UserError: there are checkpoints, but none of them is valid.
    """
    folder = Path(folder)
    last, skipped = folder / "last.pt", []
    paths = [path for _, path in checkpoints(folder)]
    if last.exists() and not any(last.samefile(path) for path in paths):
        paths.append(last)
    for path in paths:
        try:
            state = checkpoint.load_run(path)
            if "optimizer" not in state:
                raise UserError(f"{path} has weights and no training state; use train.init_from={path}")
            verify(path)
            return Found(path, state, skipped)
        except UserError as error:
            skipped.append((path, str(error)))
    if skipped:
        best, others = folder / "best.pt", f" (nor from {len(skipped) - 1} older ones)" if skipped[1:] else ""
        start = f", with train.init_from={best}" if best.exists() else ""
        raise UserError(
            f"{skipped[0][1]}; no other checkpoint in {folder} to resume from{others}: choose another out={start}, or "
            "delete the folder to start over"
        )
    return None


def verify(path: str | Path) -> None:
    """Verify the checksums in a file from :func:`torch.save`, a zip with one per tensor. torch does not check them.

    Raises:
        UserError: the file is damaged.
        MachineError: the disk fails.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError):
        wrong = "all of it"
    except OSError as error:
        # a MachineError does not fall back to an older checkpoint
        raise file_error(f"checkpoint {path} cannot be read: {first_line(error)}", error) from None
    if wrong:
        raise UserError(f"checkpoint {path} is truncated or damaged")


def remove_unfinished(folder: str | Path) -> None:
    """Remove the temporary files of a killed process."""
    for place in (Path(folder), Path(folder) / FOLDER):
        for kind in ("pt", "csv", "json"):
            for file in place.glob(f".*.{kind}.*"):
                file.unlink(missing_ok=True)
