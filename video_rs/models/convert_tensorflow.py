"""Weights of TensorFlow's ResNet-RS with the names and axes of this package; needs no TensorFlow.

Three implementations, each with names of its own for one and the same network:

* the TF Model Garden, tensorflow/models ``official/vision/modeling/backbones/resnet.py`` (images) and ``resnet_3d.py``
  (videos): object-based checkpoints, a number for each layer;
* the TPU repository, tensorflow/tpu ``models/official/resnet/resnet_model.py``, the paper's own code: TF1 names,
  numbered as they were created;
* Keras, keras-team/tf-keras ``tf_keras/applications/resnet_rs.py``: layer names in an h5 file.

The first two train with a batch-normalisation momentum of 0, so that what predicts well is the moving average alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from video_rs.errors import UserError
from video_rs.models.layout import RESNET_RS_2D, Layout
from video_rs.models.state_dict import complete, few, skeleton

Variables = Mapping[str, np.ndarray]

_KINDS = {  # of a variable, in TensorFlow and here
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_NORM_KINDS = ("gamma", "beta", "moving_mean", "moving_variance")

_GARDEN_BLOCK = {
    "_shortcut": "shortcut.conv",  # without ResNet-D
    "_shortcut1": "shortcut.conv",
    "_shortcut_conv": "shortcut.conv",
    "_norm0": "shortcut.norm",
    "_conv1": "conv1.conv",
    "_temporal_conv": "conv1.conv",
    "_norm1": "conv1.norm",
    "_conv2": "conv2.conv",
    "_spatial_conv": "conv2.conv",
    "_norm2": "conv2.norm",
    "_conv3": "conv3.conv",
    "_expand_conv": "conv3.conv",
    "_norm3": "conv3.norm",
    "_squeeze_excitation/_se_reduce": "se.reduce",
    "_squeeze_excitation/_se_expand": "se.expand",
    "_self_gating/_transformer_w": "gating",
}
_KERAS_BLOCK = {
    "projection_conv": "shortcut.conv",
    "projection_batch_norm": "shortcut.norm",
    "conv_1": "conv1.conv",
    "batch_norm_1": "conv1.norm",
    "conv_2": "conv2.conv",
    "batch_norm_2": "conv2.norm",
    "conv_3": "conv3.conv",
    "batch_norm_3": "conv3.norm",
    "se_se_reduce": "se.reduce",
    "se_se_expand": "se.expand",
}


@dataclass
class Found:
    """Which variable each weight is.

    Attributes:
        names: this package's name of a weight: the variable's.
        averaged: how many of the variables are moving averages.
        unaveraged: variables that training changes and that have no average, where others have one: what was frozen.
        ignored: variables that are no weights, such as the slots of optimizers.
    """

    names: dict[str, str] = field(default_factory=dict)
    averaged: int = 0
    unaveraged: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def from_garden(variables: Variables, layout: Layout, *, averages: bool = True) -> dict[str, Tensor]:
    """The state dict of a TF Model Garden checkpoint, of the image or video network that ``layout`` describes.

    Args:
        variables: by their names in the checkpoint, whether it was saved as ``model=``, as ``backbone=`` and ``model=``
            or by ``save_weights``. Kernels are ``[H, W, I, O]`` of images and ``[D, H, W, I, O]`` of videos, the head's
            is ``[I, O]``; in the result they are ``[O, I, D, H, W]`` and ``[O, I]``.
        layout: of a preset: ``PRESETS["garden_resnet_rs_50"].layout``; stages are told apart by their shortcuts.
        averages: take the moving average that the optimizer keeps of a variable, where there is one. False for
            the exports ``best_ckpt-*`` and ``average_weights-*`` of the garden's trainer, which swaps the two before it
            writes these.

    Raises:
        UserError: names what is missing, left over, of another shape, or no number that training arrives at.
    """
    return build(find_garden(variables, layout, averages=averages), variables, layout)


def from_tpu(variables: Variables, blocks: Sequence[int] | None = None) -> dict[str, Tensor]:
    """The state dict of a TF1 checkpoint of the TPU repository: of its moving averages.

    Args:
        variables: by their names in the checkpoint: kernels ``[H, W, I, O]``, the head's ``[I, O]``; in the result
            they are ``[O, I, 1, H, W]`` and ``[O, I]``.
        blocks: bottlenecks by stage; None tells the stages apart by their shortcuts.

    Raises:
        UserError: names what is missing, left over or of another shape, or has no moving average.
    """
    return build(find_tpu(variables, blocks), variables, RESNET_RS_2D)


def from_keras(variables: Variables) -> dict[str, Tensor]:
    """The state dict of an h5 file of ``tf_keras.applications.resnet_rs``, of weights or of a whole model.

    Args:
        variables: by their paths in the file: kernels ``[H, W, I, O]``, the head's ``[I, O]``; in the result they are
            ``[O, I, 1, H, W]`` and ``[O, I]``.

    Raises:
        UserError: names what is missing, left over or of another shape.
    """
    return build(find_keras(variables), variables, RESNET_RS_2D)


def build(found: Found, variables: Variables, layout: Layout) -> dict[str, Tensor]:
    """The weights that were found, all that the network of this layout has, in its order and with its axes."""
    state = {ours: to_tensor(variables[theirs]) for ours, theirs in found.names.items()}
    state = complete(state, skeleton(state, layout))
    if spoilt := [found.names[name] for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise UserError(f"{len(spoilt)} variables are not finite: {few(spoilt)}")
    variances = {found.names[name]: tensor for name, tensor in state.items() if name.endswith("running_var")}
    if negative := [name for name, variance in variances.items() if (variance < 0).any()]:
        raise UserError(f"{len(negative)} variances are below zero: {few(negative)}")
    if empty := [name for name, variance in variances.items() if not variance.any()]:
        raise UserError(f"the statistics are zero, as before the first step of training: {few(empty)}")
    return state


def to_tensor(array: np.ndarray) -> Tensor:
    """[D]HWIO kernels as float32 ``[O, I, D, H, W]``, with D = 1 where there is none; ``[I, O]`` as ``[O, I]``."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is found as such
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if tensor.ndim == 5:
        tensor = tensor.permute(4, 3, 0, 1, 2)
    elif tensor.ndim == 4:
        tensor = tensor.permute(3, 2, 0, 1).unsqueeze(2)
    elif tensor.ndim == 2:
        tensor = tensor.T
    return tensor.contiguous()


