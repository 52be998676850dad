"""The description at the start of a run's log, and the summary at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from video_rs import terminal
from video_rs.data.tools.lengths import describe_short, sample_lengths
from video_rs.data.video.decord import describe_decoder
from video_rs.distributed.device import describe
from video_rs.models import cost
from video_rs.terminal import counted, duration
from video_rs.training import recipe
from video_rs.training.buffers import trained_norms
from video_rs.training.incidents import BAD_STEPS, BROKEN_FILES, Incidents
from video_rs.training.optim import describe_groups
from video_rs.training.run_status import NAMES, Status, metrics_text, read_metrics

if TYPE_CHECKING:
    from video_rs.training.job import Job
    from video_rs.training.options import Options
    from video_rs.training.schedule import Schedule

FILES = ("best.pt", "last.pt", "checkpoints", "log.txt", "metrics.jsonl", "tensorboard", BROKEN_FILES, BAD_STEPS)


def start_page(job: Job, folder: str | Path, resumed_from: str = "") -> list[str]:
    """Return lines that describe a run: devices, network, data, steps, run folder.

    Args:
        job: the job of the run, at its first step.
        folder: the run folder.
        resumed_from: path of the checkpoint to resume from.
    """
    options, schedule, world = job.options, job.trainer.schedule, job.world
    device, each = describe(job.device), ""
    if world.size > 1:
        machines = f" on {world.size // world.local_size} machines" if world.size > world.local_size else ""
        device, each = f"{world.size} processes{machines}, each on {device}", " in each process"
    sampling, size, smoothing = job.train.transform.sampling, job.train.transform.spatial.size, options.label_smoothing
    values = f"targets are {smoothing / 2:g} and {1 - smoothing / 2:g} for every class"
    targets = f"label smoothing {smoothing:g}: {values}; 0 is usual for many classes"
    multi_label = job.train.records.multi_label
    begins = f"resuming at step {{}} of {{}} from {resumed_from}" if resumed_from else "starting at step {} of {}"
    return _aligned(
        [
            ("devices", device),
            ("precision", job.precision),
            ("loading", f"{counted(job.loading()['workers'], 'loader worker')}{each}"),
            ("network", _network(job)),
            ("weights", job.started_from),
            *((split, records.describe()) for split, records in job.records.items()),
            ("decoder", describe_decoder(job.train.decoder)),
            ("clips", f"{sampling.num_frames} frames x stride {sampling.stride}, {size} px"),
            ("short videos", _short_videos(job)),
            *(("phases", line) for line in recipe.describe_phases(options, len(job.train), sampling, size)),
            ("batch", _batch(schedule, world.size)),
            ("steps", _steps(schedule)),
            ("learning rate", _learning_rate(options, schedule)),
            ("batch norm", _batch_norm(job)),
            *(("parameters", line) for line in describe_groups(job.model, job.trainer.optimizer)),
            ("loss", recipe.describe_loss(options, multi_label=multi_label, has_validation=schedule.has_validation)),
            ("targets", targets if multi_label and smoothing else ""),
            ("folder", _folder(folder, options)),
            ("begins", begins.format(job.trainer.step, schedule.num_steps)),
        ]
    )


def end_page(schedule: Schedule, status: Status, folder: Path, incidents: Incidents, next_command: str) -> list[str]:
    """Summarize a complete run: steps, times, best metric, unreadable files, bad steps, written files, next command.

    Args:
        schedule, folder: schedule and folder of the run.
        status: status of the last start of the run.
        incidents: unreadable files and non-finite steps.
        next_command: command to print in the last line.
    """
    taken, metrics = duration(status.seconds), read_metrics(folder)
    if status.first_step:
        taken += f", {duration(status.seconds_before + status.seconds)} with earlier starts"
    clips = (schedule.num_steps - status.first_step) * schedule.batch_size
    rate = clips / max(status.seconds - status.seconds_in_validation, 1e-9)
    counts = ", validations not counted" if schedule.has_validation else ""
    val, best = metrics["val"], metrics["best"]
    rows = [
        ("complete", f"{schedule.num_steps} steps, {counted(schedule.epoch(schedule.num_steps), 'epoch')}, in {taken}"),
        ("speed", f"{rate:.1f} clips/s{counts}" if clips else ""),
        ("validation", f"{metrics_text(val)} after epoch {val['epoch']:.4g}" if val else ""),
        ("weights", _best(best, folder) if best else f"of the last step, in {folder / 'best.pt'}"),
        *_first_ten(
            "broken files",
            f"{len(incidents.files)} unreadable files were replaced by others:",
            [f"{path} ({times}x): {reason}" for path, (reason, times) in sorted(incidents.files.items())],
            folder / BROKEN_FILES,
        ),
        *_first_ten(
            "bad steps",
            f"{len(incidents.steps)} steps with a non-finite loss or gradient were skipped; their files:",
            [f"{path} (in {steps} of them)" for path, steps in incidents.files_of_steps()],
            folder / BAD_STEPS,
        ),
        ("written", f"{', '.join(name for name in FILES if (folder / name).exists())} in {folder}"),
    ]
    return [*_aligned(rows), f"next: {next_command}"]


def gigamacs(model: nn.Module) -> float | None:
    """Return the GMACs of a forward pass of one training clip; None if they cannot be counted."""
    try:
        return cost.macs(model, cost.input_shape(model.data_config), on_meta=True) / 1e9
    except Exception:  # networks of other packages may fail on the meta device
        return None


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return an aligned line for each row with a text. Repeated headings are omitted."""
    shown, before = [], ""
    for heading, text in rows:
        if text:
            shown.append(("" if heading == before else heading, text))
            before = heading
    return terminal.table(shown, plain=True)


