"""Scripts run in the test's own process as a user runs them: what they print, their error line and their exit code."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

REPOSITORY = Path(__file__).resolve().parents[1]
_started: list[subprocess.Popen] = []


def script(path: str | Path, *arguments: Any, cwd: str | Path | None = None) -> subprocess.CompletedProcess:
    """Run a script of ``tools/`` or ``benchmarks/`` here; Python, torch and the terminal are as before afterwards.

    An exception that would be a traceback in a process of its own is one here. What needs a real process (signals,
    kills, limits, another ``PYTHONPATH``) calls :mod:`subprocess` instead.

    Args:
        path: of the script, from the repository's root.
        arguments: converted to text.
        cwd: the working folder; that of the test by default.

    Returns:
        Output and exit code, as :func:`subprocess.run` does with ``text=True``.
    """
    words = [str(REPOSITORY / path), *map(str, arguments)]
    with _file() as out, _file() as err:
        with _streams(out, err), _python(words, cwd), _torch(), _signals():
            try:
                runpy.run_path(words[0], run_name="__main__")
                code = 0
            except SystemExit as end:
                code = end.code or 0
        texts = [file.seek(0) or file.read() for file in (out, err)]
    return subprocess.CompletedProcess(words, code, *texts)


def start(command: Sequence[Any], **options: Any) -> subprocess.Popen:
    """Start a real process as the leader of a session, which ends with the test; its stdout is a pipe of text."""
    options = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True, **options}
    process = subprocess.Popen([*map(str, command)], **options)
    _started.append(process)
    return process


def end_started() -> None:
    """Kill the sessions of all started processes: a test that fails leaves no training behind."""
    while _started:
        process = _started.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, in this process and those that it starts: writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _file() -> TextIO:
    return tempfile.TemporaryFile("w+", encoding="utf-8")


@contextlib.contextmanager
def _streams(*files: TextIO) -> Iterator[None]:
    """Send stdout and stderr to files, also those of child processes, and print warnings there."""
    streams, kept = (sys.stdout, sys.stderr), [os.dup(1), os.dup(2)]
    for stream in streams:
        stream.flush()
    sys.stdout, sys.stderr = files
    for number, file in enumerate(files, 1):
        os.dup2(file.fileno(), number)
    try:
        with warnings.catch_warnings():  # pytest collects them
            for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", category)  # as Python does by default
            warnings.showwarning = _show
            yield
    finally:
        for file in files:
            file.flush()
        sys.stdout, sys.stderr = streams
        for number, copy in enumerate(kept, 1):
            os.dup2(copy, number)
            os.close(copy)


def _show(message, category, filename, lineno, file=None, line=None):
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


@contextlib.contextmanager
def _python(words: list[str], cwd: str | Path | None) -> Iterator[None]:
    argv, path, folder, environment = sys.argv, sys.path, os.getcwd(), dict(os.environ)
    sys.argv, sys.path = words, [os.path.dirname(words[0]), *path]
    os.chdir(cwd or folder)
    try:
        yield
    finally:
        sys.argv, sys.path = argv, path
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)


@contextlib.contextmanager
def _torch() -> Iterator[None]:
    import numpy as np
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Fail where a command leaves another handler behind than it found."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before
