"""Limits for reading files, in this process and its child processes.

They are stored in environment variables, which forked and spawned workers inherit.
"""

import os

from video_rs.errors import UserError

RETRIES, MAX_PIXELS = 3, 8192 * 8192  # defaults
_NAMES = {"retries": "VIDEO_RS_RETRIES", "max_pixels": "VIDEO_RS_MAX_PIXELS"}


def set_limits(*, retries: int | None = None, max_pixels: int | None = None) -> None:
    """Set the limits that are not None; see :func:`retries` and :func:`max_pixels`."""
    for name, value in (("retries", retries), ("max_pixels", max_pixels)):
        if value is not None:
            os.environ[_NAMES[name]] = str(value)


def retries() -> int:
    """Return the number of retries of a failed read. Raise UserError if the variable is not a whole number."""
    return _number("retries", RETRIES)


def max_pixels() -> int:
    """Return the maximum width times height of a frame. Raise UserError if the variable is not a whole number."""
    return _number("max_pixels", MAX_PIXELS)


def _number(name: str, default: int) -> int:
    text = os.environ.get(_NAMES[name], str(default))
    if not text.isdecimal() or len(text) > 100:
        raise UserError(f"{_NAMES[name]}={text[:100]}: must be a whole number")
    return int(text)