_GARDEN_VALUE, _GARDEN_SLOT, _GARDEN_AVERAGE = "/.ATTRIBUTES/VARIABLE_VALUE", "/.OPTIMIZER_SLOT/", "/average"
_GARDEN_OTHER = re.compile(r"_CHECKPOINTABLE_OBJECT_GRAPH$|(?:optimizer|save_counter|global_step)\b|keras_api/metrics/")
_GARDEN_HEAD = re.compile(r"(?:model/)?layer_with_weights-1/(kernel|bias)")
_GARDEN_LAYER = re.compile(r"(?:model/)?(?:backbone|layer_with_weights-0)/layer_with_weights-(\d+)/(?:(_.+)/)?(\w+)")


def find_garden(variables: Variables, layout: Layout, *, averages: bool = True) -> Found:
    """Names of a Model Garden checkpoint; arguments and errors as for :func:`from_garden`.

    Only the names and shapes of ``variables`` are read; of the layout, how many kernels the stem has.
    """
    found, plain, slots = Found(), {}, {}
    for name in variables:
        owner, _, slot = name.removesuffix(_GARDEN_VALUE).partition(_GARDEN_SLOT)
        if slot.endswith(_GARDEN_AVERAGE) and averages:
            slots[owner] = name
        elif slot or _GARDEN_OTHER.match(owner):
            found.ignored.append(name)
        else:
            plain[owner] = name
    layers = [(int(at[1]), at[2]) for owner in plain if (at := _GARDEN_LAYER.fullmatch(owner))]
    first = min((index for index, place in layers if place), default=len(layers))
    shortcuts = sorted({index for index, place in layers if _GARDEN_BLOCK.get(place) == "shortcut.conv"})
    unknown = [name for owner, name in slots.items() if owner not in plain]
    for owner, name in plain.items():
        ours = _garden_name(owner, first, shortcuts, len(layout.stem_kernels))
        if ours is None or ours in found.names:
            unknown.append(name)
        else:
            found.names[ours] = slots.get(owner, name)
            found.ignored += [name] if owner in slots else []
            if slots and owner not in slots and "/moving_" not in owner:
                found.unaveraged.append(name)
    _refuse(unknown, "the Model Garden's ResNet-RS")
    found.averaged = len(slots)
    return found


def _garden_name(owner: str, first_block: int, shortcuts: Sequence[int], stem_kernels: int) -> str | None:
    if head := _GARDEN_HEAD.fullmatch(owner):
        return f"head.{_KINDS[head[1]]}"
    found = _GARDEN_LAYER.fullmatch(owner)
    if found is None or found[3] not in _KINDS:
        return None
    index, place, kind = int(found[1]), found[2], _KINDS[found[3]]
    if place is None and index < first_block:
        layer = f"conv{index // 2 + 1}" if index // 2 < stem_kernels else "pool"
        return f"stem.{layer}.{'norm' if index % 2 else 'conv'}.{kind}"
    before = [start for start in shortcuts if start <= index]
    if place not in _GARDEN_BLOCK or not before:
        return None
    return f"stages.{len(before) - 1}.{index - before[-1]}.{_GARDEN_BLOCK[place]}.{kind}"


_TPU_AVERAGE = "/ExponentialMovingAverage"
_TPU_KERNEL = re.compile(rf"conv2d(?:_(\d+))?/kernel(?:{_TPU_AVERAGE})?")


