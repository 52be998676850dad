"""Starting a network from weights: this package's files, timm's, other class counts, images for video."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from video_rs import checkpoint, download
from video_rs.contract import IMAGENET_MEAN, IMAGENET_STD, DataContract
from video_rs.errors import MachineError, UserError
from video_rs.models.convert import State, looks_like_timm, ours, strip_prefixes
from video_rs.models.external import PREFIX
from video_rs.models.inflate import InflationReport, match, summary
from video_rs.models.layout import RESNET_RS_2D, RESNET_RS_3D, Layout
from video_rs.models.presets import BLOCKS, PRESETS
from video_rs.models.resnet_rs import STAGES, ResNetRS
from video_rs.models.state_dict import blocks_of

LAYOUT_WEIGHTS = ("stem.pool.", ".gating.", ".se.")
"""What image and video networks of different layouts may lack of each other, all of it or none."""

Differences = dict[str, tuple[Any, Any]]
"""Of two layouts: ``{field: (the source's, the network's)}``."""

TIMM_DEPTHS = (50, 101, 152, 200, 270, 350, 420)
TIMM_CONTRACT = DataContract(num_frames=1, stride=1, mean=IMAGENET_MEAN, std=IMAGENET_STD, filter="bicubic")
"""What all of timm's ResNet-RS weights expect (its ``pretrained_cfg``), sizes apart."""


