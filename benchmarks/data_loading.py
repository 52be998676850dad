"""Training clips per second of video_rs, bare decoding, decord and PyTorchVideo on the same files and clips.

python benchmarks/data_loading.py --videos /data/k400/val
python benchmarks/data_loading.py --videos /data/k400/val --stages --soak 10000 --out docs
python benchmarks/data_loading.py --videos /data/k400 --prepared /data/k400_256

All ways read the same clips of the same files with the same number of DataLoader workers. The files are read as they
are ("published") and re-encoded: at the same size as video-rs prepare does (H.264 crf 20, keyframe every 16 frames, no
B-frames, tune fastdecode), or with --prepared from the copies that video-rs prepare made. Each measurement runs between
two batches while all workers are busy. Ways and kinds of file alternate in each of --rounds rounds, so that other load
affects all of them. The table has the medians over the rounds.

  bare decode              PyAV, one thread: from the keyframe before the clip to its last frame; no colours, no copies
  video_rs, <decoder>      clip_loader, ClipDataset and TrainTransform: random crops resized to --size and flipped, in
                           one uint8 batch [N, T, H, W, C]; "index" is after video-rs index
  decord, whole frames     one thread, the frames of the clip as RGB at the file's size: no crop, no batch
  PyTorchVideo, <decoder>  the pipeline of its tutorials: EncodedVideo, UniformTemporalSubsample, / 255, Normalize,
                           RandomShortSideScale(256, 320), RandomCrop, RandomHorizontalFlip; float [N, C, T, H, W]

CPU time covers all threads of the main process and its workers; "clips/s/core" is clips per second of CPU time. Memory
is the peak over these processes: private pages, shared pages once, file pages once. --stages times the steps of
video_rs in one process; "transport" is the additional time with workers. --soak reads N clips with workers and reports
the growth of memory. --out FOLDER also writes data_loading.md, .json (every measurement) and .png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import (
    cpu_seconds,
    environment,
    find_videos,
    fresh_process,
    memory_mb,
    missing,
    note,
    process_tree,
    table,
    with_copies,
)
from ways import BARE, SEED, WAYS, Task, ours

from video_rs.cli.common import Parser, positive, run
from video_rs.data.clip_datasets import ClipDataset
from video_rs.data.sampler import SampleKey
from video_rs.data.tools.encode import Settings, encode_video
from video_rs.data.video.decode import BACKENDS, open_video, probe
from video_rs.errors import MediaError, UserError
from video_rs.rng import keyed_rng

KINDS = ("published", "re-encoded")
SAME_SIZE = Settings(short_side=2**16)
CHECKPOINTS = 10  # of a soak


@dataclass(frozen=True)
class Turn:
    """One measurement: `clips` in `wall` seconds and `cpu` seconds of all processes, `memory` MB at peak."""

    clips: int
    wall: float
    cpu: float
    memory: float

    @property
    def ms(self) -> float:
        return 1000 * self.cpu / self.clips


def turn(way: str, task: Task) -> Turn:
    """Measure one way, in its own process."""
    batches = iter(WAYS[way](task))
    _take(batches, task.workers)
    pids = process_tree()
    cpu, wall = cpu_seconds(pids), time.perf_counter()
    _take(batches, task.window)
    cpu, wall = cpu_seconds(pids) - cpu, time.perf_counter() - wall
    with peak_memory(pids) as peak:  # sampling takes time, so it runs after the clock has stopped
        _take(batches, task.workers)
    if hasattr(batches, "close"):
        batches.close()  # stops the workers of clip_loader; a DataLoader's iterator stops its own when deleted
    return Turn(task.window * task.batch, wall, cpu, max(peak))


def _take(batches: Iterator[Any], count: int) -> None:
    for _ in range(count):
        batch = next(batches)
        broken = batch["broken"] if isinstance(batch, dict) else []
        if broken:
            raise MediaError(": ".join(broken[0]))


@contextmanager
def peak_memory(pids: list[int], every: float = 0.02) -> Iterator[list[float]]:
    """Sample the memory of processes in MB at intervals while the block runs."""
    seen, done = [memory_mb(pids)], threading.Event()

    def watch() -> None:
        while not done.wait(every):
            seen.append(memory_mb(pids))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def stages(decoder: str, task: Task) -> dict[str, float]:
    """Return CPU ms per clip of each step in this process. Some steps are the difference of two reads."""
    torch.set_num_threads(1)
    dataset, batches = task.dataset(decoder), list(itertools.islice(task.stream(), task.window))
    total = dict.fromkeys(("open", "decode", "crop", "resize", "flip", "batch"), 0.0)
    for batch in batches:
        for key in batch:
            path, frames, info = task.paths[key.index], task.frames[key], probe(task.paths[key.index])
            box = dataset.transform.box(info.height, info.width, keyed_rng(SEED, "benchmark", *key))
            reads = {
                "open": None,
                "decode": {"crop": (0, 0, 2, 2)},  # almost nothing to convert
                "crop": {"crop": box},
                "resize": {"crop": box, "size": task.size},
            }
            for step, options in reads.items():
                total[step] += least_cpu(read, path, decoder, frames, options)
            total["flip"] += least_cpu(finish, dataset, read(path, decoder, frames, reads["resize"]), key)
        total["batch"] += least_cpu(dataset.__getitems__, batch)
    ms = {step: 1000 * seconds / (task.window * task.batch) for step, seconds in total.items()}
    return {
        "open, packets": ms["open"],
        "decode": ms["decode"] - ms["open"],
        "crop, RGB": ms["crop"] - ms["decode"],
        "resize": ms["resize"] - ms["crop"],
        "flip": ms["flip"],
        "into the batch": ms["batch"] - ms["resize"] - ms["flip"],
    }


def read(path: str, decoder: str, frames: np.ndarray, options: dict[str, Any] | None) -> torch.Tensor | None:
    """Read the frames of a clip; with options None, only open the file."""
    with open_video(path, decoder) as video:
        return None if options is None else video.read(frames, **options)


def finish(dataset: ClipDataset, clip_THWC: torch.Tensor, key: SampleKey) -> torch.Tensor:
    return dataset.transform.finish(clip_THWC, keyed_rng(SEED, "benchmark", *key))


def least_cpu(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the minimum CPU seconds over three calls."""
    times = []
    for _ in range(3):
        begin = time.process_time()
        function(*arguments)
        times.append(time.process_time() - begin)
    return min(times)


