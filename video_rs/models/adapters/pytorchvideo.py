"""Video networks of PyTorchVideo (Fan et al. 2021, arXiv 2111.09887) as ``pytorchvideo/<name>``.

The networks are those of ``pytorchvideo.models.hub``. What their public weights expect to see is documented in
PyTorchVideo's model zoo (docs/source/model_zoo.md: frames x stride; 10 clips x 3 crops, MViT 5 x 1) and in the configs
they were trained with (facebookresearch/SlowFast, configs/Kinetics/pytorchvideo/*.yaml and
configs/ImageNet/MVIT_B_16_CONV.yaml: crops; slowfast/config/defaults.py: mean and std).

Some of the hub's heads end in a softmax, in training too; here every network gives logits. Its convolutional heads
average over fixed windows, sized for one clip: here for the clip of the data config. On larger test crops they slide
and average what they find, as theirs do; on smaller clips they take the whole.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_rs.data_config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from video_rs.errors import UserError
from video_rs.models.adapters.base import ANOTHER_SIZE, External, downloading, known, package, refuse, refuse_clips
from video_rs.models.presets import read_rows

ALPHA = 4
"""SlowFast's slow pathway sees every ALPHA-th frame (arXiv 1812.03982, section 3.2)."""

SPATIAL_STRIDE = 32


@dataclass(frozen=True)
class Entry:
    """A network of the hub: a row of pytorchvideo.csv.

    Attributes:
        data_config: what its public weights expect to see.
        kind: "convolutional", "slowfast" or "mvit".
        temporal_strides: frames per time step of the last features, by pathway. (C2D and I3D have a pool over pairs of
            frames after the first stage.)
        min_frames: of a clip.
        softmax: True if the hub's head ends in one.
    """

    data_config: DataConfig
    kind: str
    temporal_strides: tuple[int, ...]
    min_frames: int
    softmax: bool


def _entry(row: dict[str, str]) -> Entry:
    numbers = {key: int(row[key]) for key in ("stride", "train_size", "short_side", "test_size")}
    if row["frames"] == "1":
        pixels = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "filter": "bicubic-antialias"}
    else:
        pixels = {"mean": (0.45,) * 3, "std": (0.225,) * 3}
    data_config = DataConfig(int(row["frames"]), **numbers, **pixels)
    strides = tuple(map(int, row["temporal_strides"].split()))
    return Entry(data_config, row["kind"], strides, int(row["min_frames"]), row["softmax"] == "yes")


ENTRIES = {row["name"]: _entry(row) for row in read_rows("pytorchvideo.csv")}


def names(pattern: str) -> list[str]:
    """All networks of the hub; ``pattern`` is for messages."""
    package(pattern, "pytorchvideo.models.hub")
    return [f"pytorchvideo/{name}" for name in ENTRIES]


def create(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    dropout: float | None = None,
    drop_path: float | None = None,
    data_config: DataConfig | None = None,
) -> PyTorchVideo:
    """A network of PyTorchVideo's hub with fresh weights; arguments as for ``create_model``. Raises UserError."""
    known(name, (f"pytorchvideo/{other}" for other in ENTRIES))
    model = name.removeprefix("pytorchvideo/")
    builder, entry = getattr(package(name, "pytorchvideo.models.hub"), model), ENTRIES[model]
    native = entry.data_config.with_channels(in_channels)
    data_config = data_config or native
    if num_classes is None:  # those of its public weights: the hub's builder of the image network forgets to say 1000
        num_classes = 1000 if entry.data_config.num_frames == 1 else 400
    if entry.kind == "mvit":
        _refuse_sizes(name, native, data_config)
        arguments = _mvit_arguments(data_config, dropout, drop_path)
        network = builder(head_num_classes=num_classes, input_channels=in_channels, **arguments)
        return MViT(name, network, num_classes, data_config, native=native, classifier=["head.proj"])
    if drop_path:
        refuse(name, "model.drop_path", drop_path, "null")
    channels = {"input_channel": in_channels}
    if entry.kind == "slowfast":
        channels = {"input_channels": (in_channels, in_channels)}
    network = builder(
        model_num_class=num_classes, **channels, head_output_with_global_average=False, head_activation=None
    )
    if dropout is not None:
        network.blocks[-1].dropout = nn.Dropout(dropout) if dropout else None
    size = _ceil(data_config.train_size, SPATIAL_STRIDE)
    windows = [(_ceil(data_config.num_frames, stride), size, size) for stride in entry.temporal_strides]
    _replace_pools(network, iter(windows))
    classifier = [f"blocks.{len(network.blocks) - 1}.proj"]
    return Convolutional(name, network, num_classes, data_config, native=native, classifier=classifier)


