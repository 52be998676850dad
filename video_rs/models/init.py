"""Starting a network from weights: this package's files, timm's, other class counts, images for video."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from video_rs import checkpoint
from video_rs.contract import IMAGENET_MEAN, IMAGENET_STD, DataContract
from video_rs.errors import MachineError, UserError
from video_rs.models.convert import from_timm, looks_like_timm, ours, strip_prefixes
from video_rs.models.inflate import InflationReport, match, summary
from video_rs.models.layout import RESNET_RS_2D
from video_rs.models.presets import BLOCKS
from video_rs.models.resnet_rs import ResNetRS

LAYOUT_WEIGHTS = ("stem.pool.", ".gating.")
"""What image and video networks of different layouts may lack of each other."""

TIMM_DEPTHS = (50, 101, 152, 200, 270, 350, 420)
TIMM_CONTRACT = DataContract(num_frames=1, stride=1, mean=IMAGENET_MEAN, std=IMAGENET_STD, filter="bicubic")
"""What all of timm's ResNet-RS weights expect (its ``pretrained_cfg``), sizes apart."""


@dataclass
class Source:
    """Weights with this package's names, and what is known of them."""

    state: dict[str, Tensor]
    contract: DataContract | None = None
    model_args: dict[str, Any] | None = None


def read(path: str | Path) -> Source:
    """Reads the weights of a file.

    Args:
        path: a checkpoint of this package (its moving average, if it has one), or a bare state dict in ``.pt``,
            ``.pth`` or ``.safetensors``, of this package or timm's, whatever prefixes its names have.

    Raises:
        UserError: the file is missing, damaged, of a newer version, or holds something else.
    """
    saved = _load_safetensors(path) if Path(path).suffix == ".safetensors" else checkpoint.load(path)
    if {"format", "contract"} <= saved.keys():
        saved = checkpoint.load_run(path)  # which refuses a format newer than this version's
    source = Source(_bare(saved))
    if isinstance(saved.get("contract"), Mapping):
        source.contract, source.model_args = DataContract.from_dict(saved["contract"], path), saved.get("model_args")
    if not source.state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in source.state.items()):
        raise UserError(f"{path} holds no weights: neither a checkpoint nor a state dict")
    if spoilt := [name for name, value in source.state.items() if not value.isfinite().all()]:
        raise UserError(f"{path} is damaged: {spoilt[0]} and {len(spoilt) - 1} more weights are not finite")
    if looks_like_timm(strip_prefixes(source.state)):
        source.contract = TIMM_CONTRACT
    source.state = ours(source.state)
    return source


def sizes(source: Source) -> dict[str, Any]:
    """The arguments of ``create_model`` that make a network as wide, and for as many classes and channels."""
    try:
        classes = source.state["head.weight"].shape[0]
        stem, pixels = (source.state[f"stem.{name}.conv.weight"] for name in ("conv3", "conv1"))
    except KeyError as error:
        raise UserError(f"the weights lack {error.args[0]}: they are not those of a ResNet-RS") from None
    width = (source.model_args or {}).get("width", stem.shape[0] / RESNET_RS_2D.stem_width)
    return {"num_classes": classes, "in_channels": pixels.shape[1], "width": width}


def _bare(saved: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(saved.get("model"), Mapping):
        return checkpoint.weights(saved)
    return saved["state_dict"] if isinstance(saved.get("state_dict"), Mapping) else dict(saved)


def _load_safetensors(path: str | Path) -> dict[str, Tensor]:
    import safetensors
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from None


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
    return Source(from_timm(model.state_dict()), TIMM_CONTRACT)


@dataclass
class InitReport:
    """Where a network's weights came from and what became of them.

    Attributes:
        source: as it was named.
        weights: what was matched, inflated, adapted and left.
        contract: what the source expected to see; None when unknown.
    """

    source: str
    weights: InflationReport
    contract: DataContract | None

    def __str__(self) -> str:
        weights = self.weights
        parts = [f"{len(weights.matched)} weights as they are"]
        parts += [f"{len(weights.inflated)} inflated"] if weights.inflated else []
        parts += [f"{name} {how}" for name, how in weights.adapted.items() if name.endswith("weight")]
        parts += [f"not used: {summary(weights.unused)}"] if weights.unused else []
        parts += [f"not in the source: {summary(weights.missing)}"] if weights.missing else []
        return ", ".join(parts)


def init_from(model: ResNetRS, source: str | Path, *, method: str = "center") -> InitReport:
    """Starts a network from weights, in place.

    The head starts anew when the class counts differ, or the class names where both are known; of the same names in
    another order, the rows are put in the network's. Image weights are inflated into a video network, which takes over
    their mean, std and resize filter where they are known. Everything else must fit.

    Args:
        model: the network.
        source: a file (see :func:`read`), or "timm" for timm's pretrained weights of the same depth.
        method: of inflation, "center" or "average".

    Raises:
        UserError: the weights cannot be read or do not fit; the message names them.
        MachineError: timm's weights could not be downloaded.
    """
    return load_into(model, read_timm(model.blocks) if source == "timm" else read(source), str(source), method=method)


def load_into(model: ResNetRS, source: Source, name: str, *, method: str = "center") -> InitReport:
    """:func:`init_from` for weights that were read already; ``name`` is for messages."""
    class_names = source.contract.class_names if source.contract else ()
    try:
        weights, report = match(source.state, model, method, class_names)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    of_layout = LAYOUT_WEIGHTS if report.inflated else ()
    lost = [key for key in report.unused if not any(part in key for part in of_layout)]
    wanting = [key for key in report.missing if not any(part in key for part in of_layout)]
    if lost or wanting:
        faults = [f"the network has no {summary(lost)}"] if lost else []
        faults += [f"they have no {summary(wanting)}"] if wanting else []
        raise UserError(f"{name} holds the weights of another network: {'; '.join(faults)}")
    model.load_state_dict(weights, strict=False)
    if source.contract is not None:
        model.contract = _contract(model.contract, source.contract, same_head="head.weight" not in report.adapted)
    return InitReport(name, report, source.contract)


def _contract(own: DataContract, source: DataContract, *, same_head: bool) -> DataContract:
    """Our frames and sizes with the pixels, and for want of others the class names, that the weights know."""
    kept = {"filter": source.filter}
    if source.in_channels == own.in_channels:
        kept |= {"mean": source.mean, "std": source.std}
    if same_head and not own.class_names:
        kept |= {"class_names": source.class_names}
    return dataclasses.replace(own, **kept)
