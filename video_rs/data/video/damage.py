"""Collect the errors that FFmpeg logs while decoding. FFmpeg can log an error and still return a frame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import av
import av.logging

# logged for files that start within a GOP, for metadata, and for empty packets of packed AVI files
_HARMLESS = (
    "co located POCs",
    "Could not find ref with POC",
    "Error constructing the frame RPS",
    "reference picture missing",
    "Missing reference picture",
    "APP fields",
    "Header truncated",
    "warning: first frame is no",
)


@contextmanager
def decoding_errors(codec: str = "") -> Iterator[list[str]]:
    """Collect the errors that FFmpeg logs in this context. The list is filled on exit.

    Args:
        codec: collect only the errors of decoders of this codec, without harmless ones; "" to collect all errors.
    """
    level, skip_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    errors: list[str] = []
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture(local=True) as messages:
            yield errors
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip_repeated)
        found = ((name, message.strip()) for _, name, message in messages)
        if codec:
            found = (
                (name, text) for name, text in found if _canonical(name) == codec and not text.startswith(_HARMLESS)
            )
        errors += [text for _, text in found]


def _canonical(decoder: str) -> str:
    """Return the name of the codec of a decoder; "" for other parts of FFmpeg."""
    with suppress(ValueError):
        return av.codec.Codec(decoder, "r").canonical_name
    return ""
