"""Tables and progress bars of the commands. A file or a pipe gets plain text and no bars.

rich is imported where a table or a bar is drawn, so that commands start fast.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

WIDE = 100_000  # columns: rich wraps nothing, for numbers and names must stay whole
_open: list[Bar] = []


def table(
    rows: Iterable[Sequence[str]], headings: Sequence[str] = (), right: Sequence[int] = (), *, plain: bool | None = None
) -> list[str]:
    """Return rows as lines with aligned columns, one line a row however narrow the terminal is.

    Args:
        rows: the cells, as many in each row.
        headings: of the columns.
        right: columns that are aligned on the right.
        plain: without bold headings; None: if stdout is not a terminal.
    """
    from rich.console import Console
    from rich.table import Table

    rows = list(rows)
    if not (rows or headings):
        return []
    grid = Table(box=None, show_header=bool(headings), pad_edge=False, padding=(0, 2, 0, 0))
    for index in range(len(headings or rows[0])):
        name = headings[index] if headings else ""
        grid.add_column(name, justify="right" if index in right else "left")
    for row in rows:
        grid.add_row(*row)
    text = io.StringIO()
    styled = has_cursor(sys.stdout) if plain is None else not plain
    options = {"force_terminal": True} if styled else {"color_system": None}
    options |= {"force_jupyter": False, "width": WIDE, "height": 25}  # both, or a dumb terminal would have 80 columns
    Console(file=text, markup=False, emoji=False, highlight=False, **options).print(grid)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def duration(seconds: float) -> str:
    """Format seconds: ``75`` -> ``1m15s``, ``7500`` -> ``2h05m``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


def has_cursor(file: TextIO) -> bool:
    """Return True for a terminal that can erase what is written; a dumb one is treated as a file."""
    return file.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


class Bar:
    """A progress bar on stderr; invisible where that is not a terminal.

    It is drawn by the calls of its methods: a thread that draws could hold a lock while a worker process is forked.

    Args:
        total: number of items; None if unknown.
        description: in front of the bar.
        done: of the total, so far.
        of_bytes: numbers are bytes.
        hidden: never draw it.
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
        self._task = self._progress.add_task(description, total=total, completed=done, note="")
        self._progress.start()
        self._progress.console.show_cursor()  # or it would stay hidden if the process is killed
        _open.append(self)

    @property
    def visible(self) -> bool:
        """True from the start to :meth:`close`, on a terminal."""
        return self in _open

    def advance(self, count: int = 1) -> None:
        """Add to what is done."""
        self._update(advance=count)

    def note(self, text: str) -> None:
        """Show a text behind the bar."""
        self._update(note=text)

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
    """Print a line to stdout or ``file``, above the bar if there is one."""
    file = file or sys.stdout
    if _open and file.isatty():
        _open[-1]._progress.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
    else:
        print(text, file=file, flush=True)


@contextlib.contextmanager
def bars() -> Iterator[None]:
    """Remove the bars that are left, so that an error message stands alone."""
    try:
        yield
    finally:
        for bar in list(_open):
            bar.close()
