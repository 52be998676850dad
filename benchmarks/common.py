"""Helpers of the benchmarks: input videos, CPU time and memory of processes, tables. Linux only."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from video_rs.errors import MediaError, UserError

PACKAGES = ("torch", "torchvision", "av", "decord", "pytorchvideo")


def find_videos(inputs: list[str]) -> list[str]:
    """Return the given files and the videos in the given folders. Raise UserError if one is missing."""
    from video_rs.data.video.media import VIDEO_EXTENSIONS
    from video_rs.data.video.search import media_below

    files: list[str] = []
    for entry in inputs:
        if not os.path.exists(entry):
            raise UserError(f"{entry}: no such file or folder")
        found = list(media_below(entry, VIDEO_EXTENSIONS)) if os.path.isdir(entry) else [entry]
        if not found:
            raise UserError(f"{entry}: no videos in this folder")
        files += found
    return files


def with_copies(files: Iterable[str], copy_of: Callable[[int, str], str]) -> list[tuple[str, str]]:
    """Return ``(file, copy_of(number, file))`` pairs. Skip and report files that raise ``MediaError``."""
    pairs = []
    for number, path in enumerate(files):
        try:
            pairs.append((path, copy_of(number, path)))
        except MediaError as error:
            note(f"skipped {error}")
    if not pairs:
        raise UserError("none of the videos can be used")
    return pairs


def missing(package: str) -> str:
    """Return why a package cannot be imported, or an empty string."""
    try:
        importlib.import_module(package)
    except (ImportError, OSError) as error:
        return f"{package} is not installed ({str(error).splitlines()[0]})"
    return ""


def fresh_process() -> ProcessPoolExecutor:
    """Return a pool of one spawned process with this process's start method. It lives until ``shutdown()``."""
    return ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_processes_by,
        initargs=(multiprocessing.get_start_method(),),
    )


def _start_processes_by(method: str) -> None:
    multiprocessing.set_start_method(method, force=True)


def process_tree() -> list[int]:
    """Return the pids of this process and its workers."""
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children())]


def cpu_seconds(pids: list[int]) -> float:
    """Return the CPU time of processes in seconds: all threads, user and system."""
    return sum(time.clock_gettime(_cpu_clock(pid)) for pid in pids)


def _cpu_clock(pid: int) -> int:
    """Return the clock id that clock_getcpuclockid(3) gives on Linux; Python lacks the function."""
    return ~pid << 3 | 2


def memory_mb(pids: list[int]) -> float:
    """Return the memory of processes in MB: private pages, shared pages (PSS), and file pages once.

    The PSS of file pages is not used: it depends on which other programs have the same library open.
    """
    pages, files = 0, 0
    for pid in pids:
        values = _kilobytes(pid, "smaps_rollup")
        pages += values["Pss_Anon"] + values["Pss_Shmem"]
        files = max(files, _kilobytes(pid, "status")["RssFile"])
    return (pages + files) / 1024


def peak_rss_mb() -> float:
    """Return the peak RSS of this process in MB. ``ru_maxrss`` would include that of its parent."""
    return _kilobytes(os.getpid(), "status")["VmHWM"] / 1024


def _kilobytes(pid: int, name: str) -> dict[str, int]:
    text = Path(f"/proc/{pid}/{name}").read_text()
    return {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def environment() -> str:
    """Return one line: processor, cores, Python and package versions."""
    from importlib.metadata import PackageNotFoundError, version

    names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    parts = [f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"]
    parts.append(f"Python {platform.python_version()}")
    for package in PACKAGES:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    return ", ".join(parts)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table: first column left-aligned, others right-aligned, padded to read well as text."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [header, rule, *rows]
    return "\n".join(
        "| " + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))) + " |"
        for line in lines
    )


def note(text: str) -> None:
    """Print a note or progress to stderr."""
    print(text, file=sys.stderr, flush=True)
