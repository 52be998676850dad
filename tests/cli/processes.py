"""Commands in sessions of their own, and the processes in them. Linux."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import commands


def start(script: str, *arguments: Any, **options: Any) -> subprocess.Popen:
    """``tools/<script>``, started as the leader of a session."""
    command = [sys.executable, commands.REPOSITORY / "tools" / script, *arguments]
    return commands.start(command, stderr=subprocess.PIPE, **options)


def group(leader: int) -> list[int]:
    """The processes of a session that are there and no zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def reader(leader: int, path: str | Path) -> int | None:
    """The process of a session that has a file open."""
    for pid in group(leader):
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                if os.readlink(link) == os.path.realpath(path):
                    return pid
            except OSError:  # it has been closed meanwhile
                continue
    return None


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What the condition gives, as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    assert found
    return found


def bind_root() -> None:
    """A ``preexec_fn`` after which permissions of files hold for root too. Raises OSError where that cannot be done."""
    if os.geteuid():
        return
    drop_from_bounding_set, override, read_search = 24, 1, 2  # of <linux/prctl.h>, <linux/capability.h>
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (override, read_search):
        if libc.prctl(drop_from_bounding_set, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
