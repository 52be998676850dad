"""Starting a network from weights: this package's files, timm's, other class counts, images for video."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from video_rs import checkpoint
from video_rs import hub as download
from video_rs.data_config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from video_rs.errors import UserError
from video_rs.models.adapters.base import create, is_external
from video_rs.models.architecture import RESNET_RS_2D, RESNET_RS_3D, Architecture, Differences
from video_rs.models.presets import BLOCKS, PRESETS
from video_rs.models.resnet_rs import ResNetRS
from video_rs.models.weights.inflate import InflationReport, match
from video_rs.models.weights.names import State, looks_like_timm, ours, strip_prefixes
from video_rs.models.weights.state_dict import blocks_of, channels_of, truncate, width_of

PARTS = {"stem_pool": "stem.pool.", "self_gating": ".gating.", "se_ratio": ".se."}
"""Fields of the architecture that add modules, and what the names of their weights contain."""

AVERAGES = ("state_dict_ema", "model_ema", "ema")
_ENTRIES = (*AVERAGES, "model", "state_dict", "model_state")
"""Where trainers keep weights, timm's among them: moving averages come first, as they do with ``timm.models``."""

_COUNTER = "n_averaged"
"""What torch's ``AveragedModel`` puts beside its weights."""

PUBLIC = ("pretrained", "timm")
"""What :func:`init_from` takes besides files."""

PADDING = "temporal_padding"
"""The field of a architecture that is a setting of ``create_model`` too."""

TIMM_DEPTHS = (50, 101, 152, 200, 270, 350, 420)