def soak(decoder: str, task: Task, count: int) -> list[tuple[int, float]]:
    """Return (clips read, MB) at every tenth of `count` clips: the median over the batches before it."""
    per_checkpoint = math.ceil(count / task.batch / CHECKPOINTS)
    batches = iter(ours(decoder, task, steps=CHECKPOINTS * per_checkpoint + 4 * task.workers))
    checkpoints, looks = [], max(1, per_checkpoint // 2)
    for number in range(1, CHECKPOINTS + 1):
        _take(batches, per_checkpoint - looks)
        seen = []
        for _ in range(looks):
            _take(batches, 1)
            seen.append(memory_mb(process_tree()))
        checkpoints.append((number * per_checkpoint * task.batch, median(seen)))
        note(f"soak, {decoder}: {checkpoints[-1][0]} clips, {checkpoints[-1][1]:.0f} MB")
    batches.close()
    return checkpoints


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.prepared and not Path(args.prepared, "videos").is_dir():
        raise UserError(f"--prepared {args.prepared}: no videos folder in it: give the --out of video-rs prepare")
    files = find_videos(args.videos)
    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)  # fail before the work starts
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pairs = make_pairs(files, Path(folder), args)
        tasks = {kind: make_task(list(paths), args) for kind, paths in zip(KINDS, zip(*pairs))}
        processes = {way: stack.enter_context(fresh_process()) for way in available_ways(args.ways)}
        turns = take_turns(tasks, processes, args.rounds)
        tables = {kind: rates_table(turns, kind) for kind in KINDS}
        if args.stages:
            tables["CPU ms a clip, by step"] = stages_table(tasks, turns, processes)
        if args.soak:
            tables[f"MB of memory, {args.workers} workers"] = soak_table(tasks, args.soak)
        sizes = [sum(os.path.getsize(path) for path in paths) / 1e6 for paths in zip(*pairs)]
    lines = [
        f"{environment()}; {args.workers} workers",
        f"{len(pairs)} files, {sizes[0]:.1f} MB; re-encoded {sizes[1]:.1f} MB. Clips of {args.frames} frames, stride "
        f"{args.stride}, {args.size} pixels; {args.rounds} turns of {turns[KINDS[0]][BARE][0].clips} clips",
    ]
    text = "\n\n".join([*lines, *(f"**{title}**\n\n{rows}" for title, rows in tables.items())])
    print(f"\n{text}")
    if args.out:
        write(Path(args.out), text, turns)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--videos", nargs="+", required=True, metavar="FILE|FOLDER", help="folders with subfolders")
    numbers = {
        "workers": (2, "processes that read"),
        "clips": (64, "in a turn, at least; also the most files taken of those given"),
        "rounds": (3, "turns of each way"),
        "batch": (8, "clips in a batch"),
        "size": (224, "pixels"),
        "frames": (32, "in a clip"),
        "stride": (2, "from one frame of a clip to the next"),
    }
    for name, (default, text) in numbers.items():
        help = f"{text} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=positive, default=default, metavar="N", help=help)
    ways = {"nargs": "+", "choices": list(WAYS), "default": list(WAYS), "metavar": "WAY"}
    parser.add_argument("--ways", **ways, help="these alone, and bare decode")
    parser.add_argument("--stages", action="store_true", help="CPU time by step, too")
    parser.add_argument("--soak", type=positive, metavar="N", help="also read N clips and watch the memory")
    parser.add_argument("--prepared", metavar="FOLDER", help="the --out of video-rs prepare with data.root=--videos")
    parser.add_argument("--out", metavar="FOLDER", help="write data_loading.md, .json and .png there")
    return parser


