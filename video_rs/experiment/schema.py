"""The keys of the config: type, range, default and meaning of each, and the frozen tree that holds them.

The defaults are the published R3D-RS-50 recipe on Kinetics-400 (TF Model Garden, ``k400_resnet3drs_50_tpu.yaml``).
Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from video_rs.data_config import FILTERS, SAMPLINGS, DataConfig
from video_rs.models.architecture import CHOICES, DROP_PATH_RULES, INFLATIONS, TEMPORAL_PADDINGS

LOSSES = ("cross_entropy", "bce")
OPTIMIZERS = ("sgd", "adamw", "lamb")
# fmt: off
TIMM_OPTIMIZERS = (
    "adabelief", "adadelta", "adafactor", "adafactorbv", "adagrad", "adam", "adamax", "adamp", "adan", "adopt", "lars",
    "laprop", "lion", "madgrad", "mars", "muon", "nadam", "nadamw", "novograd", "radam", "rmsprop", "rmsproptf", "sgdp",
    "sgdw",
)
# fmt: on
"""timm's optimizers that pass tests/training/test_optimizers.py: skipped steps and a resume leave no trace."""


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
    free: bool = False,
) -> Any:
    """Return a field of the schema. A ``free`` key may differ when a run is resumed."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices, "free": free})


free = functools.partial(setting, free=True)


def plain(value: Any) -> Any:
    """Return nested values with tuples as lists: what YAML and checkpoints hold."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class ArchSection:
    """Fields of the architecture, see ``video_rs.models.architecture.Architecture``; null keeps the model's own."""

    stem_kernels: tuple[int, ...] | None = setting(None, "spatial kernels of the stem", low=1, high=15)
    stem_width: int | None = setting(None, "channels after the stem", low=2, high=1024)
    stem_temporal_kernel: int | None = setting(None, "of the stem's first convolution", low=1, high=15)
    stem_temporal_stride: int | None = setting(None, "of the stem's first convolution", low=1, high=8)
    stem_pool: str | None = setting(None, "halves the stem's output", choices=CHOICES["stem_pool"])
    stem_pool_temporal_stride: int | None = setting(None, "2: pool over time as well", low=1, high=2)
    temporal_kernels: tuple[int | tuple[int, ...], ...] | None = setting(
        None, "by stage: [1, 1, 3, 3]; a list is a pattern that the blocks of a stage repeat"
    )
    temporal_strides: tuple[int, ...] | None = setting(None, "of the first block, by stage", low=1, high=8)
    shortcut: str | None = setting(None, "of the first block of a stage", choices=CHOICES["shortcut"])
    shortcut_pool_in_stage1: bool | None = setting(None, "average at stride 1 in stage 1 as well")
    se_ratio: float | None = setting(None, "of squeeze-and-excitation; 0: none", low=0, high=1)
    self_gating: bool | None = setting(None, "in the last block of each stage")
    activation: str | None = setting(None, "of all blocks", choices=CHOICES["activation"])
    padding: str | None = setting(None, "same: as TensorFlow", choices=CHOICES["padding"])
    zero_init_last_gamma: bool | None = setting(None, "start every block as its shortcut")


@dataclass(frozen=True)
class ModelSection:
    """The network."""

    name: str = setting("resnet3d_rs_50", "a name of video_rs.list_models(), timm/<name> or pytorchvideo/<name>")
    num_classes: int = setting(0, "classes; 0: as many as the data has", low=0)
    width: float = setting(1.0, "multiplier of all channel counts; ResNet-RS only", low=0.05, high=8)
    dropout: float | None = setting(None, "before the head; null: the model's own", low=0, high=0.95)
    drop_path: float | None = setting(None, "rate of the last stage; null: the model's own", low=0, high=0.95)
    drop_path_rule: str = setting("stage", "rate by the paper's stage, or by timm's block", choices=DROP_PATH_RULES)
    bn_momentum: float | None = setting(
        None, "torch's; null: 1.0 with weight EMA, else 0.1; others: theirs", low=1e-4, high=1
    )
    temporal_padding: str | None = setting(
        None, "before the first and after the last frame; null: the architecture's", choices=TEMPORAL_PADDINGS
    )
    arch: ArchSection = field(default_factory=ArchSection)


