"""Run commands in forked processes with other limits, mounts, streams or users (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import commands, faults

_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000  # of <sched.h>
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE = 1, 32, 4096, 16384  # of <sys/mount.h>
_NAMES = ("stdin", "stdout", "stderr")
_libc = ctypes.CDLL(None, use_errno=True)
Setup = Callable[[], Any]


def forked(
    call: Callable[[], int], during: Callable[[int], Any] = lambda pid: None, *, seconds: float = 120
) -> subprocess.CompletedProcess:
    """Run a call in a forked process, the leader of a session; return its exit code and output.

    ``during`` is called with the process id as soon as it has started.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if not (pid := os.fork()):
            _be_child(call, out.fileno(), err.fileno())
        during(pid)
        end = time.monotonic() + seconds
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise TimeoutError(err.seek(0) or err.read())
            time.sleep(0.01)
        texts = [file.seek(0) or file.read() for file in (out, err)]
    return subprocess.CompletedProcess([], os.waitstatus_to_exitcode(ended[1]), *texts)


def _be_child(call: Callable[[], int], out: int, err: int) -> None:
    code = 1
    try:
        os.setsid()
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        code = call()
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(err, traceback.format_exc().encode())
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError, ValueError):  # a broken pipe has been closed
                stream.flush()
        os._exit(code)


def tool(script: str, *arguments: Any) -> int:
    """Run ``tools/<script>`` in this process, which is a forked one, and return its exit code."""
    sys.argv = [str(commands.REPOSITORY / "tools" / script), *map(str, arguments)]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    return 0


def run(setup: Setup, script: str, *arguments: Any, **options: Any) -> subprocess.CompletedProcess:
    """Run ``tools/<script>`` in a forked process after ``setup()``."""
    return forked(lambda: setup() or tool(script, *arguments), **options)


def limit(name: str, value: int) -> Setup:
    """Return a set-up that lowers a limit, such as ``NOFILE``."""
    number = getattr(resource, f"RLIMIT_{name}")
    return lambda: resource.setrlimit(number, (value, value))


def address_space(room: int) -> None:
    """Let this process allocate only some more bytes."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit("AS", used + room)()


def close(*descriptors: int) -> Setup:
    """Return a set-up that closes standard streams, as a shell does with ``>&-``."""

    def setup() -> None:
        for number in descriptors:
            os.close(number)
            setattr(sys, _NAMES[number], None)  # as Python does when it starts

    return setup


def write_to(path: str, *descriptors: int) -> Setup:
    """Return a set-up that redirects standard streams to a file, or with "|" to a pipe without a reader."""

    def setup() -> None:
        reader, file = os.pipe() if path == "|" else (None, os.open(path, os.O_WRONLY))
        for number in descriptors:
            os.dup2(file, number)
            setattr(sys, _NAMES[number], open(number, "w", closefd=False))  # noqa: SIM115
        os.close(file)
        if reader is not None:
            os.close(reader)

    return setup


def settings(**variables: str | None) -> Setup:
    """Return a set-up that sets environment variables, or removes those that are None."""

    def setup() -> None:
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        tempfile.tempdir = None  # both are cached
        multiprocessing.current_process()._config.pop("tempdir", None)

    return setup


def user(number: int) -> None:
    """Become a user in new user and mount namespaces, in which file systems can be mounted."""
    own = os.getuid(), os.getgid()
    if _libc.unshare(_NEW_USER | _NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    for kind, old in zip(("uid", "gid"), own):
        Path(f"/proc/self/{kind}_map").write_text(f"{number} {old} 1")


def mount(folder: str | Path, options: str = "", *, read_only: bool = False) -> Setup:
    """Return a set-up that mounts a tmpfs over a folder."""

    def setup() -> None:
        user(0)
        _mount("tmpfs", folder, options, _READ_ONLY * read_only)

    return setup


def make_read_only(folder: str | Path) -> Setup:
    """Return a set-up that makes a folder read-only, with its content."""

    def setup() -> None:
        user(0)
        _mount(folder, folder, "", _BIND)
        _mount(folder, folder, "", _BIND | _REMOUNT | _READ_ONLY)

    return setup


def no_shared_memory() -> None:
    """Mount a /dev without /dev/shm."""
    user(0)
    os.mkdir("devices")
    _mount("/dev", "devices", "", _BIND | _RECURSIVE)
    _mount("tmpfs", "/dev", "", 0)
    for name in ("null", "urandom", "zero"):
        Path("/dev", name).touch()
        _mount(Path("devices", name).absolute(), f"/dev/{name}", "", _BIND)


def _mount(source: object, folder: object, options: str, flags: int) -> None:
    if _libc.mount(os.fsencode(str(source)), os.fsencode(folder), b"tmpfs", flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount of {folder}")


def require_namespaces() -> None:
    """Skip the test if file systems cannot be mounted, see :func:`faults.unavailable`."""
    if forked(lambda: mount("/mnt")() or 0).returncode:
        faults.unavailable("needs user and mount namespaces")
