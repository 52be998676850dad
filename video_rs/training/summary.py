"""The first and the last page that a training run prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from video_rs import terminal
from video_rs.distributed import device as runtime
from video_rs.experiment import build, recipe
from video_rs.experiment.config import Config
from video_rs.hub import redact_url
from video_rs.terminal import duration
from video_rs.training.optim import describe_groups
from video_rs.training.run_status import NAMES, Status, metrics_text, read_metrics

if TYPE_CHECKING:
    from video_rs.experiment.run import Job
    from video_rs.training.incidents import Incidents
    from video_rs.training.schedule import Schedule

FILES = (
    "best.pt",
    "last.pt",
    "checkpoints",
    "log.txt",
    "metrics.jsonl",
    "tensorboard",
    "broken_files.csv",
    "bad_steps.csv",
)


def start_page(job: Job, resumed_from: str = "") -> list[str]:
    """Return lines that say what a run will do: devices, network, data, steps, where it writes.

    Args:
        job: of the run, at the step that it starts from.
        resumed_from: the checkpoint that it was read from.
    """
    config, schedule, world, records = job.config, job.trainer.schedule, job.world, job.records
    device, each = runtime.describe(job.device), ""
    if world.size > 1:
        machines = f" on {world.size // world.local_size} machines" if world.size > world.local_size else ""
        device, each = f"{world.size} processes{machines}, each on {device}", " in each process"
    data, smoothing = config.data, config.train.label_smoothing
    targets = f"targets are {smoothing / 2:g} and {1 - smoothing / 2:g} for every class; 0 is usual for many classes"
    started = f"started from {redact_url(config.train.init_from)}: {job.started_from}"
    begins = f"resuming at step {{}} of {{}} from {resumed_from}" if resumed_from else "starting at step {} of {}"
    return _aligned(
        [
            ("devices", device),
            ("precision", job.precision),
            ("loading", f"{runtime.loader_workers(data.workers, world.local_size)} loader workers{each}"),
            ("network", _network(config, job.model)),
            ("weights", started if job.started_from else ""),
            *((split, of_split.describe()) for split, of_split in records.items()),
            ("decoder", build.describe_decoder(config)),
            ("clips", f"{data.num_frames} frames x stride {data.stride}, {data.train_size} px"),
            *(("phases", line) for line in build.describe_phases(config, len(records["train"]))),
            ("batch", _batch(schedule, world.size)),
            ("steps", _steps(schedule)),
            ("learning rate", _learning_rate(config, schedule)),
            *(("parameters", line) for line in describe_groups(job.model, job.trainer.optimizer)),
            ("targets", f"label smoothing {smoothing:g}: {targets}" if data.multi_label and smoothing else ""),
            ("folder", _folder(config, schedule)),
            ("begins", begins.format(job.trainer.step, schedule.num_steps)),
        ]
    )


def end_page(schedule: Schedule, status: Status, folder: Path, incidents: Incidents, next_command: str) -> list[str]:
    """Summarize a complete run: steps, times, best metric, unreadable files, bad steps, written files, next command.

    Args:
        plan: of the run.
        status: of the run's last start.
        folder: the run folder.
        incidents: files that could not be read and steps that were not finite.
        next_command: to call now.
    """
    taken, metrics = duration(status.seconds), read_metrics(folder)
    if status.first_step:
        taken += f", {duration(status.seconds_before + status.seconds)} with earlier starts"
    clips = (schedule.num_steps - status.first_step) * schedule.batch_size
    rate = clips / max(status.seconds - status.seconds_in_validation, 1e-9)
    val, best = metrics["val"], metrics["best"]
    rows = [
        ("complete", f"{schedule.num_steps} steps, {schedule.epoch(schedule.num_steps):.4g} epochs, in {taken}"),
        ("speed", f"{rate:.1f} clips/s, validations not counted" if clips else ""),
        ("validation", f"{metrics_text(val)} after epoch {val['epoch']:.4g}" if val else ""),
        ("weights", _best(best, folder) if best else ""),
        *_first_ten(
            "broken files",
            f"{len(incidents.files)} could not be read and were replaced by others of their class:",
            [f"{path} ({times}x): {reason}" for path, (reason, times) in sorted(incidents.files.items())],
            folder / "broken_files.csv",
        ),
        *_first_ten(
            "bad steps",
            f"{len(incidents.steps)} whose loss or gradient was not finite were skipped; in them were:",
            [f"{path} (in {steps} of them)" for path, steps in incidents.files_of_steps()],
            folder / "bad_steps.csv",
        ),
        ("written", f"{', '.join(name for name in FILES if (folder / name).exists())} in {folder}"),
    ]
    return [*_aligned(rows), f"next: {next_command}"]


def gigamacs(model: nn.Module, arguments: Mapping[str, object]) -> float | None:
    """Return the GMACs of a forward pass of one training clip; None where they cannot be counted.

    Args:
        model: has the data config that tells a clip's shape.
        arguments: of ``create_model``, which makes the same network again, of shapes alone.
    """
    from video_rs.models import cost
    from video_rs.models.registry import create_model

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            shapes = create_model(**arguments, data_config=model.data_config)
            return cost.macs(shapes, cost.input_shape(model.data_config)) / 1e9
    except Exception:  # whatever another package's network does without numbers, the run needs none of it
        return None


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line per row that has a text; a heading is not repeated."""
    shown, before = [], ""
    for heading, text in rows:
        if text:
            shown.append(("" if heading == before else heading, text))
            before = heading
    return terminal.table(shown, plain=True)


