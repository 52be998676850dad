"""Build records, datasets and networks from a config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from video_rs.errors import UserError
from video_rs.experiment.config import Config

if TYPE_CHECKING:
    from torch import nn

    from video_rs.data.dataset import VideoDataset
    from video_rs.data.samples import ClipDataset, ViewDataset
    from video_rs.data.sources.records import Records
    from video_rs.data.transforms import VideoTransform

# fmt: off
AUGMENTATION = (
    "area", "aspect", "min_covered", "flip", "color_jitter", "rand_augment_layers", "rand_augment_magnitude",
    "random_erasing", "random_erasing_mode",
)
# fmt: on
"""The keys of ``config.data`` that ``create_transform`` takes besides the data config."""


def build_records(
    config: Config, splits: Sequence[str] = ("train", "val", "test"), *, indexed: bool = True
) -> dict[str, Records]:
    """Return the records of some splits, with the index of their files if there is one. Raise UserError."""
    from video_rs.data.sources.dataset_index import attach
    from video_rs.data.sources.splits import load_splits

    data = config.data
    try:
        records = load_splits(
            data.root,
            data.train,
            data.val,
            data.test,
            class_names=data.class_names,
            num_classes=config.model.num_classes,
            val_fraction=data.val_fraction,
            max_missing=data.max_missing,
            multi_label=data.multi_label,
            fold=data.fold,
            frame_folders=data.frame_folders,
            splits=tuple(splits),
        )
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): change its permissions") from None
    for of_split in records.values() if indexed else ():
        attach(of_split)
    return records


def build_own_records(config: Config) -> dict[str, Records]:
    """Return the records of the splits that have files of their own: no test split that is also the val split."""
    found = build_records(config, indexed=False)
    return {name: records for name, records in found.items() if not (name == "test" and records.used_as_test)}


def require_video_files(records: Records, command: str) -> None:
    """Raise UserError unless the records are video files in folders."""
    from video_rs.data.video.media import is_image

    path = records.path(0)
    if records.members:
        raise UserError(f"the dataset lies in shards ({path}): {command} is for video files only")
    if is_image(path) or os.path.isdir(path):
        kind = "images" if is_image(path) else "folders of frames"
        raise UserError(f"the dataset consists of {kind} ({path}): {command} is for video files only")


def class_names(config: Config, records: Records) -> tuple[str, ...]:
    """Return the names of the network's outputs: the classes of the data, then numbers up to ``model.num_classes``."""
    names, wanted = records.class_names, config.model.num_classes or len(records.class_names)
    if len(names) > wanted:
        raise UserError(f"the data has {len(names)} classes, model.num_classes={wanted}; raise it, or set it to 0")
    return (*names, *(str(c) for c in range(len(names), wanted)))


def check_labels(records: Records, split: str) -> None:
    """Raise UserError if no file of a multi-label split has a label: the average precision is undefined then."""
    if records.multi_label and not records.label_sets.values.size:
        raise UserError(f"no file of the {split} split has a label: mAP needs some")


def transform(config: Config, *, is_training: bool) -> VideoTransform:
    """Return the transform of the clips, for training or for evaluation."""
    from video_rs.data.transforms import create_transform
    from video_rs.data.transforms.augment import create_augmentations

    options = {name: getattr(config.data, name) for name in AUGMENTATION}
    augment = create_augmentations(config.data.augment or {})
    return create_transform(**config.data_config(), is_training=is_training, augment=augment, **options)


def video_dataset(config: Config, records: Records, *, is_training: bool) -> VideoDataset:
    """Return the dataset of a split, for training or for evaluation."""
    from video_rs.data.dataset import VideoDataset

    return VideoDataset.from_records(records, transform(config, is_training=is_training), decoder=config.data.decoder)


def train_dataset(config: Config, records: Records) -> ClipDataset:
    """Return the samples of training, with the sizes of each phase."""
    phases = [(num_frames, size) for _, num_frames, size in config.data.phases]
    dataset = video_dataset(config, records, is_training=True)
    return dataset.training_samples(seed=config.train.seed, repeats=config.data.repeats, phases=phases)


def view_dataset(config: Config, records: Records, clips: int, crops: int) -> ViewDataset:
    """Return the dataset of all views of each video; images have one clip."""
    return video_dataset(config, records, is_training=False).views(clips, crops)


def model_args(config: Config, num_classes: int) -> dict[str, object]:
    """Return the arguments of ``create_model``, plain values that a checkpoint can hold."""
    from video_rs.models.presets import PRESETS

    model = config.model
    arch = {name: value for name, value in config.to_dict()["model"]["arch"].items() if value is not None}
    bn_momentum = model.bn_momentum
    if bn_momentum is None and model.name in PRESETS:  # the EMA averages the statistics of single batches
        bn_momentum = 1.0 if config.train.ema_decay else 0.1
    return {
        "name": model.name,
        "num_classes": num_classes,
        "width": model.width,
        "dropout": model.dropout,
        "drop_path": model.drop_path,
        "drop_path_rule": model.drop_path_rule,
        "bn_momentum": bn_momentum,
        "temporal_padding": model.temporal_padding,
        **({"arch": arch} if arch else {}),
    }


def build_model(config: Config, class_names: Sequence[str]) -> nn.Module:
    """The network, randomly initialised from the seed, with the config's data config."""
    import torch

    from video_rs.models.arguments import refuse
    from video_rs.models.registry import create_model

    torch.manual_seed(config.train.seed)
    model = create_model(**model_args(config, len(class_names)), data_config=config.data_config(class_names))
    if stages := config.train.activation_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            refuse(config.model.name, "train.activation_checkpointing", list(stages), [])
        model.set_grad_checkpointing(stages)
    if hasattr(model, "check"):  # now, not when a later phase begins
        for _, num_frames, size in config.data.phases:
            model.check(num_frames, size, size)
    return model
