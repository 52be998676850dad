"""Steps that were not taken, since their loss or gradient was not finite: which, what was in them, and what follows."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from video_rs.errors import UserError
from video_rs.files import atomic_write

ROLLBACKS = 3  # more of them would not help
NOT_FINITE = "loss or weights are no longer finite"
ADVICE = "lower optim.lr, raise optim.warmup_epochs, set optim.clip_grad_norm or use train.precision=float32"


class NotFinite(Exception):
    """The weights are not finite, or too many steps were not: the run has to go back."""


class Suspect(NamedTuple):
    """A sample of a step that was not taken: its file, and the epoch and copy that tell the clip."""

    path: str
    epoch: int
    copy: int


class BadSteps:
    """Part of a run's state, with a copy for people.

    Args:
        limit: as many bad steps among twice as many in a row, and the run goes back to its last checkpoint. A file that
            is bad by itself comes once an epoch and is passed over each time; a row of bad steps comes of the weights.

    Attributes:
        suspects: of each bad step (from 1), the samples whose loss was not finite, or all where only the gradient was
            not.
        skipped: bad steps (from 1) that are passed over since the run went back.
        rollbacks: how often it did.
    """

    def __init__(self, limit: int = 5) -> None:
        self.limit = limit
        self.suspects: dict[int, list[Suspect]] = {}
        self.skipped: set[int] = set()
        self.rollbacks = 0
        self._is_written = True

    def note(self, step: int, suspects: Iterable[Suspect]) -> None:
        """A step that was not taken."""
        self.suspects[step] = list(suspects)
        self._is_written = False

    def are_too_many(self, step: int) -> bool:
        """Whether the run should go back, ``step`` being the last that it was at."""
        return len(self._recent(step)) >= self.limit

    def _recent(self, step: int) -> list[int]:
        recent = range(step - 2 * self.limit + 1, step + 1)
        return [bad for bad in self.suspects if bad in recent and bad not in self.skipped]

    def first(self, step: int) -> int:
        """The first bad step of those that may take the run back, ``step`` being the last; the next where is none."""
        return min(self._recent(step), default=step + 1)

    def roll_back(self, step: int, folder: Path) -> int:
        """The run goes back from ``step``, and will pass over all that was bad.

        Returns:
            the step whose weights are no longer good; the run goes back to a checkpoint before it.

        Raises:
            UserError: it has done so too often.
        """
        self.rollbacks += 1
        first = self.first(step)
        self.skipped |= self.suspects.keys()
        if self.rollbacks > ROLLBACKS:
            seen = (
                f"{len(self.suspects)} steps had a loss or gradient that is not finite (files: {self.path(folder)}); "
            )
            raise UserError(
                f"{NOT_FINITE}, also after {ROLLBACKS} returns to a checkpoint: {ADVICE}, with another out=. "
                f"{seen if self.suspects else ''}checkpoints in {folder} of before step {first} are good: to start "
                "from one, name it with train.init_from"
            )
        return first

    @staticmethod
    def path(folder: Path) -> Path:
        """Where the copy for people is."""
        return folder / "bad_steps.csv"

    def write(self, folder: Path) -> None:
        """Writes the copy for people, if there is news."""
        if self._is_written:
            return
        with atomic_write(self.path(folder), "w") as handle:
            writer = csv.writer(handle)
            writer.writerow(["step", "path", "epoch", "copy"])
            writer.writerows([step, *sample] for step, samples in sorted(self.suspects.items()) for sample in samples)
        self._is_written = True

    def counts(self) -> dict[str, int]:
        """How many bad steps there were, and how often the run went back."""
        return {"bad_steps": len(self.suspects), "rollbacks": self.rollbacks}

    def often(self) -> list[tuple[str, int]]:
        """The files of bad steps with the number of these steps, those of most steps first."""
        counts: dict[str, int] = {}
        for samples in self.suspects.values():
            for path in {sample.path for sample in samples}:
                counts[path] = counts.get(path, 0) + 1
        return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain values."""
        suspects = {step: [tuple(sample) for sample in samples] for step, samples in self.suspects.items()}
        return {"bad_steps": suspects, "skipped": sorted(self.skipped), "rollbacks": self.rollbacks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; checkpoints of earlier versions have none of it."""
        saved = state.get("bad_steps", {})
        self.suspects = {step: [Suspect(*sample) for sample in samples] for step, samples in saved.items()}
        self.skipped, self.rollbacks = set(state.get("skipped", [])), state.get("rollbacks", 0)
        self._is_written = not self.suspects