def find_tpu(variables: Variables, blocks: Sequence[int] | None = None) -> Found:
    """Names of a TPU-repository checkpoint; arguments and errors as for :func:`from_tpu`."""
    found, known, bare = Found(), set(), []
    for ours, theirs, kinds in _tpu_layers(blocks or tpu_blocks(variables)):
        for kind in kinds:
            name = f"{theirs}/{kind}"
            known.add(name)
            if name + _TPU_AVERAGE in variables:
                found.names[f"{ours}.{_KINDS[kind]}"] = name + _TPU_AVERAGE
            elif name in variables:
                bare.append(name)
    if bare:
        raise UserError(
            f"{len(bare)} variables have no moving average ({_TPU_AVERAGE[1:]}): {few(bare)}; these networks were "
            "trained to predict with their averages, as their own statistics are those of one batch: give a "
            "checkpoint that holds them"
        )
    found.averaged = len(found.names)
    used, unknown = set(found.names.values()), []
    for name in variables:
        if name in known or name == "global_step" or (name.rpartition("/")[0] in known and name not in used):
            found.ignored.append(name)
        elif name not in used:
            unknown.append(name)
    _refuse(unknown, "the TPU repository's ResNet-RS of this depth")
    return found


def _tpu_layers(blocks: Sequence[int]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """This package's name, the variable's and its kinds, of all layers in the order in which they were created."""
    counts = {"conv2d": 0, "batch_normalization": 0}

    def numbered(kind: str) -> str:
        counts[kind] += 1
        return f"{kind}_{counts[kind] - 1}" if counts[kind] > 1 else kind

    stem = [f"stem.{layer}" for layer in ("conv1", "conv2", "conv3", "pool")]
    for place in stem:
        yield f"{place}.conv", numbered("conv2d"), ["kernel"]
        yield f"{place}.norm", numbered("batch_normalization"), _NORM_KINDS
    for stage, block in ((i, b) for i, count in enumerate(blocks) for b in range(count)):
        for layer in (*(["shortcut"] if block == 0 else []), "conv1", "conv2", "conv3"):
            yield f"stages.{stage}.{block}.{layer}.conv", numbered("conv2d"), ["kernel"]
            yield f"stages.{stage}.{block}.{layer}.norm", numbered("batch_normalization"), _NORM_KINDS
        for layer in ("reduce", "expand"):
            yield f"stages.{stage}.{block}.se.{layer}", numbered("conv2d"), ["kernel", "bias"]
    yield "head", "dense", ["kernel", "bias"]


def tpu_blocks(variables: Variables) -> tuple[int, ...]:
    """Bottlenecks by stage: a block's first kernel has more outputs than inputs where it is a shortcut's."""
    kernels = {int(at[1] or 0): variables[name].shape for name in variables if (at := _TPU_KERNEL.fullmatch(name))}
    blocks, i = [], 4
    while i in kernels:
        inputs, outputs = kernels[i][-2:]
        if outputs > inputs:
            blocks.append(0)
        if not blocks:
            break
        blocks[-1] += 1
        i += 6 if outputs > inputs else 5
    if len(blocks) != 4:
        raise UserError(f"these are not the variables of the TPU repository's ResNet-RS: {few(list(variables))}")
    return tuple(blocks)


_KERAS_OTHER = re.compile(r"optimizer_weights/|(?:.*/)?normalization(?:_\d+)?/(?:mean|variance|count)$")
_KERAS_PLACE = re.compile(r"BlockGroup(\d)__block_(\d+)_+(\w+)")


def find_keras(variables: Variables) -> Found:
    """Names of a Keras h5 file; errors as for :func:`from_keras`."""
    found, unknown, twice = Found(), [], []
    for name in variables:
        path = name.removesuffix(":0")
        layer, _, kind = path.rpartition("/")
        if _KERAS_OTHER.match(path):
            found.ignored.append(name)
        elif (place := _keras_place(layer.rpartition("/")[2])) and kind in _KINDS:
            ours = f"{place}.{_KINDS[kind]}"
            twice += [name] if ours in found.names else []
            found.names[ours] = name
        else:
            unknown.append(name)
    _refuse(unknown, "Keras's ResNet-RS")
    if twice:
        raise UserError(f"{len(twice)} weights of Keras's ResNet-RS are there twice: {few(twice)}")
    return found


def _keras_place(layer: str) -> str | None:
    if layer == "predictions":
        return "head"
    if found := re.fullmatch(r"stem_1_stem_(conv|batch_norm)_([1-4])", layer):
        place = "pool" if found[2] == "4" else f"conv{found[2]}"
        return f"stem.{place}.{'conv' if found[1] == 'conv' else 'norm'}"
    found = _KERAS_PLACE.fullmatch(layer)
    if found is None or found[3] not in _KERAS_BLOCK:
        return None
    return f"stages.{int(found[1]) - 2}.{found[2]}.{_KERAS_BLOCK[found[3]]}"


def _refuse(unknown: Sequence[str], network: str) -> None:
    if unknown:
        raise UserError(f"{len(unknown)} variables are not those of {network}: {few(unknown)}")
