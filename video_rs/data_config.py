"""The data config of a model: what its weights expect to see.

It is saved in every checkpoint and obeyed by training, testing and prediction. It imports nothing of torch, so that
``data`` and ``models``, which do not know each other, can both speak of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from video_rs.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FILTERS = ("bilinear", "bilinear-antialias", "bicubic", "bicubic-antialias")
SAMPLINGS = ("dense", "segments")


@dataclass(frozen=True)
class DataConfig(Mapping[str, Any]):
    """How pixels reach a network.

    Attributes:
        num_frames: frames in a clip; 1 for an image network.
        stride: frames, at the rate of ``fps``, from one frame of the clip to the next.
        fps: frames per second that ``stride`` counts in; 0 for the source's own.
        sampling: which frames make a clip, one of ``SAMPLINGS``; see :class:`video_rs.data.clips.TemporalSampling`.
        mean, std: per channel, on the [0, 1] scale. The published video recipe only divides by 255 (0 and 1 here).
        train_size: height and width of a training crop, in pixels.
        short_side: the short side is resized to this before a test crop, in pixels.
        test_size: height and width of a test crop, in pixels.
        filter: the resize filter, one of ``FILTERS``; without ``-antialias`` it samples as TensorFlow does.
        in_channels: 3 for RGB.
        class_names: in the order of the logits; empty when unknown.
        multi_label: whether a sample may be of any number of classes: each logit is a sigmoid's of its own.
    """

    num_frames: int = 32
    stride: int = 2
    fps: float = 0.0
    sampling: str = "dense"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    train_size: int = 224
    short_side: int = 256
    test_size: int = 256
    filter: str = "bilinear"
    in_channels: int = 3
    class_names: tuple[str, ...] = ()
    multi_label: bool = False

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)

    def with_channels(self, channels: int) -> DataConfig:
        """For another number of channels. RGB statistics say nothing of those: they are only brought to [0, 1]."""
        if channels == self.in_channels:
            return self
        return dataclasses.replace(self, in_channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings: what a checkpoint or a JSON file can hold."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: object = "the checkpoint") -> DataConfig:
        """The inverse of :meth:`to_dict`. Raises UserError, naming ``source``, for unknown fields and wrong values."""
        if unknown := [str(k) for k in values if k not in cls.__dataclass_fields__]:
            raise UserError(
                f"{source} has data config fields {unknown}, unknown to this version of video_rs: upgrade it"
            )
        data_config = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        if wrong := [f.name for f in dataclasses.fields(cls) if not _possible(getattr(data_config, f.name), f.default)]:
            raise UserError(f"{source} is damaged: its data config has an impossible {wrong[0]}")
        if {len(data_config.mean), len(data_config.std)} != {data_config.in_channels}:
            raise UserError(f"{source} is damaged: mean and std are not of {data_config.in_channels} channels")
        return data_config

    def differences(self, other: DataConfig, fields: tuple[str, ...] | None = None) -> dict[str, tuple[Any, Any]]:
        """The fields in which two data configs differ, with both values: ``{field: (self's, other's)}``."""
        names = fields or tuple(f.name for f in dataclasses.fields(self))
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _possible(value: Any, default: Any) -> bool:
    """Return whether a value is of the default's kind: a tuple, one of the same names, a flag, a rate, or a count or
    size above 0."""
    if isinstance(default, tuple):
        kinds = (int, float) if default else str
        return isinstance(value, tuple) and all(isinstance(entry, kinds) for entry in value)
    if isinstance(default, str):
        return value in (FILTERS if default in FILTERS else SAMPLINGS)
    if isinstance(default, float):
        return type(value) in (int, float) and 0 <= value < math.inf
    return type(value) is type(default) and (value > 0 or value is False)
