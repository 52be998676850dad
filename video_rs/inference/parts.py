"""Keep the finished rows of a table on disk until it is complete, so that a killed command resumes."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from video_rs.distributed.world import World
from video_rs.errors import UserError, file_error
from video_rs.files import atomic_write, locked, read_settings, refuse_links, write_json
from video_rs.inference.rows import FileRows

SETTINGS = "settings.json"
FLUSH_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of all files, in the order of the list. A file without values has one row of zeros.

    Attributes:
        values: float32 ``[N, D]``.
        files: number of the file of each row, int64 ``[N]``, ascending.
        times: start and end of each row in seconds, float64 ``[N, 2]``; NaN if unknown. None if rows are whole files.
        reasons: why a file has no values, by its number.
    """

    values: np.ndarray
    files: np.ndarray
    times: np.ndarray | None
    reasons: dict[int, str]

    @property
    def scored(self) -> np.ndarray:
        """True for rows with values, bool ``[N]``."""
        return ~np.isin(self.files, list(self.reasons))

    def by_file(self) -> Iterator[FileRows]:
        """Yield the rows of each file."""
        borders = np.append(np.flatnonzero(np.diff(self.files, prepend=-1)), len(self.files))
        for first, end in zip(borders, borders[1:]):
            index = int(self.files[first])
            rows = slice(end if index in self.reasons else first, end)
            times = None if self.times is None else self.times[rows]
            yield FileRows(index, self.values[rows], times, self.reasons.get(index, ""))


@contextmanager
def open_parts(
    out: str | Path, settings: Mapping[str, Any], world: World, *, overwrite: bool = False
) -> Iterator[Parts]:
    """Create or continue the folder ``<out>.parts`` and lock it.

    Args:
        out: the file that the complete table is written to.
        settings: plain values that the rows depend on.
        world: the ranks, which write their own parts. Their number may differ from the last time.
        overwrite: replace `out` if it exists, and delete parts with other settings.

    Raises:
        UserError: `out` exists, the folder cannot be written or is locked by another process, or the parts have other
            settings.
    """
    out = Path(out)
    folder = out.with_name(f"{out.name}.parts")
    with ExitStack() as stack, world.together(f"writing {out}"):
        done: set[int] = set()
        with world.together(f"opening {folder}"):
            if world.is_main:
                if out.exists() and not overwrite:
                    raise UserError(f"{out} exists; give another --out, or add --overwrite")
                _lock(stack, folder, settings, overwrite)
                for part in _read(folder, "files"):
                    done.update(part["files"].tolist())
        done = world.gather(done, "the finished rows")[0]
        yield Parts(folder, done)


def _lock(stack: ExitStack, folder: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Lock the folder until the stack is closed, and compare or write its settings."""
    refuse_links(folder.parent, folder)
    try:
        stack.enter_context(locked(folder))
    except BlockingIOError:
        raise UserError(f"{folder}: another process writes it; wait for it, or give another --out") from None
    except OSError as error:
        raise file_error(f"{folder} cannot be written: {error.strerror}; give another --out", error) from None
    try:
        is_known, instead = lambda name: name.startswith("."), "give another --out, or add --overwrite"
        read_settings(folder / SETTINGS, settings, is_known, instead)
    except UserError:
        if not overwrite or not (folder / SETTINGS).exists():
            raise
        for path in folder.glob("rows-*"):
            path.unlink()
    write_json(folder / SETTINGS, settings)


@dataclass(eq=False)
class Parts:
    """The finished rows of a table in a folder.

    Attributes:
        folder: as given.
        done: numbers of the files whose rows were in the folder when it was opened.
        reasons: why files of this rank have no values, by their number. They are not kept in the folder: a command that
            resumes reads these files again, because the storage may have been the cause.
    """

    folder: Path
    done: set[int]
    reasons: dict[int, str] = field(default_factory=dict)
    _rows: list[FileRows] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)

    def add(self, rows: FileRows) -> None:
        """Add the rows of a file. They are on disk at the latest after the next :meth:`flush`."""
        if rows.reason:
            self.reasons[rows.index] = rows.reason
            return
        self._rows.append(rows)
        if time.monotonic() > self._flushed + FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the added rows to a new file."""
        if self._rows:
            times = [rows.times for rows in self._rows if rows.times is not None]
            with atomic_write(self.folder / f"rows-{secrets.token_hex(8)}.npz") as handle:
                np.savez(
                    handle,
                    files=np.array([rows.index for rows in self._rows]),
                    counts=np.array([len(rows.values) for rows in self._rows]),
                    values=np.concatenate([rows.values for rows in self._rows]),
                    times=np.concatenate(times or [np.empty((0, 2))]),
                )
        self._rows, self._flushed = [], time.monotonic()

    def table(self, num_files: int, reasons: Mapping[int, str]) -> Table:
        """Return the rows of all files, from the parts of all ranks.

        Args:
            num_files: length of the list.
            reasons: :attr:`reasons` of all ranks.
        """
        lengths = np.ones(num_files, np.int64)  # a row of zeros for a file without values
        for part in _read(self.folder, "files", "counts"):
            lengths[part["files"]] = part["counts"]
        firsts, total = np.cumsum(lengths) - lengths, lengths.sum()
        values, times = np.zeros((total, 0), np.float32), None
        for part in _read(self.folder, "files", "values", "times"):  # one at a time
            rows = np.concatenate([firsts[file] + np.arange(lengths[file]) for file in part["files"]])
            if not values.size:
                values = np.zeros((total, part["values"].shape[1]), np.float32)
                times = np.full((total, 2), np.nan) if len(part["times"]) else None
            values[rows] = part["values"]
            if times is not None:
                times[rows] = part["times"]
        return Table(values, np.repeat(np.arange(num_files), lengths), times, dict(reasons))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(folder: Path, *names: str) -> Iterator[dict[str, np.ndarray]]:
    """Yield the named arrays of each part."""
    for path in folder.glob("rows-*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            yield {name: arrays[name] for name in names}
