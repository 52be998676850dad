"""Cache the costs of networks: most runs in the tests describe the same small network."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import pytest
from torch import nn

from video_rs.models import cost

_known: dict[Hashable, int] = {}
_PLAIN = (bool, int, float, str, tuple, type(None))


def remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache MACs and activation memory on the meta device, by network and input shape."""
    for function in (cost.macs, cost.activation_bytes):
        monkeypatch.setattr(cost, function.__name__, _remembering(function))


def _remembering(function: Callable[..., int]) -> Callable[..., int]:
    def cached(model, shape, on_meta=False):
        if not on_meta:
            return function(model, shape, on_meta)
        key = function.__name__, shape, _describe(model)
        if key not in _known:
            _known[key] = function(model, shape, on_meta)
        return _known[key]

    return cached


def _describe(model: nn.Module) -> Hashable:
    """Return a key of a network: its modules, their plain attributes, and the shapes of its weights."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    modules = [(name, type(module), repr(_plain(module))) for name, module in model.named_modules()]
    shapes = [(name, t.shape, t.stride(), t.dtype, t.requires_grad) for name, t in tensors]
    return tuple(modules), tuple(shapes)


def _plain(module: nn.Module) -> dict:
    return {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN) or callable(value)}
