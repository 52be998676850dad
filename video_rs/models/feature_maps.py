"""Capture the outputs of a network's layers as maps ``[N, C, T, H, W]``, by the name of a stage or module."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from video_rs.errors import UserError, did_you_mean
from video_rs.models.base import VideoModel


def stage_names(model: nn.Module) -> list[str]:
    """Return the names of the stages of a network in order, for example ``["stem", "stage1", ...]``."""
    return list(_call(model, "stage_modules"))


def _call(model: nn.Module, method: str, *arguments: Any) -> Any:
    """Call a method of a network, or the default of ``VideoModel`` if the network does not have it."""
    return getattr(type(model), method, getattr(VideoModel, method))(model, *arguments)


def module_name(model: nn.Module, name: str) -> str:
    """Return the module name of a layer. Raise UserError, with the nearest name, if there is none.

    Args:
        name: name of a stage, see :func:`stage_names`, or of any module. The prefix ``network.`` of networks of other
            packages may be left out.
    """
    stages, modules = _call(model, "stage_modules"), dict(model.named_modules())
    prefix = getattr(model, "module_prefix", "")
    for each in (stages.get(name), name, prefix + name):
        if each and each in modules:
            return each
    known = [*modules, *(each.removeprefix(prefix) for each in modules)]
    listed = f"; its stages are {', '.join(stages)}" if stages else ""
    near = did_you_mean(name, stages, did_you_mean(name, known, listed))
    raise UserError(f"the network has no layer {name[:100]!r}{near}")


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return a layer by the name of a stage or of a module; arguments and errors as for :func:`module_name`."""
    return model.get_submodule(module_name(model, name))


class Maps:
    """The output of a layer in the last forward pass. Gradients stop at this layer."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name, self.module = model, name, module_name(model, name)
        self.output: Any = None
        self.tensor: Any = None

    def record(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Forward hook: keep the output, and return a copy, because the next layer may change it in place.

        The main tensor of a list, such as the pathways of SlowFast, is the first one.
        """
        is_list = type(output) in (list, tuple) and len(output) > 0
        self.output, self.tensor = output, output[0] if is_list else output
        if not isinstance(self.tensor, Tensor):
            return output
        self.tensor = self.tensor.detach().requires_grad_(self.tensor.is_floating_point())
        copy = self.tensor.clone()
        return type(output)([copy, *output[1:]]) if is_list else copy

    def __call__(self) -> Tensor:
        """Return the maps ``[N, C, T, H, W]``, or ``[N, C]`` if the output has no axes of time and space.

        Raises:
            UserError: the layer was not part of the forward pass, or its output has another form.
        """
        return self._read(self.tensor)

    def gradients(self, value: Tensor) -> Tensor:
        """Return the gradients of a scalar with respect to the maps, in their shape."""
        if not value.requires_grad:  # the layer is no part of it
            return torch.zeros_like(self())
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        return self._read(torch.autograd.grad(value, self.tensor, **options)[0])

    def _read(self, tensor: Any) -> Tensor:
        found = "was not used in the forward pass" if self.output is None else f"returns {type(tensor).__name__}"
        if isinstance(tensor, Tensor):
            maps = _call(self.model, "read_maps", tensor, self.output, self.module)
            if maps is not None:
                return maps
            found = f"returns {list(tensor.shape)} instead of [N, C, T, H, W]"
        raise UserError(f"the layer {self.name} has no maps: it {found}; choose another layer")


@contextlib.contextmanager
def capture(model: nn.Module, name: str) -> Iterator[Maps]:
    """Record the output of a layer in each forward pass of this context.

    Args:
        model: a network of ``create_model``.
        name: as for :func:`module_name`.

    Example:
        with capture(model, "stage3") as maps:
            model(clips)
        maps()  # [N, C, T, H, W]
    """
    maps = Maps(model, name)
    handle = model.get_submodule(maps.module).register_forward_hook(maps.record)
    compiles = "torch._dynamo" in sys.modules  # importing it takes seconds
    try:
        # a compiled network would not call the hook
        with torch.compiler.set_stance("force_eager") if compiles else contextlib.nullcontext():
            yield maps
    finally:
        handle.remove()
