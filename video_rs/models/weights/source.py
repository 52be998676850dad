"""Read weights and their metadata from a file or from another package."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from video_rs import checkpoint
from video_rs.data_config import DataConfig
from video_rs.errors import UserError, truncate
from video_rs.hub import redact_url
from video_rs.models.adapters.base import PREFIX
from video_rs.models.architecture import RESNET_RS_2D, Architecture
from video_rs.models.base import VideoModel
from video_rs.models.presets import PRESETS
from video_rs.models.resnet_rs import STAGES
from video_rs.models.weights.find import Found, find_weights
from video_rs.models.weights.state_dict import looks_like_timm, sizes_in_files, to_ours, with_timm_names

# weights that every network of the family has, to find them if the network is unknown
_FAMILY = (
    *("stem.conv1.conv.weight", "stem.conv3.norm.running_mean", "stem.pool.conv.weight", "head.weight"),
    *(f"stages.{i}.0.conv1.conv.weight" for i in range(len(STAGES))),
)


@dataclass
class Source:
    """Weights and their metadata.

    Attributes:
        weights: weights by their names in the file, without a prefix of all names.
        address: path of the file, URL without secrets, or name of another package's weights; "" if unknown.
        data_config: data config of the network, from the file; None if unknown.
        model_args: arguments of ``create_model`` for the network; None if unknown.
        record: entries of a checkpoint on its run: the config and the keys in ``checkpoint.RECORD``.
        licence: licence of another package's weights; None if unknown.
        found: the place of the weights in a file of another trainer.
        entry: name of the weights in the file; "" if the file contains only weights.
        ignored: other entries of the file.
    """

    weights: dict[str, Tensor]
    address: str = ""
    data_config: DataConfig | None = None
    model_args: dict[str, Any] | None = None
    record: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None
    found: Found = Found({})
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


def read_file(path: str | Path, model: nn.Module | None = None) -> Source:
    """Read the weights in a file.

    Args:
        path: path or URL (see ``video_rs.hub``) of a checkpoint of this package, whose EMA is read if there is one; or
            of a ``.pt``, ``.pth`` or ``.safetensors`` file of any trainer, see ``video_rs.models.weights.find``.
        model: the network to find weights for; None for any network of the ResNet-RS family.

    Raises:
        UserError: the file is missing, damaged, from a newer version, or of another format.
        MachineError: the file could not be downloaded.
    """
    saved, shown = checkpoint.load(path), redact_url(path)
    if checkpoint.is_run(saved):
        checkpoint.check_format(saved, shown)
        source = from_checkpoint(saved, shown)
    else:
        found = find_weights(
            saved, with_timm_names(dict.fromkeys(_FAMILY, 0)) if model is None else sizes_in_files(model)
        )
        source = Source(found.weights, shown, found=found, entry=found.entry, ignored=found.ignored)
    if not source.weights:
        raise checkpoint.no_weights(saved, shown)
    if odd := [name for name, tensor in source.weights.items() if not checkpoint.is_plain(tensor)]:
        kind = f"{source.weights[odd[0]].dtype}, {source.weights[odd[0]].layout}"
        raise UserError(f"{shown}: {odd[0]} is not a dense real tensor ({kind}); save the weights in float32")
    if damaged := [name for name, tensor in source.weights.items() if not tensor.isfinite().all()]:
        raise UserError(f"{shown} is damaged: values that are not finite in {truncate(damaged, 1)}; use another file")
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
    prefix = PREFIX if "/" in state["model_args"]["name"] else ""
    return Source(
        {name.removeprefix(prefix): tensor for name, tensor in checkpoint.weights(state).items()},
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
    weights, record = model.public_weights(), public_record(model)
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
