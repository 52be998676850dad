"""Register, list and create networks by name. torch is imported when a network is created.

A family is one file with a factory::

    @register_model
    def my_net(num_classes=400, in_channels=3, data_config=None, **kwargs) -> nn.Module:
        return MyNet(...)

The file is in this folder, or is imported by the user. ``video_rs.models.base.VideoModel`` defines the methods of a
network and can be the base class.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from video_rs.data_config import DataConfig
from video_rs.errors import UserError, format_value
from video_rs.models.arguments import NEUTRAL, check_name, check_numbers, check_settings, plain, suggest
from video_rs.models.presets import PRESETS, Preset

if TYPE_CHECKING:
    from torch import nn

Factory = Callable[..., "nn.Module"]

PACKAGES = ("timm", "pytorchvideo")
"""Other packages, whose networks are ``<package>/<name>``. Each has a module in ``video_rs.models.adapters``."""

NEEDED = ("forward_features", "forward_head", "get_classifier", "reset_classifier")
NEEDED += ("num_classes", "num_features", "data_config")
"""Methods and attributes of every network, see ``video_rs.models.base.VideoModel``."""

_FACTORIES: dict[str, Factory] = {}


def register_model(factory: Factory, name: str | None = None) -> Factory:
    """Register a factory of networks (a decorator).

    Args:
        factory: called with the arguments given to :func:`create_model`: ``num_classes``, ``in_channels``,
            ``data_config`` and other options.
        name: name of the network; None for the name of the function.

    Raises:
        UserError: the name is taken by another function, or contains a slash.
    """
    name = name or factory.__name__
    if "/" in name:
        raise UserError(f"the name of a network cannot contain a slash: {name!r}")
    known = _FACTORIES.get(name, factory)
    if known is not factory and getattr(known, "__module__", "") != factory.__module__:
        raise UserError(f"there is already a model {name!r}; rename the one in {factory.__module__}")
    _FACTORIES[name] = factory
    return factory


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the networks that match a shell-style pattern.

    Args:
        pattern: "garden_*_50" for registered networks; "timm/resnet5*" or "pytorchvideo/*" for networks of that
            package, which is imported. timm's names include the tag of the weights if the pattern has a dot
            ("timm/resnet50.*").

    Raises:
        ModuleNotFoundError: the package is missing.
        UserError: the package cannot be imported.
    """
    package, slash, _ = pattern.partition("/")
    if slash:
        names = _adapter(package).names(pattern) if package in PACKAGES else []
    else:
        _import_families()
        names = list(_FACTORIES)
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_channels: int = 3,
    dropout: float | None = None,
    drop_path: float | None = None,
    bn_momentum: float | None = None,
    data_config: DataConfig | None = None,
    **options: Any,
) -> nn.Module:
    """Create a network by name. ``None`` selects the default of the network.

    See ``video_rs.models.base.VideoModel`` for its methods; ``forward(x, keys=None)`` returns logits.

    Args:
        name: one of ``video_rs.list_models()``: "resnet3d_rs_50" for clips ``[N, C, T, H, W]``, "resnet_rs_50" for
            images ``[N, C, H, W]``; or a network of another package: "timm/<name>" (images), "pytorchvideo/<name>".
        pretrained: load public weights: those of the package, or timm's for ResNet-RS, inflated for clips. With another
            ``num_classes`` the head is initialized randomly.
        num_classes: number of logits; 0 to return pooled features ``[N, num_features]`` instead.
        in_channels: number of input channels; 3 for RGB.
        dropout: dropout rate before the classifier, 0 to 0.95.
        drop_path: rate of stochastic depth in the last block, 0 to 0.95.
        bn_momentum: torch's momentum of batch normalisation, 1e-4 to 1; None for 0.1 in ResNet-RS.
        data_config: the frames, pixels and classes that the weights expect.
        options: settings of the family. ResNet-RS has ``width`` (multiplier of all widths, 0.05 to 8),
            ``drop_path_rule`` ("stage" as in the paper, or "block" as in timm), ``temporal_padding`` ("zeros" or
            "replicate"), and ``arch``, a mapping of fields of ``video_rs.models.architecture.Architecture``.

    Raises:
        UserError: the name or a setting is unknown, a number is out of range, the data config has a different number of
            channels, the network lacks a method, or there are no public weights.
        MachineError: the public weights could not be downloaded.
    """
    if not isinstance(name, str):
        raise UserError(f"the name of a network is a string, such as 'resnet3d_rs_50'; found {name!r}")
    arguments = {"num_classes": num_classes, "in_channels": in_channels, "dropout": dropout, "drop_path": drop_path}
    arguments |= {"bn_momentum": bn_momentum, **options}
    check_numbers(arguments)
    arguments = {key: plain(value) for key, value in arguments.items()}
    if data_config is not None and data_config.in_channels != in_channels:
        raise UserError(
            f"in_channels={in_channels}, but the data config is for {data_config.in_channels} channels; make them equal"
        )
    removes_head = pretrained and num_classes == 0 and not name.startswith("timm/")  # timm creates them without a head
    model = _build(name, arguments | {"num_classes": None} if removes_head else arguments, data_config)
    for attribute, value in {"name": name, "weights_from": None}.items():
        if not hasattr(model, attribute):  # not a VideoModel
            setattr(model, attribute, value)
    model.model_args = {"name": name, **arguments, "num_classes": model.num_classes}
    if pretrained:
        from video_rs.models.weights.init_from import init_from

        init_from(model, "pretrained")
    if removes_head:
        model.reset_classifier(0)
    return model


