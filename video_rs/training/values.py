"""Convert and check options and config keys: plain values of a type, in a range or a list of choices."""

from __future__ import annotations

import json
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from video_rs.errors import UserError, did_you_mean, format_value
from video_rs.models.arguments import plain

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def checked(name: str, value: Any, type_: Any, rules: Mapping[str, Any]) -> Any:
    """Convert a value to a type. Raise ValueError, naming the option, if its type or range is invalid.

    Args:
        name: name of the option.
        value: the given value.
        type_: annotation of the option.
        rules: ``choices``, ``check``, ``low`` and ``high``, see :func:`video_rs.training.options.setting`.
    """
    try:
        result = _as_type(value, type_) if rules["check"] is None else rules["check"](value)
    except UserError as error:
        raise ValueError(str(error)) from None
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise ValueError(f"{name} must be {_in_words(type_)}; found {format_value(value)}") from None
    if rules["choices"] and result is not None and result not in rules["choices"]:
        hint = did_you_mean(str(value)[:100], rules["choices"])
        raise ValueError(f"{name} is one of {', '.join(rules['choices'])}; found {format_value(value)}{hint}")
    for number in result if isinstance(result, tuple) else (result,):
        if isinstance(number, str) and _CONTROL.search(number):
            raise ValueError(f"{name} must not contain control characters; found {format_value(value)}")
        low, high = rules["low"], rules["high"]
        if low is not None and number is not None and not (low <= number < math.inf and number <= (high or number)):
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise ValueError(f"{name} must be {bounds}; found {format_value(value)}")
    return result


def _as_type(value: Any, type_: Any) -> Any:
    if isinstance(type_, types.UnionType):
        members = typing.get_args(type_)
        if value is None and types.NoneType in members:
            return None
        is_list = isinstance(value, list | tuple)
        fitting = [t for t in members if (typing.get_origin(t) is tuple) == is_list]
        return _as_type(value, (fitting or members)[0])
    if typing.get_origin(type_) is tuple:
        inner = typing.get_args(type_)
        if not isinstance(value, list | tuple):
            raise TypeError
        if inner[-1] is Ellipsis:
            inner = inner[:1] * len(value)
        if len(value) != len(inner):
            raise TypeError
        return tuple(_as_type(v, t) for v, t in zip(value, inner, strict=True))
    if getattr(value, "shape", None) == ():  # of NumPy or torch
        value = value.item()
    if type_ is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if type_ is dict and isinstance(value, Mapping):
        result = plain(value)
        json.dumps(result)  # raises an error for values that a checkpoint cannot hold
        return result
    if type_ is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)  # PyYAML reads 4e-5 as text
    if type_ is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not type_ or (type_ is int and not -(2**63) <= value < 2**63):
        raise TypeError
    return value


def _in_words(type_: Any) -> str:
    """Return the values of a type in words: "a whole number or null"."""
    if isinstance(type_, types.UnionType):
        return " or ".join(map(_in_words, typing.get_args(type_)))
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text", types.NoneType: "null"}
    return words.get(type_) or type_name(type_)


def type_name(type_: Any) -> str:
    """Return the short name of a type, such as "list of ints"."""
    if isinstance(type_, types.UnionType):
        return "|".join("null" if t is types.NoneType else type_name(t) for t in typing.get_args(type_))
    if typing.get_origin(type_) is tuple:
        inner = typing.get_args(type_)
        if inner[-1] is Ellipsis:
            if isinstance(inner[0], types.UnionType):
                return "list"
            name = type_name(inner[0])
            return f"list of [{name}]" if typing.get_origin(inner[0]) is tuple else f"list of {name}s"
        names = [type_name(t) for t in inner]
        return f"{len(inner)} {names[0]}s" if len(set(names)) == 1 else ", ".join(names)
    return type_.__name__
