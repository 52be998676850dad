"""Count parameters, multiply-accumulates (MACs) and activation memory of a network.

    >>> cost("resnet_rs_50")
    Cost(parameters=35691912, macs=2278629376, activation_bytes=...)

Networks run on torch's meta device, which has shapes but computes and allocates nothing. MACs include convolutions and
matrix products, also in attention. As in the papers, batch normalisation, activations, pooling and biases are not
counted. The papers' "FLOPs" are twice the MACs.
"""

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
    """The cost of one sample.

    Attributes:
        parameters: number of trainable parameters.
        macs: multiply-accumulates of one forward pass of one training clip or image.
        activation_bytes: see :func:`activation_bytes`.
    """

    parameters: int
    macs: int
    activation_bytes: int


def input_shape(data_config: DataConfig, size: int | None = None) -> Shape:
    """Return the shape ``(C, T, H, W)`` of a sample, or ``(C, H, W)`` for image networks.

    Args:
        data_config: data config of the network.
        size: height and width in pixels; None for the size of a training crop.
    """
    side = size or data_config.train_size
    frames = (data_config.num_frames,) if data_config.num_frames > 1 else ()
    return (data_config.in_channels, *frames, side, side)


def cost(name: str) -> Cost:
    """Return the cost of a network by name, on its training clips.

    All middle blocks of a stage have the same cost. Presets are measured with few blocks, which is fast, and the rest
    is extrapolated. Tests verify that the result is exact.
    """
    preset = PRESETS.get(name)
    if preset is None or not all(isinstance(kernel, int) for kernel in preset.architecture.temporal_kernels):
        return on_meta_device(name, measure)
    few = 3 if preset.architecture.self_gating else 2  # gates are in the last block
    neutral = {"name": "", "depth": 0, "rand_augment": None, "published": (), "reference": None}  # to share the cache
    shallow = dataclasses.replace(preset, blocks=(few,) * len(preset.blocks), **neutral)
    base, *middle = _base_and_middle(shallow)
    totals = dataclasses.astuple(base)
    for num_blocks, block in zip(preset.blocks, middle, strict=True):
        steps = zip(totals, dataclasses.astuple(block), strict=True)
        totals = tuple(total + (num_blocks - few) * step for total, step in steps)
    return Cost(*totals)


@functools.cache
def _base_and_middle(preset: Preset) -> tuple[Cost, ...]:
    """Return the cost of a network, and of the second block in each of its stages."""
    rates = {"dropout": preset.dropout, "drop_path": preset.drop_path}
    with torch.device("meta"):
        model = ResNetRS(
            preset.architecture, preset.blocks, preset.num_classes, **rates, data_config=preset.data_config
        )
        return tuple(_costs(model, [model, *(blocks[1] for blocks in model.stages)]))


def measure(model: nn.Module) -> Cost:
    """Return the cost of a model, see :func:`cost`. It runs on the device of the model, preferably "meta"."""
    return _costs(model, [model])[0]


def _costs(model: nn.Module, modules: Sequence[nn.Module]) -> list[Cost]:
    shape = input_shape(model.data_config)
    return list(
        map(Cost, count_parameters(modules), count_macs(model, shape, modules), _count_bytes(model, shape, modules))
    )


def on_meta_device(name: str, function: Callable[[nn.Module], T], **options: Any) -> T:
    """Call a function with a network on the meta device, or on the CPU if the network cannot run there.

    Args:
        name: name of the network for ``create_model``.
        function: called with the network.
        options: options of ``create_model``.
    """
    for build_on in ("meta", "cpu"):
        try:
            with torch.device(build_on):
                model = create_model(name, **options)
            with torch.device("meta"):
                return function(model.to("meta"))
        except (RuntimeError, TypeError):  # some networks read values while they are built or run
            continue
    return function(create_model(name, **options))


def macs(model: nn.Module, shape: Shape, on_meta: bool = False) -> int:
    """Return the MACs of one forward pass of a sample of ``shape``, without the batch, in evaluation mode.

    With ``on_meta`` the model stays where it is, and nothing is computed.
    """
    return count_macs(model, shape, [model], on_meta)[0]


def activation_bytes(model: nn.Module, shape: Shape, on_meta: bool = False) -> int:
    """Return the bytes per sample of ``shape`` that are kept from the forward to the backward pass in training.

    This is the sum over all storages saved by autograd, each counted once, in the type of the parameters: inputs of
    convolutions and of normalisation, outputs of activations, the clip itself, and attention weights (which fused
    kernels do not keep). Parameters, buffers, gradients, the optimizer state and temporary memory are not included, so
    a device needs more. bfloat16 autocast roughly halves it. The value is half of a measurement with a batch of two.
    ``on_meta`` is as in :func:`macs`.
    """
    return _count_bytes(model, shape, [model], on_meta)[0]


def count_parameters(modules: Iterable[nn.Module]) -> list[int]:
    """Return the number of parameters of each module."""
    return [sum(p.numel() for p in module.parameters()) for module in modules]


def count_macs(model: nn.Module, shape: Shape, modules: Sequence[nn.Module], on_meta: bool = False) -> list[int]:
    """Return the MACs of each module in one forward pass of the model, see :func:`macs`."""
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),  # the counter does not support all fused attention kernels
        FlopCounterMode(display=False) as counter,
    ):
        flops = _growth(counter.get_total_flops, modules, model, _state(model, on_meta), (1, *shape))
    return [count // 2 for count in flops]


def _count_bytes(model: nn.Module, shape: Shape, modules: Sequence[nn.Module], on_meta: bool = False) -> list[int]:
    state = _state(model, on_meta)
    own = {_storage(tensor) for tensor in state.values()}
    saved: dict[int, torch.UntypedStorage] = {}  # keeps the storages alive, so ids are not reused

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    def total() -> int:
        return sum(storage.nbytes() for storage in saved.values())

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = _growth(total, modules, model, state, (2, *shape), training=True)
    return [count // 2 for count in kept]


def _state(model: nn.Module, on_meta: bool) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model, or tensors of their shapes on the meta device."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: _on_meta(tensor) for name, tensor in state.items()} if on_meta else state


def _on_meta(tensor: Tensor) -> Tensor:
    shape = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return shape.requires_grad_(tensor.requires_grad)


def _growth(
    read: Callable[[], int],
    modules: Sequence[nn.Module],
    model: nn.Module,
    state: dict[str, Tensor],
    shape: Shape,
    training: bool = False,
) -> list[int]:
    """Run a model with a state on zeros, and return the increase of ``read()`` during each of the modules."""
    grown, before = [0] * len(modules), model.training
    first = next(iter(state.values()))
    zeros = torch.zeros(shape, dtype=first.dtype, device=first.device)

    def add(i: int, sign: int, *_: object) -> None:
        grown[i] += sign * read()

    hooks = [m.register_forward_hook(_keep_channels_last) for m in model.modules() if isinstance(m, nn.Conv3d)]
    for i, module in enumerate(modules):
        hooks.append(module.register_forward_pre_hook(functools.partial(add, i, -1)))
        hooks.append(module.register_forward_hook(functools.partial(add, i, 1)))
    try:
        model.train(training)
        torch.func.functional_call(model, state, zeros)
    finally:
        model.train(before)
        for hook in hooks:
            hook.remove()
    return grown


def _keep_channels_last(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Restore the memory format. conv3d on the meta device loses it, and later views would become copies."""
    keep = args[0].is_contiguous(memory_format=torch.channels_last_3d)
    return output.contiguous(memory_format=torch.channels_last_3d) if keep else output


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # data_ptr() is 0 for everything on the meta device
