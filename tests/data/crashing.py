"""Intact videos that kill the process that reads them, like crashes in the native code of a decoder."""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path

from video_rs.data import clip_datasets

REPOSITORY = Path(__file__).parents[2]
_open_video = clip_datasets.open_video


def write_crashing_video(path: str | Path, source: str | Path, name: str) -> Path:
    """Copy a video and append the name of a signal: :func:`open_video` sends it to its own process."""
    path = Path(path)
    path.write_bytes(Path(source).read_bytes() + name.encode())
    return path


def open_video(file, *arguments):
    """Replace ``clip_datasets.open_video``."""
    for name in ("SIGSEGV", "SIGABRT", "SIGFPE", "SIGILL", "SIGBUS", "SIGKILL", "SIGSTOP"):
        if os.path.isfile(file) and Path(file).read_bytes().endswith(name.encode()):
            faulthandler.disable()  # pytest enables it
            os.kill(os.getpid(), getattr(signal, name))
    return _open_video(file, *arguments)


def write_plugin(path: str | Path) -> Path:
    """Write a plugin that installs :func:`open_video` in a command's own process."""
    lines = ["import sys", f"sys.path.insert(0, {str(REPOSITORY)!r})", "from tests.data import crashing"]
    Path(path).write_text("\n".join([*lines, "crashing.clip_datasets.open_video = crashing.open_video"]))
    return Path(path)
