"""Figures for Weights & Biases (wandb.ai), for those who ask for it. Whether and where it sends them is its WANDB_MODE.

From the start on its failures are told once and end nothing: a run is worth more than its curves.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
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
        config: of the run, shown beside the metrics.
        info: takes a line for people.

    Raises:
        UserError: the package is not installed, or it does not know who we are.
    """

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any], info: Callable[[str], None]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"train.wandb={project}, but the package wandb is not installed: pip install 'video-rs[wandb]', or "
                "leave train.wandb empty"
            ) from None
        self._info, self._run = info, None
        with self._tolerated(wandb.errors.UsageError, wandb.errors.AuthenticationError):
            self._run = wandb.init(
                project=project,
                name=folder.resolve().name,
                id=_id(folder),
                resume="allow",
                dir=str(folder),
                config=dict(config),
                settings=wandb.Settings(console="off", silent=True, finish_timeout=PATIENCE),
            )
            # wandb's own step cannot go back, as that of a resumed run does
            self._run.define_metric("*", step_metric="step")
            info(f"Weights & Biases: {self._run.url or f'offline, in {self._run.dir}'}")

    def log(self, kind: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Send one log line; see ``RunLog.metrics``."""
        if self._run:
            with self._tolerated():
                self._run.log({"step": step, "epoch": epoch, **{f"{kind}/{name}": v for name, v in values.items()}})

    def close(self) -> None:
        """Wait for what is still to be sent, with a time limit."""
        if self._run:
            with self._tolerated():
                self._run.finish()
            self._run = None

    @contextlib.contextmanager
    def _tolerated(self, *fatal: type[Exception]) -> Iterator[None]:
        """Report a failure of network, disk or service once and continue without; ``fatal`` ones are UserErrors."""
        try:
            yield
        except fatal as error:
            raise UserError(
                f"Weights & Biases: {first_line(error)}: call `wandb login`, or set WANDB_MODE=offline, or leave "
                "train.wandb empty"
            ) from None
        except Exception as error:
            self._run = None
            self._info(f"Weights & Biases failed ({first_line(error)}); the run goes on without it")


def _id(folder: Path) -> str:
    path = folder / ID_FILE
    if not path.exists():
        with atomic_write(path, "w") as handle:
            handle.write(secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()
