"""The names of devices. This module does not import torch."""

import re

from video_rs.errors import UserError, format_value

_NAME = re.compile(r"auto|(?P<kind>cpu|cuda|xla)(:(?P<index>0|[1-9][0-9]{0,2}))?")


def parse_device(name: object) -> tuple[str, int | None]:
    """Split the name of a device, such as ``cuda:1``, into its kind and the index of a GPU.

    Raises:
        UserError: the name is unknown, or the device is not supported.
    """
    match, found = _NAME.fullmatch(str(name)), format_value(str(name)).strip("'\"") or "''"
    if str(name).partition(":")[0] == "mps":
        raise UserError(f"device {found}: not supported; use device cpu, or a machine with CUDA")
    if not match:
        raise UserError(f"device {found}: unknown; use auto, cpu, cuda, cuda:1 (the second GPU) or xla")
    if match["index"] not in (None, "0") and match["kind"] != "cuda":
        raise UserError(f"device {found}: only CUDA devices have an index; use {match['kind']}")
    has_index = match["kind"] == "cuda" and match["index"]
    return match["kind"] or "auto", int(match["index"]) if has_index else None


def device_name(name: object) -> str:
    """Return a name, or a ``torch.device``, as text. Raise UserError as :func:`parse_device` does."""
    parse_device(name)
    return str(name)
