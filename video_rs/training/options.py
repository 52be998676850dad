"""The options of a training run: plain values with defaults."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from video_rs.errors import UserError


@dataclass(frozen=True)
class Options:
    """Keyword arguments of :func:`video_rs.training.fit.fit`; the defaults are the ResNet-RS recipe for small datasets.

    Attributes:
        epochs: passes over the training data; need not be whole.
        max_steps: optimizer steps of the run instead of ``epochs``; 0: by epochs.
        batch_size: samples of an optimizer step, over all ranks.
        micro_batch: samples on a device at once, which batch norm sees; None or 0: the whole per-rank batch.
        optimizer: "sgd", "adamw", "lamb", or the name of an optimizer of timm.
        lr: peak learning rate for a batch of ``lr_batch`` samples, scaled linearly to ``batch_size``.
        lr_batch: see ``lr``; 0: no scaling.
        momentum, nesterov: of SGD; ``momentum`` also of timm's optimizers that have one.
        betas, eps: of AdamW and LAMB.
        optimizer_options: other arguments of timm's optimizer.
        weight_decay: on weights of convolutions and linear layers.
        layer_decay: factor of the learning rate from a block to the one below it; 1: none.
        clip_grad_norm: largest norm of the whole gradient; 0: off.
        warmup_epochs: linear warm-up from 0; at most half of the run.
        schedule: "cosine", "constant" or "step" after the warm-up.
        step_epochs, step_factor: of schedule "step": epochs that end with a drop, and the factor of each.
        loss: "cross_entropy", "bce", or a registered loss; with several labels per sample always binary cross entropy.
        label_smoothing: fraction of the target that is spread over all classes.
        class_weights: "balanced" weighs samples by inverse class frequency; "none".
        ema_decay: of the moving average of the weights, which is validated and kept as the best; 0: off.
        mixup, cutmix: parameters alpha of their Beta distributions; 0: off.
        repeats: copies of each sample in a batch, from one decode.
        balanced_sampling: draw every class equally often.
        shuffle_block: least number of samples to shuffle at once, for shards.
        phases: smaller clips first: ``[(until epoch, num_frames, size in pixels), ...]``.
        init_from: weights to start from: a file, an address, "pretrained" or "timm"; "": the model's own.
        inflate: how 2D weights become 3D, see :mod:`video_rs.models.weights.inflate`.
        freeze: leading stages that keep their weights; the stem is the first.
        linear_probe: train the head alone.
        sync_bn: batch norm over the micro-batches of all ranks.
        precise_bn: training samples for the batch norm statistics of a validation; 0: off.
        seed: of everything random but the initial weights.
        device: "auto", "cpu", "cuda" or "xla".
        precision: "auto", "float64", "float32", "bf16" or "fp16".
        compile: train through ``torch.compile``.
        deterministic: bit-for-bit repeatable on CUDA too; slower.
        threads: CPU threads of torch; 0: torch's choice.
        augment_on: "host", or "device" for machines with few CPU cores.
        workers: loader processes per rank; 0: none, -1: one per CPU core.
        timeout: seconds that a worker may spend in one file; 0: no limit.
        val_every: epochs between validations; 0: only at the end.
        views_per_forward: samples in one forward pass of a validation.
        log_every: steps between log lines.
        checkpoint_minutes: between checkpoints, in addition to those at epoch ends.
        keep_checkpoints: number of the newest checkpoints to keep.
        max_broken: fraction of the training files that may be unreadable.
        max_bad_steps: stop when so many of twice as many steps are not finite.
        wandb: project of Weights & Biases; "": none.
    """

    epochs: float
    max_steps: int = 0
    batch_size: int = 32
    micro_batch: int | None = None
    optimizer: str = "sgd"
    lr: float = 0.8
    lr_batch: int = 1024
    momentum: float = 0.9
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    optimizer_options: Mapping[str, Any] | None = None
    weight_decay: float = 4e-5
    layer_decay: float = 1.0
    clip_grad_norm: float = 0.0
    warmup_epochs: float = 1.0
    schedule: str = "cosine"
    step_epochs: tuple[float, ...] = ()
    step_factor: float = 0.1
    loss: str = "cross_entropy"
    label_smoothing: float = 0.1
    class_weights: str = "none"
    ema_decay: float = 0.9999
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    balanced_sampling: bool = False
    shuffle_block: int = 16384
    phases: tuple[tuple[float, int, int], ...] = ()
    init_from: str = ""
    inflate: str = "center"
    freeze: int = 0
    linear_probe: bool = False
    sync_bn: bool = False
    precise_bn: int = 0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    deterministic: bool = False
    threads: int = 0
    augment_on: str = "host"
    workers: int = -1
    timeout: float = 120.0
    val_every: int = 1
    views_per_forward: int = 8
    log_every: int = 20
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 3
    max_broken: float = 0.05
    max_bad_steps: int = 5
    wandb: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """Return the options with these names. Raise UserError for an unknown one, with the nearest name."""
        known = list(cls.__dataclass_fields__)
        for name in values:
            if name not in known:
                near = "".join(f"; did you mean {close}?" for close in difflib.get_close_matches(name, known, n=1))
                raise UserError(f"fit has no option {name}{near}")
        return cls(**values)

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up, for the global batch."""
        return self.lr * self.batch_size / self.lr_batch if self.lr_batch else self.lr

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as a checkpoint keeps them."""
        return dataclasses.asdict(self)


MAY_CHANGE = frozenset(
    {"micro_batch", "device", "compile", "threads", "augment_on", "workers", "timeout", "views_per_forward"}
    | {"log_every", "checkpoint_minutes", "keep_checkpoints", "max_broken", "max_bad_steps", "wandb"}
)
"""Options that may be another when a run is resumed."""
