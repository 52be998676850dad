"""From a config to the objects it describes. Only here and in the commands' ``main`` is a ``Config`` seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from video_rs.config import Config
from video_rs.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from video_rs.data.dataset import ClipDataset, ViewDataset
    from video_rs.data.records import Records


def build_records(
    config: Config, splits: Sequence[str] = ("train", "val", "test"), *, indexed: bool = True
) -> dict[str, Records]:
    """The records of the splits asked for, and the index of their files where one was made."""
    from video_rs.data.index import attach
    from video_rs.data.records import load_splits

    data = config.data
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
        splits=tuple(splits),
    )
    for of_split in records.values() if indexed else ():
        attach(of_split)
    return records


def class_names(config: Config, records: Records) -> tuple[str, ...]:
    """The names behind the logits: the data's, then numbers for what ``model.num_classes`` has beyond them."""
    names, wanted = records.class_names, config.model.num_classes or len(records.class_names)
    if len(names) > wanted:
        raise UserError(f"the data has {len(names)} classes, model.num_classes={wanted}; raise it, or set it to 0")
    return (*names, *(str(c) for c in range(len(names), wanted)))


def check_media(config: Config, records: Records) -> None:
    """Clips of images would be one image over and over. Raises UserError."""
    from video_rs.data.decode import is_image

    if config.data.num_frames > 1 and is_image(records.path(0)):
        raise UserError(
            f"the data are images ({records.path(0)}), data.num_frames={config.data.num_frames} is for videos; "
            "use an image config (imagenet_rs*.yaml, or data.num_frames=1 and model.name=resnet_rs_* or timm/*)"
        )


def check_labels(records: Records, split: str) -> None:
    """Without a single label there is no average precision. Raises UserError."""
    if records.multi_label and not records.label_sets.values.size:
        raise UserError(f"no file of the {split} split has a label: mAP needs some")


def train_dataset(config: Config, records: Records) -> ClipDataset:
    """Randomly sampled and augmented clips."""
    from video_rs.data.clips import TemporalSampling
    from video_rs.data.dataset import ClipDataset
    from video_rs.data.rand_augment import RandAugment
    from video_rs.data.transforms import TrainTransform

    data = config.data
    augment = RandAugment(data.rand_augment_layers, data.rand_augment_magnitude) if data.rand_augment_layers else None
    transform = TrainTransform(
        data.train_size,
        data.area,
        data.aspect,
        data.flip,
        data.filter,
        min_covered=data.min_covered,
        rand_augment=augment,
    )
    return ClipDataset(
        records,
        sampling=TemporalSampling.of(config.contract()),
        transform=transform,
        seed=config.train.seed,
        decoder=data.decoder,
        repeats=data.repeats,
    )


def view_dataset(config: Config, records: Records, clips: int, crops: int) -> ViewDataset:
    """All test views of a video as one sample; images have one clip."""
    from video_rs.data.clips import TemporalSampling
    from video_rs.data.dataset import ViewDataset
    from video_rs.data.transforms import ViewTransform

    data = config.data
    return ViewDataset(
        records,
        sampling=TemporalSampling.of(config.contract()),
        clips=clips if data.num_frames > 1 else 1,
        transform=ViewTransform(data.short_side, data.test_size, crops, data.filter),
        decoder=data.decoder,
    )


def model_args(config: Config, num_classes: int) -> dict[str, object]:
    """The arguments of ``create_model``: plain values, as a checkpoint keeps them."""
    model = config.model
    bn_momentum = model.bn_momentum
    if bn_momentum is None and "/" not in model.name:  # with an EMA of the statistics too, the batch's own go into it
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
    }


def build_model(config: Config, class_names: Sequence[str]) -> nn.Module:
    """The network, randomly initialised from the seed, with the config's data contract."""
    import torch

    from video_rs.models.zoo import create_model

    torch.manual_seed(config.train.seed)
    return create_model(**model_args(config, len(class_names)), contract=config.contract(class_names))
