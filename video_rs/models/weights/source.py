"""Read weights and their metadata from a file or from another package."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from video_rs import checkpoint
from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.hub import redact_url
from video_rs.models.architecture import RESNET_RS_2D, Architecture
from video_rs.models.base import VideoModel
from video_rs.models.presets import PRESETS
from video_rs.models.weights.state_dict import looks_like_timm, strip_prefixes, to_ours

# Entries in which trainers, including timm, store weights. The EMA comes first, as in ``timm.models``.
AVERAGES = ("state_dict_ema", "model_ema", "ema")
_ENTRIES = (*AVERAGES, "model", "state_dict", "model_state")
_COUNTER = "n_averaged"  # added to the weights by torch's AveragedModel


@dataclass
class Source:
    """Weights and their metadata.

    Attributes:
        weights: weights by their names in the file, without prefixes of wrappers.
        address: path of the file, URL without secrets, or name of another package's weights; "" if unknown.
        data_config: data config of the network, from the file; None if unknown.
        model_args: arguments of ``create_model`` for the network; None if unknown.
        record: entries of a checkpoint on its run: the config and the keys in ``checkpoint.RECORD``.
        licence: licence of another package's weights; None if unknown.
        entry: name of the weights in the file; "" if the file contains only weights.
        ignored: other entries of the file.
    """

    weights: dict[str, Tensor]
    address: str = ""
    data_config: DataConfig | None = None
    model_args: dict[str, Any] | None = None
    record: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None
    entry: str = ""
    ignored: tuple[str, ...] = ()

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The weights with the names of the ResNet-RS family."""
        return to_ours(self.weights)

    @property
    def name(self) -> str:
        """The name of the network; "" if unknown."""
        return (self.model_args or {}).get("name", "")

    @property
    def architecture(self) -> Architecture | None:
        """The architecture of the network; None if it is unknown or not a ResNet-RS."""
        if self.name in PRESETS:
            fields = self.model_args.get("arch"), self.model_args.get("temporal_padding")
            return PRESETS[self.name].architecture.with_fields(*fields)
        return RESNET_RS_2D if looks_like_timm(self.weights) else None

    @property
    def weights_from(self) -> dict[str, Any]:
        """The record for a network that is initialized from these weights, see ``video_rs.models.weights``."""
        record = {"source": self.address, "licence": self.licence}
        earlier = self.record.get("weights_from")
        return {**record, "licence": earlier.get("licence"), "weights_from": earlier} if earlier else record


def read_file(path: str | Path) -> Source:
    """Read the weights in a file.

    Args:
        path: path or URL (see ``video_rs.hub``) of a checkpoint of this package, whose EMA is read if there is one; or
            of a bare state dict in ``.pt``, ``.pth`` or ``.safetensors`` format, from this package or timm, with or
            without prefixes.

    Raises:
        UserError: the file is missing, damaged, from a newer version, or of another format.
        MachineError: the file could not be downloaded.
    """
    saved, shown = checkpoint.load(path), redact_url(path)
    if checkpoint.is_run(saved):
        checkpoint.check_format(saved, shown)
        source = from_checkpoint(saved, shown)
    else:
        entry = next((key for key in _ENTRIES if checkpoint.are_weights(saved.get(key)) and saved[key]), "")
        ignored = tuple(sorted(map(str, saved.keys() - {entry}))) if entry else ()
        source = Source(saved[entry] if entry else saved, shown, entry=entry, ignored=ignored)
    weights = {name: tensor for name, tensor in source.weights.items() if name != _COUNTER}
    if not (weights and checkpoint.are_weights(weights)):
        raise UserError(f"{shown} holds no weights: neither a checkpoint nor a state dict")
    if damaged := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise UserError(f"{shown} is damaged: {damaged[0]} and {len(damaged) - 1} more weights are not finite")
    source.weights = strip_prefixes(weights)
    return source


def from_checkpoint(state: Mapping[str, Any], name: str) -> Source:
    """Return the weights of a checkpoint of this package, or its EMA if there is one.

    Args:
        state: see :func:`video_rs.checkpoint.load_run`.
        name: name of the file.

    Raises:
        UserError: the data config is invalid.
    """
    entry = "model" if state.get("ema") is None else "ema"
    others = state.keys() - {entry, *checkpoint.TRAVELS}
    return Source(
        strip_prefixes(checkpoint.weights(state)),
        name,
        DataConfig.from_dict(state["data_config"], name),
        state["model_args"],
        record={key: state[key] for key in ("config", *checkpoint.RECORD) if key in state},
        entry=entry,
        ignored=tuple(sorted(str(key) for key in others if state[key] is not None)),
    )


def read_public(model: VideoModel) -> Source:
    """Return the public weights of a network outside the ResNet-RS family, downloaded if they are not cached.

    Raises:
        UserError: there are no public weights.
        MachineError: the weights could not be downloaded.
    """
    weights, record = strip_prefixes(model.public_weights()), public_record(model)
    return Source(weights, record["source"], model.native, licence=record["licence"])


def public_record(model: VideoModel) -> dict[str, Any]:
    """Return the source and the licence of the public weights of a network outside the ResNet-RS family."""
    known = getattr(getattr(model, "network", None), "pretrained_cfg", None) or {}  # timm's
    return {"source": known.get("hf_hub_id") or model.name, "licence": known.get("license")}


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Prepend a name to the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
