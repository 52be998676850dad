"""Atomic writes, locks of folders, values for JSON."""

import errno
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from video_rs.errors import MachineError, UserError
from video_rs.files import LOCK, atomic_write, json_values, locked, stamp


def test_json_values_are_what_every_reader_takes():
    values = {"loss": math.nan, "top1": np.float64(0.5), "rows": (torch.tensor([1.0, math.inf]), np.arange(2)), "n": 3}
    assert json_values(values) == {"loss": None, "top1": 0.5, "rows": [[1.0, None], [0, 1]], "n": 3}
    json.dumps(json_values(values), allow_nan=False)


def test_a_file_has_ordinary_permissions_and_the_umask_is_left_alone(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda mask: pytest.fail("the umask is the whole process's"))
            with atomic_write(tmp_path / "best.pt") as handle:
                handle.write(b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "best.pt").stat().st_mode & 0o777 == 0o640


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    for error, expected in ((KeyError(), KeyError), (OSError(errno.ENOSPC, "full"), MachineError)):
        with pytest.raises(expected), atomic_write(tmp_path / "a.txt", "w") as handle:
            handle.write("after")
            raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "before"


@pytest.mark.parametrize("path", ["file/below/a.txt", "folder", "x" * 300])
def test_no_file_can_be_there(tmp_path, path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written: .*; give another path"), atomic_write(tmp_path / path):
        pass
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_is_locked_until_its_process_ends_in_any_way(tmp_path):
    """Even if a forked process continues, such as a loader worker that hangs in a file."""
    program = """
        import os, sys, time
        from video_rs.files import locked
        with locked(sys.argv[1]):
            if not os.fork():
                print(os.getpid(), flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        child = int(owner.stdout.readline())
        with pytest.raises(BlockingIOError), locked(tmp_path / "run"):
            pass
        owner.kill()
        owner.wait()
        try:
            with locked(tmp_path / "run"):
                os.kill(child, 0)  # it is still there
        finally:
            os.kill(child, signal.SIGKILL)
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_lock_file_that_cannot_be_removed(tmp_path, monkeypatch):
    """The error of the block is raised, and the lock is released."""

    def unlink(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", unlink)
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path):
            raise KeyError


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_of_once(tmp_path, monkeypatch, capsys, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        with locked(tmp_path):
            pass
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}: no locks on this file system; start one process at a time\n"
    )


def test_stamps_change_with_the_file(tmp_path):
    file, frame, shard = tmp_path / "a.mp4", tmp_path / "frames" / "1.jpg", tmp_path / "train-000000.tar"
    frame.parent.mkdir()
    names = {file: str(file), frame: str(frame.parent), shard: f"{shard}/train/a/b.mp4"}
    for each in names:
        each.write_bytes(b"1")
    for each, name in names.items():
        before = stamp(name)
        assert stamp(name) == before != (0, 0)
        os.utime(each, ns=(0, before[1] + 10**9))
        touched = stamp(name)
        each.write_bytes(b"12")
        assert len({before, touched, stamp(name)}) == 3, name
    assert stamp("s3://bucket/train-000000.tar/a.mp4") == (0, 0)
