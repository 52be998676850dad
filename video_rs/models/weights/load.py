"""Create the network of a file of weights, and load them.

    loaded = load_network("resnetrs50.pth")
    loaded.network

The network is read from the checkpoint, or found from names and shapes (``weights/identify.py``); ``notes`` then lists
the assumptions.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from video_rs.data_config import DataConfig
from video_rs.errors import UserError, truncate
from video_rs.models.presets import Preset
from video_rs.models.registry import create_model, empty_model, find_preset
from video_rs.models.weights.find import is_average
from video_rs.models.weights.identify import identify_preset, matching_preset
from video_rs.models.weights.inflate import InflationReport
from video_rs.models.weights.init_from import load_into
from video_rs.models.weights.source import Source, from_checkpoint, named, read_file
from video_rs.models.weights.state_dict import blocks_of, from_timm, looks_like_timm, sizes_of
from video_rs.models.weights.timm import PATTERN, read_timm, timm_data_config

ALONE = "none, the file has only weights"


@dataclass
class Loaded:
    """A network with loaded weights, and information on them.

    Attributes:
        network: the network with the weights, in their dtype.
        model_args: arguments of ``create_model`` for the network.
        record: the entries on the training run in the checkpoint, for ``checkpoint.from_weights``.
        averages: description of the weights that are averages over training.
        notes: assumptions on settings that the weights do not determine, one line each.
        ignored: other entries of the file.
    """

    network: nn.Module = field(repr=False)
    model_args: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict)
    averages: str = ALONE
    notes: Sequence[str] = ()
    ignored: Sequence[str] = ()


def load_network(path: str | Path | None, model: str | None = None, *, timm: bool | None = None) -> Loaded:
    """Load weights of this package or timm from a file. Every weight must match.

    Args:
        path: path or URL of a checkpoint or a state dict, see :mod:`video_rs.hub`; None for timm's public weights of
            ``model``.
        model: name of the network; None to find it from the weights. Required for bare weights of this package.
        timm: True if the weights have timm's names, False if they have this package's names, None to detect it.

    Raises:
        UserError: the file is missing, damaged or of another format; weights are missing, unexpected or of the wrong
            shape.
        MachineError: the file could not be downloaded.
    """
    if path is None:
        if not model:
            raise UserError("give a file of weights, or the name of a model with public weights in timm")
        source = read_timm(matching_preset(model, PATTERN).blocks)
    else:
        source = read_file(path)
    with named(f"{source.address}{source.found.context}" if path else "timm's public weights"):
        if source.model_args:
            return _of_run(source, model)
        detected = looks_like_timm(source.weights)
        if timm is False and detected:
            raise UserError("it has timm's names, not this package's; omit --from")
        if timm or detected:
            return _of_timm(source, path, model)
        blocks_of(source.state)
        if not model:
            raise UserError("bare weights do not name their network: give --model")
        return of_preset(find_preset(model), source, averages=_entry(source))


def model_from_checkpoint(state: Mapping[str, Any], name: str = "the checkpoint") -> nn.Module:
    """Return the network of a checkpoint, in float32 and ``eval()`` mode on the CPU.

    Args:
        state: see :func:`video_rs.checkpoint.load_run`.
        name: name of the file, for messages.

    Raises:
        UserError: the network in the checkpoint is unknown, or the weights do not match it.
    """
    source = from_checkpoint(state, name)
    with named(name):
        return _network_of_run(source).float().eval()


def of_preset(preset: Preset, source: Source, data_config: DataConfig | None = None, **known: Any) -> Loaded:
    """Create the network of a preset with the width, classes and channels of the weights, and load them.

    Args:
        preset: preset of the network.
        source: the weights.
        data_config: data config of the weights, if different from the preset.
        known: more fields of :class:`Loaded`.

    Raises:
        UserError: weights are missing, unexpected or of the wrong shape.
    """
    model_args = {"name": preset.name, **sizes_of(source.state)}
    network = _network(model_args, source, data_config)
    return Loaded(network, model_args, {"weights_from": network.weights_from}, ignored=source.ignored, **known)


def load_inflated(
    source: str | Path,
    model: str,
    *,
    num_classes: int | None = None,
    class_names: tuple[str, ...] = (),
    method: str = "center",
    temporal_padding: str | None = None,
) -> tuple[Loaded, InflationReport]:
    """Load image weights into a video network of their width and channels, see :mod:`video_rs.models.weights.inflate`.

    Args:
        source: a file of image weights, its URL, or "timm".
        model: name of the video network.
        num_classes: number of classes; None for that of the source. Another number creates a new head.
        class_names: class names of the network. Classes that the source also has keep their rows of the head.
        method: "center" or "average".
        temporal_padding: padding mode in time; None for that of the network.

    Raises:
        UserError: the weights cannot be read, are already for a video network, or do not match.
        MachineError: the weights could not be downloaded.
    """
    preset = find_preset(model)
    if preset.architecture.for_images:
        raise UserError(f"--model {model} is an image network; use a video network, such as resnet3d_rs_{preset.depth}")
    weights = read_timm(preset.blocks) if source == "timm" else read_file(source)
    name = "timm" if source == "timm" else weights.address
    with named(name):
        model_args = {"name": model, **sizes_of(weights.state)}
    if any(kernel.ndim == 5 and kernel.shape[2] > 1 for kernel in weights.state.values()):
        network_name = f" ({weights.name})" if weights.name else ""
        raise UserError(f"{name} is already a video network{network_name}; start from it with train.init_from={name}")
    if "head.weight" not in weights.state:
        model_args["num_classes"] = None  # the default of the network
    model_args["num_classes"] = len(class_names) or num_classes or model_args["num_classes"]
    if temporal_padding:
        model_args["temporal_padding"] = temporal_padding
    network = create_model(**model_args)
    model_args["num_classes"] = network.num_classes
    network.data_config = dataclasses.replace(network.data_config, class_names=class_names)
    report = load_into(network, weights, name, method=method)
    return Loaded(network, model_args, {"weights_from": network.weights_from}), report


def load_exactly(network: nn.Module, source: Source, name: str) -> None:
    """Load weights into a network of the same shapes. Raise UserError, starting with ``name``, if they do not match."""
    report = load_into(network, source, name, exact=True)
    if changed := [*report.inflated, *report.adapted]:
        raise UserError(f"{name} does not fit: weights have other shapes: {truncate(changed)}")


def _network(model_args: Mapping[str, Any], source: Source, data_config: DataConfig | None) -> nn.Module:
    dtypes = [tensor.dtype for tensor in source.weights.values() if tensor.is_floating_point()] or [torch.float32]
    network = empty_model(model_args, data_config).to(functools.reduce(torch.promote_types, dtypes))
    load_exactly(network, source, f"as {model_args['name']} it")
    return network


def _network_of_run(source: Source) -> nn.Module:
    network, names = _network(source.model_args, source, source.data_config), source.data_config.class_names
    if names and len(names) != network.num_classes:
        raise UserError(f"damaged, {len(names)} class names for {network.num_classes} classes")
    network.weights_from = source.record.get("weights_from")
    return network


def _of_run(source: Source, model: str | None) -> Loaded:
    if model not in (None, source.name):
        raise UserError(f"it contains {source.name}, not {model}; omit --model")
    training = source.record["config"].get("train")
    decay = training.get("ema_decay") if isinstance(training, Mapping) else None
    if source.entry == "ema":
        averages = "all tensors, from the run"
    elif decay is None:
        averages = "as the run kept them; the decay is unknown"
    else:
        averages = f"all tensors, as the run kept them (decay {decay})" if decay else "none, the run kept none"
    network = _network_of_run(source)
    return Loaded(network, source.model_args, source.record, averages, ignored=source.ignored)


def _of_timm(source: Source, path: str | Path | None, model: str | None) -> Loaded:
    if "stem.conv1.conv.weight" in source.weights:
        raise UserError("it has this package's names, not timm's; omit --from")
    try:
        state = from_timm(source.weights)
    except UserError as error:
        raise UserError(
            f"it is not one of timm's resnetrs*: {error} Weights of its other networks need no conversion: "
            "model.name=timm/<name> train.init_from=FILE"
        ) from None
    preset, notes = identify_preset(state, PATTERN, path or "", model)
    data_config = dataclasses.replace(preset.data_config, filter=timm_data_config(preset.blocks).filter)
    data_config = data_config.with_channels(sizes_of(state)["in_channels"])
    averages = _entry(source) if path else "as timm publishes them"
    return of_preset(preset, dataclasses.replace(source, weights=state), data_config, averages=averages, notes=notes)


def _entry(source: Source) -> str:
    """Return a phrase on the entry of the file that the weights were loaded from."""
    place = str(source.found)
    if is_average(place):
        return f"all tensors, the {place} of the file"
    return f"none, the {place} of the file was used" if place else ALONE
