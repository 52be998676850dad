"""Keep the finished rows of an unfinished table on disk, so that a killed command resumes."""

from __future__ import annotations

import json
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
FLUSH_SECONDS, FLUSH_BYTES = 5.0, 32 * 2**20


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of all files in the order of the list. A file without values has one row of zeros.

    Attributes:
        values: float32 ``[N, D]``.
        files: number of the file of each row, int64 ``[N]``, ascending.
        times: start and end of each row in seconds, float64 ``[N, 2]``, NaN if unknown; None if rows are whole files.
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
        out: the file that the rows are for.
        settings: plain values that the rows depend on.
        world: the ranks, which write their own parts. Their number may differ from the last time.
        overwrite: replace `out` if it exists, and delete parts with other settings.

    Raises:
        UserError: `out` exists, its folder cannot be written, another process writes it, or the parts have other
            settings.
    """
    out = Path(out)
    folder = out.with_name(f"{out.name}.parts")
    with ExitStack() as stack, world.together(f"writing {out}"):
        done: set[int] = set()
        with world.together(f"opening {folder}"):
            if world.is_main:
                if out.exists() and not overwrite:
                    raise UserError(f"{out} exists; give another --out, or --overwrite")
                _lock(stack, folder, settings, overwrite)
                done = set(np.concatenate([[], *(part["files"] for part in _read(folder))]).astype(int).tolist())
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
        read_settings(folder / SETTINGS, settings, is_known=lambda name: name.startswith("."))
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
        done: numbers of the files that were finished before.
    """

    folder: Path
    done: set[int]
    _rows: list[FileRows] = field(default_factory=list)
    _bytes: int = 0
    _flushed: float = field(default_factory=time.monotonic)

    def add(self, rows: FileRows) -> None:
        """Add the rows of a file. They are on disk at the latest after the next :meth:`flush`."""
        self._rows.append(rows)
        self._bytes += rows.values.nbytes
        if self._bytes > FLUSH_BYTES or time.monotonic() > self._flushed + FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the added rows to a new file."""
        if self._rows:
            with_values = [rows for rows in self._rows if not rows.reason]
            times = [rows.times for rows in with_values if rows.times is not None]
            with atomic_write(self.folder / f"rows-{secrets.token_hex(8)}.npz") as handle:
                np.savez(
                    handle,
                    files=np.array([rows.index for rows in self._rows]),
                    counts=np.array([len(rows.values) for rows in self._rows]),
                    values=np.concatenate([rows.values for rows in with_values]) if with_values else np.empty((0, 0)),
                    times=np.concatenate(times) if times else np.empty((0, 2)),
                    reasons=np.array(json.dumps([rows.reason for rows in self._rows])),
                )
        self._rows, self._bytes, self._flushed = [], 0, time.monotonic()

    def table(self) -> Table:
        """Return all rows, from the files of all ranks."""
        parts = [dict(part) for part in _read(self.folder, ("files", "counts", "reasons", "times"))]
        files, counts = (np.concatenate([part[name] for part in parts]) for name in ("files", "counts"))
        reasons = {}
        for part in parts:
            texts = json.loads(str(part["reasons"]))
            reasons |= {int(file): reason for file, reason in zip(part["files"], texts) if reason}
        order = np.argsort(files, kind="stable")
        lengths = np.maximum(counts, 1)  # a row of zeros for a file without values
        firsts = np.empty_like(lengths)
        firsts[order] = np.cumsum(lengths[order]) - lengths[order]
        rows = np.concatenate([first + np.arange(count) for first, count in zip(firsts, counts)]).astype(np.int64)
        has_times = any(len(part["times"]) for part in parts)
        times = np.full((lengths.sum(), 2), np.nan) if has_times else None
        if has_times:
            times[rows] = np.concatenate([part["times"] for part in parts])
        values, done = None, 0
        for part in _read(self.folder, ("values",)):  # one at a time
            block = part["values"]
            if not len(block):
                continue
            if values is None:
                values = np.zeros((lengths.sum(), block.shape[1]), np.float32)
            values[rows[done : done + len(block)]] = block
            done += len(block)
        if values is None:
            values = np.zeros((lengths.sum(), 0), np.float32)
        return Table(values, np.repeat(files[order], lengths[order]), times, reasons)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(folder: Path, names: tuple[str, ...] = ("files",)) -> Iterator[dict[str, np.ndarray]]:
    """Yield some arrays of each part, in the order of their names."""
    for path in sorted(folder.glob("rows-*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            yield {name: arrays[name] for name in names}
