"""Problems that a run tolerates up to a limit: unreadable training files and non-finite steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from video_rs.errors import UserError
from video_rs.files import stamp, write_csv

ADVICE = "lower optim.lr, set optim.clip_grad_norm or use train.precision=float32"
BROKEN_FILES, BAD_STEPS = "broken_files.csv", "bad_steps.csv"


class Suspect(NamedTuple):
    """A sample of a non-finite step: its file, and the epoch and copy that determine the clip."""

    path: str
    epoch: int
    copy: int


class Incidents:
    """Unreadable files and non-finite (bad) steps, as part of the state of a run and as csv files.

    Args:
        num_files: number of files in the training split; 0 for no limit.
        max_broken: maximum fraction of unreadable files. Unless it is 0, at least one unreadable file is allowed.
        max_bad_steps: number of bad steps among the last ``window = 2 * max_bad_steps`` at which a run fails. A bad
            file appears once per epoch, while many consecutive bad steps are caused by the weights.

    Attributes:
        files: ``{path: [reason, number of replacements]}``, in order of discovery.
        hung: files that hung or killed the decoder. A resumed run does not open them unless they have changed.
        stamps: :func:`video_rs.files.stamp` of these files at that time.
        steps: for each bad step (from 1), the samples with a non-finite loss, or the whole batch if only the gradient
            was non-finite.
    """

    def __init__(self, num_files: int = 0, max_broken: float = 1.0, max_bad_steps: int = 5) -> None:
        self.num_files, self.max_broken, self.max_bad_steps = num_files, max_broken, max_bad_steps
        self.window = 2 * max_bad_steps
        self.files: dict[str, list] = {}
        self.hung: list[str] = []
        self.stamps: dict[str, tuple[int, int]] = {}
        self.steps: dict[int, list[Suspect]] = {}
        self._is_written = True

    def note_files(self, broken: Iterable[tuple[str, str]]) -> None:
        """Record replaced files, given as (path, reason)."""
        for path, reason in broken:
            self.files.setdefault(path, [reason, 0])[1] += 1
            self._is_written = False

    def note_hung(self, path: str, reason: str, version: tuple[int, int]) -> None:
        """Record a file that hung or killed the decoder, with its stamp. It is not opened again unless it changes."""
        self.files.setdefault(path, ["", 0])[0] = reason
        self.hung += [path] * (path not in self.hung)
        self.stamps[path] = version
        self._is_written = False

    def files_to_recheck(self) -> list[str]:
        """Return the files to decode again when a run starts: those that hung only if they have changed since."""
        return [path for path in self.files if self.stamps.get(path) != stamp(path)]

    def update(self, found: Mapping[str, str], hung: Mapping[str, tuple[int, int]]) -> None:
        """Update files that were decoded again.

        Args:
            found: ``{path: reason}``; "" for files to forget.
            hung: the stamps of those that hung now.
        """
        self.hung = [path for path in self.hung if path not in found] + list(hung)
        self.stamps = {path: version for path, version in self.stamps.items() if path not in found} | hung
        for path, reason in found.items():
            _, times = self.files.pop(path)
            if reason:
                self.files[path] = [reason, times]  # move to the end: the next start decodes other files first
        self._is_written = False

    def note_step(self, step: int, suspects: Iterable[Suspect]) -> None:
        """Record a step that was skipped."""
        self.steps[step] = list(suspects)
        self._is_written = False

    @property
    def too_many_files(self) -> bool:
        """True if more files are unreadable than allowed."""
        return bool(self.num_files) and len(self.files) > self._allowed

    @property
    def _allowed(self) -> int:
        return max(int(self.max_broken > 0), int(self.max_broken * self.num_files + 1e-6))  # 0.29 * 100 is below 29

    def check_files(self, folder: Path, step: int) -> None:
        """Raise UserError if more files are unreadable than allowed."""
        if self.too_many_files:
            path, (reason, _) = next(iter(self.files.items()))
            raise UserError(
                f"{len(self.files)} of {self.num_files} training files cannot be read, data.max_broken="
                f"{self.max_broken:g} allows {self._allowed} (first: {path}: {reason}; all: {folder / BROKEN_FILES}); "
                f"checkpoint saved at step {step}: raise data.max_broken to resume"
            )

    def recent_steps(self, step: int) -> list[int]:
        """Return the bad steps among the last ``window`` up to ``step``."""
        return [bad for bad in sorted(self.steps) if step - self.window < bad <= step]

    def too_many_steps(self, step: int) -> bool:
        """True if too many of the last steps up to ``step`` are bad."""
        return len(self.recent_steps(step)) >= self.max_bad_steps

    def first_doubtful(self, step: int, since: int) -> int:
        """Return the first bad step that makes the weights after ``step`` doubtful, or ``step + 1`` if there is none.

        These are recent bad steps, and streaks with too many bad steps that ended recently or after ``since``. A streak
        may span several starts of the run.
        """
        first = min(self.recent_steps(step), default=step + 1)
        for bad in sorted(self.steps, reverse=True):
            if bad > min(since, first - self.window) and self.too_many_steps(bad):
                first = min(first, self.recent_steps(bad)[0])
        return first

    def write(self, folder: Path) -> None:
        """Write the csv files if there are new entries."""
        if self._is_written:
            return
        files = [[path, *entry] for path, entry in sorted(self.files.items())]
        steps = [[step, *sample] for step, samples in sorted(self.steps.items()) for sample in samples]
        if files:
            write_csv(folder / BROKEN_FILES, ("path", "reason", "times_replaced"), files)
        else:
            (folder / BROKEN_FILES).unlink(missing_ok=True)  # all can be read now
        if steps:
            write_csv(folder / BAD_STEPS, ("step", *Suspect._fields), steps)
        self._is_written = True

    def files_of_steps(self) -> list[tuple[str, int]]:
        """Return the files in bad steps with their number of bad steps, most frequent first."""
        counts = Counter(path for samples in self.steps.values() for path in {sample.path for sample in samples})
        return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""
        steps = {step: [tuple(sample) for sample in samples] for step, samples in self.steps.items()}
        return {"broken": self.files, "hung": self.hung, "stamps": self.stamps, "bad_steps": steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict` from a checkpoint's state.

        Early checkpoints have only ``broken``. Runs of version 0.1 went back and omitted the ``skipped`` steps, which
        can be later than the checkpoint. A resumed run does not skip them if they are finite.
        """
        self.files, self.hung = state["broken"], state.get("hung", [])
        self.stamps = state.get("stamps") or {path: stamp(path) for path in self.hung}
        left_out, last = state.get("skipped", ()), state["step"]
        saved = {s: found for s, found in state.get("bad_steps", {}).items() if s <= last and s not in left_out}
        self.steps = {step: [Suspect(*sample) for sample in samples] for step, samples in saved.items()}
        self._is_written = not (self.files or self.steps)
