"""Create the parts of a recipe from options: schedule, loss, optimizer, learning rate and order of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from video_rs.data.clips import TemporalSampling
from video_rs.data.sampler import divide_batch
from video_rs.data.sources.records import Records
from video_rs.training import finetune, losses, lr_schedule, optim
from video_rs.training.options import LOSSES, Options
from video_rs.training.schedule import Schedule, check_pairs, num_steps


def schedule(options: Options, num_files: int, world_size: int = 1, *, has_validation: bool = True) -> Schedule:
    """Return the schedule of a run over ``num_files`` training files.

    Raises:
        UserError: the batch cannot be divided into equal per-rank batches of whole micro-batches.
        ConfigError: mixup or cutmix would mix samples of two micro-batches.
    """
    batch_size, repeats = options.batch_size, options.repeats
    _, micro_batch = divide_batch(batch_size, options.micro_batch or 0, world_size)
    check_pairs(micro_batch, repeats, is_mixed=is_mixed(options))
    num_samples = num_files * repeats
    steps = options.max_steps or num_steps(num_samples, batch_size, options.epochs)
    names = ("repeats", "seed", "val_every", "early_stop", "log_every", "checkpoint_minutes")
    own = {name: getattr(options, name) for name in names}
    return Schedule(num_samples, steps, batch_size, micro_batch, world_size, has_validation=has_validation, **own)


def criterion(options: Options, model: nn.Module, records: Records) -> nn.Module:
    """Return the loss function, with one loss per sample."""
    smoothing = options.label_smoothing
    if options.loss not in LOSSES:
        return losses.registered_loss(options.loss, smoothing)
    if model.data_config.multi_label:
        return losses.BinaryCrossEntropy(smoothing, towards=0.5)
    if options.loss == "bce":
        return losses.BinaryCrossEntropy(smoothing, towards=None)
    class_weights = None
    if options.class_weights == "balanced":
        class_weights = losses.balanced_class_weights(records.labels, model.num_classes).to(next(model.parameters()))
    return losses.CrossEntropy(smoothing, class_weights)


def is_mixed(options: Options) -> bool:
    """Return True if clips are mixed in training."""
    return bool(options.mixup or options.cutmix)


def describe_loss(options: Options, *, multi_label: bool, has_validation: bool = True) -> str:
    """Describe the losses in the log, and the training accuracy if clips are mixed."""
    binary = "binary cross entropy"
    validated = binary if multi_label else "cross entropy"
    name = {"cross_entropy": validated, "bce": binary}.get(options.loss, options.loss)
    smoothing, is_weighted = options.label_smoothing, options.class_weights != "none"
    text = f"{'smoothed ' if smoothing else ''}{'weighted ' if is_weighted else ''}{name}"
    text += " of mixed clips" if is_mixed(options) else ""
    text += f" (label smoothing {smoothing:g})" if smoothing else ""
    text += f"; in validations {validated}" if has_validation else ""
    accuracy = "; accuracy in training is of mixed clips, by their larger part"
    return text + (accuracy if is_mixed(options) else "")


def optimizer(options: Options, model: nn.Module) -> torch.optim.Optimizer:
    """Freeze parameters according to the options, and return the optimizer of the remaining ones.

    Raises:
        UserError: the network has fewer stages than ``freeze``, the order of its blocks is unknown, or the optimizer
            does not have an option.
    """
    if options.freeze or options.linear_probe:
        finetune.freeze(model, options.freeze, but_head=options.linear_probe)
    names = ("weight_decay", "layer_decay", "momentum", "nesterov", "betas", "eps")
    arguments = {name: getattr(options, name) for name in names}
    return optim.create(options.optimizer, model, lr=options.peak_lr, options=options.optimizer_options, **arguments)


def learning_rate(options: Options, schedule: Schedule) -> Callable[[int], float]:
    """Return the learning rate as a function of the step."""
    steps_per_epoch, drops = schedule.num_samples / schedule.batch_size, []
    if options.schedule == "step":
        epochs = options.step_epochs or lr_schedule.drop_epochs(schedule.epoch(schedule.num_steps))
        drops = [epoch * steps_per_epoch for epoch in epochs]
    warmup_steps = options.warmup_epochs * steps_per_epoch
    return lr_schedule.learning_rate(
        options.peak_lr, schedule.num_steps, warmup_steps, options.schedule, drops, options.step_factor
    )


def order(options: Options, records: Records) -> dict[str, Any]:
    """Return the arguments of ``BatchStream`` that depend on the records."""
    return {
        "labels": records.labels if options.balanced_sampling else None,
        "repeats": options.repeats,
        "shards": records.members.starts() if records.members else None,
        "block": options.shuffle_block,
        "phase_ends": phase_ends(options, len(records)),
    }


def phase_ends(options: Options, num_files: int) -> list[int]:
    """Return the step at which each phase ends: the first step that starts after its last epoch."""
    steps_per_epoch = num_files * options.repeats / options.batch_size
    return [math.ceil(until * steps_per_epoch - 1e-6) for until, *_ in options.phases]


def describe_phases(options: Options, num_files: int, sampling: TemporalSampling, size: int) -> list[str]:
    """Return a line on the clips of each phase, including the main phase; empty without phases."""
    lines, start = [], 0
    for (until, frames, side), end in zip(options.phases, phase_ends(options, num_files), strict=True):
        pixels = frames * side**2 / (sampling.num_frames * size**2)
        sizes = f"{frames} frames x stride {sampling.stride}, {side} px"
        lines.append(f"clips to epoch {until:g} (steps {start} to {end}): {sizes}, {100 * pixels:.0f} % of the pixels")
        start = end
    if lines:
        main = f"{sampling.num_frames} frames x stride {sampling.stride}, {size} px"
        lines.append(f"clips from there (step {start}): {main}")
    return lines
