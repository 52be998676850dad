"""A registry of augmentations, for those that ``data.augment`` adds to the built-in ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from video_rs.data.transforms.crops import Augmentation
from video_rs.errors import UserError

_REGISTERED: dict[str, Callable[..., Augmentation]] = {}


def register_augmentation(augmentation: Callable[..., Augmentation]) -> Callable[..., Augmentation]:
    """Make an augmentation known to ``data.augment`` by its name: a decorator of its class.

    An instance is called with a clip, uint8 ``[T, S, S, 3]``, and a ``numpy.random.Generator``; it returns a clip of
    the same shape and type. It draws from the generator alone, once for all frames.
    """
    _REGISTERED[augmentation.__name__] = augmentation
    return augmentation


def create_augmentations(options: Mapping[str, Mapping[str, Any] | None]) -> list[Augmentation]:
    """Create registered augmentations.

    Args:
        options: names in the order of application, with the arguments of each.

    Raises:
        UserError: a name is not registered, or an argument does not fit.
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
