"""Which training files could not be read, and how many of them a run bears."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from video_rs.data.dataset import HUNG
from video_rs.errors import UserError
from video_rs.files import atomic_write


class Ledger:
    """The files that were replaced by others of their class. Part of a run's state, with a copy for people.

    Args:
        num_files: of the training split.
        max_broken: part of them that may be unreadable. One file always may, or a small dataset would have no room,
            unless this is 0.

    Attributes:
        files: ``{path: [reason, times it was replaced]}``, in the order in which they were met.
        hung: those that hung the decoder: a run that is resumed does not open them again.
    """

    def __init__(self, num_files: int = 0, max_broken: float = 1.0) -> None:
        self.num_files, self.max_broken = num_files, max_broken
        self.files: dict[str, list] = {}
        self.hung: list[str] = []
        self._is_written = True

    @property
    def allowed(self) -> int:
        """How many files may be unreadable."""
        return max(int(self.max_broken > 0), int(self.max_broken * self.num_files + 1e-6))  # 0.29 * 100 is below 29

    def note(self, broken: Iterable[tuple[str, str]]) -> None:
        """Counts replacements: (path, reason) of each."""
        for path, reason in broken:
            self.files.setdefault(path, [reason, 0])[1] += 1
            self._is_written = False

    def note_hung(self, path: str) -> None:
        """A file that is not to be opened again."""
        self.files.setdefault(path, [HUNG, 0])
        self.hung.append(path)
        self._is_written = False

    @property
    def is_over_limit(self) -> bool:
        """Whether more files are broken than allowed."""
        return bool(self.num_files) and len(self.files) > self.allowed

    def check(self, folder: Path, step: int) -> None:
        """Raises UserError when more files are broken than allowed."""
        if self.is_over_limit:
            path, (reason, _) = next(iter(self.files.items()))
            raise UserError(
                f"{len(self.files)} of {self.num_files} training files could not be read, "
                f"data.max_broken={self.max_broken:g} allows {self.allowed}; the first: {path}: {reason}; all: "
                f"{self.path(folder)}. The state after step {step} is saved: to go on, raise data.max_broken"
            )

    @staticmethod
    def path(folder: Path) -> Path:
        """Where the copy for people is."""
        return folder / "broken_files.csv"

    def write(self, folder: Path) -> None:
        """Writes the copy for people, if there is news."""
        if self._is_written:
            return
        with atomic_write(self.path(folder), "w") as handle:
            writer = csv.writer(handle)
            writer.writerow(["path", "reason", "times_replaced"])
            writer.writerows([path, *entry] for path, entry in sorted(self.files.items()))
        self._is_written = True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"broken": self.files, "hung": self.hung}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; checkpoints from before files could hang have no ``hung``."""
        self.files, self.hung = state["broken"], state.get("hung", [])
        self._is_written = not self.files
