"""The outputs of a network's layers as maps ``[N, C, T, H, W]``, by the name of a stage or of a module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from video_rs.errors import UserError, did_you_mean
from video_rs.models.base import VideoModel


def stage_names(model: nn.Module) -> list[str]:
    """Return the names of the stages of a network in order, for example ``["stem", "stage1", ...]``."""
    return list(_ask(model, "stage_modules"))


def _ask(model: nn.Module, method: str, *arguments: Any) -> Any:
    """Call a method of a network; that of ``VideoModel`` if the network is another module that lacks it."""
    return getattr(type(model), method, getattr(VideoModel, method))(model, *arguments)


def module_name(model: nn.Module, name: str) -> str:
    """Return the module name of a layer. Raise UserError, with the nearest name, if there is none.

    Args:
        name: name of a stage, see :func:`stage_names`, or of any module. ``network.`` of a wrapped network may be left
            out.
    """
    stages, modules = _ask(model, "stage_modules"), dict(model.named_modules())
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
    """The output of a layer in the last forward pass.

    Attributes:
        output: as the layer returned it, attached to the graph; None before the first forward pass.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name, self.module = model, name, module_name(model, name)
        self.output: Any = None

    def __call__(self) -> Tensor:
        """Return the maps ``[N, C, T, H, W]``, attached to the graph; ``[N, C]`` if there are no such axes.

        Raises:
            UserError: the layer was not part of the forward pass, or its output has another form.
        """
        return self._read(self._tensor())

    def gradients(self, value: Tensor) -> Tensor:
        """Return the gradients of a scalar with respect to the maps, in their shape."""
        tensor = self._tensor()
        gradients = torch.autograd.grad(value, tensor, retain_graph=True, allow_unused=True)[0]
        return self._read(torch.zeros_like(tensor) if gradients is None else gradients)

    def _tensor(self) -> Tensor:
        """Return the main tensor of the output: the first one of a list, such as the pathways of SlowFast."""
        output = self.output[0] if isinstance(self.output, (list, tuple)) and self.output else self.output
        if not isinstance(output, Tensor):
            what = "was not used in the forward pass" if output is None else f"returns {type(output).__name__}"
            raise UserError(f"the layer {self.name} has no maps: it {what}; choose another layer")
        return output

    def _read(self, tensor: Tensor) -> Tensor:
        maps = _ask(self.model, "read_maps", tensor, self.output, self.module)
        if maps is None:
            found = f"its output {list(tensor.shape)} is not [N, C, T, H, W]"
            raise UserError(f"the layer {self.name} has no maps: {found}; choose another layer")
        return maps


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

    def record(module: nn.Module, inputs: Any, output: Any) -> Any:
        maps.output = output
        return _copy(output)  # the next layer can work in place

    handle = find_layer(model, name).register_forward_hook(record)
    try:
        yield maps
    finally:
        handle.remove()


def _copy(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.clone()
    return type(output)(map(_copy, output)) if type(output) in (list, tuple) else output
