"""Calls in processes that hang, die, raise, are interrupted or suspended."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from video_rs.data.tools.pool import Lost, watched_calls
from video_rs.errors import MachineError

REPOSITORY = Path(__file__).resolve().parents[1]


SIGNALS = {name: signal.Signals[f"SIG{name}"] for name in ("SEGV", "ABRT", "FPE", "ILL", "KILL", "BUS")}


def sometimes(item, beat):
    if item in SIGNALS:
        faulthandler.disable()  # pytest enables it
        os.kill(os.getpid(), SIGNALS[item])
    if item == "hang":
        time.sleep(60)
    if item == "die":
        os._exit(7)
    for _ in range(8 if item == "slow" else 0):
        time.sleep(0.25)
        beat()
    if item == "raise":
        raise ValueError("a bug")
    return item.upper()


def test_a_call_that_hangs_or_dies_is_lost_alone():
    start = time.monotonic()
    done = dict(watched_calls(sometimes, ["a", "hang", "slow", "die", "SEGV", "ABRT", "FPE", "ILL", "b"], 2, 1.0))
    assert done["a"] == "A" and done["b"] == "B" and done["slow"] == "SLOW"  # slow, with heartbeats
    assert done["hang"] == Lost("hung the decoder (no progress for 1 s)")
    assert isinstance(done["die"], Lost) and "exit code 7" in done["die"].reason
    for crash in ("SEGV", "ABRT", "FPE", "ILL"):
        assert done[crash] == Lost(f"killed the decoder (SIG{crash})")
    assert time.monotonic() - start < 40


@pytest.mark.parametrize(("name", "cause"), [("KILL", "possibly out of memory"), ("BUS", "/dev/shm")])
def test_a_killed_process_is_a_machine_error(name, cause):
    with pytest.raises(MachineError, match=f"^{name}: its process was killed .SIG{name}., .*{cause}"):
        list(watched_calls(sometimes, [name], 1, 1.0))


def test_what_a_call_raises_tells_where():
    with pytest.raises(ValueError, match="a bug") as caught:
        list(watched_calls(sometimes, ["raise"], 1, 1.0))
    assert "in sometimes" in str(caught.value.__cause__)


def leader():
    """Start a session of processes that makes calls of 2 s, with a heartbeat every quarter of a second."""
    script = (
        "import sys; from tests.test_pool import sometimes; from video_rs.data.tools.pool import watched_calls\n"
        "if __name__ == '__main__':\n"
        "    try: print(list(watched_calls(sometimes, ['slow'] * 2, 2, 2.0)))\n"
        "    except KeyboardInterrupt: print('interrupted')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    )


def children(pid):
    return (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()


def wait_for_children(process, count):
    end = time.monotonic() + 60
    while len(children(process.pid)) < count and time.monotonic() < end:
        time.sleep(0.001)


def test_a_suspended_job_loses_nothing():
    process = leader()
    wait_for_children(process, 2)
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=60) == ("[('slow', 'SLOW'), ('slow', 'SLOW')]\n", "")


def test_ctrl_c_while_processes_start():
    for delay in (0.06, 0.09, 0.12):
        process = leader()
        wait_for_children(process, 2)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60) == ("interrupted\n", "")
