"""Count parameters, multiply-accumulates (MACs) and activation memory of a network.

    >>> on_meta_device("resnet_rs_50", measure)
    Cost(parameters=35691912, macs=2278629376, activation_bytes=...)

Networks run on torch's meta device, which has shapes but computes and allocates nothing. MACs include convolutions and
matrix products, also in attention. As in the papers, batch normalisation, activations, pooling and biases are not
counted. The papers' "FLOPs" are twice the MACs.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from video_rs.data_config import DataConfig
from video_rs.models.presets import Cost
from video_rs.models.registry import create_model

Shape = tuple[int, ...]
T = TypeVar("T")


def input_shape(data_config: DataConfig, size: int | None = None) -> Shape:
    """Return the shape ``(C, T, H, W)`` of a sample, or ``(C, H, W)`` for image networks.

    Args:
        data_config: data config of the network.
        size: height and width in pixels; None for the size of a training crop.
    """
    side = size or data_config.train_size
    frames = (data_config.num_frames,) if data_config.num_frames > 1 else ()
    return (data_config.in_channels, *frames, side, side)


def measure(model: nn.Module) -> Cost:
    """Return the cost of a model on its training clips. It runs on the device of the model, preferably "meta"."""
    shape = input_shape(model.data_config)
    return Cost(count_parameters(model), macs(model, shape), activation_bytes(model, shape))


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
    return count_macs(model, shape, on_meta)["Global"]  # the counter's name of the model


def activation_bytes(model: nn.Module, shape: Shape, on_meta: bool = False) -> int:
    """Return the bytes per sample of ``shape`` that are kept from the forward to the backward pass in training.

    This is the sum over all storages saved by autograd, each counted once, in the type of the parameters: inputs of
    convolutions and of normalisation, outputs of activations, the clip itself, and attention weights (which fused
    kernels do not keep). Parameters, buffers, gradients, the optimizer state and temporary memory are not included, so
    a device needs more. bfloat16 autocast roughly halves it. The value is half of a measurement with a batch of two.
    ``on_meta`` is as in :func:`macs`.
    """
    state = _state(model, on_meta)
    own = {_storage(tensor) for tensor in state.values()}
    saved: dict[int, torch.UntypedStorage] = {}  # keeps the storages alive, so ids are not reused

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _run(model, state, (2, *shape), training=True)
    return sum(storage.nbytes() for storage in saved.values()) // 2


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def count_macs(model: nn.Module, shape: Shape, on_meta: bool = False) -> Counter[str]:
    """Return the MACs of the modules in one forward pass of the model by their names, see :func:`macs`."""
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),  # the counter does not support all fused attention kernels
        FlopCounterMode(display=False) as counter,
    ):
        _run(model, _state(model, on_meta), (1, *shape))
    root = f"{type(model).__name__}."
    counts = counter.get_flop_counts().items()
    return Counter({name.removeprefix(root): sum(by_operator.values()) // 2 for name, by_operator in counts})


def _state(model: nn.Module, on_meta: bool) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model, or tensors of their shapes on the meta device."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: _on_meta(tensor) for name, tensor in state.items()} if on_meta else state


def _on_meta(tensor: Tensor) -> Tensor:
    shape = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return shape.requires_grad_(tensor.requires_grad)


def _run(model: nn.Module, state: dict[str, Tensor], shape: Shape, training: bool = False) -> None:
    """Run a model with a state on zeros."""
    first, before = next(iter(state.values())), model.training
    zeros = torch.zeros(shape, dtype=first.dtype, device=first.device)
    hooks = [m.register_forward_hook(_keep_channels_last) for m in model.modules() if isinstance(m, nn.Conv3d)]
    try:
        model.train(training)
        torch.func.functional_call(model, state, zeros)
    finally:
        model.train(before)
        for hook in hooks:
            hook.remove()


def _keep_channels_last(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Restore the memory format. conv3d on the meta device loses it, and later views would become copies."""
    keep = args[0].is_contiguous(memory_format=torch.channels_last_3d)
    return output.contiguous(memory_format=torch.channels_last_3d) if keep else output


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # data_ptr() is 0 for everything on the meta device
