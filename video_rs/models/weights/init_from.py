"""Initialize a network from weights: adapt the head, and inflate 2D weights to 3D."""

import dataclasses
import difflib
import os
from pathlib import Path

from torch import Tensor, nn

from video_rs.data_config import DataConfig
from video_rs.errors import UserError, truncate
from video_rs.hub import is_address, redact_url
from video_rs.models.architecture import RESNET_RS_2D, RESNET_RS_3D, Architecture, Differences
from video_rs.models.base import classifier_names
from video_rs.models.presets import PRESETS
from video_rs.models.resnet_rs import ResNetRS
from video_rs.models.weights import state_dict
from video_rs.models.weights.inflate import InflationReport, match
from video_rs.models.weights.source import Source, named, read_file, read_public
from video_rs.models.weights.timm import no_public_weights, read_timm, timm_data_config

# Fields of the architecture that add modules, and the common part of the names of their weights.
PARTS = {"stem_pool": "stem.pool.", "self_gating": ".gating.", "se_ratio": ".se."}
PUBLIC = ("pretrained", "timm")  # sources of init_from that are not files
PADDING = "temporal_padding"  # a field of the architecture and an argument of create_model


def init_from(model: nn.Module, source: str | Path, *, method: str = "center") -> InflationReport:
    """Initialize a network from weights, in place, and record their origin as ``model.weights_from``.

    Rows of the head are copied for classes that have the same name on both sides, and keep their initial values
    otherwise. Without names, the head is copied if the class counts are equal. Image weights are inflated to a video
    network of the family, which also takes over their mean, std and resize filter if known. All other shapes must be
    equal, and so must the architecture as far as it affects the output, if that of the source is known.

    Args:
        model: the network, from ``video_rs.create_model``.
        source: a file or a URL, see :func:`read_file`; "pretrained" for the network's public weights; or "timm" for the
            weights of timm's ResNet-RS of the same depth, which can also be inflated to video architectures with
            differences, see the report.
        method: method of inflation, "center" or "average".

    Raises:
        UserError: the weights do not exist, cannot be read or do not match. The message names them.
        MachineError: the weights could not be downloaded.
    """
    return load_into(model, *_read(model, str(source)), method=method)


def load_into(
    model: nn.Module, source: Source, name: str, *, method: str = "center", exact: bool = False
) -> InflationReport:
    """Load weights that were already read, as in :func:`init_from`.

    Args:
        model, source, method: as for :func:`init_from`.
        name: name of the source, for messages.
        exact: also raise UserError if the source has no head, or has modules that the network does not have.
    """
    family = isinstance(model, ResNetRS)
    data_config = source.data_config
    if data_config is None and family and state_dict.looks_like_timm(source.weights):
        data_config = timm_data_config(model.blocks)
    class_names = data_config.class_names if data_config else ()
    with named(f"{name} does not fit{'' if exact else source.found.context}"):
        state, differences = _family_state(source, model) if family else (_external_state(source, model), {})
        weights, report = match(state, model, method, class_names)
        if family:
            report.differences, report.compared = differences, source.architecture is not None
        head = classifier_names(model)
        if exact:
            report.unused += source.found.extra
        elif set(head) <= set(report.missing):  # such as public weights of feature extractors
            report.missing = [name for name in report.missing if name not in head]
            report.adapted |= dict.fromkeys(head, "new head")
        _validate_state_dict(report, state, model.state_dict())
    model.load_state_dict(weights, strict=False)
    model.weights_from = source.weights_from
    if left := source.found.unused:
        report.notes += [*filter(None, [str(source.found)]), f"not used: {truncate(left)}"]
    if data_config is not None:
        same_head = not any(name in report.adapted for name in head)
        model.data_config = _merge_data_configs(model.data_config, data_config, same_head=same_head)
    return report


def _read(model: nn.Module, source: str) -> tuple[Source, str]:
    """Read the weights to initialize a network from. Return them and their name for messages."""
    if source not in PUBLIC:
        _check_file(source)
        found, shown = read_file(source, model), redact_url(source)
        if found.name not in ("", model.name, *PRESETS) and "/" not in found.name:
            raise UserError(f"{shown} holds {found.name}, a network unknown to this version of video_rs: upgrade it")
        return found, shown
    if not isinstance(model, ResNetRS):
        if source == "timm":
            raise UserError(f"the source timm is for the ResNet-RS family; use pretrained for {model.name}")
        return read_public(model), model.public_description
    if source == "pretrained":  # timm's must be exactly the network's, or inflate exactly into it
        like = RESNET_RS_2D if model.architecture.for_images else RESNET_RS_3D
        changed = like.differences(model.architecture).keys() - {PADDING}
        if changed or state_dict.width_of(model.state_dict()) != 1:
            raise no_public_weights()
    return read_timm(model.blocks), source


