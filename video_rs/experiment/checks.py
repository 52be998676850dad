"""Validate combinations of config keys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from video_rs.errors import ConfigError
from video_rs.experiment.schema import LOSSES, OPTIMIZERS, DataSection, OptimSection

if TYPE_CHECKING:
    from video_rs.experiment.config import Config


def check_together(config: Config) -> None:
    """Raises ConfigError naming the keys that do not go together."""
    _check_data(config)
    _check_phases(config)
    _check_recipe(config)
    _check_finetuning(config)
    check_pairs(config, min(config.train.micro_batch, config.train.batch_size) or config.train.batch_size)
    if config.train.device == "xla":
        for key, is_on in (
            ("data.augment_on=device", config.data.augment_on == "device"),
            ("train.compile=true", config.train.compile),
            ("train.activation_checkpointing", config.train.activation_checkpointing),
        ):
            if is_on:
                raise ConfigError(
                    f"{key} is not for train.device=xla, which compiles each step its own way; leave it out"
                )
    if config.test.crops == 2:
        raise ConfigError("test.crops is 1 (centre) or 3 (along the longer side); found 2")


def _check_data(config: Config) -> None:
    data = config.data
    for name in ("area", "aspect"):
        low, high = getattr(data, name)
        if low > high:
            raise ConfigError(f"data.{name} is [lowest, highest]; found {[low, high]}")
    if data.test_size > data.short_side:
        raise ConfigError(f"data.test_size={data.test_size} does not fit data.short_side={data.short_side}; raise it")
    if 0 < data.timeout < 1:
        raise ConfigError(f"data.timeout={data.timeout:g} is no time to read a file in; give at least 1 second, or 0")
    if data.fps and data.sampling == "segments":
        raise ConfigError(f"data.fps={data.fps:g} says nothing of segments, which divide the whole video; set it to 0")
    if data.color_jitter[3] > 0.5:
        raise ConfigError(f"the hue of data.color_jitter is at most 0.5, half a turn; found {data.color_jitter[3]:g}")


def _check_phases(config: Config) -> None:
    """Phases follow each other, are over before the run is, and have sizes that the main ones may have."""
    data, train, before = config.data, config.train, 0.0
    for phase in data.phases:
        shown = f"data.phases: {list(phase)}"
        until, *sizes = phase
        if not before < until < math.inf:
            raise ConfigError(f"{shown} must end after epoch {before:g}")
        for name, size in zip(("num_frames", "train_size"), sizes, strict=True):
            rules = DataSection.__dataclass_fields__[name].metadata
            if not rules["low"] <= size <= rules["high"]:
                raise ConfigError(f"{shown}: data.{name} must be between {rules['low']} and {rules['high']}")
        if (sizes[0] == 1) != (data.num_frames == 1):
            raise ConfigError(f"{shown}: data.num_frames={data.num_frames}; images and clips are not trained together")
        before = until
    if before and not train.max_steps and before >= train.epochs:
        raise ConfigError(f"data.phases end at epoch {before:g}; end them before train.epochs={train.epochs:g}")


def _check_recipe(config: Config) -> None:
    data, train, optim = config.data, config.train, config.optim
    if 0 < train.micro_batch < train.batch_size and train.batch_size % train.micro_batch:
        sizes = [size for size in range(1, train.batch_size + 1) if train.batch_size % size == 0]
        near = [max(s for s in sizes if s < train.micro_batch), min(s for s in sizes if s > train.micro_batch)]
        raise ConfigError(
            f"train.batch_size={train.batch_size} is not a multiple of train.micro_batch={train.micro_batch}: set the "
            f"latter to {near[0]} or {near[1]}"
        )
    if not train.epochs and not train.max_steps:
        raise ConfigError("train.epochs and train.max_steps are both 0; set one of them")
    if train.loss not in LOSSES and not config.plugins:
        raise ConfigError(f"train.loss={train.loss}: must be {' or '.join(LOSSES)}, or registered by one of plugins=")
    if train.class_weights != "none" and train.balanced_sampling:
        raise ConfigError("train.class_weights and train.balanced_sampling correct for the same thing; choose one")
    if data.multi_label and (train.class_weights != "none" or train.balanced_sampling):
        key = "balanced_sampling" if train.balanced_sampling else "class_weights"
        raise ConfigError(f"train.{key} is for files of one class, data.multi_label=true allows several; choose one")
    if train.class_weights != "none" and train.loss != "cross_entropy":
        raise ConfigError(f"train.class_weights is for train.loss=cross_entropy, not for {train.loss}; choose one")
    if optim.name == "sgd" and optim.nesterov and not optim.momentum:
        raise ConfigError("optim.nesterov=true needs optim.momentum above 0")
    if optim.options and optim.name in OPTIMIZERS:
        raise ConfigError(f"optim.options is for timm's optimizers, not for optim.name={optim.name}; leave it out")
    for key in ("betas", "eps") if optim.name not in OPTIMIZERS else ():
        value = getattr(optim, key)
        if value != getattr(OptimSection, key):
            shown = list(value) if key == "betas" else value
            raise ConfigError(
                f"optim.{key} is for adamw and lamb, not for optim.name={optim.name}; write optim.options="
                f"{{{key}: {shown}}} instead"
            )
    if train.device == "xla" and optim.name not in OPTIMIZERS:
        raise ConfigError(f"optim.name={optim.name} is not for XLA; use {', '.join(OPTIMIZERS)}")
    if any(a >= b for a, b in zip(optim.step_epochs, optim.step_epochs[1:])):
        raise ConfigError(f"optim.step_epochs must ascend; found {list(optim.step_epochs)}")
    if optim.step_epochs and optim.schedule != "step":
        raise ConfigError(f"optim.step_epochs is for optim.schedule=step, not for {optim.schedule}; choose one")


def _check_finetuning(config: Config) -> None:
    train = config.train
    if train.freeze and train.linear_probe:
        raise ConfigError("train.linear_probe=true trains the head alone; leave out train.freeze")
    if (train.freeze or train.linear_probe) and not train.init_from:
        key = f"train.freeze={train.freeze}" if train.freeze else "train.linear_probe=true"
        raise ConfigError(f"{key} would keep random weights; name weights to start from with train.init_from")


def check_pairs(config: Config, micro_batch: int) -> None:
    """Mixup and cutmix take the samples of a micro-batch by pairs, of different files.

    Raises:
        ConfigError: naming what to change.
    """
    unit = 2 * config.data.repeats
    if (config.data.mixup or config.data.cutmix) and micro_batch % unit:
        raise ConfigError(
            f"data.mixup and data.cutmix mix pairs of samples, of {unit} with data.repeats={config.data.repeats}: "
            f"a micro-batch of {micro_batch} is no multiple of {unit}; change train.micro_batch or train.batch_size"
        )


def check_timeouts(config: Config, processes: int) -> None:
    """A process that waits for a hanging file must not be given up by the others first.

    Raises:
        ConfigError: naming both keys.
    """
    own, peers = config.data.timeout, config.train.peer_timeout
    if processes > 1 and own >= peers:
        raise ConfigError(
            f"data.timeout={own:g} is not less than train.peer_timeout={peers:g}: the others would give one up that "
            "waits for a hanging file; lower the one or raise the other"
        )