@dataclass
class Source:
    """Weights, and what is known of them.

    Attributes:
        weights: with the names of their file, without what wrappers put before them.
        contract: what they expect to see; None when unknown.
        model_args: the arguments of ``create_model`` for their network; None when unknown.
    """

    weights: dict[str, Tensor]
    contract: DataContract | None = None
    model_args: dict[str, Any] | None = None

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The weights with the names of the ResNet-RS family."""
        return ours(_unwrapped(self.weights))

    @property
    def name(self) -> str:
        """Of their network; "" when unknown."""
        return (self.model_args or {}).get("name", "")

    @property
    def layout(self) -> Layout | None:
        """Of their network, if that is one of the family; None when unknown."""
        if self.name in PRESETS:
            padding = (self.model_args or {}).get("temporal_padding")
            layout = PRESETS[self.name].layout
            return dataclasses.replace(layout, temporal_padding=padding) if padding else layout
        return RESNET_RS_2D if looks_like_timm(_unwrapped(self.weights)) else None


def read(path: str | Path) -> Source:
    """Reads the weights of a file.

    Args:
        path: a checkpoint of this package (its moving average, if it has one), or a bare state dict in ``.pt``,
            ``.pth`` or ``.safetensors``, of this package or timm's, whatever prefixes its names have; or the address
            of one, see ``video_rs.download``.

    Raises:
        UserError: the file is missing, damaged, of a newer version, or holds something else.
        MachineError: it could not be fetched.
    """
    saved = checkpoint.load(download.local(path))
    if is_run := checkpoint.is_run(saved):
        checkpoint.check_format(saved, path)
    weights = _bare(saved)
    if not weights or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
        raise UserError(f"{path} holds no weights: neither a checkpoint nor a state dict")
    if spoilt := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise UserError(f"{path} is damaged: {spoilt[0]} and {len(spoilt) - 1} more weights are not finite")
    source = Source(strip_prefixes(weights))
    if is_run:
        source.contract, source.model_args = DataContract.from_dict(saved["contract"], path), saved["model_args"]
    elif looks_like_timm(source.weights):
        source.contract = TIMM_CONTRACT
    return source


def sizes(source: Source) -> dict[str, Any]:
    """The arguments of ``create_model`` that make a network as wide, and for as many classes and channels."""
    try:
        classes = source.state["head.weight"].shape[0]
        stem, pixels = source.state["stages.0.0.conv1.conv.weight"], source.state["stem.conv1.conv.weight"]
    except KeyError as error:
        raise UserError(f"the weights lack {error.args[0]}: they are not those of a ResNet-RS") from None
    width = (source.model_args or {}).get("width", _width(stem))
    return {"num_classes": classes, "in_channels": pixels.shape[1], "width": width}


def _bare(saved: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(saved.get("model"), Mapping):
        return checkpoint.weights(saved)
    wrapped = next((key for key in ("state_dict", "model_state") if isinstance(saved.get(key), Mapping)), None)
    return dict(saved[wrapped] if wrapped else saved)


def _unwrapped(state: State) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def read_timm(blocks: tuple[int, ...]) -> Source:
    """timm's pretrained weights for the network with these blocks.

    Raises:
        UserError: timm has no such network, or is not installed.
        MachineError: the weights could not be downloaded.
    """
    depth = next((depth for depth in TIMM_DEPTHS if BLOCKS[depth] == tuple(blocks)), None)
    if depth is None:
        depths = ", ".join(map(str, TIMM_DEPTHS))
        raise UserError(f"timm has ResNet-RS of depths {depths}, none with blocks {list(blocks)}; give a file")
    try:
        import timm
    except (ImportError, RuntimeError):  # the latter where torchvision does not fit torch
        raise UserError("weights from timm need timm: pip install timm, or give a file of weights") from None
    try:
        model = timm.create_model(f"resnetrs{depth}", pretrained=True)
    except Exception as error:  # whatever its hub client, urllib or the disk may raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MachineError(f"timm could not get the weights of resnetrs{depth}: {reason}") from error
    return Source(model.state_dict(), TIMM_CONTRACT)


@dataclass
class InitReport:
    """Where a network's weights came from and what became of them.

    Attributes:
        source: as it was named.
        weights: what was matched, inflated, adapted and left.
        contract: what the source expected to see; None when unknown.
        differences: of the layouts, ``{field: (the source's, the network's)}``; with any, a still clip does not give
            the source's logits.
    """

    source: str
    weights: InflationReport
    contract: DataContract | None
    differences: Differences = field(default_factory=dict)

    def __str__(self) -> str:
        weights = self.weights
        parts = [f"{len(weights.matched)} weights as they are"]
        parts += [f"{len(weights.inflated)} inflated"] if weights.inflated else []
        parts += [f"{name} {how}" for name, how in weights.adapted.items() if name.endswith("weight")]
        parts += [f"not used: {summary(weights.unused)}"] if weights.unused else []
        parts += [f"not in the source: {summary(weights.missing)}"] if weights.missing else []
        parts += [self.differing()] if self.differences else []
        return ", ".join(parts)

    def differing(self) -> str:
        """The differences of the layouts and what they mean, in a line; "" without any."""
        shown = ", ".join(f"{name} {theirs} -> {own}" for name, (theirs, own) in self.differences.items())
        return f"differs from the source: {shown} (its logits will not be the source's)" if shown else ""


def init_from(model: nn.Module, source: str | Path, *, method: str = "center") -> InitReport:
    """Starts a network from weights, in place.

    The head is taken class by class where both sides know their names, the rest of it starts anew; without names it is
    taken when the class counts agree. Image weights are inflated into a video network of the family, which takes over
    their mean, std and resize filter where they are known. Everything else must fit: the shapes, and of a source whose
    network is known the layout too, as far as it decides what the weights compute.

    Args:
        model: the network, of ``video_rs.create_model``.
        source: a file (see :func:`read`); "pretrained" for the network's public weights; or "timm" for those of timm's
            ResNet-RS of the same depth, which also inflate into other layouts.
        method: of inflation, "center" or "average".

    Raises:
        UserError: the weights cannot be read or do not fit, or there are none; the message names them.
        MachineError: they could not be downloaded.
    """
    if str(source) not in ("pretrained", "timm"):
        return load_into(model, read(source), str(source), method=method)
    if not isinstance(model, ResNetRS):
        return _load_public(model)
    if source == "pretrained":
        _check_public(model)
    return load_into(model, read_timm(model.blocks), str(source), method=method)


def load_into(model: nn.Module, source: Source, name: str, *, method: str = "center") -> InitReport:
    """:func:`init_from` for weights that were read already; ``name`` is for messages."""
    class_names = source.contract.class_names if source.contract else ()
    try:
        state, differences = _fitting(source, model)
        weights, report = match(state, model, method, class_names)
    except UserError as error:
        raise UserError(f"{name} does not fit: {error}") from None
    lost, wanting = report.unused, report.missing
    if report.inflated:
        lost, wanting = _unexplained(lost, model.state_dict()), _unexplained(wanting, state)
    if lost or wanting:
        faults = [f"this network has no {summary(lost)}"] if lost else []
        faults += [f"it has no {summary(wanting)}"] if wanting else []
        raise UserError(f"{name} does not fit: {'; '.join(faults)}")
    model.load_state_dict(weights, strict=False)
    if source.contract is not None:
        changed = any(head in report.adapted for head in model.head_names)
        model.contract = _contract(model.contract, source.contract, same_head=not changed)
    return InitReport(name, report, source.contract, differences)


def _fitting(source: Source, model: nn.Module) -> tuple[dict[str, Tensor], Differences]:
    """The weights with the network's names, and how the layouts differ. UserError where one or the other cannot be."""
    if isinstance(model, ResNetRS):
        if "/" in source.name and not source.name.startswith("timm/resnetrs"):
            raise UserError(f"its network is {source.name}, this one a ResNet-RS")
        _check_size(source.state, model)
        return source.state, _layout_differences(source, model)
    theirs, own = (name.partition(".")[0] for name in (source.name, model.name))  # timm's go on with ".<which weights>"
    if theirs not in ("", own):
        raise UserError(f"its network is {source.name}, this one {model.name}")
    return {PREFIX + key: value for key, value in _unwrapped(source.weights).items()}, {}


def _unexplained(names: list[str], others: State) -> list[str]:
    """Those of ``names`` that the other side cannot lack by its layout: it has parts of the kind."""
    without = [part for part in LAYOUT_WEIGHTS if not any(part in other for other in others)]
    return [name for name in names if not any(part in name for part in without)]


