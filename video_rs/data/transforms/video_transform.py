"""From the frames of a file to the input of a network: which frames, crop, augmentation and normalization."""

from __future__ import annotations

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
from video_rs.data_config import DataConfig

_DEFAULT = DataConfig()


@dataclass(eq=False)
class VideoTransform:
    """The preprocessing of one network; see :func:`create_transform`.

    Attributes:
        sampling: which frames of a video make a clip. ``VideoDataset`` reads it here.
        spatial: crop and augmentation of the frames, on uint8: a ``TrainTransform`` or a ``ViewTransform``.
        mean, std: per channel, of pixels in [0, 1].
        multi_label: whether a file can have several labels.
        is_training: whether clips, crops and augmentation are random.
    """

    sampling: TemporalSampling
    spatial: TrainTransform | ViewTransform
    mean: Sequence[float]
    std: Sequence[float]
    multi_label: bool = False

    def __post_init__(self) -> None:
        self.is_training = isinstance(self.spatial, TrainTransform)

    def __call__(self, clip_THWC: Tensor) -> Tensor:
        """Transform the frames of one clip, of any size; random numbers are drawn from torch's generator.

        Args:
            clip_THWC: uint8 ``[T, H, W, C]``.

        Returns:
            float32 ``[C, T, S, S]``, normalized.
        """
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

    The arguments up to ``multi_label`` are the fields of a data config. Those after ``is_training`` apply to training
    only.

    Args:
        num_frames: frames of a clip; 1 for an image network.
        stride: frames, at the rate of ``fps``, from one frame of a clip to the next.
        fps: frames per second that ``stride`` counts in; 0: the rate of each file.
        sampling: ``"dense"``: frames at the stride; ``"segments"``: spread over the whole video.
        mean, std: per channel, of pixels in [0, 1].
        train_size: height and width of a training crop, in pixels.
        short_side: short side of the resized frames before an evaluation crop, in pixels.
        test_size: height and width of an evaluation crop, in pixels; at most ``short_side``.
        filter: of the resize: ``"bilinear"`` or ``"bicubic"``, each also with ``"-antialias"``.
        in_channels, class_names: accepted and not used.
        multi_label: whether files can have several labels; the default of ``VideoDataset(multi_label=)``.
        is_training: True: a random crop of a random clip, augmented. False: the centre crop of the middle clip.
        area: smallest and largest area of the random crop, as a fraction of the frame.
        aspect: smallest and largest width / height of the crop.
        min_covered: smallest fraction of the frame that a crop covers.
        flip: probability of a horizontal flip of the whole clip; 0 where the direction is the class.
        color_jitter: strengths of brightness, contrast, saturation and hue, as torchvision's; one draw per clip.
        rand_augment_layers, rand_augment_magnitude: RandAugment operations per clip, and their magnitude.
        random_erasing: probability of erasing one box in all frames of a clip.
        random_erasing_mode: fill the box with the pixel ``"mean"`` or with ``"noise"``.
        augment: augmentations of your own, called as ``f(clip, rng)`` before the erasing; see
            :func:`video_rs.data.transforms.register_augmentation`.
    """
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
    """Return a generator seeded from torch's: ``torch.manual_seed`` and the seeds of DataLoader workers control it."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, ())))
