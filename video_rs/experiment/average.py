"""Average the weights of checkpoints of one network: model soups (Wortsman et al. 2022, arXiv 2203.05482).

average(["runs/a", "runs/b", "runs/c"], "soup.pt")              all of them
average(["runs/a", "runs/b", "runs/c"], "soup.pt", val=True)    those that do not make the validation worse
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import video_rs
from video_rs import checkpoint
from video_rs.data.loader import ViewLoader, clip_loader
from video_rs.data.sampler import BatchStream
from video_rs.data_config import DataConfig
from video_rs.distributed.device import (
    configure_torch,
    loader_workers,
    parameter_dtype,
    select_device,
    select_precision,
)
from video_rs.distributed.self_check import check_convolutions
from video_rs.distributed.world import World
from video_rs.errors import MachineError, UserError, WorkerFailed, format_value, truncate
from video_rs.evaluation.metrics import check_labels, validation_metrics
from video_rs.evaluation.multiview import score
from video_rs.experiment import build
from video_rs.experiment.config import Config, config_of_checkpoint
from video_rs.experiment.evaluate import check_fits, check_unseen
from video_rs.experiment.schema import options_of, plain
from video_rs.files import check_writable
from video_rs.hub import redact_url
from video_rs.models.arguments import NEUTRAL
from video_rs.models.weights.load import model_from_checkpoint
from video_rs.training.precise_bn import with_precise_statistics
from video_rs.training.recipe import order
from video_rs.training.run_status import metrics_text
from video_rs.training.trainer import is_finite

OF_TRAINING = {"dropout", "drop_path", "drop_path_rule", "bn_momentum"}
"""Arguments of ``create_model`` that have no effect on predictions."""
SAMPLES, BATCH = 1024, 32
"""Clips for batch norm statistics, in all and in one forward pass, if the config does not set them."""
Progress = Callable[[int, str, str], Callable[[int], Any]]


@dataclass
class Ingredient:
    """A checkpoint to average.

    Attributes:
        name: its path or address.
        state: the checkpoint with the weights for prediction, in float32, and without the state of the trainer.
        alone: the validation metrics of the checkpoint; empty without validation.
        together: the validation metrics of the average of this checkpoint and those added before it.
        added: True if it is in the result.
    """

    name: str
    state: dict[str, Any] = field(repr=False)
    alone: dict[str, float] = field(default_factory=dict)
    together: dict[str, float] = field(default_factory=dict)
    added: bool = True

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state dict of the network."""
        return self.state["model"]


