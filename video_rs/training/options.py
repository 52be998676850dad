"""The options of a training run: plain values with their defaults, ranges and meanings.

The sections of the config extend these classes with keys that ``fit`` does not take. Messages of this package name
options as config keys, such as ``optim.lr``; ``fit`` converts them, see :func:`without_sections`. Nothing here imports
torch.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from video_rs.distributed.device_name import device_name
from video_rs.errors import UserError, did_you_mean
from video_rs.models.architecture import INFLATIONS
from video_rs.training.values import checked

LOSSES = ("cross_entropy", "bce")
OPTIMIZERS = ("sgd", "adamw", "lamb")
# fmt: off
TIMM_OPTIMIZERS = (
    "adabelief", "adadelta", "adafactor", "adafactorbv", "adagrad", "adam", "adamax", "adamp", "adan", "adopt", "lars",
    "laprop", "lion", "madgrad", "mars", "muon", "nadam", "nadamw", "novograd", "radam", "rmsprop", "rmsproptf", "sgdp",
    "sgdw",
)
# fmt: on
"""timm's optimizers that pass tests/training/test_optimizers.py: skipping and resuming leave no trace."""


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
    check: Callable[[Any], object] | None = None,
    free: bool = False,
    path: bool = False,
) -> Any:
    """Return a field with its rules. ``check`` converts a value, or raises UserError.

    A ``free`` one may differ when a run is resumed. A ``path`` is expanded.
    """
    rules = {"low": low, "high": high, "choices": choices, "check": check, "free": free, "path": path}
    return field(default=default, metadata={"help": help, **rules})


_hints = functools.cache(typing.get_type_hints)
free = functools.partial(setting, free=True)


@dataclass(frozen=True)
class DataOptions:
    """Loading and mixing of training samples."""

    max_broken: float = free(0.05, "tolerated fraction of unreadable training files", low=0, high=1)
    workers: int = free(-1, "loader processes; 0: none, -1: one per CPU core", low=-1, high=256)
    timeout: float = free(120.0, "seconds until a file that hangs a worker is skipped; 0: never", low=0)
    shuffle_block: int = setting(16384, "minimum number of samples shuffled together in shards", low=1)
    repeats: int = setting(1, "samples per decode of a file (repeated augmentation)", low=1, high=64)
    augment_on: str = free(
        "host",
        "where clips are flipped and augmented; device: equal results, for few CPU cores",
        choices=("host", "device"),
    )
    mixup: float = setting(0.0, "alpha of mixup's Beta distribution; 0: off", low=0, high=100)
    cutmix: float = setting(0.0, "alpha of cutmix's Beta distribution; 0: off", low=0, high=100)
    phases: tuple[tuple[float, int, int], ...] = setting(
        (), "smaller clips first: [[until epoch, num_frames, train_size], ...], then the full size"
    )


@dataclass(frozen=True)
class OptimOptions:
    """The optimizer and its schedule."""

    lr: float = setting(0.8, "learning rate for a batch of lr_batch samples", low=0, high=1000)
    lr_batch: int = setting(1024, "batch size for lr, which is scaled linearly", low=1)
    momentum: float = setting(0.9, "of SGD and of timm's optimizers with momentum", low=0, high=0.9999)
    nesterov: bool = setting(True, "Nesterov momentum of SGD")
    betas: tuple[float, float] = setting(
        (0.9, 0.999), "of AdamW and LAMB: decay rates of the two moments", low=0, high=0.999999
    )
    eps: float = setting(1e-8, "of AdamW and LAMB: added to the denominator", low=1e-16, high=1)
    weight_decay: float = setting(4e-5, "on weights of convolutions and linear layers", low=0, high=1)
    warmup_epochs: float = setting(5.0, "epochs of linear warm-up from 0", low=0)
    schedule: str = setting("cosine", "after the warm-up", choices=("cosine", "constant", "step"))
    step_epochs: tuple[float, ...] = setting(
        (), "schedule=step: epochs after which the rate drops; empty: 30, 60 and 80 ninetieths of the run", low=0
    )
    step_factor: float = setting(0.1, "schedule=step: factor of each drop", low=0, high=1)
    layer_decay: float = setting(
        1.0, "factor of the learning rate per block towards the input; 1: off", low=1e-3, high=1
    )
    clip_grad_norm: float = setting(0.0, "maximum gradient norm; 0: off", low=0)


