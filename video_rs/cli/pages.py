"""What a training run says before it starts and after it has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from video_rs import runtime, terminal
from video_rs.cli import build, recipe
from video_rs.config import Config
from video_rs.download import shown as shown_address
from video_rs.training.report import NAMES, duration, metrics_text
from video_rs.training.status import Status, read_metrics

if TYPE_CHECKING:
    from video_rs.data.records import Records
    from video_rs.training.incidents import Incidents
    from video_rs.training.plan import Plan

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


def start_page(
    config: Config,
    plan: Plan,
    model: nn.Module,
    records: Mapping[str, Records],
    *,
    device: torch.device,
    precision: str,
    processes: int = 1,
    nodes: int = 1,
    workers: int | None = None,
    groups: Sequence[str] = (),
    phases: Sequence[str] = (),
    weights_from: str = "",
    step: int = 0,
    resumed_from: str = "",
) -> list[str]:
    """What a run will do: devices, network, data, steps, where it writes.

    Args:
        model: the network itself, not as torch wraps it for several processes.
        device, precision: of each process; see ``video_rs.runtime``.
        processes: of all ``nodes`` (machines) together.
        workers: loader processes of each process; None for what ``data.workers`` says.
        groups: lines on the optimizer's parameter groups.
        phases: lines on frames and resolution over the epochs.
        weights_from: what ``train.init_from`` gave.
        step: the run starts from; ``resumed_from`` is the checkpoint it was read from.
    """
    at = f"step {step} of {plan.num_steps}"
    rows = [
        ("devices", _devices(device, processes, nodes)),
        ("precision", precision),
        ("loading", _loading(config, processes, workers)),
        ("network", _network(config, model)),
        ("weights", f"started from {shown_address(config.train.init_from)}: {weights_from}" if weights_from else ""),
        *((split, of_split.describe()) for split, of_split in records.items()),
        ("clips", f"{config.data.num_frames} frames x stride {config.data.stride}, {config.data.train_size} px"),
        *(("phases", line) for line in phases),
        ("batch", _batch(plan, processes)),
        ("steps", _steps(plan)),
        ("learning rate", _learning_rate(config, plan)),
        *(("parameters", line) for line in groups),
        ("targets", _targets(config)),
        ("folder", _folder(config, plan)),
        ("begins", f"resuming at {at} from {resumed_from}" if resumed_from else f"starting at {at}"),
    ]
    return _aligned(rows)


def end_page(plan: Plan, status: Status, folder: Path, incidents: Incidents, next_command: str) -> list[str]:
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
    clips = (plan.num_steps - status.first_step) * plan.batch_size
    rate = clips / max(status.seconds - status.seconds_in_validation, 1e-9)
    val, best = metrics["val"], metrics["best"]
    rows = [
        ("complete", f"{plan.num_steps} steps, {plan.epoch(plan.num_steps):.4g} epochs, in {taken}"),
        ("speed", f"{rate:.1f} clips/s, validations not counted" if clips else ""),
        ("validation", f"{metrics_text(val)} after epoch {val['epoch']:.4g}" if val else ""),
        ("weights", _best(best, folder) if best else ""),
        *(("broken files", line) for line in _broken(incidents, folder)),
        *(("bad steps", line) for line in _bad_steps(incidents, folder)),
        ("written", f"{', '.join(name for name in FILES if (folder / name).exists())} in {folder}"),
    ]
    return [*_aligned(rows), f"next: {next_command}"]


def gigamacs(model: nn.Module, arguments: Mapping[str, object]) -> float | None:
    """10^9 multiply-accumulates of a forward pass of one training clip; None where they cannot be counted.

    Args:
        model: has the contract that tells a clip's shape.
        arguments: of ``create_model``, which makes the same network again, of shapes alone.
    """
    from video_rs.models import cost
    from video_rs.models.zoo import create_model

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            shapes = create_model(**arguments, contract=model.contract)
            return cost.macs(shapes, cost.input_shape(model.contract)) / 1e9
    except Exception:  # whatever another package's network does without numbers, the run needs none of it
        return None


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    """A line per row that has a text; a heading is not repeated."""
    shown, before = [], ""
    for heading, text in rows:
        if text:
            shown.append(("" if heading == before else heading, text))
            before = heading
    return terminal.table(shown, plain=True)


def _devices(device: torch.device, processes: int, nodes: int) -> str:
    text = runtime.describe(device)
    if processes == 1:
        return text
    machines = f" on {nodes} machines" if nodes > 1 else ""
    return f"{processes} processes{machines}, each on {text}"


def _loading(config: Config, processes: int, workers: int | None) -> str:
    workers = runtime.loader_workers(config.data.workers) if workers is None else workers
    each = " in each process" if processes > 1 else ""
    return f"{workers} loader workers{each}"


def _network(config: Config, model: nn.Module) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    macs = gigamacs(model, build.model_args(config, model.num_classes))
    kind = "clip" if config.data.num_frames > 1 else "image"
    counted = f"GMACs a {kind} not counted" if macs is None else f"{macs:.4g} GMACs a {kind}"
    return f"{config.model.name}, {parameters:,} parameters, {model.num_classes} classes, {counted}"


def _batch(plan: Plan, processes: int) -> str:
    parts = plan.batch_size // (plan.micro_batch * processes)
    factors = [f"{processes} processes"] if processes > 1 else []
    factors += [f"{parts} micro-batches"] if parts > 1 else []
    return (
        " x ".join([f"{plan.batch_size} = {factors[0]}", *factors[1:], f"{plan.micro_batch}"])
        if factors
        else (f"{plan.batch_size}")
    )


def _steps(plan: Plan) -> str:
    epochs = f"{plan.epoch(plan.num_steps):.4g} epochs of {plan.num_samples:,} samples"
    every = "" if plan.val_every == 1 else f"{plan.val_every} "
    when = f"after each {every}epoch{'s' if every else ''}" if plan.val_every else "at the end"
    return f"{plan.num_steps:,}: {epochs}, validated {when}"


def _learning_rate(config: Config, plan: Plan) -> str:
    keys = config.optim
    peak = f"up to {recipe.peak_rate(config):.4g} = {keys.lr:g} x {plan.batch_size} / {keys.lr_batch}"
    warm_up = f"{keys.warmup_epochs:g} epochs of warm-up, then " if keys.warmup_epochs else ""
    return f"{peak}; {warm_up}{keys.schedule}"


def _targets(config: Config) -> str:
    smoothing = config.train.label_smoothing
    if not (config.data.multi_label and smoothing):
        return ""
    targets = f"{smoothing / 2:g} and {1 - smoothing / 2:g}"
    return f"label smoothing {smoothing:g}: targets are {targets} for every class; 0 is usual for many classes"


def _folder(config: Config, plan: Plan) -> str:
    minutes, keep = plan.checkpoint_minutes, config.train.keep_checkpoints
    often = f"every {minutes:g} minutes" if minutes else "after each step"
    return f"everything is written to {config.out}; checkpoints {often} and after each epoch, {keep} kept"


def _best(best: Mapping, folder: Path) -> str:
    metric = f"best validation {NAMES[best['name']]} {100 * best['figure']:.2f} %"
    return f"{metric} after epoch {best['epoch']:.4g}, in {folder / 'best.pt'}"


def _broken(incidents: Incidents, folder: Path) -> list[str]:
    if not incidents.files:
        return []
    files = [f"  {path} ({times}x): {reason}" for path, (reason, times) in sorted(incidents.files.items())[:10]]
    return [
        f"{len(incidents.files)} could not be read and were replaced by others of their class:",
        *files,
        f"all of them are in {folder / 'broken_files.csv'}",
    ]


def _bad_steps(incidents: Incidents, folder: Path) -> list[str]:
    if not incidents.steps:
        return []
    files = [f"  {path} (in {steps} of them)" for path, steps in incidents.files_of_steps()[:10]]
    return [
        f"{len(incidents.steps)} whose loss or gradient was not finite were skipped; in them were:",
        *files,
        f"all of them are in {folder / 'bad_steps.csv'}",
    ]
