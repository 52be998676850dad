"""Limits for reading files, in this process and in those that it starts.

They are kept in environment variables, which forked and spawned workers inherit.
"""

import os

from video_rs.errors import UserError

RETRIES, MAX_PIXELS = 3, 8192 * 8192  # defaults
_NAMES = {"retries": "VIDEO_RS_RETRIES", "max_pixels": "VIDEO_RS_MAX_PIXELS"}


def set_limits(*, retries: int | None = None, max_pixels: int | None = None) -> None:
    """Change the limits that are given: see :func:`retries` and :func:`max_pixels`."""
    for name, value in (("retries", retries), ("max_pixels", max_pixels)):
        if value is not None:
            os.environ[_NAMES[name]] = str(value)


def retries() -> int:
    """Return how often to repeat a request that the storage does not answer. Raise UserError if it is not a number."""
    return _number("retries", RETRIES)


def max_pixels() -> int:
    """Return the largest width times height of a frame to decode. Raise UserError if it is not a number."""
    return _number("max_pixels", MAX_PIXELS)


def _number(name: str, default: int) -> int:
    text = os.environ.get(_NAMES[name], str(default))
    if not text.isdecimal():
        raise UserError(f"{_NAMES[name]}={text[:100]}: must be a whole number")
    return int(text)
