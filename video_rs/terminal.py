"""Standard streams of commands, tables and progress bars. Output to files and pipes is plain text without bars.

Names of files and classes can hold control characters, which would move the cursor or change the terminal. The streams
of a command escape them, except line ends and tabs. A cell of a table, the text of a bar and a line from :func:`write`
are one line: line ends in them are escaped too.

rich is imported on first use, for fast start-up.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from video_rs.errors import printable

WIDE = 100_000  # columns: rich must not wrap numbers and names
_HARMLESS = re.compile("(\x1b\\[[01]m|[\n\t])")  # bold headings of tables, line ends and tabs
_open: list[Bar] = []


@functools.cache
def warn_once(text: str) -> None:
    """Print a warning to stderr, unless this process has printed it before."""
    print(f"warning: {text}", file=sys.stderr)


def table(
    rows: Iterable[Sequence[str]], headings: Sequence[str] = (), right: Sequence[int] = (), *, plain: bool | None = None
) -> list[str]:
    """Format a table with aligned columns, one line per row at any terminal width.

    Args:
        rows: the cells of each row, the same number in all rows.
        headings: headings of the columns; empty for none.
        right: indexes of right-aligned columns.
        plain: True for no bold headings; None for bold headings only if stdout is a terminal.
    """
    from rich.console import Console
    from rich.table import Table

    headings = [*map(printable, headings)]
    grid = Table(*headings, box=None, show_header=bool(headings), pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        grid.add_row(*map(printable, row))
    for index, column in enumerate(grid.columns):
        column.justify = "right" if index in right else "left"
    if not grid.columns:
        return []
    text = io.StringIO()
    styled = has_cursor(sys.stdout) if plain is None else not plain
    options = {"force_terminal": True} if styled else {"color_system": None}
    options |= {"force_jupyter": False, "width": WIDE, "height": 25}  # with both, rich ignores the size of the terminal
    Console(file=text, markup=False, emoji=False, highlight=False, **options).print(grid)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def counted(number: float, noun: str) -> str:
    """Return a number with its noun in the singular or plural: "1 epoch", "2.5 epochs"."""
    text = str(number) if isinstance(number, int) else f"{number:.4g}"
    return f"{text} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Format seconds: ``75`` -> ``1m15s``, ``7500`` -> ``2h05m``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


def has_cursor(file: TextIO | None) -> bool:
    """Return True for a terminal that can erase text. A dumb terminal is treated as a file."""
    is_terminal = getattr(file, "isatty", bool)()  # None if closed; notebooks and services have their own objects
    return is_terminal and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


class Bar:
    """A progress bar on stderr, which is not drawn if stderr is not a terminal.

    The bar is drawn only in calls of its methods. A drawing thread could hold a lock while a worker process is forked.

    Args:
        total: number of items; None if unknown.
        description: text in front of the bar.
        done: number of items already processed.
        of_bytes: items are bytes.
        hidden: do not draw the bar.
    """

    def __init__(
        self, total: int | None, description: str = "", *, done: int = 0, of_bytes: bool = False, hidden: bool = False
    ) -> None:
        self._drawn = 0.0
        if hidden or not has_cursor(sys.stderr):
            return
        from rich import progress
        from rich.console import Console

        count = (progress.DownloadColumn(), progress.TransferSpeedColumn())
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            *(count if of_bytes else [progress.MofNCompleteColumn()]),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(printable(description), total=total, completed=done, note="")
        self._progress.start()
        self._progress.console.show_cursor()  # otherwise it stays hidden after a kill
        _open.append(self)

    @property
    def visible(self) -> bool:
        """True on a terminal until :meth:`close`."""
        return self in _open

    def advance(self, count: int = 1) -> None:
        """Add processed items."""
        self._update(advance=count)

    def note(self, text: str) -> None:
        """Show text after the bar."""
        self._update(note=printable(text))

    def close(self) -> None:
        """Remove the bar."""
        if self.visible:
            _open.remove(self)
            self._progress.stop()

    def _update(self, **changes: object) -> None:
        if self.visible:
            due = time.monotonic() > self._drawn + 0.1
            self._drawn = time.monotonic() if due else self._drawn
            self._progress.update(self._task, refresh=due, **changes)


def write(text: str, file: TextIO | None = None) -> None:
    """Print a line to stdout or ``file``, above an open bar."""
    file, text = file or sys.stdout, printable(text)
    if _open and has_cursor(file):
        _open[-1]._progress.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
    else:
        print(text, file=file, flush=True)


@contextlib.contextmanager
def closing_bars() -> Iterator[None]:
    """Run a block, then remove all open bars."""
    try:
        yield
    finally:
        for bar in list(_open):
            bar.close()


@contextlib.contextmanager
def standard_streams(*, needs_stdout: bool) -> Iterator[None]:
    """Run a command with usable standard streams, which escape control characters.

    Closed streams become the null device, because another file could get their descriptors. Output to stderr that
    cannot be written is dropped without an error: its reader has exited, its disk is full, or its terminal is gone.

    Args:
        needs_stdout: False to treat stdout like stderr.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    before = sys.stdout, sys.stderr
    sys.stdout = _Escaping(_reopened(sys.stdout, 1, io.FileIO if needs_stdout and sys.stdout else _LossyFile))
    sys.stderr = _Escaping(_reopened(sys.stderr, 2, _LossyFile))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a full disk, which was reported, or a closed stream
                stream.flush()
        sys.stdout, sys.stderr = before


class _Escaping:
    """A text stream that escapes control characters.

    Attributes:
        rich_proxied_file: the stream below, which rich writes to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        parts = (part if _HARMLESS.fullmatch(part) else printable(part) for part in _HARMLESS.split(text))
        self.rich_proxied_file.write("".join(parts))
        return len(text)


class _LossyFile(io.FileIO):
    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _reopened(stream: TextIO | None, descriptor: int, kind: type[io.FileIO]) -> TextIO:
    """Return a stream to the same file that accepts any character. A stream in memory is returned unchanged."""
    options = {}
    if stream:
        try:
            descriptor = stream.fileno()
        except OSError:
            return stream
        options = {name: getattr(stream, name) for name in ("encoding", "line_buffering", "write_through")}
    file = io.BufferedWriter(kind(descriptor, "w", closefd=False))
    return io.TextIOWrapper(file, errors="backslashreplace", **options)
