"""A network stage by stage: the layers in words, the shapes they put out, and what they cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from video_rs.models.architecture import Architecture
from video_rs.models.cost import Shape, macs_of, parameters_of
from video_rs.models.layers import MaxPool
from video_rs.models.resnet_rs import Bottleneck, ResNetRS


@dataclass(frozen=True)
class Stage:
    """A line of :func:`stages`.

    Attributes:
        name: in the network.
        what: its layers in words.
        shapes: of its outputs, without the batch: ``(C, T, H, W)``, of images ``(C, H, W)``.
        parameters, macs: as in :class:`Cost`.
    """

    name: str
    what: str
    shapes: tuple[Shape, ...]
    parameters: int
    macs: int


def stages(model: nn.Module, shape: Shape) -> list[Stage]:
    """The network stage by stage on a sample of ``shape``; of networks that are not of this family, by top module.

    What lies in none of these is a last line, "other".
    """
    image = len(shape) == 3
    parts = list(_family_parts(model, image) if isinstance(model, ResNetRS) else _parts(model))
    shapes: list[tuple[Shape, ...]] = [()] * len(parts)
    hooks = []
    for i, (_, _, modules) in enumerate(parts):

        def leave(module: nn.Module, args: object, output: object, i: int = i) -> None:
            shapes[i] = tuple(_shapes(output, image))

        hooks.append(modules[-1].register_forward_hook(leave))
    modules = [model, *(module for *_, modules in parts for module in modules)]
    costs = zip(parameters_of(modules), macs_of(model, shape, modules), strict=True)
    for hook in hooks:
        hook.remove()
    parameters, multiplied = next(costs)
    lines = []
    for (name, what, modules), out in zip(parts, shapes, strict=True):
        counts = [sum(column) for column in zip(*itertools.islice(costs, len(modules)), strict=True)]
        lines.append(Stage(name, what, out, *counts))
    rest = parameters - sum(line.parameters for line in lines), multiplied - sum(line.macs for line in lines)
    return [*lines, Stage("other", "", (), *rest)] if any(rest) else lines


Part = tuple[str, str, list[nn.Module]]  # name, what it is, what runs


def _parts(module: nn.Module, prefix: str = "") -> Iterator[Part]:
    """Children; lists, which are never called, and the network inside a wrapper give theirs."""
    for name, child in module.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)) or not prefix and name == "network":
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield prefix + name, type(child).__name__, [child]


def _family_parts(model: ResNetRS, image: bool) -> Iterator[Part]:
    for name, layer in model.stem.named_children():
        pool = isinstance(layer, MaxPool)
        what = f"max pool {_times(layer.kernel, image)}" if pool else _conv(layer.conv, image)
        yield f"stem.{name}", what + _strided(layer.stride if pool else layer.conv.stride, image), [layer]
    for i, blocks in enumerate(model.stages):
        yield f"stages.{i}", _bottlenecks(list(blocks), model.architecture, image), list(blocks)
    yield "head", f"mean, dropout {model.dropout.rate:g}, linear", [model.head]


def _bottlenecks(blocks: list[Bottleneck], architecture: Architecture, image: bool) -> str:
    first = blocks[0]
    kernels = " or ".join(dict.fromkeys(_conv(block.conv1.conv, image) for block in blocks))
    layers = [kernels, _conv(first.conv2.conv, image), _conv(first.conv3.conv, image)]
    gates = ["SE"] * bool(architecture.se_ratio) + ["self-gating in the last"] * architecture.self_gating
    stride = (first.conv1.conv.stride[0], *first.conv2.conv.stride[1:])
    return ", ".join([f"{len(blocks)} x [{'; '.join(layers)}]", *gates]) + _strided(stride, image)


def _conv(conv: nn.Conv3d, image: bool) -> str:
    return f"{_times(conv.kernel_size, image)}, {conv.out_channels}"


def _strided(stride: Shape, image: bool) -> str:
    return "" if set(stride) == {1} else f", stride {_times(stride, image)}"


def _times(numbers: Shape, image: bool) -> str:
    return "x".join(map(str, numbers[image:]))


def _shapes(output: object, image: bool) -> Iterator[Shape]:
    """Of all tensors in an output, without the batch, and without the one frame of an image."""
    if isinstance(output, (list, tuple)):
        for item in output:
            yield from _shapes(item, image)
    elif isinstance(output, Tensor):
        shape = tuple(output.shape[1:])
        yield (shape[0], *shape[2:]) if image and len(shape) == 4 else shape