def _build(name: str, arguments: Mapping[str, Any], data_config: DataConfig | None) -> nn.Module:
    """Call the factory with the given arguments. Raise UserError for arguments that it does not have."""
    import torch

    from video_rs.models.base import channels_last

    factory = _factory(name)
    known = _settings(factory)
    bn_momentum = arguments.get("bn_momentum")
    arguments = {key: value for key, value in arguments.items() if key != "bn_momentum"}
    if known is not None:
        check_settings(name, arguments, known)
    given = {key: value for key, value in arguments.items() if value is not None and value != NEUTRAL.get(key, ...)}
    model = factory(**given, **({} if data_config is None else {"data_config": data_config}))
    if missing := [needed for needed in NEEDED if not hasattr(model, needed)]:
        raise UserError(f"{name} has no {', '.join(missing)}; docs/extending.md has all that a network needs")
    if bn_momentum is not None:
        for layer in model.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.momentum = bn_momentum
    for size in (model.data_config.train_size, model.data_config.test_size):
        if hasattr(model, "check"):
            model.check(model.data_config.num_frames, size, size)
    return channels_last(model)


def _settings(factory: Factory) -> set[str] | None:
    """Return the names of a factory's arguments; None if it takes any."""
    parameters = inspect.signature(factory).parameters
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return None if any_name else set(parameters)


def _factory(name: str) -> Factory:
    """Return the factory of a network. Raise UserError, with the nearest names, if there is none."""
    package, slash, _ = name.partition("/")
    if slash and package not in PACKAGES:
        raise no_package(name)
    if slash:
        if name not in _adapter(package).names(name):
            check_name(name, _all_names(name))
        return functools.partial(_adapter(package).create, name)
    if name not in _FACTORIES:
        check_name(name, _all_names(name), " For a plugin's network, name its file with --plugins")
    return _FACTORIES[name]


def _all_names(name: str) -> list[str]:
    """Return the names of all networks that can be imported, with tags of weights if ``name`` has one."""
    _import_families()
    names = list(_FACTORIES)
    for package in PACKAGES:
        with contextlib.suppress(ImportError, UserError):
            names += _adapter(package).names(name)
    return names


def _adapter(package: str) -> ModuleType:
    return importlib.import_module(f"video_rs.models.adapters.{package}")


def no_package(name: str) -> UserError:
    """Return the error for a name with an unknown prefix."""
    prefixes = f"networks of other packages begin with {'/ or '.join(PACKAGES)}/"
    return UserError(f"there is no model {format_value(name)}: {prefixes}{suggest(name, _all_names(name))}")


@functools.cache
def _import_families() -> None:
    """Import the modules of this folder that register networks."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if "\n@register_model" in path.read_text(encoding="utf-8"):
            importlib.import_module(f"video_rs.models.{path.stem}")


def empty_model(model_args: Mapping[str, Any], data_config: DataConfig | None = None) -> nn.Module:
    """:func:`create_model` with uninitialised weights, to load weights into.

    Networks of other packages are initialised, because they may have tensors that are not in the state dict.

    Args:
        model_args: arguments of ``create_model``, as stored in a checkpoint. Nothing is downloaded.
        data_config: the frames, pixels and classes that the weights expect.

    Raises:
        UserError: an argument is unknown to this version, or the network cannot be created.
    """
    try:
        settings = _settings(_factory(model_args["name"]))
        known = inspect.signature(create_model).parameters.keys() - {"data_config", "pretrained", "options"}
        unknown = set() if settings is None else model_args.keys() - known - settings - NEUTRAL.keys()
        unknown |= model_args.keys() & {"data_config", "pretrained"}
        if not unknown:
            return _empty(model_args, data_config)
    except (UserError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:  # for example invalid sizes
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the network cannot be created from its model_args: {reason}") from None
    raise UserError(f"it has model_args {sorted(unknown)}, unknown to this version of video_rs: upgrade it")


def _empty(model_args: Mapping[str, Any], data_config: DataConfig | None) -> nn.Module:
    import torch

    if model_args["name"] not in PRESETS:
        with torch.random.fork_rng([]):
            return create_model(**model_args, data_config=data_config)
    with torch.device("meta"):
        model = create_model(**model_args, data_config=data_config)
    model = model.to_empty(device="cpu")
    for buffer in model.buffers():  # batch counters, which weights of other programs may not have
        buffer.zero_()
    return model


def find_preset(name: str) -> Preset:
    """Return the preset called ``name``. Raise UserError, with the nearest names, if there is none."""
    check_name(name, PRESETS)
    return PRESETS[name]


def _resnet_rs(
    preset: Preset,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    width: float = 1.0,
    dropout: float | None = None,
    drop_path: float | None = None,
    drop_path_rule: str = "stage",
    temporal_padding: str | None = None,
    arch: Mapping[str, Any] | None = None,
    data_config: DataConfig | None = None,
) -> nn.Module:
    """Create the network of a preset; arguments as for :func:`create_model`."""
    from video_rs.models.resnet_rs import ResNetRS

    return ResNetRS(
        preset.architecture.with_fields(arch, temporal_padding),
        preset.blocks,
        preset.num_classes if num_classes is None else num_classes,
        in_channels=in_channels,
        width=width,
        dropout=preset.dropout if dropout is None else dropout,
        drop_path=preset.drop_path if drop_path is None else drop_path,
        drop_path_rule=drop_path_rule,
        data_config=data_config or preset.data_config.with_channels(in_channels),
    )


for _preset in PRESETS.values():
    register_model(functools.partial(_resnet_rs, _preset), _preset.name)
