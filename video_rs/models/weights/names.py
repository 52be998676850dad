"""Names of weights: this package's, those of timm's ResNet-RS, and the prefixes of wrappers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from video_rs.errors import UserError
from video_rs.models.adapters.base import PREFIX
from video_rs.models.weights.state_dict import State

# of DistributedDataParallel, torch.compile, trainers, and our wrapper of other packages' networks
PREFIXES = ("module.", "_orig_mod.", "model.", PREFIX)

# a deep stem, a convolution as its pool, bottlenecks, squeeze-and-excitation: no other network of timm has all
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
    "conv1.conv": "conv1",
    "conv1.norm": "bn1",
    "conv2.conv": "conv2",
    "conv2.norm": "bn2",
    "conv3.conv": "conv3",
    "conv3.norm": "bn3",
    "se.reduce": "se.fc1",
    "se.expand": "se.fc2",
    "shortcut.conv": "downsample.1",
    "shortcut.norm": "downsample.2",
}


_FROM_STEM, _FROM_BLOCK = ({theirs: ours for ours, theirs in names.items()} for names in (_TIMM_STEM, _TIMM_BLOCK))


def from_timm(state: State) -> dict[str, Tensor]:
    """Return timm's ``resnetrs*`` state dict with the names and the 5-D kernels of this package; it may be partial.

    Raises:
        UserError: a name is not one of timm's ResNet-RS.
    """
    converted = {}
    for name, tensor in state.items():
        module, _, suffix = name.rpartition(".")
        if found := re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", module):
            place = f"stages.{int(found[1]) - 1}.{found[2]}.{_renamed(found[3], _FROM_BLOCK, name)}"
        else:
            place = _renamed(module, _FROM_STEM, name)
        converted[f"{place}.{suffix}"] = tensor.unsqueeze(2) if tensor.ndim == 4 else tensor
    return converted


def to_timm(state: State) -> dict[str, Tensor]:
    """Invert :func:`from_timm`, for image networks of the default architecture; gradients work as well.

    Raises:
        UserError: timm's networks have no such weight, or the kernel extends in time.
    """
    converted = {}
    for name, tensor in state.items():
        module, _, suffix = name.rpartition(".")
        if tensor.ndim == 5 and tensor.shape[2] > 1:
            raise UserError(f"{name} extends over {tensor.shape[2]} frames; timm's networks are for images")
        if found := re.fullmatch(r"stages\.(\d)\.(\d+)\.(.+)", module):
            place = f"layer{int(found[1]) + 1}.{found[2]}.{_renamed(found[3], _TIMM_BLOCK, name)}"
        else:
            place = _renamed(module, _TIMM_STEM, name)
        converted[f"{place}.{suffix}"] = tensor.squeeze(2) if tensor.ndim == 5 else tensor
    return converted


def _renamed(module: str, names: Mapping[str, str], weight: str) -> str:
    if module not in names:
        raise UserError(f"{weight} is not a weight of the image ResNet-RS; are these weights of another network?")
    return names[module]


def strip_prefixes(state: State) -> dict[str, Tensor]:
    """Return the state dict without the prefixes that wrappers gave to all of its names."""
    while state and (prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None)):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def looks_like_timm(state: State) -> bool:
    """Return True if the names are those of timm's ``resnetrs*``."""
    return all(name in state for name in _TIMM_HAS)


def to_ours(state: State) -> dict[str, Tensor]:
    """Return the state dict without prefixes, and with this package's names where it has timm's; it may be partial."""
    state = strip_prefixes(state)
    return from_timm(state) if looks_like_timm(state) else state
