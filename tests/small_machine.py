"""A machine with little memory, for code in this process: the files below /proc and of control groups."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from video_rs.distributed import memory

_numbers = itertools.count()


def has(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    gib: float,
    groups: str = "",
    mounts: tuple[str, ...] = (),
    swap: float = 0,
) -> None:
    """Let the machine have `gib` GiB available.

    Args:
        folder: an own folder for the files.
        gib: available memory in ``/proc/meminfo``, in GiB.
        groups: content of ``/proc/self/cgroup``.
        mounts: lines of ``/proc/self/mountinfo``.
        swap: free swap in GiB.
    """
    proc = folder / f"proc{next(_numbers)}"
    (proc / "self").mkdir(parents=True)
    values = {"MemTotal": 999, "MemAvailable": gib, "Active(anon)": 1, "SwapFree": swap}
    lines = [f"{name}:   {int(value * 2**20)} kB\n" for name, value in values.items()]
    (proc / "meminfo").write_text("".join([*lines, "HugePages_Free:        0\n"]))
    (proc / "self/status").symlink_to("/proc/self/status")
    (proc / "self/cgroup").write_text(groups)
    (proc / "self/mountinfo").write_text("".join(f"{line}\n" for line in mounts))
    monkeypatch.setattr(memory, "PROC", proc)


def group(folder: Path, **files: object) -> None:
    """Write the files of a control group; ``memory_max=1`` is ``memory.max``, and ``stat`` is a mapping."""
    folder.mkdir(parents=True, exist_ok=True)
    stat = files.pop("stat", {})
    (folder / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))
    for name, value in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{value}\n")
