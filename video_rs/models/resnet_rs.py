"""ResNet-RS for images and clips.

Bello et al. 2021, "Revisiting ResNets: Improved Training and Scaling Strategies" (arXiv 2103.07579).
Du et al. 2021, "Revisiting 3D ResNets for Video Recognition" (arXiv 2109.01696).

One network for both: an image is a clip of one frame, and an image network is one whose temporal kernels and strides
are 1. At depth 50 on 32 frames of 224x224:

    stage   bottleneck                                blocks   2D output         3D output
    stem    3x3 s2, 32; 3x3, 32; 3x3, 64; 3x3 s2, 64            56x56x64          16x56x56x64
            (3D: the first is 5x3x3 s2)
    1       1x1, 64;  1x3x3, 64;  1x1, 256            3        56x56x256         16x56x56x256
    2       1x1, 128; 1x3x3, 128; 1x1, 512            4        28x28x512         16x28x28x512
    3       1x1, 256; 1x3x3, 256; 1x1, 1024           6        14x14x1024        16x14x14x1024
            (3D: the first is 3x1x1)
    4       1x1, 512; 1x3x3, 512; 1x1, 2048           3        7x7x2048          16x7x7x2048
            (3D: the first is 3x1x1)
    head    mean over what is left, dropout, linear
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.models.activation_checkpointing import recomputed
from video_rs.models.architecture import DROP_PATH_RULES, Architecture
from video_rs.models.layers import (
    ConvNorm,
    Dropout,
    DropPath,
    MaxPool,
    SelfGating,
    Shortcut,
    SqueezeExcite,
    activation,
)

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Width of the bottlenecks and spatial stride of the first of them, by stage."""

EXPANSION = 4


