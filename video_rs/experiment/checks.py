"""Validate combinations of config keys."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from video_rs.errors import ConfigError
from video_rs.experiment.schema import Config, DataSection, OptimSection
from video_rs.training.options import LOSSES, OPTIMIZERS
from video_rs.training.schedule import check_pairs


def check_config(config: Config) -> None:
    """Raise ConfigError for keys that are incompatible."""
    for check in (_data_errors, _phase_errors, _training_errors, _optimizer_errors, _device_errors):
        for error in check(config):
            raise ConfigError(error)
    data, train = config.data, config.train
    micro_batch = min(train.micro_batch, train.batch_size) or train.batch_size
    check_pairs(micro_batch, data.repeats, is_mixed=bool(data.mixup or data.cutmix))


def check_timeouts(config: Config, processes: int) -> None:
    """Raise ConfigError if other ranks would time out while a rank waits for a hanging file."""
    own, peers = config.data.timeout, config.train.peer_timeout
    if processes > 1 and own >= peers:
        raise ConfigError(f"data.timeout={own:g}: must be less than train.peer_timeout={peers:g}")


def _data_errors(config: Config) -> Iterator[str]:
    data = config.data
    for name in ("area", "aspect"):
        low, high = getattr(data, name)
        if low > high:
            yield f"data.{name}={[low, high]}: must be [lowest, highest]"
    if data.test_size > data.short_side:
        yield f"data.test_size={data.test_size}: must be at most data.short_side={data.short_side}"
    if 0 < data.timeout < 1:
        yield f"data.timeout={data.timeout:g}: must be 0 (off) or at least 1 second"
    if data.fps and data.sampling == "segments":
        yield f"data.fps={data.fps:g}: must be 0 with data.sampling=segments, which divides the whole video"
    if data.color_jitter[3] > 0.5:
        yield f"data.color_jitter={list(data.color_jitter)}: the hue must be at most 0.5"
    if config.test.crops == 2:
        yield "test.crops=2: must be 1 (centre) or 3 (along the longer side)"


def _phase_errors(config: Config) -> Iterator[str]:
    data, train, before = config.data, config.train, 0.0
    for phase in data.phases:
        name, (until, *sizes) = f"data.phases: {list(phase)}", phase
        if not before < until < math.inf:
            yield f"{name} must end after epoch {before:g}"
        for key, size in zip(("num_frames", "train_size"), sizes, strict=True):
            rules = DataSection.__dataclass_fields__[key].metadata
            if not rules["low"] <= size <= rules["high"]:
                yield f"{name}: data.{key} must be between {rules['low']} and {rules['high']}"
        if (sizes[0] == 1) != (data.num_frames == 1):
            yield f"{name}: images and clips cannot be mixed (data.num_frames={data.num_frames})"
        before = until
    if before and not train.max_steps and before >= train.epochs:
        yield f"data.phases: must end before train.epochs={train.epochs:g}; the last ends at epoch {before:g}"


def _training_errors(config: Config) -> Iterator[str]:
    train = config.train
    if 0 < train.micro_batch < train.batch_size and train.batch_size % train.micro_batch:
        sizes = [size for size in range(1, train.batch_size + 1) if train.batch_size % size == 0]
        smaller = max(size for size in sizes if size < train.micro_batch)
        larger = min(size for size in sizes if size > train.micro_batch)
        yield (
            f"train.micro_batch={train.micro_batch}: must divide train.batch_size={train.batch_size}; set it to "
            f"{smaller} or {larger}"
        )
    if not train.epochs and not train.max_steps:
        yield "train.epochs and train.max_steps are both 0; set one of them"
    if train.loss not in LOSSES and not config.plugins:
        yield f"train.loss={train.loss}: must be {' or '.join(LOSSES)}, or registered by one of plugins="
    if train.class_weights != "none" and train.balanced_sampling:
        yield f"train.class_weights={train.class_weights}: cannot be combined with train.balanced_sampling=true"
    if config.data.multi_label and (train.class_weights != "none" or train.balanced_sampling):
        key = "balanced_sampling" if train.balanced_sampling else "class_weights"
        yield f"train.{key}: requires files of one class; data.multi_label=true allows several"
    if train.class_weights != "none" and train.loss != "cross_entropy":
        yield f"train.class_weights={train.class_weights}: requires train.loss=cross_entropy"
    if train.freeze and train.linear_probe:
        yield f"train.freeze={train.freeze}: cannot be combined with train.linear_probe=true"
    if (train.freeze or train.linear_probe) and not train.init_from:
        key = f"train.freeze={train.freeze}" if train.freeze else "train.linear_probe=true"
        yield f"{key}: random weights would be frozen; set train.init_from"


def _optimizer_errors(config: Config) -> Iterator[str]:
    optim = config.optim
    if optim.name == "sgd" and optim.nesterov and not optim.momentum:
        yield "optim.nesterov=true: requires optim.momentum above 0"
    if optim.options and optim.name in OPTIMIZERS:
        yield f"optim.options={optim.options}: only for timm's optimizers, not for optim.name={optim.name}"
    for key in ("betas", "eps") if optim.name not in OPTIMIZERS else ():
        value = getattr(optim, key)
        if value != getattr(OptimSection, key):
            value = list(value) if key == "betas" else value
            yield (
                f"optim.{key}={value}: only for adamw and lamb, not for optim.name={optim.name}; use "
                f"optim.options={{{key}: {value}}}"
            )
    if any(a >= b for a, b in pairwise(optim.step_epochs)):
        yield f"optim.step_epochs={list(optim.step_epochs)}: must ascend"
    if optim.step_epochs and optim.schedule != "step":
        yield f"optim.step_epochs={list(optim.step_epochs)}: requires optim.schedule=step, not {optim.schedule}"


def _device_errors(config: Config) -> Iterator[str]:
    """Yield errors for settings that ``train.device=xla`` does not support, because it compiles each step."""
    if config.train.device != "xla":
        return
    used = {
        "data.augment_on=device": config.data.augment_on == "device",
        "train.compile=true": config.train.compile,
        "train.activation_checkpointing": config.train.activation_checkpointing,
        f"optim.name={config.optim.name}": config.optim.name not in OPTIMIZERS,
    }
    for key, is_used in used.items():
        if is_used:
            hint = f"use {', '.join(OPTIMIZERS)}" if key.startswith("optim.name") else "remove it"
            yield f"{key}: not available with train.device=xla; {hint}"