def _contract(own: DataContract, source: DataContract, *, same_head: bool) -> DataContract:
    """Our frames and sizes with the pixels, and for want of others the class names, that the weights know."""
    kept = {"filter": source.filter}
    if source.in_channels == own.in_channels:
        kept |= {"mean": source.mean, "std": source.std}
    if same_head and not own.class_names:
        kept |= {"class_names": source.class_names}
    return dataclasses.replace(own, **kept)


# What must agree ------------------------------------------------------------------------------------------------------


def _check_size(state: State, model: ResNetRS) -> None:
    """Raises UserError, in words, for another depth or width than the network's."""
    theirs, own = blocks_of(state), model.blocks
    if theirs != own:
        raise UserError(f"its network has blocks {_depth(theirs)}, this one {_depth(own)}")
    first = "stages.0.0.conv1.conv.weight"
    kernels = state.get(first), model.state_dict()[first]
    if kernels[0] is not None and len(kernels[0]) != len(kernels[1]):
        wide = [f"{_width(kernel):g} ({len(kernel)} channels in the first stage)" for kernel in kernels]
        raise UserError(f"its network has width {wide[0]}, this one {wide[1]}")


def _depth(blocks: tuple[int, ...]) -> str:
    depth = [f" (depth {depth})" for depth, known in BLOCKS.items() if known == blocks]
    return ", ".join(map(str, blocks)) + "".join(depth)


def _width(kernel: Tensor) -> float:
    """The multiplier of widths, of the first bottleneck's first kernel."""
    return len(kernel) / STAGES[0][0]


def _layout_differences(source: Source, model: ResNetRS) -> Differences:
    """In what a network differs from a source whose layout is known, where weights of its shapes can still be used.

    Shapes do not tell ReLU from Swish or symmetric from SAME padding.

    Raises:
        UserError: the network would compute something else with the weights than they were trained for.
    """
    if (theirs := source.layout) is None:
        return {}
    images = for_images(model.layout)
    if images and not for_images(theirs):
        raise UserError("its network is for videos, this one for images")
    inflating = for_images(theirs) and not images
    differing = _differing(theirs, model.layout, flat=inflating)
    wrong = differing.keys() & {"activation"} if inflating else differing.keys() - {"temporal_padding"}
    if wrong:
        shown = "; ".join(f"{key} is {there} there and {here} here" for key, (there, here) in differing.items())
        candidates = [p for p in PRESETS.values() if p.blocks == model.blocks and for_images(p.layout) == images]
        fitting = [p.name for p in candidates if not _differing(theirs, p.layout, flat=inflating)]
        hint = f". They fit {fitting[0]}" if fitting else ""
        raise UserError(f"its network ({source.name or 'of timm'}) has another layout: {shown}{hint}")
    return differing


def for_images(layout: Layout) -> bool:
    """Whether networks of a layout see every frame by itself."""
    return dataclasses.replace(_flat(layout), temporal_padding=layout.temporal_padding) == layout


def _flat(layout: Layout) -> Layout:
    """The layout without its temporal extents."""
    temporal = {f.name: f.default for f in dataclasses.fields(Layout) if "temporal" in f.name}
    return dataclasses.replace(layout, **temporal)


def _differing(theirs: Layout, own: Layout, *, flat: bool = False) -> Differences:
    """The fields that differ (``flat``: of those without time), save for how the training of new weights begins."""
    if flat:
        theirs, own = _flat(theirs), _flat(own)
    names = [f.name for f in dataclasses.fields(Layout) if f.name != "zero_init_last_gamma"]
    pairs = {name: (getattr(theirs, name), getattr(own, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


# Public weights ------------------------------------------------------------------------------------------------------


def _check_public(model: ResNetRS) -> None:
    """Raises UserError unless timm's public weights are exactly those of the network, or inflate exactly into it."""
    like = RESNET_RS_2D if for_images(model.layout) else RESNET_RS_3D
    differing = _differing(like, dataclasses.replace(model.layout, temporal_padding=like.temporal_padding))
    if model.blocks in map(BLOCKS.get, TIMM_DEPTHS) and not differing and len(model.stem.conv3.conv.weight) == 64:
        return
    depths = ", ".join(map(str, TIMM_DEPTHS))
    raise UserError(
        f"there are no public weights of this network; timm has those of resnet_rs_* and resnet3d_rs_* of depths "
        f"{depths} at width 1. Start from a file instead, such as one that `video-rs convert` wrote of a TensorFlow "
        "checkpoint"
    )


def _load_public(model: nn.Module) -> InitReport:
    """Starts another package's network from the weights that it offers."""
    anew = model.load_public()
    adapted = {name: "starts anew" for name in model.head_names if name in anew}
    matched = [name for name in model.state_dict() if name not in adapted]
    return InitReport("pretrained", InflationReport(matched, adapted=adapted), model.contract)
