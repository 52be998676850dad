"""ResNet-RS for images and clips.

Bello et al. 2021, "Revisiting ResNets: Improved Training and Scaling Strategies" (arXiv 2103.07579).
Du et al. 2021, "Revisiting 3D ResNets for Video Recognition" (arXiv 2109.01696).

The same network is used for both: an image is a clip of one frame, and in an image network all temporal kernels and
strides are 1. At depth 50 on 32 frames of 224x224:

    stage   bottleneck                                blocks   2D output         3D output
    stem    3x3 s2, 32; 3x3, 32; 3x3, 64; 3x3 s2, 64            56x56x64          16x56x56x64
            (3D: the first is 5x3x3 s2)
    1       1x1, 64;  1x3x3, 64;  1x1, 256            3        56x56x256         16x56x56x256
    2       1x1, 128; 1x3x3, 128; 1x1, 512            4        28x28x512         16x28x28x512
    3       1x1, 256; 1x3x3, 256; 1x1, 1024           6        14x14x1024        16x14x14x1024
            (3D: the first is 3x1x1)
    4       1x1, 512; 1x3x3, 512; 1x1, 2048           3        7x7x2048          16x7x7x2048
            (3D: the first is 3x1x1)
    head    mean over time and space, dropout, linear
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.models import layers
from video_rs.models.architecture import DROP_PATH_RULES, Architecture
from video_rs.models.base import VideoModel, channels_last, check_input

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Width of the bottlenecks and spatial stride of the first bottleneck, by stage."""

EXPANSION = 4


class ResNetRS(VideoModel):
    """A network of the ResNet-RS family.

    Args:
        architecture: kernels, strides, padding and other settings of the architecture.
        blocks: number of bottlenecks in each stage.
        num_classes: number of logits; 0 to return pooled features instead.
        in_channels: number of input channels; 3 for RGB.
        width: multiplier of all widths, which are rounded to multiples of 8.
        dropout: dropout rate before the classifier.
        drop_path: rate of stochastic depth in the last block.
        drop_path_rule: "stage" for a rate of ``drop_path * i / 5`` in all blocks of stage i = 2..5 (numbered as in the
            paper); "block" for a rate that grows linearly over all blocks from 0, as in timm.
        data_config: the frames, pixels and classes that the weights expect.
    """

    def __init__(
        self,
        architecture: Architecture,
        blocks: Sequence[int],
        num_classes: int,
        *,
        in_channels: int = 3,
        width: float = 1.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        drop_path_rule: str = "stage",
        data_config: DataConfig | None = None,
    ) -> None:
        super().__init__(num_classes, data_config or DataConfig(in_channels=in_channels))
        self.architecture, self.blocks, self.in_channels = architecture, tuple(blocks), in_channels
        self.stem = make_stem(architecture, in_channels, width)
        channels = scaled(architecture.stem_width, width)
        self.stages = nn.ModuleList()
        drops = enumerate(drop_path_rates(drop_path, self.blocks, drop_path_rule), 1)
        for i, num_blocks in enumerate(self.blocks):
            self.stages.append(Stage())
            for b in range(num_blocks):
                stream, rate = next(drops)
                is_last = b == num_blocks - 1
                block = Bottleneck(channels, i, b, architecture, width, is_last=is_last, drop_path=rate, stream=stream)
                self.stages[i].append(block)
                channels = EXPANSION * scaled(STAGES[i][0], width)
        self.num_features = channels
        self.dropout = layers.Dropout(dropout, stream=0)
        self.head = self.new_classifier(num_classes)
        if architecture.zero_init_last_gamma:
            for block in itertools.chain(*self.stages):
                nn.init.zeros_(block.conv3.norm.weight)
        channels_last(self)

    def set_grad_checkpointing(self, stages: bool | Iterable[int] = True) -> None:
        """Recompute the activations of some stages in the backward pass of training.

        This saves memory and takes longer (Chen et al. 2016, arXiv 1604.06174). Results are identical.

        Args:
            stages: numbers from 1 to 4, as in the table above. True for all stages, False or () for none.

        Raises:
            UserError: there is no such stage.
        """
        available = range(1, len(self.stages) + 1)
        chosen = set(available if stages is True else stages or ())
        if wrong := chosen - set(available):
            raise UserError(f"there is no stage {min(wrong)} to checkpoint: the stages are 1 to {len(self.stages)}")
        for number, stage in enumerate(self.stages, 1):
            stage.recompute = number in chosen

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Group parameters by bottleneck or by stage, as timm does for its ResNets."""
        return {"stem": r"stem\.", "blocks": r"stages\.(\d+)\." if coarse else r"stages\.(\d+)\.(\d+)\."}

    def stage_modules(self) -> dict[str, str]:
        return {"stem": "stem", **{f"stage{i + 1}": f"stages.{i}" for i in range(len(self.stages))}}

    def forward_features(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the output of the last stage.

        Args:
            x: clips ``[N, C, T, H, W]`` or images ``[N, C, H, W]``, preferably in channels-last memory.
            keys: as for :meth:`forward`.

        Returns:
            ``[N, num_features, T', H', W']``; for images ``[N, num_features, H', W']``.
        """
        if self.training:
            keys = layers.resolve_keys(keys, x)
        features = self.stem(to_clips(x, self.in_channels))
        for stage in self.stages:
            features = stage(features, keys)
        return like_input(features, x)

    def forward_head(self, x: Tensor, pre_logits: bool = False, *, keys: Tensor | None = None) -> Tensor:
        pooled = x.flatten(2).mean(2)
        return pooled if pre_logits else self.head(self.dropout(pooled, keys))