@dataclass(frozen=True)
class DataSection:
    """Where samples come from and how they become clips."""

    root: str = free("", "folder of the dataset, or of its shards; or shards: s3://bucket/k-{000..123}.tar")
    train: str = free("", "list file, folder of class folders or shards; empty: found under root")
    val: str = free("", "like train; without one a part of train is set aside")
    test: str = free("", "like train; without one val is the test split")
    class_names: str = setting("", "file with one class name a line; empty: from the data")
    fold: int = setting(1, "which official split of UCF101 or HMDB51", low=1, high=3)
    frame_folders: bool = setting(False, "each folder in a class folder is one video, its images are the frames")
    multi_label: bool = setting(False, "any number of labels a file, joined by ; in lists: sigmoid loss, mAP")
    val_fraction: float = setting(0.1, "part of train set aside where there is no val split", low=0.001, high=0.9)
    max_missing: float = setting(0.05, "part of a list that may be missing on disk", low=0, high=1)
    max_broken: float = free(0.05, "part of the training files that may be unreadable, or the run stops", low=0, high=1)
    decoder: str = free("pyav", "decord: where its frames are right, PyAV elsewhere", choices=("pyav", "decord"))
    workers: int = free(-1, "loader processes; 0: none, -1: one per CPU core", low=-1, high=256)
    timeout: float = free(120.0, "seconds a worker may hang in one file, then left out; 0: for ever", low=0)
    num_frames: int = setting(32, "frames of a clip; 1 for images", low=1, high=1024)
    stride: int = setting(2, "frames at the rate of fps from one frame of the clip to the next", low=1, high=1024)
    fps: float = setting(0.0, "frame rate that stride counts in; 0: each file's own", low=0, high=1000)
    sampling: str = setting(
        "dense", "dense: frames at the stride; segments: spread over the whole video, as TSN's", choices=SAMPLINGS
    )
    shuffle_block: int = setting(16384, "least number of samples shuffled together, where they lie in shards", low=1)
    repeats: int = setting(1, "samples drawn from one decode of a file: repeated augmentation", low=1, high=64)
    train_size: int = setting(224, "side of a training crop, pixels", low=16, high=2048)
    short_side: int = setting(256, "short side before a test crop, pixels", low=16, high=4096)
    test_size: int = setting(256, "side of a test crop, pixels", low=16, high=2048)
    area: tuple[float, float] = setting((0.08, 1.0), "scale jitter: area of a training crop", low=1e-3, high=1)
    aspect: tuple[float, float] = setting((0.5, 2.0), "scale jitter: aspect ratio of a crop", low=0.05, high=20)
    min_covered: float = setting(0.1, "scale jitter: least part of the frame a crop covers", low=0, high=1)
    flip: float = setting(0.5, "probability of a horizontal flip; 0 where direction is the class", low=0, high=1)
    filter: str = setting("bilinear", "resize filter", choices=FILTERS)
    mean: tuple[float, float, float] = setting((0.0, 0.0, 0.0), "per channel, of pixels in [0, 1]", low=0, high=1)
    std: tuple[float, float, float] = setting((1.0, 1.0, 1.0), "per channel, of pixels in [0, 1]", low=1e-3, high=10)
    rand_augment_layers: int = setting(0, "RandAugment operations a sample; 0: off", low=0, high=16)
    rand_augment_magnitude: float = setting(10.0, "RandAugment magnitude", low=0, high=30)
    color_jitter: tuple[float, float, float, float] = setting(
        (0.0, 0.0, 0.0, 0.0), "strengths of brightness, contrast, saturation, hue; one draw a clip; 0: off", low=0
    )
    random_erasing: float = setting(0.0, "probability of erasing a box, in all frames of a clip", low=0, high=1)
    random_erasing_mode: str = setting("mean", "what fills it: the pixel data.mean or noise", choices=("mean", "noise"))
    augment: dict | None = setting(
        None, "augmentations of plugins, with their arguments: {Grayscale: {probability: 0.5}}"
    )
    augment_on: str = free(
        "host",
        "where clips are flipped and augmented; device: with the same draws, for few cores",
        choices=("host", "device"),
    )
    mixup: float = setting(0.0, "alpha of mixup's Beta distribution; 0: off", low=0, high=100)
    cutmix: float = setting(0.0, "alpha of cutmix's Beta distribution; 0: off", low=0, high=100)
    phases: tuple[tuple[float, int, int], ...] = setting(
        (), "smaller clips first: [[until epoch, num_frames, train_size], ...]; then num_frames and train_size"
    )


@dataclass(frozen=True)
class OptimSection:
    """The optimizer and its schedule."""

    name: str = setting(
        "sgd", "the optimizer; other names than sgd, adamw and lamb are timm's", choices=OPTIMIZERS + TIMM_OPTIMIZERS
    )
    lr: float = setting(0.8, "learning rate for a batch of lr_batch samples", low=0, high=1000)
    lr_batch: int = setting(1024, "batch size that lr is for; it is scaled linearly from there", low=1)
    momentum: float = setting(0.9, "of SGD and of timm's optimizers that have one", low=0, high=0.9999)
    nesterov: bool = setting(True, "Nesterov momentum of SGD")
    betas: tuple[float, float] = setting(
        (0.9, 0.999), "of AdamW and LAMB: decay of the means of gradients and of their squares", low=0, high=0.999999
    )
    eps: float = setting(1e-8, "of AdamW and LAMB: added to the root of the mean square", low=1e-16, high=1)
    options: dict | None = setting(None, "arguments of timm's optimizer: {alpha: 0.9, eps: 1e-3}")
    weight_decay: float = setting(4e-5, "on weights of convolutions and linear layers", low=0, high=1)
    warmup_epochs: float = setting(5.0, "linear warm-up from 0, epochs", low=0)
    schedule: str = setting("cosine", "after the warm-up", choices=("cosine", "constant", "step"))
    step_epochs: tuple[float, ...] = setting(
        (), "schedule=step: epochs that end with a drop; empty: after 30, 60 and 80 of 90 parts of the run", low=0
    )
    step_factor: float = setting(0.1, "schedule=step: of each drop", low=0, high=1)
    layer_decay: float = setting(
        1.0, "factor of the learning rate from a block to the one below it; 1: the same everywhere", low=1e-3, high=1
    )
    clip_grad_norm: float = setting(0.0, "largest gradient norm; 0: off", low=0)


