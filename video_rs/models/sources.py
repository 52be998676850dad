"""Weights of other tools and formats, read as those of one of the networks here: what ``video-rs convert`` writes.

    weights = sources.read("resnet-rs-50-i160/", "garden")
    model = video_rs.create_model(**weights.model_args, contract=weights.contract)
    model.load_state_dict(weights.state)

Names and shapes tell the depth, the width and most of the layout, but neither the resolution that a network was trained
at nor the stride of its clips: where several presets fit, the name of the file or its folder may tell, else the one
with the shortest name is taken, and ``Weights.notes`` says so.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from video_rs import checkpoint, download
from video_rs.contract import DataContract
from video_rs.errors import UserError
from video_rs.models import convert, init, tensorflow_files, zoo
from video_rs.models.convert_tensorflow import Found, Variables, build, find_garden, find_keras, find_tpu
from video_rs.models.layout import GARDEN_3D
from video_rs.models.presets import BLOCKS, PRESETS, SOURCES, Preset
from video_rs.models.state_dict import blocks_of, complete, few

SWAPPED = ("best_ckpt-", "average_weights-")
"""How the Model Garden's trainer names exports in which averages and variables have changed places."""


@dataclass
class Weights:
    """What was read.

    Attributes:
        state: weights with this package's names, all that their network has.
        model_args: the arguments of ``create_model`` for their network.
        contract: what they expect to see.
        record: what their checkpoint says of their training, for ``checkpoint.of_weights``.
        network: their network, without weights in it.
        averages: which of them are moving averages, in words.
        notes: what the weights do not tell and was assumed, a line each.
        ignored: what else is in the file.
    """

    state: Mapping[str, Tensor] = field(repr=False)
    model_args: dict[str, Any]
    contract: DataContract | None = None
    record: dict[str, Any] = field(default_factory=dict)
    network: nn.Module = field(init=False, repr=False)
    averages: str = "none, the file has the weights alone"
    notes: list[str] = field(default_factory=list)
    ignored: Sequence[str] = ()


def read(path: str | Path | None, source: str, model: str | None = None, *, averages: bool = True) -> Weights:
    """Weights with this package's names; every one must find its place.

    Args:
        path: of "video_rs", "timm" and "keras" a file or its address, see :mod:`video_rs.download`; of "garden" and
            "tpu" a TensorFlow checkpoint, see :func:`tensorflow_files.read_checkpoint`; None: timm's public weights of
            ``model``.
        source: whose weights they are: one of these five.
        model: the network; None: as the weights tell, which bare weights of this package do not.
        averages: "garden": take the moving averages, where there are any, rather than the variables. They are taken
            from the variables' place in exports that are named as in ``SWAPPED``.

    Raises:
        UserError: the file is missing, damaged or something else; names what is missing, left over or of another shape.
        MachineError: it could not be fetched.
    """
    if source not in SOURCES:
        raise UserError(f"weights are of {', '.join(SOURCES)}, not of {source!r}")
    if path is None and not (source == "timm" and model):
        raise UserError("give the file of weights, or, of timm, a model whose public weights to take")
    called = "timm's public weights" if path is None else download.shown(path)
    try:
        if source == "garden":
            weights = _read_garden(path, model, averages)
        else:
            weights = _READERS[source](path, model)
        weights.network = zoo.empty_model(weights.model_args, weights.contract)
        weights.contract = weights.network.contract
        weights.state = _complete(weights.state, weights.network, weights.model_args["name"])
    except UserError as error:
        reason = str(error)
        if called in reason:
            raise
        raise UserError(f"{called} {reason[3:]}" if reason.startswith("it ") else f"{called}: {reason}") from None
    return weights


def _complete(state: Mapping[str, Tensor], network: nn.Module, name: str) -> dict[str, Tensor]:
    try:
        return complete(state, network)
    except UserError as error:
        raise UserError(f"it does not fit {name}: {error}") from None


# PyTorch ------------------------------------------------------------------------------------------------------------