def _check_file(source: str) -> None:
    """Raise UserError, with a suggestion, for a source that does not exist."""
    if is_address(source) or os.path.exists(source):
        return
    expected = "use a file of weights, a URL, pretrained or timm"
    if source in PRESETS or source.startswith(("timm/", "pytorchvideo/")):
        raise UserError(f"{source} is the name of a network (model.name={source}), not of a file; {expected}")
    if near := difflib.get_close_matches(source.lower(), PUBLIC, n=1, cutoff=0.7):
        raise UserError(f"{source} does not exist; did you mean {near[0]}? {expected.capitalize()}")


def _validate_state_dict(report: InflationReport, source: state_dict.State, target: state_dict.State) -> None:
    """Raise UserError for unexpected or missing weights.

    Inflation may add or drop parts of the architecture, as listed in ``PARTS``, but only as a whole.
    """

    def unexplained(names: list[str], unknown: str, other: state_dict.State) -> list[str]:
        if not report.inflated:
            return names
        fields = PARTS.keys() & report.differences.keys() if report.compared else {unknown}
        absent = [PARTS[field] for field in fields if not any(PARTS[field] in name for name in other)]
        return [name for name in names if not any(part in name for part in absent)]

    surplus = unexplained(report.unused, "stem_pool", target)
    missing = unexplained(report.missing, "self_gating", source)
    faults = [f"this network has no {truncate(surplus)}"] if surplus else []
    faults += [f"it has no {truncate(missing)}"] if missing else []
    if faults:
        raise UserError("; ".join(faults))


def _merge_data_configs(own: DataConfig, source: DataConfig, *, same_head: bool) -> DataConfig:
    """Return our data config with mean, std and filter of the source, and its class names if we have none."""
    kept = {"filter": source.filter}
    if source.in_channels == own.in_channels:
        kept |= {"mean": source.mean, "std": source.std}
    if same_head and not own.class_names:
        kept |= {"class_names": source.class_names}
    return dataclasses.replace(own, **kept)


def _external_state(source: Source, model: nn.Module) -> dict[str, Tensor]:
    """Return the weights under the names of another package's network. Raise UserError for another network."""
    theirs, own = (name.partition(".")[0] for name in (source.name, model.name))  # without the tag of timm's weights
    if theirs not in ("", own):
        raise UserError(f"its network is {source.name}, not {model.name}")
    prefix = state_dict.prefix_of(model)
    return {prefix + name: tensor for name, tensor in source.weights.items()}


def _family_state(source: Source, model: ResNetRS) -> tuple[dict[str, Tensor], Differences]:
    """Return the weights under the names of the family, and how the architectures differ.

    Raises:
        UserError: the weights are for another family, depth or width, or would give different results in this network.
    """
    if source.name and source.name not in PRESETS and not source.name.startswith("timm/resnetrs"):
        raise UserError(f"its network is {source.name}, not a ResNet-RS")
    states = source.state, model.state_dict()
    blocks = [state_dict.describe_blocks(state_dict.blocks_of(state)) for state in states]
    for part, (theirs, own) in {"blocks": blocks, "width": map(state_dict.describe_width, states)}.items():
        if theirs != own:
            raise UserError(f"its network has {part} {theirs}, this one {own}")
    return source.state, _architecture_differences(source, model)


def _architecture_differences(source: Source, model: ResNetRS) -> Differences:
    """Return the tolerable differences between a network and the known architecture of a source.

    Shapes do not depend on the activation (ReLU or Swish) and padding (symmetric or SAME), so these are compared.

    Raises:
        UserError: the weights would give different results in this network.
    """
    if (theirs := source.architecture) is None:
        return {}
    images = model.architecture.for_images
    if images and not theirs.for_images:
        raise UserError("its network is for videos, this one for images")
    inflating = theirs.for_images and not images

    def compare(own: Architecture) -> Differences:
        return theirs.flat().differences(own.flat()) if inflating else theirs.differences(own)

    differences = compare(model.architecture)
    if images:  # with one frame, temporal padding makes no difference
        differences.pop(PADDING, None)
    if not (differences.keys() & {"activation"} if inflating else differences):
        return differences
    shown = "; ".join(f"{key} is {there}, not {here}" for key, (there, here) in differences.items())
    padding = f"model.{PADDING}={differences[PADDING][0]}" if PADDING in differences else ""
    candidates = [p for p in PRESETS.values() if p.blocks == model.blocks and p.architecture.for_images == images]
    names = [p.name for p in candidates if not compare(p.architecture).keys() - {PADDING}]
    hint = ""
    if differences.keys() == {PADDING}:
        hint = f". Set {padding}"
    elif names:
        hint = f". They fit {names[0]}: set {f'model.name={names[0]} {padding}'.rstrip()}"
        hint += f" (inflate: --model {names[0]})" if inflating else ""
    raise UserError(f"its network ({source.name or 'of timm'}) has another architecture: {shown}{hint}")
