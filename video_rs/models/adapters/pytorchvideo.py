"""Video networks of PyTorchVideo (Fan et al. 2021, arXiv 2111.09887) as ``pytorchvideo/<name>``.

The networks are those of ``pytorchvideo.models.hub``. The input of the public weights is documented in PyTorchVideo's
model zoo (docs/source/model_zoo.md: frames x stride; 10 clips x 3 crops, MViT 5 x 1) and in the configs of their
training (facebookresearch/SlowFast, configs/Kinetics/pytorchvideo/*.yaml and
configs/ImageNet/MVIT_B_16_CONV.yaml: crops; slowfast/config/defaults.py: mean and std).

Some heads of the hub end in a softmax, even in training. Here, every network returns logits. The convolutional heads
average over fixed windows, which here have the size of the data config's clip. On larger test crops, the results of
sliding windows are averaged, as in the hub. On smaller clips, the window is reduced to the size of the clip.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_rs.data_config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from video_rs.errors import UserError
from video_rs.models.adapters.base import HOW_TO_RESIZE, PREFIX, External, downloading, import_package, refuse_clips
from video_rs.models.arguments import refuse
from video_rs.models.presets import read_rows

ALPHA = 4
"""SlowFast's slow pathway takes every ALPHA-th frame (arXiv 1812.03982, section 3.2)."""

SPATIAL_STRIDE = 32


@dataclass(frozen=True)
class Entry:
    """A network of the hub: a row of pytorchvideo.csv.

    Attributes:
        data_config: data config that the public weights expect.
        kind: "convolutional", "slowfast" or "mvit".
        temporal_strides: temporal stride of the last features, by pathway. (C2D and I3D pool pairs of frames after the
            first stage.)
        min_frames: minimum number of frames in a clip.
        softmax: True if the hub's head ends in a softmax.
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


ENTRIES = {row["name"]: _entry(row) for row in read_rows(Path(__file__).with_name("pytorchvideo.csv"))}


def names(pattern: str) -> list[str]:
    """Return all networks of the hub. ``pattern`` is ignored."""
    import_package(pattern, "pytorchvideo.models.hub")
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
    """Create a network of the hub with random weights; arguments and errors as for ``create_model``."""
    model = name.removeprefix("pytorchvideo/")
    builder, entry = getattr(import_package(name, "pytorchvideo.models.hub"), model), ENTRIES[model]
    native = entry.data_config.with_channels(in_channels)
    data_config = data_config or native
    if num_classes is None:  # the number of the public weights; the hub defaults to 400 for the image network
        num_classes = 1000 if entry.data_config.num_frames == 1 else 400
    if entry.kind == "mvit":
        frames, size, is_image = data_config.num_frames, data_config.train_size, native.num_frames == 1
        if is_image:
            refuse_clips(name, frames)
        if size % 4 or (frames % 2 and not is_image):  # strides of the patches
            raise UserError(
                f"{name} needs a data.train_size that is a multiple of 4 and an even data.num_frames, "
                f"not {size} and {frames}"
            )
        sizes = {"spatial_size": size, "temporal_size": frames, "input_channels": in_channels}
        rates = {"head_dropout_rate": dropout, "droppath_rate_block": drop_path}
        given = {key: rate for key, rate in rates.items() if rate is not None}
        network = builder(head_num_classes=num_classes or 1, **sizes, **given)
        return MViT(name, network, num_classes, data_config, native=native, classifier="network.head.proj")
    if drop_path:
        refuse(name, "model.drop_path", drop_path, "null")
    channels = {"input_channel": in_channels}
    if entry.kind == "slowfast":
        channels = {"input_channels": (in_channels, in_channels)}
    network = builder(
        model_num_class=num_classes or 1, **channels, head_output_with_global_average=False, head_activation=None
    )
    if dropout is not None:
        network.blocks[-1].dropout = nn.Dropout(dropout) if dropout else None
    size = _ceil(data_config.train_size, SPATIAL_STRIDE)
    windows = [(_ceil(data_config.num_frames, stride), size, size) for stride in entry.temporal_strides]
    _replace_pools(network, iter(windows))
    classifier = f"network.blocks.{len(network.blocks) - 1}.proj"
    return Convolutional(name, network, num_classes, data_config, native=native, classifier=classifier)


class PyTorchVideo(External):
    """A network of the hub. The classifier is the layer ``proj`` of its head."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.num_features = self.get_classifier().in_features
        if self.num_classes == 0:
            self.reset_classifier(0)

    @property
    def _entry(self) -> Entry:
        return ENTRIES[self.name.removeprefix("pytorchvideo/")]

    def network_groups(self, coarse: bool) -> dict[str, Any]:
        """Group parameters by the index of their block in ``blocks`` (a stage in convolutional networks)."""
        head = self.classifier.removeprefix(PREFIX).replace(".", r"\.")
        rest = (rf"(?!{head}\.|(?:patch_embed|cls_positional_encoding)\.)", (99999,))
        return {
            "stem": r"(?:patch_embed|cls_positional_encoding)\.",
            "blocks": [(rf"(?!{head}\.)blocks\.(\d+)\.", None), rest],
        }

    def stage_modules(self) -> dict[str, str]:
        """Return the blocks that have weights, without the head. The first one is the stem."""
        blocks = enumerate(self.network.blocks[:-1])
        used = [f"{PREFIX}blocks.{i}" for i, block in blocks if any(True for _ in block.parameters())]
        return {f"stage{number}" if number else "stem": module for number, module in enumerate(used)}

    def public_weights(self) -> dict[str, Tensor]:
        if self.data_config.in_channels != 3:
            raise UserError(f"the public weights of {self.name} are for 3 channels, not {self.data_config.in_channels}")
        hub, name = import_package(self.name, "pytorchvideo.models.hub"), self.name.removeprefix("pytorchvideo/")
        address = sys.modules[getattr(hub, name).__module__].checkpoint_paths[name]
        with downloading(self.name):  # the hub loads without weights_only
            return torch.hub.load_state_dict_from_url(address, map_location="cpu", weights_only=True)["model_state"]


