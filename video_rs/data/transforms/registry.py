"""A registry of custom augmentations for ``data.augment``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from video_rs.data.transforms.crops import Augmentation
from video_rs.errors import UserError

_REGISTERED: dict[str, Callable[..., Augmentation]] = {}


def register_augmentation(augmentation: Callable[..., Augmentation]) -> Callable[..., Augmentation]:
    """Register an augmentation class under its name for ``data.augment`` (a decorator).

    An instance is called with a clip, uint8 ``[T, S, S, 3]``, and a ``numpy.random.Generator``, and returns a clip of
    the same shape and type. It must draw random numbers from this generator only, once for all frames.
    """
    _REGISTERED[augmentation.__name__] = augmentation
    return augmentation


def create_augmentations(options: Mapping[str, Mapping[str, Any] | None]) -> list[Augmentation]:
    """Create registered augmentations.

    Args:
        options: names in the order of application, with the arguments of each.

    Raises:
        UserError: a name is not registered, or an argument is invalid.
    """
    made = []
    for name, arguments in options.items():
        if name not in _REGISTERED:
            known = ", ".join(_REGISTERED) or "none"
            raise UserError(f"data.augment: no augmentation {name!r} is registered (known: {known}); see plugins=")
        try:
            made.append(_REGISTERED[name](**(arguments or {})))
        except TypeError as error:
            raise UserError(f"data.augment: {name}: {error}") from None
    return made