def _read_video_rs(path: str | Path, model: str | None) -> Weights:
    saved, called = checkpoint.load(path), download.shown(path)
    source = init.source_of(saved, called)
    if not checkpoint.is_run(saved):
        if convert.looks_like_timm(source.weights):
            raise UserError("it has timm's names: give --from timm")
        if not model:
            raise UserError("it holds bare weights, which do not tell of which network: give --model")
        args = {"name": zoo.find_preset(model).name, **init.sizes(source)}
        return Weights(source.state, args, averages=_entries(source), ignored=source.ignored)
    if model not in (None, source.name):
        raise UserError(f"it holds {source.name}, not {model}; leave --model out")
    record = {key: saved[key] for key in ("config", *checkpoint.RECORD) if key in saved}
    ignored = [key for key in source.ignored if key not in checkpoint.TRAVELS and key != "ema"]
    return Weights(
        checkpoint.weights(saved), source.model_args, source.contract, record, _kept_by_run(saved), ignored=ignored
    )


def _kept_by_run(saved: Mapping[str, Any]) -> str:
    """Whether a run's weights are averages: a trainer's best.pt has them as its ``model``, its last.pt as ``ema``."""
    if saved.get("ema") is not None:
        return "all tensors are those of the run"
    training = saved["config"].get("train")
    decay = training.get("ema_decay") if isinstance(training, Mapping) else None
    if decay is None:
        return "as the run kept them; the file does not say"
    return f"all tensors, as the run kept them (decay {decay})" if decay else "none, the run kept none"


def _entries(source: init.Source) -> str:
    """Which entry of a file was taken, in words."""
    if source.entry in init.AVERAGES:
        return f"all tensors, the entry {source.entry} of the file"
    return f"none, the entry {source.entry} of the file was taken" if source.entry else Weights.averages


def _read_timm(path: str | Path | None, model: str | None) -> Weights:
    source = init.read(path) if path else init.read_timm(_named(model, "timm").blocks)
    if "stem.conv1.conv.weight" in source.weights:
        raise UserError("it has this package's names: give --from video_rs")
    try:
        state = convert.from_timm(source.weights)
    except UserError as error:
        raise UserError(
            f"it is not one of timm's resnetrs*: {error}. Weights of its other networks need no conversion: "
            "model.name=timm/<name> train.init_from=FILE"
        ) from None
    preset, notes = _choose("timm", path or "", state, model)
    weights = Weights(state, _model_args(preset, state), notes=notes, ignored=source.ignored)
    weights.averages = _entries(source) if path else "as timm publishes them"
    contract = preset.contract.with_channels(weights.model_args["in_channels"])
    weights.contract = dataclasses.replace(contract, filter=init.timm_contract(preset.blocks).filter)
    return weights


# TensorFlow ---------------------------------------------------------------------------------------------------------


def _read_tpu(path: str | Path, model: str | None) -> Weights:
    variables = tensorflow_files.read_checkpoint(path)
    found = find_tpu(variables)
    preset, notes = _choose("tpu", path, found.names, model)
    return _built(found, variables, preset, notes)


def _read_keras(path: str | Path, model: str | None) -> Weights:
    with download.readable(path) as file:
        variables = tensorflow_files.read_h5(file)
    found = find_keras(variables)
    preset, notes = _choose("keras", path, found.names, model)
    return _built(found, variables, preset, notes)


def _read_garden(path: str | Path, model: str | None, averages: bool) -> Weights:
    variables = tensorflow_files.read_checkpoint(path)
    exported = variables.prefix.name.startswith(SWAPPED)
    found = find_garden(variables, GARDEN_3D, averages=averages and not exported)  # no stem there is longer
    first = found.names.get("stem.conv1.conv.weight")
    preset, notes = _choose("garden", variables.prefix, found.names, model, variables[first].shape if first else ())
    weights = _built(found, variables, preset, notes)
    if not _for_videos(preset):
        weights.notes.append(f"the weights do not tell the activation: taken as {preset.layout.activation}")
    if exported:
        weights.averages = f"all tensors: {variables.prefix.name} holds them in place of the variables"
    elif not averages:
        weights.averages = "not taken, as --no-averages says"
    elif found.averaged:
        weights.averages += f". If the file was named {SWAPPED[0]}* when it was written, give --no-averages"
    return weights


