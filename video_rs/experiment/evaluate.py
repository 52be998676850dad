"""Test a checkpoint with a config: score all views of a split and write the report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video_rs import checkpoint
from video_rs.data.loader import ViewLoader
from video_rs.data.sources.records import Records
from video_rs.data.video.decord import describe_decoder
from video_rs.data_config import DataConfig
from video_rs.distributed.device import (
    configure_torch,
    describe,
    loader_workers,
    parameter_dtype,
    select_device,
    select_precision,
)
from video_rs.distributed.self_check import check_convolutions
from video_rs.distributed.world import World
from video_rs.errors import UserError
from video_rs.evaluation.metrics import check_labels, summarize
from video_rs.evaluation.multiview import Scores, score
from video_rs.evaluation.report import write_report
from video_rs.experiment import build
from video_rs.experiment.config import Config, config_of_checkpoint
from video_rs.experiment.strict_yaml import read_yaml
from video_rs.files import read_run_metrics, refuse_links
from video_rs.hub import fetch, is_address, redact_url, sha256
from video_rs.models.weights.load import model_from_checkpoint
from video_rs.training.reports import label, report_folder, run_folder

TRAINING_ONLY = {"train_size", "class_names"}  # class names are compared separately


@dataclass(frozen=True)
class Evaluation:
    """The result of a test.

    Attributes:
        metrics: see :func:`video_rs.evaluation.metrics.summarize`.
        scores: the scores of all videos.
        paths: paths of the videos, in the order of the scores.
        report: path of report.html.
        weights: path or URL of the checkpoint, for other commands; the cached file if the URL contains a secret.
    """

    metrics: dict[str, Any]
    scores: Scores
    paths: list[str]
    report: Path
    weights: str


def evaluate(
    config: Config,
    world: World | None = None,
    *,
    log: Callable[[str], Any] = print,
    progress: Callable[[int], Callable[[int], Any]] | None = None,
    state: dict[str, Any] | None = None,
) -> Evaluation | None:
    """Score ``test.split`` with ``weights``, or with ``best.pt`` of the run folder, and write the report.

    The report on ``best.pt`` of the run folder is written to ``<out>/<split>/``. The report on other weights is written
    to ``<out>/<split>-<name>-<checksum>/``.

    Args:
        config: a config with the data and network of the training run.
        world: the ranks, which each score a part of the videos.
        log: called on rank 0 with lines of text: device, network, data, warnings.
        progress: called on rank 0 with the number of videos; returns a function that advances the progress.
        state: the content of ``weights`` if it was read before.

    Returns:
        The result on rank 0; None on other ranks.

    Raises:
        UserError: the checkpoint does not fit the config or the classes of the data, or no video can be scored.
    """
    world = world or World()
    weights, split = str(checkpoint.resolve(config.weights or Path(config.out) / "best.pt")), config.test.split
    if not is_address(weights) and not os.path.exists(weights):
        advice = "check the path" if config.weights else "train first, or name a checkpoint with --weights FILE"
        raise UserError(f"{weights} does not exist; {advice}")
    records = build.build_records(config, (split,))[split]  # report errors in the data before a download
    state, file, name = state or checkpoint.load_run(weights), fetch(weights), redact_url(weights)
    check_labels(records, split)
    names = build.class_names(config, records)
    check_fits(config, names, state, name)
    check_unseen(records, state, name)
    folder, checksum = Path(config.out) / split, ""
    if world.is_main:
        checksum = sha256(file)
        folder = report_folder(config.out, split, file, name)
        refuse_links(config.out, folder)
        folder.mkdir(parents=True, exist_ok=True)  # fail early

    configure_torch(config.train.threads, config.train.deterministic)
    device = select_device(config.train.device)
    precision = select_precision(config.train.precision, device)
    model = model_from_checkpoint(state, name)
    names = model.data_config.class_names or names  # the names in the data can be plain numbers
    model.to(device, parameter_dtype(precision))
    if device.type != "cpu":
        check_convolutions(model, precision)
    dataset = build.view_dataset(config, records, config.test.clips, config.test.crops)
    views = f"{dataset.clips} x {config.test.crops} views (clips x crops)"
    no_test = split == "test" and records.used_as_test
    split_name = "val split (chose the weights; there is no test split)" if no_test else f"{split} split"
    loader = ViewLoader(
        dataset,
        workers=loader_workers(config.data.workers, world.local_size),
        timeout=config.data.timeout,
        rank=world.rank,
        world_size=world.size,
    )
    if world.is_main:
        processes = f"; {world.size} processes" if world.size > 1 else ""
        log(f"device: {describe(device)}; precision {precision}{processes}")
        log(f"model: {config.model.name} from {name}, step {state.get('step', 'unknown')}")
        log(f"{split_name}: {records.describe()}; {views} each")
        if decoder := describe_decoder(config.data.decoder):
            log(f"decoder: {decoder}")
    scores = score(
        model,
        loader,
        device=device,
        precision=precision,
        views_per_forward=config.test.batch_size,
        keep_views=config.test.save_views,
        progress=progress(len(loader)) if progress and world.is_main else None,
        world=world,
    )
    if scores is None:
        return None
    paths = [records.path(i) for i in range(len(records))]
    if not scores.scored.any():
        index, reason = scores.errors[0]
        raise UserError(f"none of the {len(paths)} videos can be scored; the first, {records.name(index)}: {reason}")
    metrics = summarize(scores.probs, scores.labels, scores.scored, names)
    run_dir = run_folder(weights)
    report = write_report(
        folder,
        paths,
        scores,
        names,
        metrics,
        run_dir=run_dir if run_dir and is_from_run(run_dir, state) else None,
        title=f"{label(name)}: {split_name}",
        about={
            "weights": f"{name}, step {state.get('step', 'unknown')}, SHA-256 {checksum[:8]}",
            "data": f"{split_name} of {_source(config, records, split)}: {records.describe()}",
            "model": config.model.name,
            "views": views,
            "precision": precision,
        },
        decoder=config.data.decoder,
        segments=records.segments,
        warn=lambda text: log(f"warning: {text}"),
    )
    return Evaluation(metrics, scores, paths, report, weights if weights == name else str(file))


def config_for(weights: str, overrides: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """Return the config of a checkpoint with overrides, and the checkpoint, to test it without ``--cfg``.

    The run folder is that of the checkpoint, or ``runs/<name of the checkpoint>`` for a single file or an address.
    """
    state, name = checkpoint.load_run(weights), redact_url(weights)
    out = run_folder(weights) or Path("runs") / label(name)
    return config_of_checkpoint(state, name, str(out), overrides), state


def is_from_run(folder: Path, state: Mapping[str, Any]) -> bool:
    """Return True if a checkpoint is from the run in a folder, by its best validation or else by its config."""
    metrics = state.get("metrics") or state.get("best_metrics") or {}
    with contextlib.suppress(OSError, UserError):
        if "loss" in metrics:
            loss = float(f"{metrics['loss']:.6g}")  # as in the log
            lines = read_run_metrics(folder / "metrics.jsonl")
            return any(line["kind"] == "val" and line.get("loss") == loss for line in lines)
        return read_yaml((folder / "config.yaml").read_text(encoding="utf-8"), "config.yaml") == state["config"]
    return False


def _source(config: Config, records: Records, split: str) -> str:
    """Return the list or folder of a split."""
    data = config.data
    own = data.val if records.used_as_test else getattr(data, split)
    return redact_url(own or data.list or (data.train if records.held_out else "") or data.root)


def check_fits(config: Config, class_names: tuple[str, ...], state: dict[str, Any], weights: str) -> None:
    """Raise UserError, with both values, if a checkpoint does not match the config or the classes of the data."""
    data_config, saved = config.data_config(class_names), DataConfig.from_dict(state["data_config"], weights)
    arguments = state["model_args"]
    number = "model.num_classes" if config.model.num_classes else "the number of classes in the data"
    pairs = {
        "model.name": (config.model.name, arguments["name"]),
        "model.width": (config.model.width, arguments.get("width", 1.0)),
        number: (len(class_names), arguments.get("num_classes")),
    }
    pairs |= {f"data.{k}": v for k, v in data_config.differences(saved).items() if k not in TRAINING_ONLY}
    wrong = [f"{key} is {ours}, in the checkpoint {theirs}" for key, (ours, theirs) in pairs.items() if ours != theirs]
    if wrong:
        folder = run_folder(weights)
        cfg = f" (--cfg {folder})" if folder and (folder / "config.yaml").exists() else ""
        raise UserError(f"{weights} does not fit this config: {'; '.join(wrong)}; use the config of its run{cfg}")
    for index, (name, theirs) in enumerate(zip(class_names, saved.class_names)):
        if name != theirs and str(index) not in (name, theirs):  # plain numbers are not names
            raise UserError(
                f"class {index} is {name!r} in the data, {theirs!r} in {weights}; give the names in the order of the "
                "checkpoint with data.class_names=FILE"
            )


def check_unseen(records: Records, state: dict[str, Any], weights: str) -> None:
    """Raise UserError if a split was held out from the training files, but not by the run of this checkpoint."""
    if records.held_out and (state.get("fingerprint") or {}).get("val") != records.fingerprint():
        raise UserError(
            f"the data has no such split, and the one held out from its training files is not that of {weights}, which "
            "may have been trained on these videos; use the data and data.val_fraction of its run, or data.test=LIST"
        )
