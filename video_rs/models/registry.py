"""Networks by name."""

from __future__ import annotations

import dataclasses
import inspect
import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.models.adapters import base as external
from video_rs.models.presets import PRESETS, Preset
from video_rs.models.resnet_rs import ResNetRS

COUNTS = ("num_classes", "in_channels")
RANGES = {"width": (0.05, 8), "dropout": (0, 0.95), "drop_path": (0, 0.95), "bn_momentum": (1e-4, 1)}
"""Of the numbers that ``create_model`` takes, the lowest and the highest: those of the config's keys."""
_OPTIONAL = ("num_classes", "dropout", "drop_path", "bn_momentum")


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_channels: int = 3,
    width: float = 1.0,
    dropout: float | None = None,
    drop_path: float | None = None,
    drop_path_rule: str = "stage",
    bn_momentum: float | None = None,
    temporal_padding: str | None = None,
    data_config: DataConfig | None = None,
) -> nn.Module:
    """A network by name; None takes its preset's value.

    It has ``data_config``, ``num_classes`` and ``model_args`` (the arguments that create it again), and ``forward(x,
    keys=None)`` gives logits.

    Args:
        name: one of ``video_rs.list_models()``: "resnet3d_rs_50" for clips ``[N, C, T, H, W]``, "resnet_rs_50" for
            images ``[N, C, H, W]``. Or a network of another package: "timm/<name>" for images, and
            "pytorchvideo/<name>", see ``video_rs.models.adapters.base``.
        pretrained: start from public weights instead of fresh ones: the package's own, and timm's for this family,
            inflated for clips. With another ``num_classes`` the head is initialized again.
        num_classes: logits, 1 or more.
        in_channels: 3 for RGB.
        width: multiplies all widths, 0.05 to 8; of this family only, as are ``drop_path_rule`` and
            ``temporal_padding``.
        dropout: rate before the classifier, 0 to 0.95.
        drop_path: rate of stochastic depth in the last block, 0 to 0.95.
        drop_path_rule: "stage" (the paper's) or "block" (timm's), see :class:`ResNetRS`.
        bn_momentum: torch's momentum of batch normalisation; 1e-4 to 1; None: 0.1 in this family, theirs in
            others.
        temporal_padding: "zeros" or "replicate" (the first and last frame) instead of the architecture's.
        data_config: what the weights expect to see.

    Raises:
        UserError: the name, the rule or the padding is unknown; a number is out of its range; the data config has other
            channels; there are no public weights.
        MachineError: the public weights could not be downloaded.
    """
    arguments = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "width": width,
        "dropout": dropout,
        "drop_path": drop_path,
        "drop_path_rule": drop_path_rule,
        "bn_momentum": bn_momentum,
        "temporal_padding": temporal_padding,
        "data_config": data_config,
    }
    _check(name, arguments)
    if external.is_external(name):
        model = external.create(name, **arguments)
    else:
        model = _create(find_preset(name), **arguments)
    del arguments["data_config"]
    model.model_args = {"name": name, **arguments, "num_classes": model.num_classes}
    if pretrained:
        from video_rs.models.weights.init_from import init_from

        init_from(model, "pretrained")
    return model


def _check(name: Any, arguments: Mapping[str, Any]) -> None:
    """Raises UserError for arguments of :func:`create_model` that no network has."""
    if not isinstance(name, str):
        raise UserError(f"the name of a network is a string, such as 'resnet3d_rs_50'; found {name!r}")
    for key in (*COUNTS, *RANGES):
        value = arguments[key]
        if not (value is None and key in _OPTIONAL):
            _check_number(key, value)
    data_config, in_channels = arguments["data_config"], arguments["in_channels"]
    if data_config is not None and data_config.in_channels != in_channels:
        raise UserError(
            f"in_channels={in_channels}, but the data config is for {data_config.in_channels} channels; make them agree"
        )


def _check_number(key: str, value: Any) -> None:
    kind, (low, high) = (numbers.Integral, (1, None)) if key in COUNTS else (numbers.Real, RANGES[key])
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not (fits and low <= value and (high is None or value <= high)):
        wanted = "a whole number above 0" if high is None else f"a number from {low:g} to {high:g}"
        raise UserError(f"{key} must be {wanted}; found {value!r}")


def empty_model(model_args: Mapping[str, Any], data_config: DataConfig | None = None) -> nn.Module:
    """:func:`create_model` without random weights, which would be thrown away: memory that nobody has filled.

    Networks of other packages may hold tensors that no state dict has, so these are made as they are.

    Args:
        model_args: of ``create_model``, as a checkpoint has them: whatever they are, nothing is downloaded for them.
        data_config: what the weights expect to see.

    Raises:
        UserError: there are others than this version knows, or no network can be made of them.
    """
    known = inspect.signature(create_model).parameters.keys() - {"data_config", "pretrained"}
    if unknown := model_args.keys() - known:
        raise UserError(f"it has model_args {sorted(unknown)}, unknown to this version of video_rs: upgrade it")
    try:
        return _empty(model_args, data_config)
    except (UserError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:  # sizes below 0, of petabytes
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"no network can be made of its model_args: {reason}") from None


def _empty(model_args: Mapping[str, Any], data_config: DataConfig | None) -> nn.Module:
    if external.is_external(model_args["name"]):
        with torch.random.fork_rng([]):
            return create_model(**model_args, data_config=data_config)
    with torch.device("meta"):
        model = create_model(**model_args, data_config=data_config)
    model = model.to_empty(device="cpu")
    for buffer in model.buffers():  # counters of batches, which other programs' weights do not have
        buffer.zero_()
    return model


def _create(
    preset: Preset, *, temporal_padding: str | None, data_config: DataConfig | None, **options: Any
) -> ResNetRS:
    """Make a network of this family; arguments as for :func:`create_model`."""
    architecture = preset.architecture
    if temporal_padding is not None:
        architecture = dataclasses.replace(architecture, temporal_padding=temporal_padding)
    own = {key: getattr(preset, key) for key in ("num_classes", "dropout", "drop_path")} | {"bn_momentum": 0.1}
    given = {key: value for key, value in options.items() if value is not None}
    data_config = data_config or preset.data_config.with_channels(options["in_channels"])
    return ResNetRS(architecture, preset.blocks, data_config=data_config, **own | given)


def find_preset(name: str) -> Preset:
    """The preset called ``name``; ``UserError`` with the nearest names when there is none."""
    external.known(name, PRESETS)
    return PRESETS[name]
