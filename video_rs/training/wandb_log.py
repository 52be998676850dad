"""Figures for Weights & Biases (wandb.ai), for those who ask for it. Whether and where it sends them is its WANDB_MODE.

From the start on its failures are told once and end nothing: a run is worth more than its curves.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from video_rs.errors import UserError, first_line
from video_rs.files import atomic_write

ID_FILE = "wandb_id"
PATIENCE = 60.0  # seconds for what is still to be sent when a run ends; one that is preempted has few


class WandbLog:
    """One run of Weights & Biases; started again in the same folder it goes on with the same one.

    Args:
        project: its name there.
        folder: the run folder; keeps the id and, below ``wandb/``, its files.
        config: of the run, shown beside the figures.
        say: takes a line for people.

    Raises:
        UserError: the package is not installed, or it does not know who we are.
    """

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any], say: Callable[[str], None]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"train.wandb={project}, but the package wandb is not installed: pip install 'video-rs[wandb]', or "
                "leave train.wandb empty"
            ) from None
        self._say, self._run = say, None
        try:
            self._run = wandb.init(
                project=project,
                name=folder.resolve().name,
                id=_id(folder),
                resume="allow",
                dir=str(folder),
                config=dict(config),
                settings=wandb.Settings(console="off", silent=True, finish_timeout=PATIENCE),
            )
            # wandb's own step cannot go back, as a run does that is resumed from before its last log line
            self._run.define_metric("*", step_metric="step")
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise UserError(
                f"Weights & Biases: {first_line(error)}: call `wandb login`, or set WANDB_MODE=offline, or leave "
                "train.wandb empty"
            ) from None
        except Exception as error:  # no network, no disk, a service of theirs that is down: see above
            self._give_up(error)
        else:
            say(f"Weights & Biases: {self._run.url or f'offline, in {self._run.dir}'}")

    def log(self, kind: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """One log line; see ``RunLog.metrics``."""
        if self._run is None:
            return
        try:
            figures = {f"{kind}/{name}": value for name, value in values.items()}
            self._run.log({"step": step, "epoch": epoch, **figures})
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Waits for what is still to be sent, but not for ever."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._give_up(error)
        self._run = None

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._say(f"Weights & Biases failed ({first_line(error)}); the run goes on without it")


def _id(folder: Path) -> str:
    path = folder / ID_FILE
    if not path.exists():
        with atomic_write(path, "w") as handle:
            handle.write(secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()
