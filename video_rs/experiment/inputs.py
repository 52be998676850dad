"""Find network and files for commands without a config, from ``--weights`` or ``--model``, and ``--data``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from video_rs import checkpoint
from video_rs.data.sources.class_folders import folders_with_files
from video_rs.data.sources.lists import list_splits
from video_rs.data.sources.records import Records
from video_rs.data.sources.shard_splits import are_shards
from video_rs.data.sources.splits import LIST_SUFFIXES
from video_rs.data.video.media import is_image, is_media
from video_rs.data.video.search import LeftOut, listing
from video_rs.data_config import DataConfig
from video_rs.errors import UserError, truncate
from video_rs.experiment import build
from video_rs.experiment.config import Config, config_of_checkpoint, config_of_model
from video_rs.hub import fetch, is_address, redact_url, sha256
from video_rs.inference.inputs import existing, find_files
from video_rs.models.registry import create_model
from video_rs.models.weights.init_from import init_from
from video_rs.models.weights.load import model_from_checkpoint

MODEL_KEYS = {"model", *DataConfig.__dataclass_fields__} - {"class_names", "multi_label"}
"""Keys and sections of a config that the weights fix."""
OPTIONS = {"out": "--out", "weights": "--weights", "data.workers": "--workers", "train.device": "--device"}
OPTIONS |= dict.fromkeys(("data.root", "data.train", "data.val", "data.test", "data.list"), "--data")
"""Keys that are options of commands without a config."""
USED = {"data", "model", "plugins", "train.seed", "train.threads", "train.deterministic", "train.peer_timeout"}
"""Keys, or sections, that have an effect in commands without a config."""
DEFAULTS = ("data.val_fraction=0",)  # the data can be others than those of the run


def network_of_weights(weights: str, overrides: Sequence[str] = ()) -> tuple[nn.Module, Config, dict[str, Any]]:
    """Load the network of a checkpoint.

    Args:
        weights: a file, a run folder or an address.
        overrides: ``key=value`` settings for reading the data.

    Returns:
        The network, the config of its run with the overrides, and the weights as plain values for
        ``Features.about``.
    """
    state, about = checkpoint.load_run(weights), describe_weights(weights)
    name = about["weights"]
    for key in _keys(overrides):
        if MODEL_KEYS & {key.partition(".")[0], key.removeprefix("data.")}:
            raise UserError(f"{key}: is fixed by {name}; leave it out")
    config = config_of_checkpoint(state, name, "", [*DEFAULTS, *overrides])
    _check_keys(overrides)
    model = model_from_checkpoint(state, name)
    return model, config, {**about, "model": model.name}


def describe_weights(weights: str) -> dict[str, Any]:
    """Return the name and the SHA-256 of a file, run folder or address, for ``about`` in results."""
    file = str(checkpoint.resolve(weights))
    name = redact_url(file) if is_address(file) else os.path.abspath(file)
    return {"weights": name, "sha256": sha256(fetch(file))}


def network_of_name(
    name: str, weights: str = "", overrides: Sequence[str] = ()
) -> tuple[nn.Module, Config, dict[str, Any]]:
    """Create a network by its name.

    Args:
        name: a name of ``video_rs.list_models()``.
        weights: the initial weights, as ``train.init_from``; "" for random ones with the seed ``train.seed``.
        overrides: ``key=value`` settings. Those of fields of the data config, such as ``data.num_frames``, change it.

    Returns:
        As :func:`network_of_weights`. The checksum is that of the tensors.
    """
    config = config_of_model(name, [*DEFAULTS, *overrides])
    _check_keys(overrides)
    torch.manual_seed(config.train.seed)
    arguments = build.model_args(config, config.model.num_classes or None)
    model = create_model(**arguments)
    given = {key.removeprefix("data.") for key in _keys(overrides)} & MODEL_KEYS
    if given:
        changed = {field: getattr(config.data, field) for field in given}
        torch.manual_seed(config.train.seed)
        model = create_model(**arguments, data_config=dataclasses.replace(model.data_config, **changed))
    if weights:
        init_from(model, weights)
    found = checkpoint.tensors_sha256(model.state_dict())
    about = {"weights": "", "init_from": redact_url(weights), "sha256": found, "model": name}
    return model, config, about


def find_records(data: Sequence[str], config: Config, *, split: str = "", images: bool = False) -> tuple[Records, str]:
    """Return the files of ``--data``, with labels if they are a dataset.

    Args:
        data: one dataset: a folder with class folders or splits, a list, or shards; or any files and folders of files
            without labels.
        config: its ``data`` section has the settings for reading a dataset. With ``val_fraction``, a "val" split is
            held out of a dataset that has none.
        split: "train", "val" or "test"; "" if the dataset has one split.
        images: True for an image network, which takes images as well.

    Returns:
        The files, and a note about files that were left out, or "".

    Raises:
        UserError: a file or split is missing; the data are empty, mixed or inconsistent.
    """
    place = _dataset(data[0]) if len(data) == 1 else None
    if place is None:
        if split:
            raise UserError(f"--split {split}: {data[0]} has no splits; leave it out, or give a dataset")
        return _unlabelled(data, images)
    none = dict.fromkeys(("root", "train", "val", "test", "list"), "")
    section = dataclasses.replace(config.data, **{**none, **place})
    found = build.build_records(dataclasses.replace(config, data=section), ())
    if split and split not in found:
        advice = "leave it out" if len(found) == 1 else f"choose one of {', '.join(found)}"
        raise UserError(f"--split {split}: {data[0]} has no such split; {advice}")
    if not split and len(found) > 1:
        raise UserError(f"{data[0]} has the splits {', '.join(found)}; choose one with --split")
    return found[split or next(iter(found))], ""


def _dataset(path: str) -> dict[str, str] | None:
    """Return the ``data`` settings for a dataset; None for a file or a folder without classes."""
    if path.lower().endswith(LIST_SUFFIXES) and os.path.isfile(path):
        return {"list" if list_splits(path) else "train": path}
    if are_shards(path):
        return {"root": path}
    if not os.path.isdir(path):
        return None
    if not any(listing(path)):
        raise UserError(f"{path}: an empty folder; check the path")
    loose = next(filter(is_media, listing(path)[1]), "")
    labelled = next(folders_with_files(path), "")
    if loose and labelled:
        file, folder = os.path.join(path, loose), os.path.basename(labelled)
        raise UserError(f"{file}: is beside class folders such as {folder}; move it into a class folder")
    return None if loose else {"root": path}


def _unlabelled(data: Sequence[str], images: bool) -> tuple[Records, str]:
    paths, missing = existing(data)
    if missing:
        more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise UserError(f"{missing[0]}{more}; check the path")
    left_out, files = LeftOut(), []
    for path in paths:
        files += find_files(path, images, left_out) if os.path.isdir(path) else [path]
    kinds = {is_image(path): path for path in files}
    if len(kinds) > 1:
        raise UserError(f"images and videos are mixed: {truncate(list(kinds.values()))}; give one kind")
    return Records(dict.fromkeys(files), [-1] * len(set(files)), ()), left_out.describe()


def _keys(overrides: Sequence[str]) -> list[str]:
    return [override.partition("=")[0].strip() for override in overrides]


def _check_keys(overrides: Sequence[str]) -> None:
    """Raise UserError for a key that is an option of the command or has no effect."""
    for key in _keys(overrides):
        if key in OPTIONS:
            raise UserError(f"{key}: give {OPTIONS[key]} instead")
        if not USED & {key, key.partition(".")[0]}:
            raise UserError(f"{key}: has no effect here; leave it out")
