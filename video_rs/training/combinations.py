"""Validate combinations of options."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from video_rs.distributed.device_name import parse_device
from video_rs.training.options import OPTIMIZERS, Options


def wrong_combinations(
    options: Options, *, multi_label: bool = False, bn_momentum: float | None = None, processes: int = 1
) -> Iterator[str]:
    """Yield an error for each combination of options that does not work.

    Args:
        options: options of the run.
        multi_label: True if a sample can have several classes.
        bn_momentum: momentum of batch norm that the network was created with.
        processes: number of ranks.
    """
    yield from _data_errors(options, processes)
    yield from _training_errors(options, multi_label)
    yield from _optimizer_errors(options)
    if bn_momentum == 1 and not (options.ema_decay or options.precise_bn):
        yield "model.bn_momentum=1: validation would use the statistics of one step; set train.ema_decay or precise_bn"
    yield from _device_errors(options)


def _data_errors(options: Options, processes: int) -> Iterator[str]:
    if 0 < options.timeout < 1:
        yield f"data.timeout={options.timeout:g}: must be 0 (off) or at least 1 second"
    if processes > 1 and options.timeout >= options.peer_timeout:
        yield f"data.timeout={options.timeout:g}: must be less than train.peer_timeout={options.peer_timeout:g}"
    before = 0.0
    for phase in options.phases:
        if not before < phase[0] < math.inf:
            yield f"data.phases: {list(phase)} must end after epoch {before:g}"
        before = phase[0]
    if before and not options.max_steps and before >= options.epochs:
        yield f"data.phases: must end before train.epochs={options.epochs:g}; the last ends at epoch {before:g}"


def _training_errors(options: Options, multi_label: bool) -> Iterator[str]:
    if 0 < options.micro_batch < options.batch_size and options.batch_size % options.micro_batch:
        sizes = [size for size in range(1, options.batch_size + 1) if options.batch_size % size == 0]
        smaller = max(size for size in sizes if size < options.micro_batch)
        larger = min(size for size in sizes if size > options.micro_batch)
        yield (
            f"train.micro_batch={options.micro_batch}: must divide train.batch_size={options.batch_size}; set it to "
            f"{smaller} or {larger}"
        )
    if options.early_stop and not options.val_every:
        yield f"train.early_stop={options.early_stop}: requires train.val_every above 0"
    if not options.epochs and not options.max_steps:
        yield "train.epochs and train.max_steps are both 0; set one of them"
    if options.class_weights != "none" and options.balanced_sampling:
        yield f"train.class_weights={options.class_weights}: cannot be combined with train.balanced_sampling=true"
    if multi_label and (options.class_weights != "none" or options.balanced_sampling):
        key = "balanced_sampling" if options.balanced_sampling else "class_weights"
        yield f"train.{key}: requires files of one class; data.multi_label=true allows several"
    if options.class_weights != "none" and options.loss != "cross_entropy":
        yield f"train.class_weights={options.class_weights}: requires train.loss=cross_entropy"
    if options.freeze and options.linear_probe:
        yield f"train.freeze={options.freeze}: cannot be combined with train.linear_probe=true"


def _optimizer_errors(options: Options) -> Iterator[str]:
    if options.optimizer == "sgd" and options.nesterov and not options.momentum:
        yield "optim.nesterov=true: requires optim.momentum above 0"
    if options.optimizer_options and options.optimizer in OPTIMIZERS:
        given = f"optim.options={options.optimizer_options}"
        yield f"{given}: only for timm's optimizers, not for optim.name={options.optimizer}"
    for key in ("betas", "eps") if options.optimizer not in OPTIMIZERS else ():
        value = getattr(options, key)
        if value != getattr(Options, key):
            value = list(value) if key == "betas" else value
            yield (
                f"optim.{key}={value}: only for adamw and lamb, not for optim.name={options.optimizer}; use "
                f"optim.options={{{key}: {value}}}"
            )
    if options.step_epochs and not options.max_steps and options.step_epochs[-1] >= options.epochs:
        last, epochs = options.step_epochs[-1], options.epochs
        yield f"optim.step_epochs: must end before train.epochs={epochs:g}; the last is after epoch {last:g}"
    if any(a >= b for a, b in pairwise(options.step_epochs)):
        yield f"optim.step_epochs={list(options.step_epochs)}: must ascend"
    if options.step_epochs and options.schedule != "step":
        yield f"optim.step_epochs={list(options.step_epochs)}: requires optim.schedule=step, not {options.schedule}"


def _device_errors(options: Options) -> Iterator[str]:
    """Yield errors for settings that ``train.device=xla`` does not support, because it compiles each step."""
    if parse_device(options.device)[0] != "xla":
        return
    if options.augment_on == "device":
        yield "data.augment_on=device: not available with train.device=xla; remove it"
    if options.compile:
        yield "train.compile=true: not available with train.device=xla; remove it"
    if options.optimizer not in OPTIMIZERS:
        hint = f"use {', '.join(OPTIMIZERS)}"
        yield f"optim.name={options.optimizer}: not available with train.device=xla; {hint}"
