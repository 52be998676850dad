"""Sizes of a network of the ResNet-RS family, read from its state dict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from video_rs.errors import UserError
from video_rs.models.presets import BLOCKS
from video_rs.models.resnet_rs import STAGES, scaled

State = Mapping[str, Tensor]


def blocks_of(names: Mapping[str, object]) -> tuple[int, ...]:
    """Return the bottlenecks by stage, from the names of a state dict. UserError if a stage has none."""
    if not any(name.startswith("stages.") for name in names):
        first = f", the first is {next(iter(names))}" if names else ""
        raise UserError(f"the weights are not those of a ResNet-RS: they have no stages{first}")
    places = {tuple(map(int, found.groups())) for name in names if (found := re.match(r"stages\.(\d+)\.(\d+)\.", name))}
    blocks = tuple(sum(stage == i for stage, _ in places) for i in range(len(STAGES)))
    if not all(blocks) or sum(blocks) != len(places):
        raise UserError(f"the weights are not those of a ResNet-RS: blocks by stage {list(blocks)}")
    return blocks


def describe_blocks(blocks: tuple[int, ...]) -> str:
    """Return the numbers of bottlenecks as text, with the depth if a preset depth has them."""
    depth = [f" (depth {depth})" for depth, known in BLOCKS.items() if known == blocks]
    return ", ".join(map(str, blocks)) + "".join(depth)


def channels_of(state: State) -> tuple[int, ...]:
    """Return the channels of the bottlenecks by stage, without missing stages."""
    sizes = (_size(state, f"stages.{i}.0.conv2.conv.weight", 0) for i in range(len(STAGES)))
    return tuple(size for size in sizes if size is not None)


def width_of(state: State) -> float:
    """Return the multiplier of widths that gives the channels of all stages, which are rounded to multiples of 8.

    Several multipliers make the same network: return the fraction with the smallest denominator. For channels that
    no network of the family has, return the nearest multiplier.
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
    """Return the size of a weight along an axis; None if it is missing. UserError if it has no such axis."""
    if name not in state:
        return None
    shape = state[name].shape
    if len(shape) <= axis:
        raise UserError(f"{name} has shape {list(shape)}, which no ResNet-RS has; use another file")
    return shape[axis]
