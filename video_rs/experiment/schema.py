"""The schema of the config: a tree of frozen dataclasses with type, range, default and meaning of each key.

The defaults are the published R3D-RS-50 recipe on Kinetics-400 (TF Model Garden, ``k400_resnet3drs_50_tpu.yaml``).
This module does not import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from video_rs.data.limits import MAX_PIXELS, RETRIES
from video_rs.data_config import FILTERS, SAMPLINGS, DataConfig
from video_rs.models.architecture import CHOICES, DROP_PATH_RULES, TEMPORAL_PADDINGS
from video_rs.training.options import (
    OPTIMIZERS,
    TIMM_OPTIMIZERS,
    DataOptions,
    OptimOptions,
    Options,
    TrainOptions,
    free,
    setting,
)


def plain(value: Any) -> Any:
    """Convert tuples in nested values to lists, for YAML and checkpoints."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class ArchSection:
    """Fields of the architecture, see ``video_rs.models.architecture.Architecture``; null keeps the model's own."""

    stem_kernels: tuple[int, ...] | None = setting(None, "spatial kernel sizes of the stem", low=1, high=15)
    stem_width: int | None = setting(None, "channels after the stem", low=2, high=1024)
    stem_temporal_kernel: int | None = setting(None, "of the first convolution", low=1, high=15)
    stem_temporal_stride: int | None = setting(None, "of the first convolution", low=1, high=8)
    stem_pool: str | None = setting(None, "downsampling at the end of the stem", choices=CHOICES["stem_pool"])
    stem_pool_temporal_stride: int | None = setting(None, "2: pool over time too", low=1, high=2)
    temporal_kernels: tuple[int | tuple[int, ...], ...] | None = setting(
        None, "by stage: [1, 1, 3, 3]; a nested list is repeated over the blocks of its stage"
    )
    temporal_strides: tuple[int, ...] | None = setting(None, "of the first block, by stage", low=1, high=8)
    shortcut: str | None = setting(None, "of the first block of a stage", choices=CHOICES["shortcut"])
    shortcut_pool_in_stage1: bool | None = setting(None, "average pool at stride 1 in stage 1")
    se_ratio: float | None = setting(None, "ratio of squeeze-and-excitation; 0: none", low=0, high=1)
    self_gating: bool | None = setting(None, "self-gating in the last block of each stage")
    activation: str | None = setting(None, "activation of all blocks", choices=CHOICES["activation"])
    padding: str | None = setting(None, "spatial padding; same: as in TensorFlow", choices=CHOICES["padding"])
    zero_init_last_gamma: bool | None = setting(None, "initialize every block to its shortcut")


@dataclass(frozen=True)
class ModelSection:
    """The network."""

    name: str = setting("resnet3d_rs_50", "a name of video_rs.list_models(), timm/<name> or pytorchvideo/<name>")
    num_classes: int = setting(0, "number of classes; 0: from the data", low=0)
    width: float = setting(1.0, "multiplier of all channel counts; ResNet-RS only", low=0.05, high=8)
    dropout: float | None = setting(None, "rate before the classifier; null: the model's own", low=0, high=0.95)
    drop_path: float | None = setting(None, "rate in the last stage; null: the model's own", low=0, high=0.95)
    drop_path_rule: str = setting("stage", "rate grows per stage (paper) or per block (timm)", choices=DROP_PATH_RULES)
    bn_momentum: float | None = setting(
        None, "torch's momentum; null: 1.0 with EMA, else 0.1; other families: their own", low=1e-4, high=1
    )
    temporal_padding: str | None = setting(
        None, "padding in time; null: the architecture's own", choices=TEMPORAL_PADDINGS
    )
    arch: ArchSection = field(default_factory=ArchSection)