class Convolutional(PyTorchVideo):
    """All networks of the hub except MViT."""

    def check(self, num_frames: int, height: int, width: int) -> None:
        least, most, slowfast = self._entry.min_frames, self.built_for.num_frames, self._entry.kind == "slowfast"
        fault = ""
        if num_frames < least:
            fault = f"it needs {least} or more"
        elif slowfast and num_frames % ALPHA:
            fault = f"its slow pathway sees every {ALPHA}th, so a clip (data.num_frames) must be a multiple of {ALPHA}"
        elif slowfast and num_frames > most:
            fault = f"it was built for {most}; {HOW_TO_RESIZE}"
        if fault:
            raise UserError(f"{self.name} cannot take clips of {num_frames} frames: {fault}")

    def features(self, clips: Tensor) -> Tensor:
        x = clips.contiguous(memory_format=torch.channels_last_3d)
        x = _pathways(x) if self._entry.kind == "slowfast" else x
        for block in self.network.blocks[:-1]:
            x = block(x)
        return x

    def head(self, features: Tensor, pre_logits: bool) -> Tensor:
        head = self.network.blocks[-1]
        if pre_logits:
            return (features if head.pool is None else head.pool(features)).flatten(2).mean(2)
        windows = head(features).flatten(2)
        if self._entry.softmax and windows.shape[2] > 1:  # the hub averages probabilities; return their logarithm
            return windows.log_softmax(1).logsumexp(2) - math.log(windows.shape[2])
        return windows.mean(2)


class MViT(PyTorchVideo):
    """MViT (Fan et al. 2021, arXiv 2104.11227). Its position embeddings support a single clip size."""

    def check(self, num_frames: int, height: int, width: int) -> None:
        self.check_built_for(num_frames, height, width)

    def features(self, clips: Tensor) -> Tensor:
        network = self.network
        if clips.shape[2] == 1:
            x = clips.squeeze(2).contiguous(memory_format=torch.channels_last)
        else:
            x = clips.contiguous(memory_format=torch.channels_last_3d)
        x = network.cls_positional_encoding(network.patch_embed(x))  # as MultiscaleVisionTransformers.forward
        for layer in (network.pos_drop, network.norm_patch_embed):
            x = x if layer is None else layer(x)
        shape = network.cls_positional_encoding.patch_embed_shape
        for block in network.blocks:
            x, shape = block(x, shape)
        return x if network.norm_embed is None else network.norm_embed(x)

    def stage_modules(self) -> dict[str, str]:
        return {f"stage{i + 1}": f"{PREFIX}blocks.{i}" for i in range(len(self.network.blocks))}

    def read_maps(self, tensor: Tensor, output: Any, module: str) -> Tensor | None:
        """Convert the output of a block: tokens and their grid. A class token is dropped."""
        if isinstance(output, tuple):
            grid = output[1]
            return tensor[:, tensor.shape[1] - math.prod(grid) :].transpose(1, 2).unflatten(2, tuple(grid))
        return super().read_maps(tensor, output, module)

    def head(self, features: Tensor, pre_logits: bool) -> Tensor:
        return self.network.head.sequence_pool(features) if pre_logits else self.network.head(features)


class AveragePool(nn.Module):
    """Average over windows with stride 1. A window is at most as large as the clip."""

    def __init__(self, window: tuple[int, int, int]) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool3d(x, tuple(map(min, self.window, x.shape[2:])), stride=1)

    def extra_repr(self) -> str:
        return f"window={self.window}"


def _replace_pools(module: nn.Module, windows: Iterator[tuple[int, int, int]]) -> None:
    """Replace each average pool, in order, by an :class:`AveragePool` with the next window."""
    for name, child in module.named_children():
        if isinstance(child, nn.AvgPool3d):
            setattr(module, name, AveragePool(next(windows)))
        else:
            _replace_pools(child, windows)


def _pathways(clips: Tensor) -> list[Tensor]:
    """Return the inputs of SlowFast's pathways: every ALPHA-th frame (evenly from first to last), and all frames."""
    num_frames = clips.shape[2]
    slow = torch.linspace(0, num_frames - 1, num_frames // ALPHA).long()
    return [clips.index_select(2, slow.to(clips.device)), clips]


def _ceil(size: int, stride: int) -> int:
    return -(-size // stride)