@dataclass
class Source:
    """Weights, and what is known of them.

    Attributes:
        weights: with the names of their file, without what wrappers put before them.
        data_config: what they expect to see, as their file says; None when it does not.
        model_args: the arguments of ``create_model`` for their network; None when unknown.
        record: what their checkpoint says of its run: its config and the entries of ``checkpoint.RECORD``.
        entry: what they are called in their file; "" where it holds nothing else.
        ignored: the file's other entries.
    """

    weights: dict[str, Tensor]
    data_config: DataConfig | None = None
    model_args: dict[str, Any] | None = None
    record: dict[str, Any] = field(default_factory=dict)
    entry: str = ""
    ignored: tuple[str, ...] = ()

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The weights with the names of the ResNet-RS family."""
        return ours(self.weights)

    @property
    def name(self) -> str:
        """Of their network; "" when unknown."""
        return (self.model_args or {}).get("name", "")

    @property
    def architecture(self) -> Architecture | None:
        """Of their network, if that is one of the family; None when unknown."""
        if self.name in PRESETS:
            padding = (self.model_args or {}).get(PADDING)
            architecture = PRESETS[self.name].architecture
            return dataclasses.replace(architecture, temporal_padding=padding) if padding else architecture
        return RESNET_RS_2D if looks_like_timm(self.weights) else None


def read(path: str | Path) -> Source:
    """Reads the weights of a file.

    Args:
        path: a checkpoint of this package (its moving average, if it has one), or a bare state dict in ``.pt``,
            ``.pth`` or ``.safetensors``, of this package or timm's, whatever prefixes its names have; or the address
            of one, see ``video_rs.hub``.

    Raises:
        UserError: the file is missing, damaged, of a newer version, or holds something else.
        MachineError: it could not be fetched.
    """
    saved, path = checkpoint.load(path), download.redact_url(path)
    if is_run := checkpoint.is_run(saved):
        checkpoint.check_format(saved, path)
    entry = _entry(saved)
    weights = {name: value for name, value in (saved[entry] if entry else saved).items() if name != _COUNTER}
    if not _are_weights(weights):
        raise UserError(f"{path} holds no weights: neither a checkpoint nor a state dict")
    if spoilt := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise UserError(f"{path} is damaged: {spoilt[0]} and {len(spoilt) - 1} more weights are not finite")
    ignored = tuple(sorted(map(str, saved.keys() - {entry}))) if entry else ()
    source = Source(strip_prefixes(weights), entry=entry, ignored=ignored)
    if is_run:
        source.data_config, source.model_args = DataConfig.from_dict(saved["data_config"], path), saved["model_args"]
        source.record = {key: saved[key] for key in ("config", *checkpoint.RECORD) if key in saved}
        source.ignored = tuple(key for key in ignored if key not in checkpoint.TRAVELS and saved[key] is not None)
        if source.name not in PRESETS and not is_external(source.name):
            raise UserError(f"{path} holds {source.name}, a network unknown to this version of video_rs: upgrade it")
    return source


def _entry(saved: Mapping[str, Any]) -> str:
    """Under which name a file holds the weights to predict with; "" where they are all that it holds."""
    if checkpoint.is_run(saved):
        return "model" if saved.get("ema") is None else "ema"
    return next((key for key in _ENTRIES if _are_weights(saved.get(key))), "")


def _are_weights(value: Any) -> bool:
    named = isinstance(value, Mapping) and bool(value)
    return named and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def read_timm(blocks: tuple[int, ...]) -> Source:
    """timm's pretrained weights for the network with these blocks.

    Raises:
        ModuleNotFoundError: timm is missing.
        UserError: timm has no such network, or is broken.
        MachineError: the weights could not be downloaded.
    """
    depth = next((depth for depth in TIMM_DEPTHS if BLOCKS[depth] == tuple(blocks)), None)
    if depth is None:
        raise _no_public_weights()
    with torch.device("meta"):  # it is asked for its public weights alone
        network = create(f"timm/resnetrs{depth}")
    return Source(strip_prefixes(network.public_weights()))


def timm_data_config(blocks: tuple[int, ...]) -> DataConfig:
    """What timm's ResNet-RS weights for the network with these blocks expect, sizes apart.

    All but depth 200 are the moving averages of the TPU repository's checkpoints (timm's ``default_cfgs`` take them
    from its release v0.1-rs-weights, ``*_ema-*.pth``), which were trained with TensorFlow 1's bicubic resizing: without
    antialiasing, whatever timm itself resizes with. Depth 200 was trained by timm (v0.1-tpu-weights,
    ``resnetrs200_c-*.pth``), on what PIL's bicubic filter makes of images, which antialiases.
    """
    filter = "bicubic-antialias" if tuple(blocks) == BLOCKS[200] else "bicubic"
    return DataConfig(num_frames=1, stride=1, mean=IMAGENET_MEAN, std=IMAGENET_STD, filter=filter)


def init_from(model: nn.Module, source: str | Path, *, method: str = "center") -> InflationReport:
    """Starts a network from weights, in place.

    The head is taken class by class where both sides know their names, the rest of it starts anew; without names it is
    taken when the class counts agree. Image weights are inflated into a video network of the family, which takes over
    their mean, std and resize filter where they are known. Everything else must fit: the shapes, and of a source whose
    network is known the architecture too, as far as it decides what the weights compute.

    Args:
        model: the network, of ``video_rs.create_model``.
        source: a file (see :func:`read`); "pretrained" for the network's public weights; or "timm" for those of timm's
            ResNet-RS of the same depth, which also inflate into video architectures that differ, see the report.
        method: of inflation, "center" or "average".

    Raises:
        UserError: the weights cannot be read or do not fit, or there are none; the message names them.
        MachineError: they could not be downloaded.
    """
    if str(source) not in PUBLIC:
        _check_file(str(source))
        return load_into(model, read(source), download.redact_url(source), method=method)
    if not isinstance(model, ResNetRS):
        if source == "timm":
            raise UserError(f"the source timm is for the ResNet-RS family; for {model.name} say pretrained")
        weights = strip_prefixes(model.public_weights())
        return load_into(model, Source(weights, model.native), model.public)
    if source == "pretrained":
        _check_public(model)
    return load_into(model, read_timm(model.blocks), str(source), method=method)


def load_into(model: nn.Module, source: Source, name: str, *, method: str = "center") -> InflationReport:
    """:func:`init_from` for weights that were read already; ``name`` is for messages."""
    data_config = source.data_config
    if data_config is None and isinstance(model, ResNetRS) and looks_like_timm(source.weights):
        data_config = timm_data_config(model.blocks)
    class_names = data_config.class_names if data_config else ()
    try:
        state, differences = _fitting(source, model)
        weights, report = match(state, model, method, class_names)
    except UserError as error:
        raise UserError(f"{name} does not fit: {error}") from None
    if isinstance(model, ResNetRS):
        report.differences, report.compared = differences, source.architecture is not None
    else:  # theirs may end in features
        anew = set(report.missing) & set(model.head_names)
        report.missing = [name for name in report.missing if name not in anew]
        report.adapted |= dict.fromkeys(sorted(anew), "starts anew")
    surplus, wanting = report.unused, report.missing
    if report.inflated:
        apart = set(PARTS) & differences.keys()
        surplus = _unexplained(surplus, apart if report.compared else {"stem_pool"}, model.state_dict())
        wanting = _unexplained(wanting, apart if report.compared else {"self_gating"}, state)
    if surplus or wanting:
        faults = [f"this network has no {truncate(surplus)}"] if surplus else []
        faults += [f"it has no {truncate(wanting)}"] if wanting else []
        raise UserError(f"{name} does not fit: {'; '.join(faults)}")
    model.load_state_dict(weights, strict=False)
    if data_config is not None:
        changed = any(head in report.adapted for head in model.head_names)
        model.data_config = _data_config(model.data_config, data_config, same_head=not changed)
    return report


def _fitting(source: Source, model: nn.Module) -> tuple[dict[str, Tensor], Differences]:
    """Return the weights under the network's names, and how the architectures differ. Raise UserError."""
    if isinstance(model, ResNetRS):
        _check_family(source)
        _check_size(source.state, model)
        return source.state, _architecture_differences(source, model)
    theirs, own = (name.partition(".")[0] for name in (source.name, model.name))  # timm's go on with ".<which weights>"
    if theirs not in ("", own):
        raise UserError(f"its network is {source.name}, this one {model.name}")
    first, bare = (next(iter(names), "") for names in (model.state_dict(), strip_prefixes(model.state_dict())))
    return {first.removesuffix(bare) + key: value for key, value in source.weights.items()}, {}


