"""Check the arguments of ``create_model``. Nothing here imports torch."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from video_rs.errors import UserError

MINIMA = {"num_classes": 0, "in_channels": 1}
RANGES = {"width": (0.05, 8), "dropout": (0, 0.95), "drop_path": (0, 0.95), "bn_momentum": (1e-4, 1)}
"""Lowest and highest value, the same as in the config schema."""
OPTIONAL = ("num_classes", "dropout", "drop_path", "bn_momentum")

NEUTRAL = {
    "in_channels": 3,
    "width": 1.0,
    "dropout": None,
    "drop_path": None,
    "drop_path_rule": "stage",
    "temporal_padding": None,
    "arch": None,
}
"""Values that every family takes, also one that has no such setting."""


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Raise UserError for a number that is out of its range."""
    for key, value in arguments.items():
        if value is None and key in OPTIONAL:
            continue
        if key in MINIMA:
            low = MINIMA[key]
            wanted = "a whole number above 0" if low else "a whole number, 0 or more"
            fits = isinstance(value, numbers.Integral) and value >= low
        elif key in RANGES:
            low, high = RANGES[key]
            wanted = f"a number from {low:g} to {high:g}"
            fits = isinstance(value, numbers.Real) and low <= value <= high
        else:
            continue
        if not fits or isinstance(value, bool):
            raise UserError(f"{key} must be {wanted}; found {value!r}")


def check_name(name: str, names: Iterable[str]) -> None:
    """Raise UserError, with the nearest names, if ``name`` is not one of ``names``."""
    names = list(names)
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:3]
        raise UserError(f"there is no model {name!r}; did you mean {' or '.join(nearest)}?")


def refuse(name: str, key: str, value: Any, instead: Any) -> NoReturn:
    """Raise UserError for a setting that the network ``name`` does not have."""
    raise UserError(f"{name} has no such setting: {key}={value}; set {key}={instead}")