def _first_ten(heading: str, text: str, files: Sequence[str], path: Path) -> list[tuple[str, str]]:
    lines = [text, *(f"  {file}" for file in files[:10]), f"all of them are in {path}"]
    return [(heading, line) for line in lines] if files else []


def _network(config: Config, model: nn.Module) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    macs = gigamacs(model, build.model_args(config, model.num_classes))
    kind = "clip" if config.data.num_frames > 1 else "image"
    counted = f"GMACs a {kind} not counted" if macs is None else f"{macs:.4g} GMACs a {kind}"
    return f"{config.model.name}, {parameters:,} parameters, {model.num_classes} classes, {counted}"


def _batch(schedule: Schedule, processes: int) -> str:
    parts = {"processes": processes, "micro-batches": schedule.batch_size // (schedule.micro_batch * processes)}
    factors = [f"{count} {name}" for name, count in parts.items() if count > 1]
    return (
        f"{schedule.batch_size} = {' x '.join([*factors, str(schedule.micro_batch)])}"
        if factors
        else f"{schedule.batch_size}"
    )


def _steps(schedule: Schedule) -> str:
    epochs = f"{schedule.epoch(schedule.num_steps):.4g} epochs of {schedule.num_samples:,} samples"
    every = "" if schedule.val_every == 1 else f"{schedule.val_every} "
    when = f"after each {every}epoch{'s' if every else ''}" if schedule.val_every else "at the end"
    return f"{schedule.num_steps:,}: {epochs}, validated {when}"


def _learning_rate(config: Config, schedule: Schedule) -> str:
    keys = config.optim
    peak = f"up to {recipe.peak_rate(config):.4g} = {keys.lr:g} x {schedule.batch_size} / {keys.lr_batch}"
    warm_up = f"{keys.warmup_epochs:g} epochs of warm-up, then " if keys.warmup_epochs else ""
    return f"{peak}; {warm_up}{keys.schedule}"


def _folder(config: Config, schedule: Schedule) -> str:
    minutes, keep = schedule.checkpoint_minutes, config.train.keep_checkpoints
    often = f"every {minutes:g} minutes" if minutes else "after each step"
    return f"everything is written to {config.out}; checkpoints {often} and after each epoch, {keep} kept"


def _best(best: Mapping, folder: Path) -> str:
    metric = f"best validation {NAMES[best['name']]} {100 * best['value']:.2f} %"
    return f"{metric} after epoch {best['epoch']:.4g}, in {folder / 'best.pt'}"