def _unexplained(names: list[str], apart: set[str], others: State) -> list[str]:
    """Those of ``names`` that the other side should have; parts that it may lack (``apart``) it must lack wholly."""
    lacking = [PARTS[key] for key in apart if not any(PARTS[key] in other for other in others)]
    return [name for name in names if not any(part in name for part in lacking)]


def _data_config(own: DataConfig, source: DataConfig, *, same_head: bool) -> DataConfig:
    """Our frames and sizes with the pixels, and for want of others the class names, that the weights know."""
    kept = {"filter": source.filter}
    if source.in_channels == own.in_channels:
        kept |= {"mean": source.mean, "std": source.std}
    if same_head and not own.class_names:
        kept |= {"class_names": source.class_names}
    return dataclasses.replace(own, **kept)


def _check_file(source: str) -> None:
    """Raises UserError, with what was probably meant, for a source that is not there."""
    if download.is_address(source) or os.path.exists(source):  # which takes any string
        return
    expected = "start from a file of weights, its address, pretrained or timm"
    if source in PRESETS or source.startswith(("timm/", "pytorchvideo/")):
        raise UserError(f"{source} is the name of a network (model.name={source}), not of a file; {expected}")
    if near := difflib.get_close_matches(source.lower(), PUBLIC, n=1, cutoff=0.7):
        raise UserError(f"{source} does not exist; did you mean {near[0]}? {expected.capitalize()}")


# What must agree ------------------------------------------------------------------------------------------------------


def _check_family(source: Source) -> None:
    """Raises UserError for weights that are known to be another family's."""
    if is_external(source.name) and not source.name.startswith("timm/resnetrs"):
        raise UserError(f"its network is {source.name}, this one a ResNet-RS")


def _check_size(state: State, model: ResNetRS) -> None:
    """Raise UserError, in words, for another depth or width than the network's."""
    theirs, own = blocks_of(state), model.blocks
    if theirs != own:
        raise UserError(f"its network has blocks {in_words(theirs)}, this one {in_words(own)}")
    if channels_of(state) != channels_of(model.state_dict()):
        shown = [
            f"{width_of(weights):g} (channels {', '.join(map(str, channels_of(weights)))})"
            for weights in (state, model.state_dict())
        ]
        raise UserError(f"its network has width {shown[0]}, this one {shown[1]}")


def in_words(blocks: tuple[int, ...]) -> str:
    """Return the numbers of bottlenecks, and the depth if there is one that has them."""
    depth = [f" (depth {depth})" for depth, known in BLOCKS.items() if known == blocks]
    return ", ".join(map(str, blocks)) + "".join(depth)


def _architecture_differences(source: Source, model: ResNetRS) -> Differences:
    """Return how a network differs from a source of a known architecture whose weights it can still use.

    Shapes do not tell ReLU from Swish or symmetric from SAME padding.

    Raises:
        UserError: the network would compute something else with the weights than they were trained for.
    """
    if (theirs := source.architecture) is None:
        return {}
    images = model.architecture.for_images
    if images and not theirs.for_images:
        raise UserError("its network is for videos, this one for images")
    inflating = theirs.for_images and not images

    def compare(own: Architecture) -> Differences:
        return theirs.flat().differences(own.flat()) if inflating else theirs.differences(own)

    differing = compare(model.architecture)
    if images:  # they see every frame by itself
        differing.pop(PADDING, None)
    if differing.keys() & {"activation"} if inflating else differing:
        shown = "; ".join(f"{key} is {there} there and {here} here" for key, (there, here) in differing.items())
        padding = f"model.{PADDING}={differing[PADDING][0]}" if PADDING in differing else ""
        candidates = [p for p in PRESETS.values() if p.blocks == model.blocks and p.architecture.for_images == images]
        names = [p.name for p in candidates if not compare(p.architecture).keys() - {PADDING}]
        hint = ""
        if differing.keys() == {PADDING}:
            hint = f". Set {padding}"
        elif names:
            hint = f". They fit {names[0]}: set {f'model.name={names[0]} {padding}'.rstrip()}"
            hint += f" (inflate: --model {names[0]})" if inflating else ""
        raise UserError(f"its network ({source.name or 'of timm'}) has another architecture: {shown}{hint}")
    return differing


# Public weights ------------------------------------------------------------------------------------------------------


def _check_public(model: ResNetRS) -> None:
    """Raise UserError unless timm's weights of this depth are exactly the network's, or inflate exactly into it."""
    like = RESNET_RS_2D if model.architecture.for_images else RESNET_RS_3D
    differing = like.differences(model.architecture).keys() - {PADDING}
    if differing or width_of(model.state_dict()) != 1:
        raise _no_public_weights()


def _no_public_weights() -> UserError:
    depths = ", ".join(map(str, TIMM_DEPTHS))
    return UserError(
        f"there are no public weights of this network; timm has those of resnet_rs_* and resnet3d_rs_* of depths "
        f"{depths} at width 1. Start from a file instead, such as one that tools/convert_tensorflow.py wrote"
    )
