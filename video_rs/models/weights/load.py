"""Read a weights file and build its network.

    weights = sources.read("resnetrs50.pth")
    model = weights.network

Names and shapes give the depth, the width and most of the architecture, but neither the resolution that a network was
trained at nor the stride of its clips. Where several presets fit, the name of the file or its folder may decide;
otherwise the preset with the shortest name is taken. ``Weights.notes`` says which.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from video_rs import hub as download
from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.models import registry as zoo
from video_rs.models.presets import PRESETS, Preset
from video_rs.models.weights import init_from as init
from video_rs.models.weights import names as convert
from video_rs.models.weights.state_dict import blocks_of, sizes_of, truncate

TIMM = "resnet_rs_*"
"""The presets that compute what timm's ``resnetrs*`` do; others may agree in shapes."""

ALONE = "none, the file has the weights alone"


@dataclass
class Weights:
    """A network with its weights, and what is known of them.

    Attributes:
        network: with the weights in it, in their dtype.
        model_args: the arguments of ``create_model`` for it.
        record: what their checkpoint says of their training, for ``checkpoint.from_weights``.
        averages: which of them are moving averages, in words.
        notes: what the weights do not determine and was assumed, a line each.
        ignored: what else is in the file.
    """

    network: nn.Module = field(repr=False)
    model_args: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict)
    averages: str = ALONE
    notes: Sequence[str] = ()
    ignored: Sequence[str] = ()


def read(path: str | Path | None, model: str | None = None, *, timm: bool | None = None) -> Weights:
    """Read weights of this package or timm's, under whatever names; every one must find its place.

    Args:
        path: of a checkpoint or a state dict, or its address, see :mod:`video_rs.hub`; None: timm's public weights
            of ``model``.
        model: the network; None: as the weights tell, which bare weights of this package do not.
        timm: True if the weights have timm's names, False if they have this package's. None: detected from the names.

    Raises:
        UserError: the file is missing, damaged or something else; names what is missing, left over or of another shape.
        MachineError: it could not be fetched.
    """
    if path is None:
        if not model:
            raise UserError("give the file of weights, or a model whose public weights to take from timm")
        source = init.read_timm(preset_named(model, TIMM).blocks)
    else:
        source = init.read(path)
    with named(download.redact_url(path or "timm's public weights")):
        if source.model_args:
            return _of_run(source, model)
        detected = convert.looks_like_timm(source.weights)
        if timm is False and detected:
            raise UserError("it has timm's names, not this package's; leave --from out")
        if timm or detected:
            return _of_timm(source, path, model)
        blocks_of(source.state)
        if not model:
            raise UserError("it holds bare weights, which do not tell of which network: give --model")
        return of_preset(zoo.find_preset(model), source, averages=_entry(source))


def of_preset(preset: Preset, source: init.Source, data_config: DataConfig | None = None, **known: Any) -> Weights:
    """Return the network of a preset with weights, as wide and for as many classes and channels as they are.

    Args:
        preset: of the network.
        source: weights.
        data_config: what they expect to see, if other than the preset's.
        known: more fields of :class:`Weights`.

    Raises:
        UserError: names what is missing, left over or of another shape.
    """
    return _loaded({"name": preset.name, **sizes_of(source.state)}, source, data_config, **known)


def _loaded(model_args: dict[str, Any], source: init.Source, data_config: DataConfig | None, **known: Any) -> Weights:
    dtypes = [tensor.dtype for tensor in source.weights.values() if tensor.is_floating_point()] or [torch.float32]
    network = zoo.empty_model(model_args, data_config).to(functools.reduce(torch.promote_types, dtypes))
    fill(network, source, f"as {model_args['name']} it")
    return Weights(network, model_args, ignored=source.ignored, **known)


def fill(network: nn.Module, source: init.Source, name: str) -> None:
    """Load weights into a network of the same shapes; ``name`` is for messages. UserError where they do not fit."""
    report = init.load_into(network, source, name)
    if changed := [*report.inflated, *report.adapted]:
        raise UserError(f"{name} does not fit: weights have other shapes: {truncate(changed)}")


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Put the name of a file before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _of_run(source: init.Source, model: str | None) -> Weights:
    if model not in (None, source.name):
        raise UserError(f"it holds {source.name}, not {model}; leave --model out")
    training = source.record["config"].get("train")
    decay = training.get("ema_decay") if isinstance(training, Mapping) else None
    if source.entry == "ema":
        averages = "all tensors are those of the run"
    elif decay is None:
        averages = "as the run kept them; the file does not say"
    else:
        averages = f"all tensors, as the run kept them (decay {decay})" if decay else "none, the run kept none"
    return _loaded(source.model_args, source, source.data_config, record=source.record, averages=averages)