@dataclass(frozen=True)
class TrainOptions:
    """The run: its length, loss, start, device, and how often it logs, validates and saves."""

    epochs: float = setting(350.0, "passes over the training samples", low=0)
    max_steps: int = setting(0, "optimizer steps instead of epochs; 0: by epochs", low=0)
    batch_size: int = setting(1024, "global batch: samples of one optimizer step", low=1)
    micro_batch: int = free(0, "samples on the device at once, seen by batch norm; 0: the whole batch", low=0)
    loss: str = setting("cross_entropy", "cross_entropy, bce, or one registered by a plugin")
    label_smoothing: float = setting(0.1, "fraction of the target spread over all classes", low=0, high=0.99)
    ema_decay: float = setting(0.9999, "decay of the EMA, which is validated and kept; 0: off", low=0, high=0.999999)
    class_weights: str = setting("none", "weight the loss by inverse class frequency", choices=("none", "balanced"))
    balanced_sampling: bool = setting(False, "draw every class equally often")
    seed: int = setting(0, "seed of all random numbers", low=0, high=2**32 - 1)
    init_from: str = setting(
        "",
        "weights to start from: a file; pretrained: the network's public ones (for ResNet-RS timm's, if the "
        "architecture is equal); timm: timm's ResNet-RS of that depth, also for other video architectures",
        path=True,
    )
    freeze: int = setting(0, "number of frozen leading stages, the stem included; 0: none", low=0)
    linear_probe: bool = setting(False, "train only the head")
    inflate: str = setting("center", "inflation of 2D weights to 3D", choices=INFLATIONS)
    device: str = free(
        "auto", "auto: cuda if available, otherwise cpu; cuda:1: the second GPU; xla: TPUs", check=device_name
    )
    precision: str = setting(
        "auto",
        "auto: bf16 autocast on TPUs and on GPUs from Ampere on, otherwise float32",
        choices=("auto", "float64", "float32", "bf16", "fp16"),
    )
    compile: bool = free(False, "train with torch.compile; takes minutes at the start")
    deterministic: bool = setting(False, "bit-for-bit repeatable on CUDA; slower")
    threads: int = free(0, "CPU threads of the training process; 0: torch's default", low=0, high=1024)
    val_every: int = setting(1, "epochs between validations; 0: only at the end", low=0)
    early_stop: int = free(0, "stop after this many validations without a better top-1 or mAP; 0: off", low=0)
    log_every: int = free(20, "steps between log lines", low=1)
    checkpoint_minutes: float = free(10.0, "minutes between checkpoints, in addition to those at epoch ends", low=0)
    keep_checkpoints: int = free(3, "number of checkpoints to keep", low=1, high=1000)
    sync_bn: bool = setting(False, "batch norm over the micro-batches of all ranks")
    precise_bn: int = setting(0, "training samples for batch norm statistics before validation; 0: off", low=0)
    peer_timeout: float = free(600.0, "seconds to wait for other ranks", low=1)
    max_bad_steps: int = free(5, "stop at N steps with a non-finite loss or gradient among the last 2N", low=1)
    wandb: str = free("", "project in Weights & Biases for metrics; empty: none")


@dataclass(frozen=True)
class Options(DataOptions, OptimOptions, TrainOptions):
    """Keyword arguments of :func:`video_rs.training.fit.fit`.

    The defaults are the ResNet-RS recipe for small datasets.
    """

    batch_size: int = setting(32, "samples of one optimizer step, over all ranks", low=1)
    warmup_epochs: float = setting(1.0, "epochs of linear warm-up from 0; at most half of the run", low=0)
    optimizer: str = setting(
        "sgd", "optimizer; all but sgd, adamw and lamb are timm's", choices=OPTIMIZERS + TIMM_OPTIMIZERS
    )
    optimizer_options: dict | None = setting(None, "other arguments of timm's optimizer")
    views_per_forward: int = free(8, "samples in one forward pass of a validation", low=1)

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for f in dataclasses.fields(self):
            try:
                value = checked(f.name, getattr(self, f.name), hints[f.name], f.metadata)
            except ValueError as error:
                raise UserError(str(error)) from None
            object.__setattr__(self, f.name, value)  # the class is frozen

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """Create options from a mapping. Raise UserError, with the nearest name, for an unknown option."""
        known = list(cls.__dataclass_fields__)
        for name in values:
            if name not in known:
                raise UserError(f"fit has no option {name}{did_you_mean(name, known)}")
        return cls(**values)

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up, for the global batch."""
        return self.lr * self.batch_size / self.lr_batch

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return dataclasses.asdict(self)


_HELP = "\n".join(f"        {f.name}: {f.metadata['help']}." for f in dataclasses.fields(Options))
Options.__doc__ = f"{Options.__doc__.rstrip()}\n\n    Attributes:\n{_HELP}\n"
MAY_CHANGE = frozenset(f.name for f in dataclasses.fields(Options) if f.metadata["free"])
"""Options that may change when a run is resumed."""


def without_sections(message: str) -> str:
    """Return a message with the names of options in place of config keys: ``lr`` for ``optim.lr``."""
    message = message.replace("optim.name", "optimizer").replace("optim.options", "optimizer_options")
    names = "|".join(Options.__dataclass_fields__)
    return re.sub(rf"(?<![\w/.-])(?:data|optim|train)\.({names})(?![\w/])", r"\1", message)
