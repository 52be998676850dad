"""Errors as one line, and the files that are written whole."""

import errno
import json
import math
import os

import numpy as np
import pytest
import torch

from video_rs.errors import ConfigError, MachineError, MediaError, UserError, first_line
from video_rs.files import atomic_write, json_values


def test_what_a_person_can_mend_is_no_value_error():
    for kind in (UserError, ConfigError, MediaError):
        assert not issubclass(kind, ValueError)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("\n  bad size.\nat line 3"), "bad size"),
        (RuntimeError(""), "RuntimeError"),
        (OSError(errno.ENOSPC, "No space left on device", "/out/best.pt"), "No space left on device"),
        (OSError("connection closed"), "connection closed"),
        (ValueError("x" * 300), "x" * 200),
    ],
)
def test_first_line(error, line):
    assert first_line(error) == line


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
