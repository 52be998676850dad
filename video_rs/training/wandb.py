"""Optional logging to Weights & Biases (wandb.ai). Respects ``WANDB_MODE``.

After the start, a failure of the service is reported once and does not stop the run.
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
FINISH_TIMEOUT = 60.0  # seconds to send remaining data at the end; a preempted run has little time


class WandbLog:
    """A run of Weights & Biases. A resumed run of this package resumes it.

    Args:
        project: name of the project.
        folder: the run folder, for the run id and the files in ``wandb/``.
        config: config of the run, shown with the metrics.
        info: function to log a line.

    Raises:
        UserError: the package is not installed, or the user is not logged in.
    """

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any], info: Callable[[str], None]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"train.wandb={project}: the package wandb is not installed: pip install 'video-rs[wandb]', or leave "
                "train.wandb empty"
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
                settings=wandb.Settings(console="off", silent=True, finish_timeout=FINISH_TIMEOUT),
            )
            # a resumed run may go back in steps, which wandb's own step does not support
            self._run.define_metric("*", step_metric="step")
            info(f"Weights & Biases: {self._run.url or f'offline, in {self._run.dir}'}")

    def log(self, kind: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Send the metrics of a step; see ``RunLog.metrics``."""
        if self._run:
            with self._tolerated():
                self._run.log({"step": step, "epoch": epoch, **{f"{kind}/{name}": v for name, v in values.items()}})

    def close(self) -> None:
        """Send the remaining data, with a timeout."""
        if self._run:
            with self._tolerated():
                self._run.finish()
            self._run = None

    @contextlib.contextmanager
    def _tolerated(self, *fatal: type[Exception]) -> Iterator[None]:
        """Report a failure once and stop logging; raise UserError for ``fatal`` ones."""
        try:
            yield
        except fatal as error:
            raise UserError(
                f"Weights & Biases: {first_line(error)}: call `wandb login`, or set WANDB_MODE=offline, or leave "
                "train.wandb empty"
            ) from None
        except Exception as error:
            self._run = None
            self._info(f"Weights & Biases failed ({first_line(error)}); the run continues without it")


def _id(folder: Path) -> str:
    path = folder / ID_FILE
    if not path.exists():
        with atomic_write(path, "w") as handle:
            handle.write(secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()
