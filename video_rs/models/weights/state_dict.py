"""State dicts of the ResNet-RS family: names of weights, here and in timm, and the sizes of a network."""

import contextlib
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from video_rs.errors import UserError
from video_rs.models.adapters.base import PREFIX, External
from video_rs.models.presets import BLOCKS
from video_rs.models.resnet_rs import STAGES, ResNetRS, scaled

State = Mapping[str, Tensor]

# no other network of timm has a deep stem with a strided convolution, bottlenecks and squeeze-and-excitation
_TIMM_HAS = ("conv1.0.weight", "maxpool.0.weight", "layer1.0.conv1.weight", "layer1.0.se.fc1.weight")

_TIMM_STEM = {
    "stem.conv1.conv": "conv1.0",
    "stem.conv1.norm": "conv1.1",
    "stem.conv2.conv": "conv1.3",
    "stem.conv2.norm": "conv1.4",
    "stem.conv3.conv": "conv1.6",
    "stem.conv3.norm": "bn1",
    "stem.pool.conv": "maxpool.0",
    "stem.pool.norm": "maxpool.1",
    "head": "fc",
}
_TIMM_BLOCK = {
    **{f"conv{i}.conv": f"conv{i}" for i in (1, 2, 3)},
    **{f"conv{i}.norm": f"bn{i}" for i in (1, 2, 3)},
    "se.reduce": "se.fc1",
    "se.expand": "se.fc2",
    "shortcut.conv": "downsample.1",
    "shortcut.norm": "downsample.2",
}


def from_timm(state: State) -> dict[str, Tensor]:
    """Convert a state dict of timm's ``resnetrs*``, possibly partial, to the names and 5-D kernels of this package.

    Raises:
        UserError: a name is not one of timm's ResNet-RS.
    """
    stem, block = ({theirs: ours for ours, theirs in names.items()} for names in (_TIMM_STEM, _TIMM_BLOCK))
    return {
        _renamed(name, r"layer(\d)", "stages.{}", -1, stem, block): tensor.unsqueeze(2) if tensor.ndim == 4 else tensor
        for name, tensor in state.items()
    }


def to_timm(state: State) -> dict[str, Tensor]:
    """Invert :func:`from_timm`, for image networks of the default architecture. Also works for gradients.

    Raises:
        UserError: timm's networks have no such weight, or the kernel extends in time.
    """
    converted = {}
    for name, tensor in state.items():
        if tensor.ndim == 5 and tensor.shape[2] > 1:
            raise UserError(f"{name} extends over {tensor.shape[2]} frames; timm's networks are for images")
        converted[_timm_name(name)] = tensor.squeeze(2) if tensor.ndim == 5 else tensor
    return converted


def sizes_in_files(model: nn.Module) -> dict[str, int]:
    """Return the number of elements of each weight of a network, by the names that files can have for it."""
    prefix = prefix_of(model)
    sizes = {name.removeprefix(prefix): tensor.numel() for name, tensor in model.state_dict().items()}
    return with_timm_names(sizes) if isinstance(model, ResNetRS) else sizes


def prefix_of(model: nn.Module) -> str:
    """Return the prefix that the wrapper of another package's network adds to names; "" for our networks."""
    return PREFIX if isinstance(model, External) else ""


def _timm_name(name: str) -> str:
    """Return timm's name of a weight. Raise UserError if timm's networks have no such weight."""
    return _renamed(name, r"stages\.(\d)", "layer{}", 1, _TIMM_STEM, _TIMM_BLOCK)


def _renamed(
    name: str, pattern: str, stage: str, shift: int, in_stem: Mapping[str, str], in_block: Mapping[str, str]
) -> str:
    """Return the other name of a weight; ``pattern`` and ``stage`` are the names of a stage, with its number."""
    module, _, suffix = name.rpartition(".")
    place, names = "", in_stem
    if found := re.fullmatch(rf"{pattern}\.(\d+)\.(.+)", module):
        place, names, module = f"{stage.format(int(found[1]) + shift)}.{found[2]}.", in_block, found[3]
    if module not in names:
        raise UserError(f"{name} is not a weight of the image ResNet-RS; are these weights of another network?")
    return f"{place}{names[module]}.{suffix}"


