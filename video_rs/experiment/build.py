"""Build records, datasets and networks from a config."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import nn

from video_rs.data import limits
from video_rs.data.clip_datasets import ClipDataset, ViewDataset
from video_rs.data.sources.dataset_index import attach
from video_rs.data.sources.records import Records
from video_rs.data.sources.splits import load_splits
from video_rs.data.transforms import VideoTransform, create_transform
from video_rs.data.transforms.registry import create_augmentations
from video_rs.data.video.media import is_image
from video_rs.data.video_dataset import VideoDataset
from video_rs.data_config import pad_class_names
from video_rs.errors import UserError
from video_rs.experiment.config import Config
from video_rs.models.arguments import refuse
from video_rs.models.presets import PRESETS
from video_rs.models.registry import create_model


def build_records(
    config: Config, splits: Sequence[str] = ("train", "val", "test"), *, indexed: bool = True
) -> dict[str, Records]:
    """Return the records of some splits, with the index of their files if there is one. Raise UserError.

    Sets the limits for reading files, see ``data/limits.py``.
    """
    limits.set_limits(retries=config.data.retries, max_pixels=config.data.max_pixels)
    sources = _arguments(load_splits, config.data)
    try:
        records = load_splits(**sources, num_classes=config.model.num_classes, splits=tuple(splits))
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): change its permissions") from None
    for each in records.values() if indexed else ():
        attach(each)
    return records


def _arguments(function: Callable, section: Any) -> dict[str, Any]:
    """Return the keys of a section that are also names of arguments of a function."""
    return {name: getattr(section, name) for name in signature(function).parameters if hasattr(section, name)}


def build_own_records(config: Config) -> dict[str, Records]:
    """Return the records of all splits, without a test split that is the same as the val split."""
    return build_records(config, (), indexed=False)


def require_video_files(records: Records, command: str) -> None:
    """Raise UserError unless the records are separate video files."""
    path = records.path(0)
    if records.members:
        raise UserError(f"the dataset consists of shards ({path}): {command} is for video files only")
    if is_image(path) or os.path.isdir(path):
        kind = "images" if is_image(path) else "folders of frames"
        raise UserError(f"the dataset consists of {kind} ({path}): {command} is for video files only")


def class_names(config: Config, records: Records) -> tuple[str, ...]:
    """Return the names of the network's outputs: the class names of the data, padded with numbers if it has more."""
    names, wanted = records.class_names, config.model.num_classes or len(records.class_names)
    if len(names) > wanted:
        raise UserError(f"the data has {len(names)} classes, model.num_classes={wanted}; raise it, or set it to 0")
    return pad_class_names(names, wanted)


def transform(config: Config, *, is_training: bool) -> VideoTransform:
    """Return the transform for training or evaluation."""
    augment = create_augmentations(config.data.augment or {})
    options = {**_arguments(create_transform, config.data), **config.data_config(), "augment": augment}
    return create_transform(**options, is_training=is_training)


def video_dataset(config: Config, records: Records, *, is_training: bool) -> VideoDataset:
    """Return the dataset of a split for training or evaluation."""
    return VideoDataset.from_records(records, transform(config, is_training=is_training), decoder=config.data.decoder)


def train_dataset(config: Config, records: Records) -> ClipDataset:
    """Return the training samples, with the clip sizes of each phase."""
    phases = [(num_frames, size) for _, num_frames, size in config.data.phases]
    dataset = video_dataset(config, records, is_training=True)
    return dataset.training_samples(seed=config.train.seed, repeats=config.data.repeats, phases=phases)


def view_dataset(config: Config, records: Records, clips: int, crops: int) -> ViewDataset:
    """Return the dataset of all views of each video; images have one clip."""
    return video_dataset(config, records, is_training=False).views(clips, crops)


def model_args(config: Config, num_classes: int) -> dict[str, object]:
    """Return the arguments of ``create_model`` as plain values for checkpoints."""
    arguments = config.to_dict()["model"] | {"num_classes": num_classes}
    if arguments["bn_momentum"] is None and config.model.name in PRESETS:  # the EMA averages the batches' statistics
        arguments["bn_momentum"] = 1.0 if config.train.ema_decay else 0.1
    arch = {name: value for name, value in arguments.pop("arch").items() if value is not None}
    return arguments | ({"arch": arch} if arch else {})


def build_model(config: Config, class_names: Sequence[str]) -> nn.Module:
    """Create the network of a config, with random weights from its seed and the data config of the data."""
    torch.manual_seed(config.train.seed)
    model = create_model(**model_args(config, len(class_names)), data_config=config.data_config(class_names))
    if stages := config.train.activation_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            refuse(config.model.name, "train.activation_checkpointing", list(stages), [])
        model.set_grad_checkpointing(stages)
    if hasattr(model, "check"):  # fail now, not when a later phase begins
        for _, num_frames, size in config.data.phases:
            model.check(num_frames, size, size)
    return model
