"""Check the arguments of ``create_model``. This module does not import torch."""

import difflib
import math
import numbers
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from video_rs.errors import UserError, did_you_mean, format_value

MINIMA = {"num_classes": 0, "in_channels": 1}
RANGES = {"width": (0.05, 8), "dropout": (0, 0.95), "drop_path": (0, 0.95), "bn_momentum": (1e-4, 1)}
"""Minimum and maximum value, the same as in the config schema."""
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
"""Values that every family accepts, even if it does not have the setting."""


SPELLINGS = {"in_chans": "in_channels", "drop_rate": "dropout", "drop_path_rate": "drop_path"}
"""timm's names of arguments, and ours."""


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Raise UserError for a number that is out of its range."""
    for key, value in arguments.items():
        if key not in {*MINIMA, *RANGES} or (value is None and key in OPTIONAL):
            continue
        if key in MINIMA:
            kind, low, high = numbers.Integral, MINIMA[key], math.inf
            wanted = "a whole number above 0" if low else "a whole number, 0 or more"
        else:
            kind, (low, high) = numbers.Real, RANGES[key]
            wanted = f"a number from {low:g} to {high:g}"
        if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
            raise UserError(f"{key} must be {wanted}; found {value!r}")


def plain(value: Any) -> Any:
    """Convert numbers of NumPy and torch to Python numbers, also in copies of mappings and lists, for a checkpoint."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return value.item() if getattr(value, "shape", None) == () else value


def check_settings(name: str, arguments: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise UserError for arguments that the network ``name`` does not have, unless they have their neutral value.

    Args:
        name: of the network.
        arguments: of ``create_model``, also those that are None.
        known: names of its own arguments.
    """
    names = sorted({*known} - {"data_config"})
    for key in arguments.keys() - {*known, *MINIMA, *NEUTRAL}:
        hint = did_you_mean(SPELLINGS.get(key, key), {*names, *MINIMA, *NEUTRAL}, f"; it has {', '.join(names)}")
        raise UserError(f"{name} has no argument {key!r}{hint}")
    wrong = [key for key, value in arguments.items() if key not in known and value not in (None, NEUTRAL.get(key))]
    if wrong:
        found = ", ".join(f"model.{key}={arguments[key]}" for key in wrong)
        neutral = " ".join(f"model.{key}={_null(NEUTRAL.get(key))}" for key in wrong)
        raise UserError(f"{name} has no such setting: {found}; set {neutral}")


def _null(value: Any) -> Any:
    return "null" if value is None else value


def check_name(name: str, names: Iterable[str], hint: str = "") -> None:
    """Raise UserError, with the nearest names and a hint, if ``name`` is not one of ``names``."""
    if name not in (names := list(names)):
        raise UserError(f"there is no model {format_value(name)}{suggest(name, names)}{hint}")


def suggest(name: str, names: Iterable[str]) -> str:
    """Return the end of a message that suggests up to three names.

    Names are compared without case, separators, package and weight tag. If some are equal, only these are suggested,
    the most similar full name first.
    """
    known: dict[str, list[str]] = {}
    for other in dict.fromkeys(names):
        known.setdefault(_letters(other), []).append(other)
    wanted = _letters(name[:100])
    near = [wanted] if wanted in known else []
    near = near or sorted((other for other in known if len(wanted) > 2 and other.startswith(wanted)), key=len)
    near = near or difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    ranked = [other for key in near[:3] for other in difflib.get_close_matches(name[:100], known[key], n=3, cutoff=0)]
    return f"; did you mean {' or '.join(ranked[:3])}?" if ranked else "; video-rs models lists them."


def _letters(name: str) -> str:
    """Return the lower-case letters and digits of a name, without its package and the tag of its weights."""
    return re.sub("[^a-z0-9]", "", name.rpartition("/")[2].partition(".")[0].lower())


def refuse(name: str, key: str, value: Any, instead: Any) -> NoReturn:
    """Raise UserError for a setting that the network ``name`` does not support."""
    raise UserError(f"{name} has no such setting: {key}={value}; set {key}={instead}")