class Stage(nn.Sequential):
    """Bottlenecks in sequence."""

    recompute = False

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        recompute = self.recompute and self.training and torch.is_grad_enabled()
        for block in self:
            x = recomputed(block, x, keys) if recompute else block(x, keys)
        return x


def recomputed(block: nn.Module, *inputs: Any) -> Tensor:
    """Return ``block(*inputs)`` and keep only the inputs for the backward pass.

    The backward pass runs the block again, on copies of its buffers, because the running statistics of batch norm
    already include this batch. Random numbers in the block must depend only on the inputs.
    """
    options = {"use_reentrant": False, "preserve_rng_state": False}
    if torch.compiler.is_compiling():  # the compiler handles buffer updates itself
        return checkpoint(block, *inputs, **options)
    is_second = False

    def run(*inputs: Any) -> Tensor:
        nonlocal is_second
        if is_second:
            return functional_call(block, {name: buffer.clone() for name, buffer in block.named_buffers()}, inputs)
        is_second = True
        return block(*inputs)

    return checkpoint(run, *inputs, **options)


class Bottleneck(nn.Module):
    """(kt x 1 x 1) - (1 x 3 x 3) - (1 x 1 x 1), self-gating, squeeze-and-excitation, drop path, shortcut.

    Args:
        in_channels: of the input.
        stage, block: numbers from 0; the first block of a stage strides and projects.
        architecture, width: see :class:`ResNetRS`.
        is_last: of its stage: the one with self-gating.
        drop_path: rate of stochastic depth.
        stream: see :func:`video_rs.models.layers.keyed_uniform`.
    """

    def __init__(
        self,
        in_channels: int,
        stage: int,
        block: int,
        architecture: Architecture,
        width: float,
        *,
        is_last: bool,
        drop_path: float,
        stream: int,
    ) -> None:
        super().__init__()
        base, spatial = STAGES[stage]
        stride = (1, 1, 1) if block else (architecture.temporal_strides[stage], spatial, spatial)
        kernel, inner = architecture.temporal_kernel(stage, block), scaled(base, width)
        channels = EXPANSION * inner
        self.conv1 = layers.ConvNorm(in_channels, inner, architecture, (kernel, 1, 1), (stride[0], 1, 1))
        self.conv2 = layers.ConvNorm(inner, inner, architecture, (1, 3, 3), (1, *stride[1:]))
        self.conv3 = layers.ConvNorm(inner, channels, architecture, activate=False)
        self.gating = layers.SelfGating(channels) if architecture.self_gating and is_last else nn.Identity()
        self.se = layers.SqueezeExcite(channels, architecture.se_ratio) if architecture.se_ratio else nn.Identity()
        self.drop_path = layers.DropPath(drop_path, stream)
        self.shortcut = nn.Identity() if block else layers.Shortcut(in_channels, channels, architecture, stride)
        self.activation = layers.activation(architecture.activation)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        residual = self.se(self.gating(self.conv3(self.conv2(self.conv1(x)))))
        return self.activation(self.drop_path(residual, keys) + self.shortcut(x))


def make_stem(architecture: Architecture, in_channels: int, width: float) -> nn.Sequential:
    """Create the stem: convolutions, the first with stride 2, and a pool with stride 2."""
    stem = OrderedDict()
    out = scaled(architecture.stem_width, width)
    kt, st = architecture.stem_temporal_kernel, architecture.stem_temporal_stride
    for i, k in enumerate(architecture.stem_kernels):
        kernel, stride = ((1, k, k), (1, 1, 1)) if i else ((kt, k, k), (st, 2, 2))
        channels = out if i == len(architecture.stem_kernels) - 1 else out // 2
        stem[f"conv{i + 1}"] = layers.ConvNorm(in_channels, channels, architecture, kernel, stride)
        in_channels = channels
    st = architecture.stem_pool_temporal_stride
    kernel, stride = (1 if st == 1 else 3, 3, 3), (st, 2, 2)
    if architecture.stem_pool == "conv":
        stem["pool"] = layers.ConvNorm(out, out, architecture, kernel, stride)
    else:
        stem["pool"] = layers.MaxPool(kernel, stride, padding=architecture.padding)
    return nn.Sequential(stem)


def drop_path_rates(rate: float, blocks: Sequence[int], rule: str) -> list[float]:
    """Return the rate of stochastic depth for each block. For the arguments see :class:`ResNetRS`."""
    if rule not in DROP_PATH_RULES:
        raise UserError(f"drop_path_rule is {' or '.join(DROP_PATH_RULES)}, not {rule!r}")
    if rule == "block":
        return [rate * b / max(1, sum(blocks) - 1) for b in range(sum(blocks))]
    return [rate * (i + 2) / 5 for i, num_blocks in enumerate(blocks) for _ in range(num_blocks)]


def scaled(channels: int, width: float) -> int:
    """Return ``channels * width``, rounded to a multiple of 8."""
    return max(8, 8 * round(channels * width / 8))


@torch.fx.wrap
def to_clips(x: Tensor, channels: int) -> Tensor:
    """Convert clips or images to ``[N, C, T, H, W]`` in channels-last memory. An image becomes a clip of one frame."""
    check_input(x, channels)
    clips = x.unsqueeze(2) if x.ndim == 4 else x
    return clips.contiguous(memory_format=torch.channels_last_3d)


@torch.fx.wrap
def like_input(features: Tensor, x: Tensor) -> Tensor:
    """Return the features of ``x``, without the time axis if ``x`` contains images."""
    return features.squeeze(2) if x.ndim == 4 else features