@dataclass(frozen=True)
class _Clips:
    root: str = free("", "folder of the dataset or of its shards, or shards: s3://bucket/k-{000..123}.tar", path=True)
    train: str = free("", "list file, folder of class folders or shards; empty: found under root", path=True)
    val: str = free("", "like train; empty: a fraction of train is held out", path=True)
    test: str = free("", "like train; empty: val is the test split", path=True)
    list: str = free("", "list of all splits, with a column split", path=True)
    class_names: str = setting("", "file with one class name per line; empty: from the data", path=True)
    fold: int = setting(1, "official split of UCF101 or HMDB51", low=1, high=3)
    frame_folders: bool = setting(False, "each folder in a class folder is a video with images as frames")
    multi_label: bool = setting(False, "several labels per file, joined by ; in lists: sigmoid loss, mAP")
    val_fraction: float = setting(
        0.1, "fraction of train held out if there is no val split; 0: none, no validation", low=0, high=0.9
    )
    max_missing: float = setting(0.05, "tolerated fraction of a list missing on disk", low=0, high=1)
    decoder: str = free("pyav", "decord: where its frames are exact, otherwise PyAV", choices=("pyav", "decord"))
    max_pixels: int = free(MAX_PIXELS, "largest frame or image to decode: width times height", low=1)
    retries: int = free(RETRIES, "retries of a failed read, with pauses of 0.5 to 8 s", low=0, high=100)
    num_frames: int = setting(32, "frames per clip; 1 for images", low=1, high=1024)
    stride: int = setting(2, "distance between frames of a clip, in frames at the rate fps", low=1, high=1024)
    fps: float = setting(0.0, "frame rate for stride; 0: each file's own", low=0, high=1000)
    sampling: str = setting(
        "dense", "dense: frames at the stride; segments: over the whole video, as in TSN", choices=SAMPLINGS
    )
    train_size: int = setting(224, "side of a training crop, pixels", low=16, high=2048)
    short_side: int = setting(256, "short side before a test crop, pixels", low=16, high=4096)
    test_size: int = setting(256, "side of a test crop, pixels", low=16, high=2048)
    area: tuple[float, float] = setting((0.08, 1.0), "scale jitter: area of a training crop", low=1e-3, high=1)
    aspect: tuple[float, float] = setting((0.5, 2.0), "scale jitter: aspect ratio of a crop", low=0.05, high=20)
    min_covered: float = setting(0.1, "scale jitter: minimum fraction of the frame in a crop", low=0, high=1)
    flip: float = setting(0.5, "probability of a horizontal flip; 0 if direction matters", low=0, high=1)
    filter: str = setting("bilinear", "resize filter", choices=FILTERS)
    mean: tuple[float, float, float] = setting((0.0, 0.0, 0.0), "per channel, for pixels in [0, 1]", low=0, high=1)
    std: tuple[float, float, float] = setting((1.0, 1.0, 1.0), "per channel, for pixels in [0, 1]", low=1e-3, high=10)
    rand_augment_layers: int = setting(0, "RandAugment operations per sample; 0: off", low=0, high=16)
    rand_augment_magnitude: float = setting(10.0, "RandAugment magnitude", low=0, high=30)
    color_jitter: tuple[float, float, float, float] = setting(
        (0.0, 0.0, 0.0, 0.0), "strengths of brightness, contrast, saturation, hue; one draw per clip; 0: off", low=0
    )
    random_erasing: float = setting(0.0, "probability of erasing a box, in all frames of a clip", low=0, high=1)
    random_erasing_mode: str = setting("mean", "fill: the pixel data.mean, or noise", choices=("mean", "noise"))
    augment: dict | None = setting(
        None, "augmentations of plugins, with their arguments: {Grayscale: {probability: 0.5}}"
    )


@dataclass(frozen=True)
class DataSection(DataOptions, _Clips):
    """The dataset and its preprocessing."""


@dataclass(frozen=True)
class _Optimizer:
    name: str = setting(
        "sgd", "optimizer; all but sgd, adamw and lamb are timm's", choices=OPTIMIZERS + TIMM_OPTIMIZERS
    )
    options: dict | None = setting(None, "arguments of timm's optimizer: {alpha: 0.9, eps: 1e-3}")


@dataclass(frozen=True)
class OptimSection(OptimOptions, _Optimizer):
    """The optimizer and its schedule."""


@dataclass(frozen=True)
class TrainSection(TrainOptions):
    """The run."""

    activation_checkpointing: tuple[int, ...] = free(
        (), "stages (1 to 4) that recompute their activations in the backward pass", low=1, high=4
    )


@dataclass(frozen=True)
class TestSection:
    """Multi-view evaluation."""

    __test__ = False  # not a pytest class

    split: str = free("test", "split to score", choices=("train", "val", "test"))
    clips: int = free(10, "clips per video, evenly spaced", low=1, high=1000)
    crops: int = free(3, "crops per clip: 1 (centre) or 3 (along the longer side)", low=1, high=3)
    batch_size: int = free(8, "views in one forward pass", low=1)
    save_views: bool = free(False, "save the scores of every view (views.npz)")


@dataclass(frozen=True)
class Config:
    """The complete config of a command."""

    out: str = free("", "run folder; empty: runs/<name of the config>", path=True)
    weights: str = free("", "checkpoint to test, a file or a URL; empty: <out>/best.pt", path=True)
    plugins: tuple[str, ...] = free(
        (), "Python files that register networks, layouts, augmentations or losses", path=True
    )
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    optim: OptimSection = field(default_factory=OptimSection)
    train: TrainSection = field(default_factory=TrainSection)
    test: TestSection = field(default_factory=TestSection)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as in a checkpoint or a YAML file."""
        return plain(dataclasses.asdict(self))

    def to_yaml(self) -> str:
        """Return the full config as YAML, which ``load_config`` reads back to an equal config."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def data_config(self, class_names: Sequence[str] = ()) -> DataConfig:
        """Return the data config of a model trained with this config."""
        names = DataConfig.__dataclass_fields__.keys() & DataSection.__dataclass_fields__.keys() - {"class_names"}
        return DataConfig(**{name: getattr(self.data, name) for name in names}, class_names=tuple(class_names))


def options_of(config: Config) -> Options:
    """Return the options of a run from the keys of the same names and three renamed keys."""
    sections = (config.data, config.optim, config.train)
    names = Options.__dataclass_fields__
    own = {name: getattr(section, name) for section in sections for name in names if hasattr(section, name)}
    optim = config.optim
    return Options(
        **own, optimizer=optim.name, optimizer_options=optim.options, views_per_forward=config.test.batch_size
    )