def make_pairs(files: list[str], folder: Path, args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return (file, re-encoded file) pairs that every way can read, at most ``--clips``, evenly spread."""
    decoder = "pyav" if missing("decord") else "decord"

    def copy_of(number: int, path: str) -> str:
        if probe(path).rotation:
            raise MediaError(f"{path}: is stored rotated")
        with open_video(path, decoder) as video:
            count = video.num_frames
        if count < args.frames * args.stride:
            raise MediaError(f"{path}: {count} frames are too few for a clip")
        if args.prepared:
            copy = prepared_copy(path, args)
        else:
            encode_video(path, copy := str(folder / f"{number}.mp4"), SAME_SIZE)
        with open_video(copy, decoder) as video:
            if video.num_frames != count:
                raise MediaError(f"{path}: {video.num_frames} of its {count} frames are left when re-encoded")
        return copy

    spread = np.unique(np.linspace(0, len(files) - 1, min(len(files), args.clips)).astype(int))
    return with_copies([files[number] for number in spread], copy_of)


def prepared_copy(path: str, args: argparse.Namespace) -> str:
    """Return the path at which video-rs prepare puts the copy of a file below ``--videos``."""
    for root in args.videos:
        copy = Path(args.prepared, "videos", os.path.relpath(path, root)).with_suffix(".mp4")
        if Path(root) in Path(path).parents and copy.exists():
            return str(copy)
    raise MediaError(f"{path}: there is no copy of it in {args.prepared}/videos")


def make_task(paths: list[str], args: argparse.Namespace) -> Task:
    window = math.ceil(args.clips / (args.batch * args.workers)) * args.workers  # a multiple of the number of workers
    records = list(itertools.islice(itertools.cycle(paths), max(len(paths), args.clips)))
    return Task(records, args.frames, args.stride, args.size, args.batch, args.workers, window, {}).with_frames()


def available_ways(chosen: list[str]) -> list[str]:
    """Return bare decoding and the chosen ways whose packages are installed."""
    ways = [way for way in WAYS if way == BARE or way in chosen]
    for package in ("decord", "pytorchvideo"):
        if reason := missing(package):
            lost = [way for way in ways if package in way.lower()]
            note(f"no rows for {'; '.join(lost)}: {reason}")
            ways = [way for way in ways if way not in lost]
    return ways


def take_turns(
    tasks: dict[str, Task], processes: dict[str, ProcessPoolExecutor], rounds: int
) -> dict[str, dict[str, list[Turn]]]:
    """Measure every way on every kind of file, round by round. Skip and report peers that fail."""
    turns: dict[str, dict[str, list[Turn]]] = {kind: {way: [] for way in processes} for kind in tasks}
    ways = list(processes)
    for number, (kind, task) in itertools.product(range(rounds), tasks.items()):
        for way in list(ways):
            try:
                turns[kind][way].append(processes[way].submit(turn, way, task).result())
            except Exception as error:
                if way == BARE or way.startswith("video_rs"):
                    raise
                note(f"no row for {way}: {str(error).strip().splitlines()[-1]}")
                ways.remove(way)
                continue
            last = turns[kind][way][-1]
            note(f"round {number + 1}/{rounds}, {kind}, {way}: {last.clips / last.wall:.1f} clips/s, {last.ms:.1f} ms")
    return {kind: {way: rows[way] for way in ways} for kind, rows in turns.items()}


def summary(turns: dict[str, dict[str, list[Turn]]], kind: str) -> dict[str, dict[str, float | None]]:
    """Return medians over the rounds for each way; ratios are taken within a round."""
    theirs = [way for way in turns[kind] if way.startswith("PyTorchVideo")]
    best = min(theirs, key=lambda way: median(t.ms for t in turns[KINDS[0]][way]), default=None)
    result = {}
    for way, row in turns[kind].items():
        over = turns[KINDS[0]][best] if best else []
        result[way] = {
            "clips/s": median(t.clips / t.wall for t in row),
            "clips/s/core": median(1000 / t.ms for t in row),
            "CPU ms a clip": median(t.ms for t in row),
            "of bare decode": median(bare.ms / t.ms for bare, t in zip(turns[kind][BARE], row)),
            "x PyTorchVideo": median(their.ms / t.ms for their, t in zip(over, row)) if over else None,
            "peak MB": max(t.memory for t in row),
        }
    return result


def rates_table(turns: dict[str, dict[str, list[Turn]]], kind: str) -> str:
    digits = (1, 1, 1, 2, 2, 0)
    rows = [
        [way, *("-" if value is None else f"{value:.{n}f}" for n, value in zip(digits, values.values()))]
        for way, values in summary(turns, kind).items()
    ]
    header = ["way", *next(iter(summary(turns, kind).values()))]
    return table(header, rows)


def stages_table(
    tasks: dict[str, Task], turns: dict[str, dict[str, list[Turn]]], processes: dict[str, ProcessPoolExecutor]
) -> str:
    columns = {}
    for kind, way in itertools.product(tasks, ("video_rs, pyav", "video_rs, decord")):
        if way in turns[kind]:
            decoder = way.split()[-1]
            steps = processes[way].submit(stages, decoder, tasks[kind]).result()
            whole = median(t.ms for t in turns[kind][way])
            columns[f"{kind}, {decoder}"] = {**steps, "transport": whole - sum(steps.values()), "all": whole}
    steps = next(iter(columns.values()), {})
    rows = [[step, *(f"{column[step]:.1f}" for column in columns.values())] for step in steps]
    return table(["step", *columns], rows) + "\n\ndecord converts whole frames to RGB as it decodes."


def soak_table(tasks: dict[str, Task], count: int) -> str:
    """Return the table of the soak, on both kinds of file."""
    first = next(iter(tasks.values()))
    paths = [path for pair in zip(*(task.paths for task in tasks.values())) for path in pair]
    task = replace(first, paths=paths, frames={})
    rows = []
    for decoder in ["pyav"] if missing("decord") else BACKENDS:
        with fresh_process() as process:
            seen = process.submit(soak, decoder, task, count).result()
        drift = 100 * (seen[-1][1] / seen[0][1] - 1)
        rows.append([decoder, *(f"{memory:.0f}" for _, memory in seen), f"{drift:+.1f} %"])
    return table(["decoder", *(f"after {clips:,} clips" for clips, _ in seen), "from first to last"], rows)


def write(folder: Path, text: str, turns: dict[str, dict[str, list[Turn]]]) -> None:
    command = shlex.join(["python", *sys.argv])
    (folder / "data_loading.md").write_text(f"`{command}`\n\n{text}\n")
    plain = {kind: {way: [asdict(t) for t in row] for way, row in rows.items()} for kind, rows in turns.items()}
    summaries = {kind: summary(turns, kind) for kind in turns}
    content = {"command": command, "environment": environment(), "summary": summaries, "turns": plain}
    (folder / "data_loading.json").write_text(json.dumps(content, indent=1) + "\n")
    plot(folder / "data_loading.png", summaries)
    print(f"\nwritten: {folder}/data_loading.md, .json, .png")


def plot(path: Path, summaries: dict[str, dict[str, dict[str, float | None]]]) -> None:
    """Plot clips/s/core as bars, one panel per kind of file, with a line at bare decoding."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(summaries), figsize=(11, 3.4), sharey=True, layout="constrained")
    for panel, (kind, rows) in zip(panels, summaries.items()):
        rates = {way: values["clips/s/core"] for way, values in rows.items()}
        colours = ["tab:blue" if way.startswith("video_rs") else "tab:gray" for way in rates]
        panel.bar_label(panel.barh(list(rates), list(rates.values()), color=colours), fmt="%.1f", padding=3)
        panel.axvline(rates[BARE], color="black", linestyle="--", linewidth=1)
        panel.set(title=f"{kind} files", xlabel="clips/s/core", xlim=(0, 1.15 * max(rates.values())))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