def _of_timm(source: init.Source, path: str | Path | None, model: str | None) -> Weights:
    if "stem.conv1.conv.weight" in source.weights:
        raise UserError("it has this package's names, not timm's; leave --from out")
    try:
        state = convert.from_timm(source.weights)
    except UserError as error:
        raise UserError(
            f"it is not one of timm's resnetrs*: {error} Weights of its other networks need no conversion: "
            "model.name=timm/<name> train.init_from=FILE"
        ) from None
    preset, notes = choose(state, TIMM, path or "", model)
    data_config = dataclasses.replace(preset.data_config, filter=init.timm_data_config(preset.blocks).filter)
    data_config = data_config.with_channels(sizes_of(state)["in_channels"])
    averages = _entry(source) if path else "as timm publishes them"
    source = init.Source(state, ignored=source.ignored)
    return of_preset(preset, source, data_config, averages=averages, notes=notes)


def _entry(source: init.Source) -> str:
    """Describe the entry of the file that the weights were taken from."""
    if source.entry in init.AVERAGES:
        return f"all tensors, the entry {source.entry} of the file"
    return f"none, the entry {source.entry} of the file was taken" if source.entry else ALONE


# Which network ------------------------------------------------------------------------------------------------------


def choose(
    names: Mapping[str, object], like: str, path: str | Path, model: str | None = None, frames: int = 0
) -> tuple[Preset, list[str]]:
    """Return the preset that has weights of these names, and notes on what the names leave open.

    Args:
        names: a state dict with this package's names.
        like: a pattern of the presets that compute what the source of the weights does.
        path: of the file, whose name may hold the resolution or the clip.
        model: the preset, if it is known.
        frames: of the first kernel, in a network for videos; 0 in one for images.

    Raises:
        UserError: there is no such preset.
    """
    if model:
        return preset_named(model, like), []
    blocks = blocks_of(names)
    fitting = [p for p in PRESETS.values() if fnmatch.fnmatchcase(p.name, like) and p.blocks == blocks]
    fitting = [p for p in fitting if _for_videos(p) == (frames > 0)]
    if not fitting:
        kind = "videos" if frames else "images"
        raise UserError(f"it holds a network of blocks {init.in_words(blocks)} for {kind}, and no {like} is that")
    parts = any(".se." in name for name in names), any(".gating." in name for name in names)
    whole = [p for p in fitting if (p.architecture.se_ratio > 0, p.architecture.self_gating) == parts]
    whole = [p for p in whole if frames in (0, p.architecture.stem_temporal_kernel)]
    return _as_called(sorted(whole or fitting, key=lambda preset: len(preset.name)), path)


def _as_called(presets: list[Preset], path: str | Path) -> tuple[Preset, list[str]]:
    """Return the one of several presets that the name of the file or its folder names, and a note on that."""
    first, *others = presets
    if not others:
        return first, []
    what = "clip" if _for_videos(first) else "resolution"
    for part in reversed(re.split(r"[/\\]", download.redact_url(path))[-3:]):
        named = [preset for preset in presets if re.search(rf"(?<![^\W_]){_tag(preset)}(?![^\W_])", part)]
        if len(named) == 1:
            return named[0], [f"the weights do not tell the {what}: taken as {_sized(named[0])}, as in the name {part}"]
    also = ", ".join(map(_sized, others))
    return first, [f"the weights do not tell the {what}: taken as {_sized(first)}; also {also}: give --model"]


def _tag(preset: Preset) -> str:
    """Return what the published names of its weights have."""
    data_config = preset.data_config
    return f"{data_config.num_frames}x{data_config.stride}" if _for_videos(preset) else f"i{data_config.test_size}"


def _sized(preset: Preset) -> str:
    size = f"{_tag(preset)} frames" if _for_videos(preset) else f"{preset.data_config.test_size} px"
    return f"{preset.name} ({size})"


def preset_named(model: str, like: str) -> Preset:
    """Return a preset; UserError where there is none, or where it does not compute what those like ``like`` do."""
    preset = zoo.find_preset(model)
    if not fnmatch.fnmatchcase(model, like):
        raise UserError(
            f"these weights are those of {like}; {model} would compute something else with them. "
            "Convert them as what they are, then start from the result (train.init_from, inflate)"
        )
    return preset


def _for_videos(preset: Preset) -> bool:
    return preset.data_config.num_frames > 1