def average(
    checkpoints: Sequence[str | Path],
    out: str | Path,
    *,
    val: bool = False,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    log: Callable[[str], Any] = print,
    progress: Progress | None = None,
) -> list[Ingredient]:
    """Write a checkpoint with the mean of the weights of checkpoints, or of their EMA where they have one.

    Batch norm statistics are computed again from ``train.precise_bn`` training clips (0: 1024, or all if there are
    fewer). The data are those of the config in the first checkpoint.

    Args:
        checkpoints: files, run folders or addresses.
        out: the file to write.
        val: True for a greedy soup: start from the best checkpoint, and add each other one, from the best to the worst,
            unless top-1 (mAP with several labels per file) on the val split gets worse.
        overrides: ``key=value`` settings, such as ``data.root=...``.
        overwrite: replace an existing file.
        log: called with lines of text.
        progress: called with a number, a description and a unit; returns a function that advances the progress.

    Returns:
        The checkpoints, in the order in which they were tried.

    Raises:
        UserError: the networks, data configs or class names differ, the data do not fit, or the file exists.
        MachineError: a training file hangs or kills the decoder, or the disk is full.
    """
    if len(checkpoints) < 2:
        raise UserError("an average needs at least two checkpoints; name more")
    if os.path.lexists(out) and not overwrite:
        raise UserError(f"{out} exists; give another --out, or add --overwrite")
    check_writable(out)
    config, ingredients = _read(checkpoints, overrides)
    first = ingredients[0]
    network = _Network(config, first, val, progress)
    if not network.has_statistics:
        log("no batch norm: no training clips are needed")
    if val:
        for each in ingredients:
            check_unseen(network.records["val"], each.state, each.name)
        weights = _greedy(network, ingredients, log)
    else:
        weights = network.average(ingredients)
    if not is_finite(weights):
        raise UserError("the average is not finite; leave out a checkpoint")
    added = [each for each in ingredients if each.added]
    record = _record(added)
    if len({str(each.state.get("weights_from")) for each in added}) > 1:
        origin = record["weights_from"]
        log(f"the initial weights differ: {origin['source']}; licence {origin['licence'] or 'unknown'}")
    data_config = DataConfig.from_dict(first.state["data_config"])
    checkpoint.save(out, checkpoint.from_weights(added[0].state["model_args"], data_config, weights, **record))
    return ingredients


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of state dicts with equal names, computed in float64. Integers are those of the first one."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def _read(checkpoints: Sequence[str | Path], overrides: Sequence[str]) -> tuple[Config, list[Ingredient]]:
    """Return the config of the first checkpoint, and all checkpoints. Raise UserError if their networks differ."""
    config, ingredients = None, []
    for path in checkpoints:
        state, name = checkpoint.load_run(path), redact_url(str(checkpoint.resolve(path)))
        config = config or config_of_checkpoint(state, name, "", overrides)  # first, for its plugins
        each = Ingredient(name, {key: state[key] for key in checkpoint.TRAVELS if key in state})
        ingredients.append(each)
        _check_equal(ingredients[0], each)
        each.state |= {"model": model_from_checkpoint(state, name).state_dict(), "ema": None}
        if not is_finite(each.weights):
            raise UserError(f"{name}: its weights are not finite; leave it out")
    return config, ingredients


def _check_equal(first: Ingredient, other: Ingredient) -> None:
    """Raise UserError, with both values, if two checkpoints have other networks, data configs or class names."""
    expected, found = _identity(first), _identity(other)
    wrong = [
        f"{key} is {format_value(found.get(key))}, not {format_value(expected.get(key))}"
        for key in {**expected, **found}
        if found.get(key) != expected.get(key)
    ]
    if wrong:
        advice = "average checkpoints of one network, data config and list of classes"
        raise UserError(f"{other.name} differs from {first.name}: {truncate(wrong, 2)}; {advice}")


def _identity(ingredient: Ingredient) -> dict[str, Any]:
    arguments = {"name": "", **NEUTRAL, **plain(ingredient.state["model_args"])}
    data_config = dict(DataConfig.from_dict(ingredient.state["data_config"], ingredient.name))
    classes = {f"class {number}": name for number, name in enumerate(data_config.pop("class_names"))}
    model = {f"model.{key}": value for key, value in arguments.items() if key not in OF_TRAINING}
    return {**model, **{f"data.{key}": value for key, value in data_config.items()}, **classes}