class ResNetRS(nn.Module):
    """A network of the ResNet-RS family.

    Args:
        architecture: what the networks of the family differ in.
        blocks: bottlenecks by stage.
        num_classes: logits.
        in_channels: 3 for RGB.
        width: multiplies all widths, which are rounded to multiples of 8.
        dropout: rate before the classifier.
        drop_path: rate of stochastic depth in the last block.
        drop_path_rule: "stage": all blocks of stage i = 2..5 of the paper's count drop ``drop_path * i / 5``; "block":
            linear over all blocks from 0 for the first, as in timm.
        bn_momentum: torch's; 1 keeps the last batch's statistics, for recipes that average them with the weights.
        data_config: what the weights expect to see.

    Attributes:
        weights_from: source and licence of the first weights, see ``video_rs.models.weights``; None if random.
    """

    weights_from: dict[str, Any] | None = None

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
        bn_momentum: float = 0.1,
        data_config: DataConfig | None = None,
    ) -> None:
        super().__init__()
        self.architecture, self.blocks, self.num_classes = architecture, tuple(blocks), num_classes
        self.in_channels = in_channels
        self.data_config = data_config or DataConfig(in_channels=in_channels)
        self.stem = stem(architecture, in_channels, width)
        channels = scaled(architecture.stem_width, width)
        self.stages = nn.ModuleList()
        rates = drop_path_rates(drop_path, self.blocks, drop_path_rule)
        for i, num_blocks in enumerate(self.blocks):
            first = sum(self.blocks[:i])
            self.stages.append(stage(channels, i, architecture, width, rates[first : first + num_blocks], 1 + first))
            channels = EXPANSION * scaled(STAGES[i][0], width)
        self.num_features = channels
        self.checkpointed: frozenset[int] = frozenset()
        self.dropout = Dropout(dropout, stream=0)
        self.head = nn.Linear(channels, num_classes)
        self._finish(bn_momentum)

    def _finish(self, bn_momentum: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.momentum = bn_momentum
            elif isinstance(module, Bottleneck) and self.architecture.zero_init_last_gamma:
                nn.init.zeros_(module.conv3.norm.weight)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.to(memory_format=torch.channels_last_3d)

    @property
    def head_names(self) -> tuple[str, ...]:
        """The classifier's parameters, as the state dict names them."""
        return "head.weight", "head.bias"

    def set_grad_checkpointing(self, stages: Iterable[int] = (1, 2, 3, 4)) -> None:
        """In training, the blocks of these stages compute their activations again in the backward pass.

        Less memory for more time (Chen et al. 2016, arXiv 1604.06174); weights, gradients and statistics are the same.

        Args:
            stages: numbers from 1 to 4, as in the table above; () turns it off.

        Raises:
            UserError: there is no such stage.
        """
        self.checkpointed = frozenset(stages)
        if wrong := self.checkpointed - set(range(1, len(self.stages) + 1)):
            raise UserError(f"there is no stage {min(wrong)} to checkpoint: the stages are 1 to {len(self.stages)}")

    def features(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """The last stage's output.

        Args:
            x: clips ``[N, C, T, H, W]`` or images ``[N, C, H, W]``; best as a view of channels-last memory.
            keys: ``[N]`` int64, what dropout and drop path depend on in training; drawn here when None.

        Returns:
            ``[N, num_features, T', H', W']``, of images ``[N, num_features, H', W']``.

        Raises:
            UserError: ``x`` has other dimensions or channels.
        """
        check_input(x, self.in_channels)
        if x.ndim == 4:
            return self.features(x.unsqueeze(2), keys).squeeze(2)
        if keys is None and self.training:
            keys = draw_keys(x)
        x = self.stem(x.contiguous(memory_format=torch.channels_last_3d))
        for number, blocks in enumerate(self.stages, 1):
            again = number in self.checkpointed and self.training and torch.is_grad_enabled()
            for block in blocks:
                x = recomputed(block, x, keys) if again else block(x, keys)
        return x

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits ``[N, num_classes]``; arguments as for :meth:`features`."""
        if keys is None and self.training:
            keys = draw_keys(x)
        pooled = self.features(x, keys).flatten(2).mean(2)
        return self.head(self.dropout(pooled, keys))


class Bottleneck(nn.Module):
    """(kt x 1 x 1) - (1 x 3 x 3) - (1 x 1 x 1), self-gating, squeeze-and-excitation, drop path, shortcut."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        architecture: Architecture,
        *,
        temporal_kernel: int,
        stride: tuple[int, int, int],
        project: bool,
        gate: bool,
        drop_path: float,
        stream: int,
    ) -> None:
        super().__init__()
        channels = EXPANSION * width
        self.conv1 = ConvNorm(in_channels, width, architecture, (temporal_kernel, 1, 1), (stride[0], 1, 1))
        self.conv2 = ConvNorm(width, width, architecture, (1, 3, 3), (1, *stride[1:]))
        self.conv3 = ConvNorm(width, channels, architecture, activate=False)
        self.gating = SelfGating(channels) if gate else nn.Identity()
        self.se = SqueezeExcite(channels, architecture.se_ratio) if architecture.se_ratio else nn.Identity()
        self.drop_path = DropPath(drop_path, stream)
        self.shortcut = Shortcut(in_channels, channels, architecture, stride) if project else nn.Identity()
        self.activation = activation(architecture.activation)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        residual = self.se(self.gating(self.conv3(self.conv2(self.conv1(x)))))
        return self.activation(self.drop_path(residual, keys) + self.shortcut(x))


def stem(architecture: Architecture, in_channels: int, width: float) -> nn.Sequential:
    """Convolutions of which the first has stride 2, then what halves their output."""
    layers = OrderedDict()
    out = scaled(architecture.stem_width, width)
    kt, st = architecture.stem_temporal_kernel, architecture.stem_temporal_stride
    for i, k in enumerate(architecture.stem_kernels):
        kernel, stride = ((1, k, k), (1, 1, 1)) if i else ((kt, k, k), (st, 2, 2))
        channels = out if i == len(architecture.stem_kernels) - 1 else out // 2
        layers[f"conv{i + 1}"] = ConvNorm(in_channels, channels, architecture, kernel, stride)
        in_channels = channels
    st = architecture.stem_pool_temporal_stride
    kernel, stride = (1 if st == 1 else 3, 3, 3), (st, 2, 2)
    if architecture.stem_pool == "conv":
        layers["pool"] = ConvNorm(out, out, architecture, kernel, stride)
    else:
        layers["pool"] = MaxPool(kernel, stride, padding=architecture.padding)
    return nn.Sequential(layers)


def drop_path_rates(rate: float, blocks: Sequence[int], rule: str) -> list[float]:
    """The rate of stochastic depth of every block; arguments as for :class:`ResNetRS`."""
    if rule not in DROP_PATH_RULES:
        raise UserError(f"drop_path_rule is {' or '.join(DROP_PATH_RULES)}, not {rule!r}")
    if rule == "block":
        return [rate * b / max(1, sum(blocks) - 1) for b in range(sum(blocks))]
    return [rate * (i + 2) / 5 for i, num_blocks in enumerate(blocks) for _ in range(num_blocks)]


def stage(
    in_channels: int,
    index: int,
    architecture: Architecture,
    width: float,
    drop_paths: Sequence[float],
    first_stream: int,
) -> nn.ModuleList:
    """The bottlenecks of stage ``index`` (from 0), one for each rate; the first of them projects and strides."""
    base, spatial_stride = STAGES[index]
    stride = (architecture.temporal_strides[index], spatial_stride, spatial_stride)
    channels = scaled(base, width)
    return nn.ModuleList(
        Bottleneck(
            EXPANSION * channels if b else in_channels,
            channels,
            architecture,
            temporal_kernel=architecture.temporal_kernel(index, b),
            stride=(1, 1, 1) if b else stride,
            project=b == 0,
            gate=architecture.self_gating and b == len(drop_paths) - 1,
            drop_path=drop_path,
            stream=first_stream + b,
        )
        for b, drop_path in enumerate(drop_paths)
    )


def scaled(channels: int, width: float) -> int:
    """``channels * width``, rounded to a multiple of 8."""
    return max(8, 8 * round(channels * width / 8))


def check_input(x: Tensor, channels: int) -> None:
    """Raises UserError unless these are clips ``[N, C, T, H, W]`` or images ``[N, C, H, W]`` of that many channels."""
    if x.ndim in (4, 5) and x.shape[1] == channels:
        return
    alone = x.ndim in (3, 4) and x.shape[0] == channels
    raise UserError(
        f"the network takes clips [N, {channels}, T, H, W] or images [N, {channels}, H, W]; found {list(x.shape)}"
        + (", a sample alone? x[None] is a batch of one" if alone else "")
    )


def draw_keys(x: Tensor) -> Tensor:
    """Random keys ``[N]`` from torch's generator, for callers that bring none."""
    return torch.randint(-(2**63), 2**63 - 1, (x.shape[0],), device=x.device)
