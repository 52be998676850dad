"""The preprocessing of a network: temporal sampling, crop, augmentation and normalization."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from video_rs.data.clips import TemporalSampling
from video_rs.data.transforms.color_jitter import ColorJitter
from video_rs.data.transforms.crops import (
    Augmentation,
    TrainTransform,
    ViewTransform,
    normalize,
    resize,
    short_side_size,
)
from video_rs.data.transforms.rand_augment import RandAugment
from video_rs.data.transforms.random_erasing import RandomErasing
from video_rs.data_config import FILTERS, DataConfig

_DEFAULT = DataConfig()


@dataclass(eq=False)
class VideoTransform:
    """The preprocessing of one network; see :func:`create_transform`.

    Attributes:
        sampling: the temporal sampling, used by ``VideoDataset``.
        spatial: crop and augmentation of uint8 frames: a ``TrainTransform`` or a ``ViewTransform``.
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1].
        multi_label: True if a file can have several labels.
        is_training: True if clips, crops and augmentation are random.
    """

    sampling: TemporalSampling
    spatial: TrainTransform | ViewTransform
    mean: Sequence[float]
    std: Sequence[float]
    multi_label: bool = False

    def __post_init__(self) -> None:
        self.is_training = isinstance(self.spatial, TrainTransform)

    def __call__(self, clip_THWC: Tensor | np.ndarray) -> Tensor:
        """Transform the frames of one clip, of any size. Random numbers are drawn from torch's generator.

        Args:
            clip_THWC: uint8 ``[T, H, W, C]``.

        Returns:
            float32 ``[C, T, S, S]``, normalized.
        """
        clip_THWC = torch.as_tensor(clip_THWC)
        if self.is_training:
            return self.normalize(self.spatial(clip_THWC, torch_seeded_rng()))
        size = short_side_size(*clip_THWC.shape[1:3], self.spatial.short_side)
        return self.normalize(self.spatial(resize(clip_THWC, *size, self.spatial.filter))[0])

    def normalize(self, clip_THWC: Tensor) -> Tensor:
        """Return uint8 ``[T, S, S, C]`` as float32 ``[C, T, S, S]``: ``(x / 255 - mean) / std``."""
        return normalize(clip_THWC[None], self.mean, self.std)[0]


def create_transform(
    num_frames: int = _DEFAULT.num_frames,
    stride: int = _DEFAULT.stride,
    fps: float = _DEFAULT.fps,
    sampling: str = _DEFAULT.sampling,
    mean: Sequence[float] = _DEFAULT.mean,
    std: Sequence[float] = _DEFAULT.std,
    train_size: int = _DEFAULT.train_size,
    short_side: int = _DEFAULT.short_side,
    test_size: int = _DEFAULT.test_size,
    filter: str = _DEFAULT.filter,
    in_channels: int = _DEFAULT.in_channels,
    class_names: Sequence[str] = _DEFAULT.class_names,
    multi_label: bool = _DEFAULT.multi_label,
    *,
    is_training: bool = False,
    area: Sequence[float] = (0.08, 1.0),
    aspect: Sequence[float] = (0.5, 2.0),
    min_covered: float = 0.1,
    flip: float = 0.5,
    color_jitter: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    rand_augment_layers: int = 0,
    rand_augment_magnitude: float = 10.0,
    random_erasing: float = 0.0,
    random_erasing_mode: str = "mean",
    augment: Sequence[Augmentation] = (),
) -> VideoTransform:
    """Create the preprocessing of a network: ``create_transform(**model.data_config, is_training=True)``.

    The arguments up to ``multi_label`` are the fields of a data config. The arguments after ``is_training`` are used
    only for training.

    Args:
        num_frames: number of frames in a clip; 1 for an image network.
        stride: distance between the frames of a clip, in frames at the rate ``fps``.
        fps: frame rate for ``stride``; 0 for the rate of each file.
        sampling: ``"dense"`` for frames at the stride, or ``"segments"`` for frames spread over the whole video.
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1].
        train_size: height and width of a training crop, in pixels.
        short_side: short side of the resized frames before an evaluation crop, in pixels.
        test_size: height and width of an evaluation crop, in pixels; at most ``short_side``.
        filter: resize filter: ``"bilinear"``, ``"bicubic"``, ``"bilinear-antialias"`` or ``"bicubic-antialias"``.
        in_channels, class_names: ignored; accepted because they are fields of a data config.
        multi_label: True if files can have several labels; the default of ``VideoDataset(multi_label=)``.
        is_training: True for an augmented random crop of a random clip, False for the centre crop of the middle clip.
        area: range of the area of the random crop, as a fraction of the frame.
        aspect: range of width / height of the crop.
        min_covered: minimum fraction of the frame that a crop covers.
        flip: probability of a horizontal flip of the whole clip; 0 if classes differ in direction.
        color_jitter: strengths of brightness, contrast, saturation and hue, as in torchvision; one draw per clip.
        rand_augment_layers, rand_augment_magnitude: number of RandAugment operations per clip, and their magnitude.
        random_erasing: probability of erasing a box in all frames of a clip.
        random_erasing_mode: ``"mean"`` to fill the box with the mean pixel, or ``"noise"``.
        augment: custom augmentations, called as ``f(clip, rng)`` before random erasing; see
            :func:`video_rs.data.transforms.register_augmentation`.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    sizes = {"train_size": train_size, "short_side": short_side, "test_size": test_size}
    for name, value in {"num_frames": num_frames, "stride": stride, **sizes}.items():
        if not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")
    for name, value in {"flip": flip, "min_covered": min_covered, "random_erasing": random_erasing}.items():
        if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r}: must be a number from 0 to 1")
    if filter not in FILTERS:
        raise ValueError(f"filter={filter!r}: must be one of {', '.join(FILTERS)}")
    frames = TemporalSampling(num_frames, stride, sampling, fps)
    if not is_training:
        return VideoTransform(frames, ViewTransform(short_side, test_size, filter=filter), mean, std, multi_label)
    pixel = [255 * value for value in mean] if random_erasing_mode == "mean" else None
    jitter = ColorJitter(*color_jitter) if any(color_jitter) else None
    operations = RandAugment(rand_augment_layers, rand_augment_magnitude) if rand_augment_layers else None
    erasing = RandomErasing(random_erasing, pixel) if random_erasing else None
    crop_and_flip = train_size, area, aspect, flip, filter, min_covered
    spatial = TrainTransform(*crop_and_flip, jitter, operations, erasing, augment)
    return VideoTransform(frames, spatial, mean, std, multi_label)


def torch_seeded_rng() -> np.random.Generator:
    """Return a generator seeded from torch's generator, and so by ``torch.manual_seed`` and DataLoader workers."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, ())))