class _Network:
    """The network of the checkpoints on its device, with the data for batch norm statistics and validation."""

    def __init__(self, config: Config, first: Ingredient, val: bool, progress: Progress | None) -> None:
        configure_torch(config.train.threads, config.train.deterministic)
        self.config, self.progress = config, progress
        self.device = select_device(config.train.device)
        self.precision = select_precision(config.train.precision, self.device)
        self.loading = {"workers": loader_workers(config.data.workers), "timeout": config.data.timeout}
        self.model = model_from_checkpoint(first.state, first.name).to(self.device, parameter_dtype(self.precision))
        norms = [layer for layer in self.model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        self.has_statistics = any(layer.track_running_stats for layer in norms)
        splits = ["train"] * self.has_statistics + ["val"] * val
        self.records = build.build_records(config, splits) if splits else {}
        for split, records in self.records.items():
            check_labels(records, split)
            check_fits(config, build.class_names(config, records), first.state, first.name)
        if val:
            if "val" not in self.records:
                raise UserError("--val: the data has no val split; give data.val, or data.val_fraction as in training")
            self.views = ViewLoader(build.view_dataset(config, self.records["val"], 1, 1), **self.loading)
        if self.device.type != "cpu":
            check_convolutions(self.model, self.precision)

    def average(self, ingredients: Sequence[Ingredient]) -> dict[str, Tensor]:
        """Return the mean of the weights, with batch norm statistics of training clips."""
        weights = mean_of([each.weights for each in ingredients])
        if not self.has_statistics:
            return weights
        self.model.load_state_dict(weights)
        clips = self._clips()
        update = self._progress(len(clips), "statistics of batch norm", "batches")
        try:
            model = with_precise_statistics(self.model, clips, self.precision, World(), partial(update, 1))
        except WorkerFailed as error:  # asks for a restart, which helps a run but not this
            files = "; ".join(f"{path} {reason}" for path, reason in error.files.items())
            raise MachineError(f"{files}; remove it and start again" if files else str(error)) from error
        return {name: value.to("cpu", weights[name].dtype) for name, value in model.state_dict().items()}

    def _clips(self) -> DataLoader:
        """Return batches of training clips, the same in each call."""
        config, records = self.config, self.records["train"]
        samples = config.train.precise_bn or min(SAMPLES, len(records))
        size = config.train.micro_batch or min(BATCH, config.train.batch_size)
        arguments = {**order(options_of(config), records), "phase_ends": ()}
        steps = math.ceil(samples / size)
        stream = BatchStream(len(records), batch_size=size, num_steps=steps, seed=config.train.seed, **arguments)
        return clip_loader(build.train_dataset(config, records), stream, **self.loading)

    def validate(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the validation metrics, as in training."""
        self.model.load_state_dict(weights)
        scores = score(
            self.model,
            self.views,
            device=self.device,
            precision=self.precision,
            views_per_forward=self.config.test.batch_size,
            progress=self._progress(len(self.views), "validation", "files"),
        )
        if not scores.scored.any():
            raise UserError(f"no validation sample can be scored: {scores.errors[0][1]}")
        return validation_metrics(scores.probs, scores.labels, scores.scored)

    def _progress(self, total: int, desc: str, unit: str) -> Callable[[int], Any]:
        return self.progress(total, desc, unit) if self.progress else lambda count: None


def _greedy(network: _Network, ingredients: list[Ingredient], log: Callable[[str], Any]) -> dict[str, Tensor]:
    """Choose the checkpoints by validation, and return the weights of their average. Sorts them, best first."""
    for each in ingredients:
        each.alone = network.validate(each.weights)
        log(f"{each.name}: {metrics_text(each.alone)}")
    monitored = "map" if network.model.data_config.multi_label else "top1"
    ingredients.sort(key=lambda each: each.alone[monitored], reverse=True)
    best, *others = ingredients
    best.together = best.alone
    added, weights = [best], best.weights
    for each in others:
        together = network.average([*added, each])
        each.together = network.validate(together)
        each.added = each.together[monitored] >= added[-1].together[monitored]
        if each.added:
            added, weights = [*added, each], together
        log(f"{'added' if each.added else 'not added'}: {each.name}: {metrics_text(each.together)}")
    return weights


def _record(added: Sequence[Ingredient]) -> dict[str, Any]:
    """Return the entries on the runs: the config of the first checkpoint, and the fingerprints that all share."""
    states = [each.state for each in added]
    prints = [state.get("fingerprint") or {} for state in states]
    record = {
        "config": states[0]["config"],
        "fingerprint": {key: value for key, value in prints[0].items() if all(o.get(key) == value for o in prints)},
        "versions": {"video_rs": video_rs.__version__, "torch": str(torch.__version__)},
        "weights_from": _origin([state.get("weights_from") for state in states]),
    }
    return record | ({"metrics": added[-1].together} if added[-1].together else {})


def _origin(records: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    """Return the record of the initial weights; if they differ, one with all sources and licences."""
    if all(record == records[0] for record in records):
        return records[0]
    sources = dict.fromkeys(record.get("source", "unknown") if record else "random weights" for record in records)
    licences = dict.fromkeys(record.get("licence") for record in records if record)
    joined = "; ".join(licence or "unknown" for licence in licences) if any(licences) else None
    return {"source": "; ".join(sources), "licence": joined}