def _first_ten(heading: str, text: str, files: Sequence[str], path: Path) -> list[tuple[str, str]]:
    lines = [text, *(f"  {file}" for file in files[:10]), f"full list: {path}"]
    return [(heading, line) for line in lines] if files else []


def _short_videos(job: Job) -> str:
    if job.train.transform.sampling.num_frames == 1:
        return ""
    lengths = sample_lengths(job.train.records)
    short = describe_short(lengths, job.train.transform.sampling)
    return f"of {len(lengths)} training videos, {short}" if short else ""


def _network(job: Job) -> str:
    model, macs = job.model, gigamacs(job.model)
    parameters = sum(p.numel() for p in model.parameters())
    kind = "clip" if model.data_config.num_frames > 1 else "image"
    cost = f"GMACs per {kind} unknown" if macs is None else f"{macs:.4g} GMACs per {kind}"
    return f"{job.model_args()['name']}, {parameters:,} parameters, {model.num_classes} classes, {cost}"


def _batch(schedule: Schedule, processes: int) -> str:
    counts = {"processes": processes, "micro-batches": schedule.batch_size // (schedule.micro_batch * processes)}
    factors = [f"{count} {name}" for name, count in counts.items() if count > 1]
    product = f" = {' x '.join([*factors, str(schedule.micro_batch)])}" if factors else ""
    return f"{schedule.batch_size}{product}"


def _steps(schedule: Schedule) -> str:
    epochs = f"{counted(schedule.epoch(schedule.num_steps), 'epoch')} of {schedule.num_samples:,} samples"
    every = "" if schedule.val_every == 1 else f"{schedule.val_every} "
    when = f"validated after each {every}epoch{'s' if every else ''}" if schedule.val_every else "validated at the end"
    if schedule.early_stop:
        when += f", until {counted(schedule.early_stop, 'validation')} without a better metric"
    return f"{schedule.num_steps:,}: {epochs}, {when if schedule.has_validation else 'not validated'}"


def _learning_rate(options: Options, schedule: Schedule) -> str:
    scaled = f"{options.lr:g} x {options.batch_size} / {options.lr_batch}"
    warm_up, half = f"{counted(options.warmup_epochs, 'epoch')} of warm-up", schedule.epoch(schedule.num_steps) / 2
    if options.warmup_epochs > half:
        warm_up = f"warm-up in the first half of the run (optim.warmup_epochs={options.warmup_epochs:g} is longer)"
    warm_up = f"{warm_up}, then " if options.warmup_epochs else ""
    return f"up to {options.peak_lr:.4g} = {scaled}; {warm_up}{options.schedule}"


def _batch_norm(job: Job) -> str:
    """Describe the samples behind the statistics of batch norm if there are fewer than 8."""
    schedule, is_synced = job.trainer.schedule, job.options.sync_bn
    count = schedule.micro_batch * (job.world.size if is_synced else 1)
    if count >= 8 or not trained_norms(job.model):
        return ""
    key = "train.micro_batch" if schedule.micro_batch < schedule.per_rank_batch else "train.batch_size"
    sync = " or set train.sync_bn=true" if job.world.size > 1 and not is_synced else ""
    return f"statistics of {counted(count, 'sample')} at a time; fewer than 8 lower the accuracy: raise {key}{sync}"


def _folder(folder: str | Path, options: Options) -> str:
    minutes = options.checkpoint_minutes
    often = f"every {minutes:g} minutes" if minutes else "after each step"
    kept = f"checkpoints {often} and after each epoch, {options.keep_checkpoints} kept"
    return f"everything is written to {folder}; {kept}"


def _best(best: Mapping, folder: Path) -> str:
    metric = f"best validation {NAMES[best['name']]} {100 * best['value']:.2f} %"
    return f"{metric} after epoch {best['epoch']:.4g}, in {folder / 'best.pt'}"
