"""Commands in forks of a process that has torch imported: each a process of its own, and there two seconds sooner."""

from __future__ import annotations

import functools
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(
    script: Path, arguments: Sequence[str], environment: Mapping[str, str], cwd: str | Path | None, timeout: float
) -> subprocess.CompletedProcess:
    """As ``subprocess.run`` of Python with a script and its arguments does, with its output as text."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        request = {"argv": [str(script), *arguments], "environment": dict(environment), "cwd": str(cwd or os.getcwd())}
        connection = _server()
        connection.settimeout(60)
        socket.send_fds(connection, [json.dumps(request).encode()], [out.fileno(), err.fileno()])
        pid = int(connection.recv(100))
        connection.settimeout(timeout)
        try:
            code = int(connection.recv(100))
        except TimeoutError:
            os.kill(pid, 9)
            connection.recv(100)
            raise subprocess.TimeoutExpired(request["argv"], timeout) from None
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(request["argv"], code, *texts)


@functools.cache
def _server() -> socket.socket:
    """The connection to the process that forks; it leaves when this one does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.forks", str(theirs.fileno())]
    subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], env={**os.environ, "OMP_NUM_THREADS": "1"})
    theirs.close()
    return ours


def _next_command(connection: socket.socket) -> list[str]:
    """Returns in a fork for each command, with all set for it; what its script and arguments are."""
    while True:
        data, files, *_ = socket.recv_fds(connection, 2**20, 2)
        if not data:
            os._exit(0)
        pid = os.fork()
        if not pid:
            break
        for file in files:
            os.close(file)
        connection.send(str(pid).encode())
        connection.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    connection.close()
    request = json.loads(data)
    for number, file in enumerate([os.open(os.devnull, os.O_RDONLY), *files]):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    return request["argv"]


if __name__ == "__main__":
    import video_rs.cli.job
    import video_rs.evaluation.multiview  # noqa: F401

    sys.argv = _next_command(socket.socket(fileno=int(sys.argv[1])))
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
