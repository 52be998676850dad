"""What a network costs: parameters, multiply-accumulates (MACs) and activation memory.

    >>> cost("resnet_rs_50")
    Cost(parameters=35691912, macs=2278629376, activation_bytes=...)

Networks run on torch's meta device: shapes alone, nothing is computed or allocated. MACs are those of convolutions and
matrix products, attention's included; batch normalisation, activations, pooling and biases are left out, as in the
papers, whose "FLOPs" are twice the MACs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from video_rs.data_config import DataConfig
from video_rs.models.presets import PRESETS, Preset
from video_rs.models.registry import create_model
from video_rs.models.resnet_rs import ResNetRS

Shape = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What one sample costs.

    Attributes:
        parameters: trainable numbers of the network.
        macs: multiply-accumulates of one forward pass of one training clip (or image).
        activation_bytes: see :func:`activation_bytes`.
    """

    parameters: int
    macs: int
    activation_bytes: int


def input_shape(data_config: DataConfig, size: int | None = None) -> Shape:
    """``(C, T, H, W)``, of image networks ``(C, H, W)``; ``size`` pixels a side instead of a training crop's."""
    side = size or data_config.train_size
    frames = (data_config.num_frames,) if data_config.num_frames > 1 else ()
    return (data_config.in_channels, *frames, side, side)


def cost(name: str, size: int | None = None) -> Cost:
    """The cost of a network that ``create_model`` knows, on its training clips or on clips of ``size`` pixels a side.

    The blocks in the middle of a stage cost the same. So presets are measured with few of them, which is quick, and
    the rest follows; the tests compare this with whole networks, to the last unit.
    """
    preset = PRESETS.get(name)
    if preset is None or not all(isinstance(kernel, int) for kernel in preset.architecture.temporal_kernels):
        return without_memory(name, lambda model: measure(model, size))
    few = 3 if preset.architecture.self_gating else 2  # gates are in the last block
    neutral = {"name": "", "depth": 0, "rand_augment": None, "published": (), "reference": None}  # to share the cache
    shallow = dataclasses.replace(preset, blocks=(few,) * len(preset.blocks), **neutral)
    base, *middle = _base_and_middle(shallow, size)
    totals = dataclasses.astuple(base)
    for num_blocks, block in zip(preset.blocks, middle, strict=True):
        steps = zip(totals, dataclasses.astuple(block), strict=True)
        totals = tuple(total + (num_blocks - few) * step for total, step in steps)
    return Cost(*totals)


@functools.cache
def _base_and_middle(preset: Preset, size: int | None) -> tuple[Cost, ...]:
    """The cost of a network, and of the second block in each of its stages."""
    rates = {"dropout": preset.dropout, "drop_path": preset.drop_path}
    with torch.device("meta"):
        model = ResNetRS(
            preset.architecture, preset.blocks, preset.num_classes, **rates, data_config=preset.data_config
        )
        return tuple(_costs(model, [model, *(blocks[1] for blocks in model.stages)], size))


def measure(model: nn.Module, size: int | None = None) -> Cost:
    """The cost of a model, see :func:`cost`. It runs where it is; the meta device computes and allocates nothing."""
    return _costs(model, [model], size)[0]


def _costs(model: nn.Module, modules: Sequence[nn.Module], size: int | None) -> list[Cost]:
    shape = input_shape(model.data_config, size)
    columns = parameters_of(modules), macs_of(model, shape, modules), _activation_bytes(model, shape, modules)
    return [Cost(*row) for row in zip(*columns, strict=True)]


def parameters_of(modules: Iterable[nn.Module]) -> list[int]:
    return [sum(p.numel() for p in module.parameters()) for module in modules]


def without_memory(name: str, function: Callable[[nn.Module], T], **options: Any) -> T:
    """``function`` of the network called ``name`` on the meta device; of those that cannot run there, on the CPU.

    Args:
        options: of ``create_model``.
    """
    for build_on in ("meta", "cpu"):
        try:
            with torch.device(build_on):
                model = create_model(name, **options)
            with torch.device("meta"):
                return function(model.to("meta"))
        except (RuntimeError, TypeError):  # some networks look at numbers while they are built or run
            continue
    return function(create_model(name, **options))


def macs(model: nn.Module, shape: Shape) -> int:
    """Multiply-accumulates of one forward pass of a sample of ``shape``, without the batch, in evaluation mode."""
    return macs_of(model, shape, [model])[0]


def macs_of(model: nn.Module, shape: Shape, modules: Sequence[nn.Module]) -> list[int]:
    """Return those of each of the modules, of which one may be the model."""
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),  # the counter does not know all fused attentions
        FlopCounterMode(display=False) as counter,
    ):
        flops = _growth(counter.get_total_flops, modules, model, (1, *shape), training=False)
    return [count // 2 for count in flops]


def activation_bytes(model: nn.Module, shape: Shape) -> int:
    """What a training step keeps of a sample of ``shape`` from its forward pass for its backward pass, in bytes.

    It is the sum over all storages that autograd saves, each counted once, in float32: inputs of convolutions and of
    normalisation, outputs of activations, the clip itself, attention's weights (which fused kernels don't keep).
    Parameters and buffers are not counted, and neither are gradients, the optimizer's state or what an operation needs
    only while it runs, so that a device needs more than this. Under bfloat16 autocast it is roughly half. Measured
    with a batch of two, halved.
    """
    return _activation_bytes(model, shape, [model])[0]


def _activation_bytes(model: nn.Module, shape: Shape, modules: Sequence[nn.Module]) -> list[int]:
    own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}  # kept, so that no identity is used twice

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    def total() -> int:
        return sum(storage.nbytes() for storage in saved.values())

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = _growth(total, modules, model, (2, *shape), training=True)
    return [count // 2 for count in kept]


def _growth(
    read: Callable[[], int], modules: Sequence[nn.Module], model: nn.Module, shape: Shape, *, training: bool
) -> list[int]:
    """Run a model on zeros, and return by how much ``read()`` grows while each of the modules runs."""
    grown, before = [0] * len(modules), model.training

    def add(i: int, sign: int, *_: object) -> None:
        grown[i] += sign * read()

    hooks = [m.register_forward_hook(_keep_channels_last) for m in model.modules() if isinstance(m, nn.Conv3d)]
    for i, module in enumerate(modules):
        hooks.append(module.register_forward_pre_hook(functools.partial(add, i, -1)))
        hooks.append(module.register_forward_hook(functools.partial(add, i, 1)))
    try:
        model.train(training)(torch.zeros(shape, device=next(model.parameters()).device))
    finally:
        model.train(before)
        for hook in hooks:
            hook.remove()
    return grown


def _keep_channels_last(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """As devices do; the meta device's conv3d forgets it, and the views after it would become copies."""
    keep = args[0].is_contiguous(memory_format=torch.channels_last_3d)
    return output.contiguous(memory_format=torch.channels_last_3d) if keep else output


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # data_ptr() is 0 for everything on the meta device
