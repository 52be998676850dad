"""Validate the arguments of ``fit``: a network, its datasets and whether they fit together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from video_rs.data.video_dataset import VideoDataset
from video_rs.data_config import DataConfig
from video_rs.errors import UserError, format_value
from video_rs.evaluation.metrics import check_labels


def check_inputs(model: nn.Module, train: VideoDataset, val: VideoDataset | None) -> None:
    """Raise UserError if these are no network of ``create_model`` and no datasets for it."""
    if not isinstance(model, nn.Module) or not hasattr(model, "model_args"):
        raise UserError(
            f"model: expected a network of video_rs.create_model, got {type(model).__name__}; register a class of "
            "yours with @register_model"
        )
    for name, data, is_training in (("train", train, True), ("val", val, False)):
        if data is None and not is_training:
            continue
        if not isinstance(data, VideoDataset):
            raise UserError(f"{name}: expected a VideoDataset, got {type(data).__name__}")
        if data.transform.is_training != is_training:
            raise UserError(f"{name}: use create_transform(**model.data_config, is_training={is_training})")
    _check_classes(model, train, val)
    _check_transforms(model, train, val)


def _check_classes(model: nn.Module, train: VideoDataset, val: VideoDataset | None) -> None:
    classes, outputs = len(train.classes), model.num_classes
    if classes > outputs:
        raise UserError(f"the data has {classes} classes, the network {outputs}; create it with num_classes={classes}")
    if not train.records.multi_label and len(present := np.unique(train.records.labels)) < 2:
        name = format_value(train.classes[present[0]])
        raise UserError(f"the training data have a single class, {name}: training needs at least two")
    if val is None:
        return
    if train.classes[: len(val.classes)] != val.classes:
        raise UserError("the classes of the validation data and the training data differ")
    if val.records.multi_label != train.records.multi_label:
        raise UserError(f"train has multi_label={train.records.multi_label}, val {val.records.multi_label}")
    check_labels(val.records, "val")


def clip_config(own: DataConfig, data: VideoDataset) -> DataConfig:
    """Return a data config with the sampling, the normalization and the filter of a dataset's clips."""
    transform, sampling = data.transform, data.transform.sampling
    return dataclasses.replace(
        own,
        num_frames=sampling.num_frames,
        stride=sampling.stride,
        sampling=sampling.kind,
        fps=sampling.fps,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        filter=transform.spatial.filter,
    )


def _check_transforms(model: nn.Module, train: VideoDataset, val: VideoDataset | None) -> None:
    own = model.data_config
    of_train = clip_config(own, train)
    _check_equal("training transform does not fit the network", own.differences(of_train, ("mean", "std", "filter")))
    if val:
        changed = of_train.differences(clip_config(own, val))
        _check_equal("validation transform does not fit the training data", changed)


def _check_equal(what: str, differences: Mapping[str, tuple[Any, Any]]) -> None:
    for name, (expected, value) in differences.items():
        raise UserError(
            f"{name}={value} of the {what}, which expects {expected}; make both transforms with "
            "create_transform(**model.data_config, is_training=...)"
        )