def looks_like_timm(state: State) -> bool:
    """Return True if the names are those of timm's ``resnetrs*``."""
    return all(name in state for name in _TIMM_HAS)


def to_ours(state: State) -> dict[str, Tensor]:
    """Return the state dict with timm's names converted to this package's. May be partial."""
    return from_timm(state) if looks_like_timm(state) else dict(state)


def with_timm_names(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return a mapping by names of weights, with timm's names for the same weights added."""
    both = dict(sizes)
    for name, size in sizes.items():
        with contextlib.suppress(UserError):  # not a weight of timm's networks
            both[_timm_name(name)] = size
    return both


# Sizes ----------------------------------------------------------------------------------------------------------------


def blocks_of(names: Mapping[str, object]) -> tuple[int, ...]:
    """Return the number of bottlenecks in each stage. Raise UserError if a stage has none."""
    if not any(name.startswith("stages.") for name in names):
        first = f", the first is {next(iter(names))}" if names else ""
        raise UserError(f"the weights are not those of a ResNet-RS: they have no stages{first}")
    places = {tuple(map(int, found.groups())) for name in names if (found := re.match(r"stages\.(\d+)\.(\d+)\.", name))}
    blocks = tuple(sum(stage == i for stage, _ in places) for i in range(len(STAGES)))
    if not all(blocks) or sum(blocks) != len(places):
        raise UserError(f"the weights are not those of a ResNet-RS: blocks by stage {list(blocks)}")
    return blocks


def describe_blocks(blocks: tuple[int, ...]) -> str:
    """Return the numbers of bottlenecks as text, with the depth if it is one of the presets."""
    depth = [f" (depth {depth})" for depth, known in BLOCKS.items() if known == blocks]
    return ", ".join(map(str, blocks)) + "".join(depth)


def channels_of(state: State) -> tuple[int, ...]:
    """Return the number of channels of the bottlenecks in each stage, skipping missing stages."""
    sizes = (_size(state, f"stages.{i}.0.conv2.conv.weight", 0) for i in range(len(STAGES)))
    return tuple(size for size in sizes if size is not None)


def width_of(state: State) -> float:
    """Return the width multiplier that gives the channels of all stages, which are rounded to multiples of 8.

    If several multipliers give the same network, return the fraction with the smallest denominator. If none does,
    return the nearest one.
    """
    channels, bases = channels_of(state), [base for base, _ in STAGES]
    if len(channels) != len(bases):
        return channels[-1] / bases[len(channels) - 1] if channels else 1.0
    nearest = channels[-1] / bases[-1]
    for denominator in range(1, bases[-1]):
        for numerator in (math.floor(nearest * denominator), math.ceil(nearest * denominator)):
            width = numerator / denominator
            if width and all(scaled(base, width) == count for base, count in zip(bases, channels, strict=True)):
                return width
    return nearest


def describe_width(state: State) -> str:
    """Return the width as text, with the channels by stage."""
    return f"{width_of(state):g} (channels {', '.join(map(str, channels_of(state)))})"


def sizes_of(state: State) -> dict[str, Any]:
    """Return the arguments of ``create_model`` for a network of the same width, classes and channels."""
    classes = _size(state, "head.weight", 0)
    channels = _size(state, "stem.conv1.conv.weight", 1)
    return {
        "num_classes": 1 if classes is None else classes,
        "in_channels": 3 if channels is None else channels,
        "width": width_of(state),
    }


def _size(state: State, name: str, axis: int) -> int | None:
    """Return the size of a weight along an axis, or None if it is missing. Raise UserError if it has no such axis."""
    if name not in state:
        return None
    shape = state[name].shape
    if len(shape) <= axis:
        raise UserError(f"{name} has shape {list(shape)}, which is invalid for a ResNet-RS; use another file")
    return shape[axis]