def _built(found: Found, variables: Variables, preset: Preset, notes: list[str]) -> Weights:
    try:
        state = build(found, variables, preset.layout)
    except UserError as error:
        raise UserError(f"it does not fit {preset.name}: {error}") from None
    averages = f"{found.averaged} of {len(found.names)} tensors" if found.averaged else "none"
    if found.unaveraged:
        averages += f", none of {len(found.unaveraged)} that training changes: {few(found.unaveraged, 2)}"
    return Weights(state, _model_args(preset, state), averages=averages, notes=notes, ignored=found.ignored)


_READERS = {"video_rs": _read_video_rs, "timm": _read_timm, "tpu": _read_tpu, "keras": _read_keras}


# Which network ------------------------------------------------------------------------------------------------------


def _choose(
    source: str, path: str | Path, names: Mapping[str, object], model: str | None, kernel: tuple[int, ...] = ()
) -> tuple[Preset, list[str]]:
    """The network that has weights of these names, ``model`` if it may, and what they do not tell of it.

    Args:
        kernel: shape of the first one, ``[D, H, W, I, O]`` of a network for videos.
    """
    blocks, frames, like = blocks_of(names), kernel[0] if len(kernel) == 5 else 0, SOURCES[source]
    depth = next((f"depth {depth} " for depth, known in BLOCKS.items() if known == blocks), "unknown depth ")
    held = f"it holds a network of {depth}(blocks {', '.join(map(str, blocks))}) for {_KINDS[frames > 0]}"
    if model:
        preset = _named(model, source)
        if (preset.blocks, _for_videos(preset)) != (blocks, frames > 0):
            raise UserError(f"{held}; {preset.name} is of depth {preset.depth} for {_KINDS[_for_videos(preset)]}")
        return preset, []
    fitting = [p for p in PRESETS.values() if fnmatch.fnmatchcase(p.name, like) and p.blocks == blocks]
    fitting = [p for p in fitting if _for_videos(p) == (frames > 0)]
    if not fitting:
        raise UserError(f"{held}, and no {like} is that")
    parts = any(".se." in name for name in names), any(".gating." in name for name in names)
    whole = [p for p in fitting if (p.layout.se_ratio > 0, p.layout.self_gating) == parts]
    whole = [p for p in whole if frames in (0, p.layout.stem_temporal_kernel)]
    return _as_called(sorted(whole or fitting, key=lambda preset: len(preset.name)), path)


def _as_called(presets: list[Preset], path: str | Path) -> tuple[Preset, list[str]]:
    """One of some presets of the same weights, as the name of the file or its folder has it, and a line about that."""
    first, *others = presets
    if not others:
        return first, []
    what = "clip" if _for_videos(first) else "resolution"
    for part in reversed(re.split(r"[/\\]", download.shown(path))[-3:]):
        named = [preset for preset in presets if re.search(rf"(?<![^\W_]){_tag(preset)}(?![^\W_])", part)]
        if len(named) == 1:
            return named[0], [f"the weights do not tell the {what}: taken as {_sized(named[0])}, as in the name {part}"]
    also = ", ".join(map(_sized, others))
    return first, [f"the weights do not tell the {what}: taken as {_sized(first)}; also {also}: give --model"]


def _tag(preset: Preset) -> str:
    """What the published names of its weights have."""
    contract = preset.contract
    return f"{contract.num_frames}x{contract.stride}" if _for_videos(preset) else f"i{contract.test_size}"


def _sized(preset: Preset) -> str:
    size = f"{_tag(preset)} frames" if _for_videos(preset) else f"{preset.contract.test_size} px"
    return f"{preset.name} ({size})"


def _named(model: str, source: str) -> Preset:
    if model in PRESETS and not fnmatch.fnmatchcase(model, SOURCES[source]):
        raise UserError(
            f"weights of {source} are those of {SOURCES[source]}; {model} would compute something else with them. "
            "Convert them as what they are, then start from the result (train.init_from, inflate)"
        )
    return zoo.find_preset(model)


def _for_videos(preset: Preset) -> bool:
    return preset.contract.num_frames > 1


_KINDS = {False: "images", True: "videos"}


def _model_args(preset: Preset, state: dict[str, Tensor]) -> dict[str, Any]:
    return {"name": preset.name, **init.sizes(init.Source(state))}
