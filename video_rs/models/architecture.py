"""What the networks of the family differ in, as data. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from video_rs.errors import UserError

INFLATIONS = ("center", "average")
"""What may become of an image kernel that gains a temporal extent; see ``video_rs.models.weights.inflate``."""

DROP_PATH_RULES = ("stage", "block")
"""How the rate of stochastic depth grows with depth; see ``ResNetRS``."""

TEMPORAL_PADDINGS = ("zeros", "replicate")
"""What convolutions see before the first and after the last frame."""

Differences = dict[str, tuple[Any, Any]]
"""Of two architectures: ``{field: (the one's, the other's)}``."""

CHOICES = {
    "stem_pool": ("conv", "max"),
    "shortcut": ("pool", "conv"),
    "activation": ("relu", "swish"),
    "padding": ("symmetric", "same"),
    "temporal_padding": TEMPORAL_PADDINGS,
}


@dataclass(frozen=True)
class Architecture:
    """The architecture around (blocks, width). The defaults are the image ResNet-RS (Bello et al. 2021, sec. 4.1).

    Attributes:
        stem_kernels: spatial kernels of the stem's convolutions; the first has stride 2.
        stem_width: channels after the stem, half of it before its last convolution.
        stem_temporal_kernel, stem_temporal_stride: of the stem's first convolution.
        stem_pool: what halves the stem's output, a strided 3x3 "conv" or a 3x3 "max" pool.
        stem_pool_temporal_stride: with 2, the pool's kernel is 3 in time as well.
        temporal_kernels: of the first convolution in the bottlenecks, by stage; a tuple instead of an int is a pattern
            that the blocks of the stage repeat.
        temporal_strides: of the first block, by stage.
        shortcut: of the first block of a stage: an average "pool" before a 1x1 convolution (ResNet-D), or a strided
            "conv".
        shortcut_pool_in_stage1: average over 2x2 at stride 1 in stage 1 too, as the Model Garden's image networks do.
        se_ratio: squeeze-and-excitation's bottleneck over the block's output channels; 0 leaves it out.
        self_gating: in the last block of each stage, before the squeeze-and-excitation.
        activation: "relu" or "swish"; inside squeeze-and-excitation it is always ReLU.
        padding: "symmetric" (k // 2 on both sides) or "same" (TensorFlow's, the odd pixel at the end).
        temporal_padding: "zeros", or "replicate" the first and last frame.
        zero_init_last_gamma: start every block as its shortcut.
    """

    stem_kernels: tuple[int, ...] = (3, 3, 3)
    stem_width: int = 64
    stem_temporal_kernel: int = 1
    stem_temporal_stride: int = 1
    stem_pool: str = "conv"
    stem_pool_temporal_stride: int = 1
    temporal_kernels: tuple[int | tuple[int, ...], ...] = (1, 1, 1, 1)
    temporal_strides: tuple[int, ...] = (1, 1, 1, 1)
    shortcut: str = "pool"
    shortcut_pool_in_stage1: bool = False
    se_ratio: float = 0.25
    self_gating: bool = False
    activation: str = "relu"
    padding: str = "symmetric"
    temporal_padding: str = "zeros"
    zero_init_last_gamma: bool = True

    def __post_init__(self) -> None:
        for field, values in CHOICES.items():
            if getattr(self, field) not in values:
                raise UserError(f"Architecture.{field} is one of {', '.join(values)}, not {getattr(self, field)!r}")

    def temporal_kernel(self, stage: int, block: int) -> int:
        """The temporal kernel of block ``block`` of stage ``stage`` (both from 0)."""
        kernels = self.temporal_kernels[stage]
        return kernels if isinstance(kernels, int) else kernels[block % len(kernels)]

    @property
    def for_images(self) -> bool:
        """Whether networks of the architecture see every frame by itself."""
        return replace(self.flat(), temporal_padding=self.temporal_padding) == self

    def flat(self) -> Architecture:
        """The architecture without its temporal extents."""
        return replace(self, **{field.name: field.default for field in fields(self) if "temporal" in field.name})

    def differences(self, other: Architecture) -> Differences:
        """The fields that differ, save for how the training of new weights begins."""
        names = [field.name for field in fields(self) if field.name != "zero_init_last_gamma"]
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


RESNET_RS_2D = Architecture()
"""Bello et al. 2021 (arXiv 2103.07579) as its released code builds it."""

RESNET_RS_3D = Architecture(stem_temporal_kernel=5, stem_temporal_stride=2, temporal_kernels=(1, 1, 3, 3))
"""The image network with temporal kernels in the stem and in stages 3 and 4 (Du et al. 2021, arXiv 2109.01696)."""

GARDEN_2D = Architecture(shortcut_pool_in_stage1=True, activation="swish", padding="same", zero_init_last_gamma=False)
"""The image ResNet-RS of the TensorFlow Model Garden (tensorflow/models, ``official/vision``) as its configs set it."""

INFLATED_GARDEN_2D = replace(
    GARDEN_2D, stem_temporal_kernel=5, stem_temporal_stride=2, temporal_kernels=RESNET_RS_3D.temporal_kernels
)
"""The Model Garden's image network with the temporal kernels of ``RESNET_RS_3D``: what its weights inflate into."""

GARDEN_3D = Architecture(
    stem_temporal_kernel=5,
    stem_temporal_stride=2,
    stem_pool="max",
    temporal_kernels=(1, 1, 3, 3),
    shortcut="conv",
    self_gating=True,
    padding="same",
    zero_init_last_gamma=False,
)
"""The video ResNet-RS of the Model Garden: ``k400_resnet3drs_50_tpu.yaml`` and the other depths of its code."""

R3D = replace(GARDEN_3D, stem_kernels=(7,), se_ratio=0.0, self_gating=False)
"""The Model Garden's 3D ResNet without the changes of ResNet-RS: one 5x7x7 convolution in the stem."""

R3D_G = replace(
    R3D,
    self_gating=True,
    stem_pool_temporal_stride=2,
    temporal_kernels=((3, 3, 3), (3, 1), (3, 1), (1, 3, 1)),
)
"""The same with self-gating, more temporal kernels and a pool over time: ``k600_3d-resnet50g.yaml``."""

SLOW_ONLY = replace(R3D, stem_temporal_kernel=1, stem_temporal_stride=1)
"""The Model Garden's SlowOnly: R3D with a stem that leaves the frames apart."""