class PyTorchVideo(External):
    """A network of the hub."""

    @property
    def _entry(self) -> Entry:
        return ENTRIES[self.name.removeprefix("pytorchvideo/")]

    def public_weights(self) -> dict[str, Tensor]:
        if self.data_config.in_channels != 3:
            raise UserError(f"the public weights of {self.name} are for 3 channels, not {self.data_config.in_channels}")
        hub, name = package(self.name, "pytorchvideo.models.hub"), self.name.removeprefix("pytorchvideo/")
        address = sys.modules[getattr(hub, name).__module__].checkpoint_paths[name]
        with downloading(self.name):  # as the hub does, but for code in the file
            return torch.hub.load_state_dict_from_url(address, map_location="cpu", weights_only=True)["model_state"]


class Convolutional(PyTorchVideo):
    """All networks of the hub but MViT."""

    def check(self, num_frames: int, height: int, width: int) -> None:
        if num_frames < self._entry.min_frames:
            raise UserError(f"{self.name} needs clips of {self._entry.min_frames} frames or more, not {num_frames}")
        most = self.built_for.num_frames
        slowfast = self._entry.kind == "slowfast"
        if slowfast and num_frames % ALPHA:
            raise UserError(
                f"{self.name} cannot take clips of {num_frames} frames: its slow pathway sees every {ALPHA}th, so "
                f"their number (data.num_frames) must be a multiple of {ALPHA}"
            )
        if slowfast and num_frames > most:
            raise UserError(
                f"{self.name} was built for clips of {most} frames and cannot take more, here {num_frames}; "
                f"{ANOTHER_SIZE}"
            )

    def logits(self, clips: Tensor) -> Tensor:
        clips = clips.contiguous(memory_format=torch.channels_last_3d)
        windows = self.network(_pathways(clips) if self._entry.kind == "slowfast" else clips).flatten(2)
        if self._entry.softmax and windows.shape[2] > 1:  # theirs averages probabilities: the logarithm of that
            return windows.log_softmax(1).logsumexp(2) - math.log(windows.shape[2])
        return windows.mean(2)


class MViT(PyTorchVideo):
    """MViT (Fan et al. 2021, arXiv 2104.11227), whose position embeddings know clips of one size alone."""

    def check(self, num_frames: int, height: int, width: int) -> None:
        self.check_built_for(num_frames, height, width)

    def logits(self, clips: Tensor) -> Tensor:
        if clips.shape[2] == 1:
            return self.network(clips.squeeze(2).contiguous(memory_format=torch.channels_last))
        return self.network(clips.contiguous(memory_format=torch.channels_last_3d))


def _refuse_sizes(name: str, native: DataConfig, data_config: DataConfig) -> None:
    """Raises UserError for clips that no MViT of this name can be built for."""
    frames, size = data_config.num_frames, data_config.train_size
    image = native.num_frames == 1
    if image:
        refuse_clips(name, frames)
    if size % 4 or (frames % 2 and not image):  # strides of the patches
        raise UserError(
            f"{name} needs a data.train_size that is a multiple of 4 and an even data.num_frames, "
            f"not {size} and {frames}"
        )


def _mvit_arguments(data_config: DataConfig, dropout: float | None, drop_path: float | None) -> dict[str, Any]:
    rates = {"head_dropout_rate": dropout, "droppath_rate_block": drop_path}
    sizes = {"spatial_size": data_config.train_size, "temporal_size": data_config.num_frames}
    return sizes | {name: rate for name, rate in rates.items() if rate is not None}


class AveragePool(nn.Module):
    """Means over windows at stride 1, which are as large as the clip where that is smaller."""

    def __init__(self, window: tuple[int, int, int]) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool3d(x, tuple(map(min, self.window, x.shape[2:])), stride=1)

    def extra_repr(self) -> str:
        return f"window={self.window}"


def _replace_pools(module: nn.Module, windows: Iterator[tuple[int, int, int]]) -> None:
    """Puts an :class:`AveragePool` of the next window in the place of every average pool, in order."""
    for name, child in module.named_children():
        if isinstance(child, nn.AvgPool3d):
            setattr(module, name, AveragePool(next(windows)))
        else:
            _replace_pools(child, windows)


def _pathways(clips: Tensor) -> list[Tensor]:
    """SlowFast's input: every ALPHA-th frame, from the first to the last, and all of them."""
    num_frames = clips.shape[2]
    slow = torch.linspace(0, num_frames - 1, num_frames // ALPHA).long()
    return [clips.index_select(2, slow.to(clips.device)), clips]


def _ceil(size: int, stride: int) -> int:
    return -(-size // stride)
