"""From a config to the parts of its recipe: plan, loss, optimizer and learning rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from video_rs.data.sampler import shares
from video_rs.data.sources.records import Records
from video_rs.experiment.checks import check_pairs
from video_rs.experiment.config import Config
from video_rs.training import finetune, losses, optim
from video_rs.training.schedule import Schedule


def schedule(config: Config, num_files: int, world_size: int = 1) -> Schedule:
    """The arithmetic of a run over ``num_files`` training files.

    Raises:
        UserError: the batch does not divide into equal shares of whole micro-batches.
        ConfigError: a pair of samples that are mixed would be cut in two.
    """
    run = config.train
    _, micro_batch = shares(run.batch_size, run.micro_batch, world_size)
    check_pairs(config, micro_batch)
    num_samples = num_files * config.data.repeats
    return Schedule(
        num_samples=num_samples,
        num_steps=run.max_steps or optim.num_steps(num_samples, run.batch_size, run.epochs),
        batch_size=run.batch_size,
        micro_batch=micro_batch,
        world_size=world_size,
        repeats=config.data.repeats,
        seed=run.seed,
        val_every=run.val_every,
        log_every=run.log_every,
        checkpoint_minutes=run.checkpoint_minutes,
    )


def criterion(config: Config, model: nn.Module, records: Records) -> nn.Module:
    """The loss, of one number per sample."""
    run = config.train
    if config.data.multi_label:
        return losses.BinaryCrossEntropy(run.label_smoothing, towards=0.5)
    if run.loss == "bce":
        return losses.BinaryCrossEntropy(run.label_smoothing, towards=None)
    if run.loss != "cross_entropy":
        return losses.registered_loss(run.loss, run.label_smoothing)
    class_weights = None
    if run.class_weights == "balanced":
        class_weights = losses.balanced_class_weights(records.labels, model.num_classes).to(next(model.parameters()))
    return losses.CrossEntropy(run.label_smoothing, class_weights)


def optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer with its parameter groups. What the config freezes is frozen first, and is in none of them.

    Raises:
        UserError: the network does not have so many stages to freeze, or does not tell the order of its blocks; an
            option is none of the optimizer's.
    """
    keys, run = config.optim, config.train
    if run.freeze or run.linear_probe:
        finetune.freeze(model, run.freeze, but_head=run.linear_probe)
    shared = {
        key: getattr(keys, key) for key in ("weight_decay", "layer_decay", "momentum", "nesterov", "betas", "eps")
    }
    return optim.create(keys.name, model, lr=peak_rate(config), options=keys.options, **shared)


def learning_rate(config: Config, schedule: Schedule) -> Callable[[int], float]:
    """The learning rate as a function of the step."""
    keys, steps_per_epoch = config.optim, schedule.num_samples / schedule.batch_size
    warmup_steps = keys.warmup_epochs * steps_per_epoch
    drops: list[float] = []
    if keys.schedule == "step":
        drops = [e * steps_per_epoch for e in keys.step_epochs or optim.drop_epochs(schedule.epoch(schedule.num_steps))]
    return optim.learning_rate(
        peak_rate(config), schedule.num_steps, warmup_steps, keys.schedule, drops, keys.step_factor
    )


def peak_rate(config: Config) -> float:
    """The learning rate for the global batch of the config."""
    return config.optim.lr * config.train.batch_size / config.optim.lr_batch
