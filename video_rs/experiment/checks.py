"""Validate combinations of config keys."""

from __future__ import annotations

from collections.abc import Iterator

from video_rs.distributed.device_name import parse_device
from video_rs.errors import ConfigError, format_value
from video_rs.experiment.schema import Config, DataSection, options_of
from video_rs.training.combinations import wrong_combinations
from video_rs.training.options import LOSSES
from video_rs.training.schedule import check_pairs


def check_config(config: Config) -> None:
    """Raise ConfigError for keys that are incompatible."""
    for check in (_data_errors, _phase_errors, _training_errors):
        for error in check(config):
            raise ConfigError(error)
    data, train = config.data, config.train
    micro_batch = min(train.micro_batch, train.batch_size) or train.batch_size
    check_pairs(micro_batch, data.repeats, is_mixed=bool(data.mixup or data.cutmix))


def check_timeouts(config: Config, processes: int) -> None:
    """Raise ConfigError if other ranks would time out while one waits for a hanging file."""
    for error in wrong_combinations(options_of(config), processes=processes):
        raise ConfigError(error)


def _data_errors(config: Config) -> Iterator[str]:
    data = config.data
    for name in ("area", "aspect"):
        low, high = getattr(data, name)
        if low > high:
            yield f"data.{name}={[low, high]}: must be [lowest, highest]"
    if data.test_size > data.short_side:
        yield f"data.test_size={data.test_size}: must be at most data.short_side={data.short_side}"
    if data.fps and data.sampling == "segments":
        yield f"data.fps={data.fps:g}: must be 0 with data.sampling=segments, which divides the whole video"
    if data.color_jitter[3] > 0.5:
        yield f"data.color_jitter={list(data.color_jitter)}: the hue must be at most 0.5"
    if config.test.crops == 2:
        yield "test.crops=2: must be 1 (centre) or 3 (along the longer side)"


def _phase_errors(config: Config) -> Iterator[str]:
    data = config.data
    for phase in data.phases:
        name, (_, *sizes) = f"data.phases: {list(phase)}", phase
        for key, size in zip(("num_frames", "train_size"), sizes, strict=True):
            rules = DataSection.__dataclass_fields__[key].metadata
            if not rules["low"] <= size <= rules["high"]:
                yield f"{name}: data.{key} must be between {rules['low']} and {rules['high']}"
        if (sizes[0] == 1) != (data.num_frames == 1):
            yield f"{name}: images and clips cannot be mixed (data.num_frames={data.num_frames})"


def _training_errors(config: Config) -> Iterator[str]:
    train = config.train
    if train.loss not in LOSSES and not config.plugins:
        loss = format_value(train.loss)[1:-1]
        yield f"train.loss={loss}: must be {' or '.join(LOSSES)}, or registered by one of plugins="
    if parse_device(train.device)[0] == "xla" and train.activation_checkpointing:
        yield "train.activation_checkpointing: not available with train.device=xla; remove it"
    yield from wrong_combinations(
        options_of(config), multi_label=config.data.multi_label, bn_momentum=config.model.bn_momentum
    )
    if (train.freeze or train.linear_probe) and not train.init_from:
        key = f"train.freeze={train.freeze}" if train.freeze else "train.linear_probe=true"
        yield f"{key}: random weights would be frozen; set train.init_from"
