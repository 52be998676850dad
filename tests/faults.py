"""Storage faults for real commands: failing calls (faults.c), and unmounted storage (mount namespaces)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import commands, corpus

SOURCE = Path(__file__).with_suffix(".c")


def unavailable(reason: str) -> None:
    """Skip the test. With ``VIDEO_RS_NO_SKIPS=1``, as in .ci/run, fail it."""
    if os.environ.get("VIDEO_RS_NO_SKIPS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def library() -> Path:
    """Return the library for ``LD_PRELOAD``, compiled once per run."""
    compiler = shutil.which("cc")
    if not compiler or not sys.platform.startswith("linux"):
        unavailable("needs a C compiler (cc) on Linux")

    def compile(path: Path) -> None:
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(path), str(SOURCE), "-ldl"], check=True)

    return corpus.shared(compile, "faults.so", SOURCE.read_text())


def environment(path: str, error: int, *, calls: str = "open read", times: int | None = None, while_: Any = "") -> dict:
    """Return the environment variables that make calls on the paths of a pattern fail, see faults.c."""
    values = {"FAULT_PATH": path, "FAULT_ERRNO": error, "FAULT_CALLS": calls, "FAULT_TIMES": times}
    values |= {"FAULT_WHILE": while_ or None}
    return {name: str(value) for name, value in values.items() if value is not None}


class Commands:
    """A process with the library that runs commands one after another. Only the first one imports torch."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.faults"]
        settings = {**os.environ, "LD_PRELOAD": str(library()), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        self._process = subprocess.Popen(command, env=settings, cwd=commands.REPOSITORY, **pipes)

    def __call__(self, script: str, *arguments: Any, **faults: str) -> subprocess.CompletedProcess:
        """Run a script of ``tools/`` with the variables of :func:`environment`."""
        print(json.dumps([script, [*map(str, arguments)], faults]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the process died"
        return subprocess.CompletedProcess(arguments, *json.loads(answer))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """Run the commands on stdin, each with its faults. Print exit code, output and errors as JSON."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        script, arguments, faults = json.loads(line)
        os.environ.update(faults)
        try:
            done = commands.script(f"tools/{script}", *arguments)
            answer = done.returncode, done.stdout, done.stderr
        except BaseException as error:  # would be a traceback in a separate process
            answer = 1, "", f"Traceback: {error!r}"
        for name in faults:
            os.environ.pop(name, None)
        print(json.dumps(answer), file=answers, flush=True)


def in_namespace(script: str, **options: Any) -> subprocess.CompletedProcess:
    """Run a shell script, which can mount file systems, in a new user and mount namespace."""
    command = ["unshare", "-Urm", "sh", "-euc"]
    if not shutil.which("unshare") or subprocess.run([*command, "mount -t tmpfs none /mnt"]).returncode:
        unavailable("needs user and mount namespaces (unshare -Urm)")
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, script], capture_output=True, text=True, env=settings, timeout=300, **options)


if __name__ == "__main__":
    serve()
