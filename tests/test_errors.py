"""Errors as one line."""

import errno

import pytest

from video_rs.errors import ConfigError, MediaError, UserError, first_line


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