@dataclass(frozen=True)
class TrainSection:
    """The run."""

    epochs: float = setting(350.0, "passes over the training samples", low=0)
    max_steps: int = setting(0, "optimizer steps instead of epochs; 0: by epochs", low=0)
    batch_size: int = setting(1024, "global batch: samples of one optimizer step", low=1)
    micro_batch: int = free(0, "most samples on the device at once; batch norm sees them; 0: the whole batch", low=0)
    loss: str = setting("cross_entropy", "of samples of one class: cross_entropy, bce, or one that a plugin registers")
    label_smoothing: float = setting(0.1, "part of the target spread over all classes", low=0, high=0.99)
    ema_decay: float = setting(0.9999, "of the weight average that is validated and kept; 0: off", low=0, high=0.999999)
    class_weights: str = setting("none", "weigh the loss by inverse class frequency", choices=("none", "balanced"))
    balanced_sampling: bool = setting(False, "draw every class equally often")
    seed: int = setting(0, "of everything random", low=0, high=2**32 - 1)
    init_from: str = setting(
        "",
        "a file of weights; pretrained: the network's public ones (of ResNet-RS timm's, exact architectures only); "
        "timm: timm's ResNet-RS of that depth, also into video architectures that differ in more than time",
    )
    freeze: int = setting(0, "leading stages that keep their weights, the stem is the first; 0: none", low=0)
    linear_probe: bool = setting(False, "train the head alone")
    inflate: str = setting("center", "how 2D weights become 3D", choices=INFLATIONS)
    device: str = free(
        "auto", "auto: cuda where there is one; xla: TPUs", choices=("auto", "cpu", "cuda", "xla", "mps")
    )
    precision: str = setting(
        "auto",
        "auto: bf16 autocast on TPUs and on GPUs from Ampere on, float32 elsewhere",
        choices=("auto", "float64", "float32", "bf16", "fp16"),
    )
    compile: bool = free(False, "torch.compile of the network in training: minutes at the start")
    activation_checkpointing: tuple[int, ...] = free(
        (), "stages, of 1 to 4, whose activations are computed again instead of kept; empty: none", low=1, high=4
    )
    deterministic: bool = setting(False, "bit-for-bit repeatable on CUDA too, slower")
    threads: int = free(0, "CPU threads of the training process; 0: torch's choice", low=0, high=1024)
    val_every: int = setting(1, "epochs between validations; 0: only at the end", low=0)
    log_every: int = free(20, "steps between log lines", low=1)
    checkpoint_minutes: float = free(10.0, "minutes between checkpoints, besides those at epoch ends", low=0)
    keep_checkpoints: int = free(3, "how many of the newest checkpoints are kept", low=1, high=1000)
    sync_bn: bool = setting(False, "batch norm over the micro-batches of all processes")
    precise_bn: int = setting(0, "training samples for the batch norm statistics of a validation; 0: off", low=0)
    max_bad_steps: int = free(5, "stop when as many of twice as many steps have no finite loss and gradient", low=1)
    wandb: str = free("", "project of Weights & Biases that figures go to as well; empty: none")
    peer_timeout: float = free(600.0, "seconds a process waits for the others", low=1)


@dataclass(frozen=True)
class TestSection:
    """Multi-view evaluation."""

    __test__ = False  # not a pytest class

    split: str = free("test", "split to score", choices=("train", "val", "test"))
    clips: int = free(10, "clips of a video, evenly spaced", low=1, high=1000)
    crops: int = free(3, "crops of a clip: 1 centre, 3 along the longer side", low=1, high=3)
    batch_size: int = free(8, "views in one forward pass", low=1)
    save_views: bool = free(False, "also keep every view's scores (views.npz)")


@dataclass(frozen=True)
class Config:
    """The whole config of a command."""

    out: str = free("", "run folder; empty: runs/<name of the config>")
    weights: str = free("", "checkpoint to test, a file or an https:// address; empty: <out>/best.pt")
    plugins: tuple[str, ...] = free((), "Python files that register networks, layouts, augmentations or losses")
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    optim: OptimSection = field(default_factory=OptimSection)
    train: TrainSection = field(default_factory=TrainSection)
    test: TestSection = field(default_factory=TestSection)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as in a checkpoint or a YAML file."""
        return plain(dataclasses.asdict(self))

    def to_yaml(self) -> str:
        """Return the full config as YAML; ``load_config`` reads it back to an equal config."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def data_config(self, class_names: Sequence[str] = ()) -> DataConfig:
        """Return the data config of a model trained with this config."""
        names = DataConfig.__dataclass_fields__.keys() & DataSection.__dataclass_fields__.keys() - {"class_names"}
        return DataConfig(**{name: getattr(self.data, name) for name in names}, class_names=tuple(class_names))
