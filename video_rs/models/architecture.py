"""The architecture of ResNet-RS networks as a dataclass. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any

from video_rs.data_config import differences
from video_rs.errors import UserError, did_you_mean

INFLATIONS = ("center", "average")
"""Methods to inflate 2D kernels to 3D; see ``video_rs.models.weights.inflate``."""

DROP_PATH_RULES = ("stage", "block")
"""Rules for the rate of stochastic depth; see ``ResNetRS``."""

TEMPORAL_PADDINGS = ("zeros", "replicate")
"""Temporal padding modes of convolutions."""

Differences = dict[str, tuple[Any, Any]]
"""Differences of two architectures: ``{field: (value of the first, value of the second)}``."""

CHOICES = {
    "stem_pool": ("conv", "max"),
    "shortcut": ("pool", "conv"),
    "activation": ("relu", "swish"),
    "padding": ("symmetric", "same"),
    "temporal_padding": TEMPORAL_PADDINGS,
}


@dataclass(frozen=True)
class Architecture:
    """An architecture of the family, without its depth and width.

    The defaults are the image ResNet-RS (Bello et al. 2021, sec. 4.1). The config keys ``model.arch.*`` set the fields.

    Attributes:
        stem_kernels: spatial kernels of the stem's convolutions; the first has stride 2.
        stem_width: number of channels after the stem; half of it before the last convolution of the stem.
        stem_temporal_kernel, stem_temporal_stride: kernel and stride in time of the stem's first convolution.
        stem_pool: downsampling at the end of the stem: a strided 3x3 "conv" or a 3x3 "max" pool.
        stem_pool_temporal_stride: stride in time of this pool. If it is 2, the kernel is also 3 in time.
        temporal_kernels: kernel in time of the first convolution in the bottlenecks, by stage. A tuple instead of an
            int is a pattern that is repeated over the blocks of the stage.
        temporal_strides: stride in time of the first block, by stage.
        shortcut: shortcut of the first block of a stage: an average "pool" before a 1x1 convolution (ResNet-D), or a
            strided "conv".
        shortcut_pool_in_stage1: average over 2x2 with stride 1 in stage 1 too, as in the Model Garden's image networks.
        se_ratio: bottleneck of squeeze-and-excitation relative to the block's output channels; 0 for none.
        self_gating: use self-gating in the last block of each stage, before squeeze-and-excitation.
        activation: "relu" or "swish". Inside squeeze-and-excitation it is always ReLU.
        padding: "symmetric" (k // 2 on both sides) or "same" (as in TensorFlow, with the odd pixel at the end).
        temporal_padding: "zeros", or "replicate" to repeat the first and last frame.
        zero_init_last_gamma: initialise every residual branch to zero.
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
        for field in fields(self):
            value = getattr(self, field.name)
            wanted, fits = _expected(field, value)
            if not fits:
                raise UserError(f"Architecture.{field.name} must be {wanted}, not {value!r}")

    def with_fields(self, values: Mapping[str, Any] | None, temporal_padding: str | None = None) -> Architecture:
        """Return a copy with new values of some fields. None keeps a field.

        Raises:
            UserError: a field is unknown, or its value is invalid.
        """
        if values is not None and not isinstance(values, Mapping):
            raise UserError(f"arch must be a mapping of fields, such as {{'se_ratio': 0.25}}; found {values!r}")
        changed = {name: _as_tuple(value) for name, value in (values or {}).items() if value is not None}
        known = [field.name for field in fields(self)]
        for name in changed.keys() - set(known):
            hint = did_you_mean(str(name), known, f"; the fields are {', '.join(known)}")
            raise UserError(f"there is no field {name!r} in an architecture (model.arch){hint}")
        if temporal_padding is not None:
            changed["temporal_padding"] = temporal_padding
        return replace(self, **changed)

    def temporal_kernel(self, stage: int, block: int) -> int:
        """Return the temporal kernel of a block in a stage, both counted from 0."""
        kernels = self.temporal_kernels[stage]
        return kernels if isinstance(kernels, int) else kernels[block % len(kernels)]

    @property
    def for_images(self) -> bool:
        """True if the networks process each frame independently."""
        return replace(self.flat(), temporal_padding=self.temporal_padding) == self

    def flat(self) -> Architecture:
        """Return the architecture without temporal kernels and strides."""
        return replace(self, **{field.name: field.default for field in fields(self) if "temporal" in field.name})

    def differences(self, other: Architecture) -> Differences:
        """Return the fields that differ, except ``zero_init_last_gamma``, which affects only the initialization."""
        return differences(self, other, [f.name for f in fields(self) if f.name != "zero_init_last_gamma"])


def _expected(field: Field, value: Any) -> tuple[str, bool]:
    """Return a description of the valid values of a field, and True if the value is valid."""
    if field.name in CHOICES:
        return f"one of {', '.join(CHOICES[field.name])}", value in CHOICES[field.name]
    if isinstance(field.default, bool):
        return "true or false", isinstance(value, bool)
    if isinstance(field.default, float):
        return "a number from 0 to 1", type(value) in (int, float) and 0 <= value <= 1
    odd = "kernel" in field.name
    if not isinstance(field.default, tuple):
        return f"{'an odd' if odd else 'a'} whole number above 0", _are_counts((value,), odd)
    wanted = f"a list of {'odd ' if odd else ''}whole numbers above 0"
    if "temporal" not in field.name:
        return wanted, _are_counts(value, odd)
    fits = isinstance(value, tuple) and len(value) == 4
    if field.name == "temporal_kernels":
        fits = fits and all(_are_counts(v if isinstance(v, tuple) else (v,), odd) for v in value)
    else:
        fits = fits and _are_counts(value, odd)
    return f"{wanted}, one for each of the four stages", fits


def _are_counts(values: Any, odd: bool) -> bool:
    fit = isinstance(values, tuple) and len(values) > 0
    return fit and all(type(v) is int and v > 0 and (v % 2 == 1 or not odd) for v in values)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value


RESNET_RS_2D = Architecture()
"""Bello et al. 2021 (arXiv 2103.07579), as in its released code."""

RESNET_RS_3D = Architecture(stem_temporal_kernel=5, stem_temporal_stride=2, temporal_kernels=(1, 1, 3, 3))
"""The image network with temporal kernels in the stem and in stages 3 and 4 (Du et al. 2021, arXiv 2109.01696)."""

GARDEN_2D = Architecture(shortcut_pool_in_stage1=True, activation="swish", padding="same", zero_init_last_gamma=False)
"""The image ResNet-RS of the TensorFlow Model Garden (tensorflow/models, ``official/vision``), as in its configs."""

INFLATED_GARDEN_2D = replace(
    GARDEN_2D, stem_temporal_kernel=5, stem_temporal_stride=2, temporal_kernels=RESNET_RS_3D.temporal_kernels
)
"""The Model Garden's image network with the temporal kernels of ``RESNET_RS_3D``, for inflation of its weights."""

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
"""R3D with self-gating, more temporal kernels and a pool over time: ``k600_3d-resnet50g.yaml``."""

SLOW_ONLY = replace(R3D, stem_temporal_kernel=1, stem_temporal_stride=1)
"""The Model Garden's SlowOnly: R3D without temporal kernels in the stem."""
