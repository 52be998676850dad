"""Summarize a network stage by stage: description of the layers, output shapes, and costs."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from video_rs.data_config import DataConfig
from video_rs.models.cost import Shape, count_macs, count_parameters, input_shape, macs, measure, on_meta_device
from video_rs.models.layers import MaxPool
from video_rs.models.presets import Cost
from video_rs.models.resnet_rs import Bottleneck, ResNetRS
from video_rs.models.weights.source import public_record


@dataclass(frozen=True)
class StageSummary:
    """A stage of a network.

    Attributes:
        name: name of the module.
        layers: description of its layers.
        shapes: output shapes without the batch: ``(C, T, H, W)``, or ``(C, H, W)`` for images.
        parameters, macs: as in :class:`Cost`.
    """

    name: str
    layers: str
    shapes: tuple[Shape, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """The summary of a network.

    Attributes:
        data_config: data config of the network.
        cost: cost of one training clip.
        test_macs: multiply-accumulates of one test crop.
        stages: see :func:`stages`.
        public_weights: source and licence of another package's weights of the network; None for our own networks.
    """

    data_config: DataConfig
    cost: Cost
    test_macs: int
    stages: list[StageSummary]
    public_weights: dict[str, Any] | None


def summarize(name: str, **options: Any) -> Summary:
    """Return the summary of a network, without any computation. ``options`` are passed to ``create_model``.

    Raises:
        UserError: there is no such network.
    """
    return on_meta_device(name, _summarize, **options)


def _summarize(model: nn.Module) -> Summary:
    data_config = model.data_config
    test_macs = macs(model, input_shape(data_config, data_config.test_size))
    rows = stages(model, input_shape(data_config))
    public_weights = None if isinstance(model, ResNetRS) else public_record(model)
    return Summary(data_config, measure(model), test_macs, rows, public_weights)


def stages(model: nn.Module, shape: Shape) -> list[StageSummary]:
    """Return the stages of a network for a sample of ``shape``, or its top-level modules if it is not a ResNet-RS.

    The last row, "other", has the remaining costs.
    """
    image = len(shape) == 3
    parts = list(_family_parts(model, image) if isinstance(model, ResNetRS) else _parts(model))
    shapes: dict[str, tuple[Shape, ...]] = {}

    def record(name: str, module: nn.Module, args: object, output: object) -> None:
        shapes[name] = tuple(_shapes(output, image))

    hooks = [module.register_forward_hook(functools.partial(record, name)) for name, _, module in parts]
    counts = count_macs(model, shape)
    for hook in hooks:
        hook.remove()
    rows = [
        StageSummary(name, layers, shapes.get(name, ()), count_parameters(module), counts[name])
        for name, layers, module in parts
    ]
    parameters = count_parameters(model) - sum(row.parameters for row in rows)
    other = StageSummary("other", "", (), parameters, counts["Global"] - sum(row.macs for row in rows))
    return [*rows, other] if other.parameters or other.macs else rows


Part = tuple[str, str, nn.Module]  # name, description of the layers, module


def _parts(module: nn.Module, prefix: str = "") -> Iterator[Part]:
    """Yield the children of a module. Lists, which are never called, and wrappers are expanded."""
    for name, child in module.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)) or not prefix and name == "network":
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield prefix + name, type(child).__name__, child


def _family_parts(model: ResNetRS, image: bool) -> Iterator[Part]:
    for name, layer in model.stem.named_children():
        pool = isinstance(layer, MaxPool)
        layers = f"max pool {_times(layer.kernel, image)}" if pool else _conv(layer.conv, image)
        yield f"stem.{name}", layers + _strided(layer.stride if pool else layer.conv.stride, image), layer
    for i, stage in enumerate(model.stages):
        yield f"stages.{i}", _bottlenecks(list(stage), image), stage
    yield "head", f"mean, dropout {model.dropout.rate:g}, linear", model.head


def _bottlenecks(blocks: list[Bottleneck], image: bool) -> str:
    first, last = blocks[0], blocks[-1]
    kernels = " or ".join(dict.fromkeys(_conv(block.conv1.conv, image) for block in blocks))
    layers = [kernels, _conv(first.conv2.conv, image), _conv(first.conv3.conv, image)]
    gates = [] if isinstance(first.se, nn.Identity) else ["SE"]
    gates += [] if isinstance(last.gating, nn.Identity) else ["self-gating in the last"]
    stride = (first.conv1.conv.stride[0], *first.conv2.conv.stride[1:])
    return ", ".join([f"{len(blocks)} x [{'; '.join(layers)}]", *gates]) + _strided(stride, image)


def _conv(conv: nn.Conv3d, image: bool) -> str:
    return f"{_times(conv.kernel_size, image)}, {conv.out_channels}"


def _strided(stride: Shape, image: bool) -> str:
    return "" if set(stride) == {1} else f", stride {_times(stride, image)}"


def _times(numbers: Shape, image: bool) -> str:
    return "x".join(map(str, numbers[image:]))


def _shapes(output: object, image: bool) -> Iterator[Shape]:
    """Yield the shapes of all tensors in an output without the batch, and for images without the time axis."""
    if isinstance(output, (list, tuple)):
        for item in output:
            yield from _shapes(item, image)
    elif isinstance(output, Tensor):
        shape = tuple(output.shape[1:])
        yield (shape[0], *shape[2:]) if image and len(shape) == 4 else shape
