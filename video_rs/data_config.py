"""The data config of a model: the preprocessing that its weights expect.

Every checkpoint contains it; training, testing and prediction use it. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from video_rs.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FILTERS = ("bilinear", "bilinear-antialias", "bicubic", "bicubic-antialias")
SAMPLINGS = ("dense", "segments")


@dataclass(frozen=True)
class DataConfig(Mapping[str, Any]):
    """The preprocessing of clips for a network. Also a mapping: ``create_transform(**model.data_config)``.

    Attributes:
        num_frames: number of frames in a clip; 1 for an image network.
        stride: distance between the frames of a clip, in frames at the rate ``fps``.
        fps: frame rate for ``stride``; 0 for the rate of each file.
        sampling: one of ``SAMPLINGS``; see :class:`video_rs.data.clips.TemporalSampling`.
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1]; 0 and 1 in the published video
            recipe.
        train_size: height and width of a training crop, in pixels.
        short_side: short side of the resized frames before a test crop, in pixels.
        test_size: height and width of a test crop, in pixels.
        filter: resize filter, one of ``FILTERS``. Filters without ``-antialias`` match TensorFlow.
        in_channels: number of input channels; 3 for RGB.
        class_names: names of the classes in the order of the logits; empty if unknown.
        multi_label: True if a sample can have several classes; each logit then has its own sigmoid.
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
        """Return the data config for another number of channels, with mean 0 and std 1 instead of RGB statistics."""
        if channels == self.in_channels:
            return self
        return dataclasses.replace(self, in_channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings, for a checkpoint or a JSON file."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: object = "the checkpoint") -> DataConfig:
        """Create a data config from :meth:`to_dict`. Raise UserError with ``source`` for unknown or invalid fields."""
        if unknown := [str(k) for k in values if k not in cls.__dataclass_fields__]:
            raise UserError(
                f"{source} has data config fields {unknown}, unknown to this version of video_rs; upgrade it"
            )
        data_config = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        if wrong := [f.name for f in dataclasses.fields(cls) if not _is_valid(getattr(data_config, f.name), f.default)]:
            raise UserError(f"{source} is damaged: its data config has an invalid {wrong[0]}")
        if {len(data_config.mean), len(data_config.std)} != {data_config.in_channels}:
            raise UserError(f"{source} is damaged: mean and std do not have {data_config.in_channels} channels")
        return data_config

    def differences(self, other: DataConfig, fields: tuple[str, ...] | None = None) -> dict[str, tuple[Any, Any]]:
        """Return the fields that differ, with both values: ``{field: (self, other)}``."""
        return differences(self, other, fields or tuple(self))


def differences(first: Any, second: Any, names: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Return the attributes that differ, with both values: ``{name: (the first's, the second's)}``."""
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def pad_class_names(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Return the names of ``count`` outputs: those of the data, then numbers."""
    return (*names, *(str(number) for number in range(len(names), count)))


def _is_valid(value: Any, default: Any) -> bool:
    """Return True if a value has the type and range of a field with this default."""
    if isinstance(default, tuple):
        kinds = (int, float) if default else str
        return isinstance(value, tuple) and all(isinstance(entry, kinds) for entry in value)
    if isinstance(default, str):
        return value in (FILTERS if default in FILTERS else SAMPLINGS)
    if isinstance(default, float):
        return type(value) in (int, float) and 0 <= value < math.inf
    return type(value) is type(default) and (value > 0 or value is False)
