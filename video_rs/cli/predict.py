"""Classify videos or images.

tools/predict.py --weights runs/k400_rs50/best.pt clip.mp4
tools/predict.py --weights runs/k400_rs50/best.pt --json my_videos/ > predictions.jsonl
tools/predict.py --weights runs/k400_rs50/best.pt --out predictions.parquet my_videos/
tools/predict.py --weights runs/k400_rs50/best.pt --every 1s --timeline timeline.png long_video.mp4

A file that cannot be read is reported on stderr, and the other files are predicted; the exit code is then 2. If the
other files cannot be read either, the storage fails: the command stops with exit code 3. With --out, the same command
resumes after an interruption, and torchrun or srun divide the files among processes.
"""

from __future__ import annotations

import argparse
import csv
import errno
import json
import math
import os
import re
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_rs import terminal
from video_rs.cli.common import Parser, counter, input_path, output_path, positive, program
from video_rs.errors import EXIT_USER, UserError
from video_rs.files import safe_cell

if TYPE_CHECKING:
    from video_rs.distributed.world import World
    from video_rs.inference.predict import Classifier
    from video_rs.inference.predictions_file import Result
    from video_rs.inference.rows import FileRows

BAR = 24  # width of a full bar, in characters
CLIPS, THRESHOLD = 4, 0.5  # defaults
TIMEOUT = 300.0  # seconds that a loader process may spend in a part of a file
DENIED = f"cannot be read ({os.strerror(errno.EACCES)})"


def main(argv: list[str]) -> int:
    """Entry point of ``tools/predict.py`` and ``video-rs predict``."""
    args = _arguments(argv)
    from video_rs.distributed.device import select_device
    from video_rs.distributed.world import start_world
    from video_rs.inference.inputs import existing, find_all, output_files
    from video_rs.inference.predict import load

    world = start_world(select_device(args.device))
    note = partial(terminal.write, file=sys.stderr) if world.is_main else lambda text: None
    try:
        with world.together("the predictions"):
            if world.size > 1 and not args.out:
                raise UserError(f"{world.size} processes need --out, the file of their predictions; add it")
            inputs, missing = existing(args.inputs)
            for line in missing:
                note(f"error: {line}")
            if not inputs:
                return EXIT_USER
            for path in filter(None, (args.segments, args.timeline)):
                Path(path).parent.mkdir(parents=True, exist_ok=True)  # fail early
            classifier = load(args.weights, args.device, views_per_forward=args.batch_size)
            files, empty = find_all(inputs, classifier.takes_images, note)
            if args.timeline and files:
                output_files(args.timeline, files, (".png",), overwrite=True)
            failed = len(missing) + empty
            total = failed + len(files)
            failed += _predict(args, classifier, files, inputs, world) if files else 0
    finally:
        world.close()
    if failed and total > 1:
        note(f"{failed} of {total} could not be predicted")
    return EXIT_USER if failed else 0


def _predict(
    args: argparse.Namespace,
    classifier: Classifier,
    files: Sequence[str],
    inputs: Sequence[str],
    world: World,
) -> int:
    """Print the predictions, or write them to a file. Return the number of files that cannot be read."""
    from video_rs.data.storage import longest_wait
    from video_rs.distributed.device import loader_workers
    from video_rs.experiment.inputs import describe_weights
    from video_rs.inference.predictions import predict_files, predict_table, write_timelines

    failed: list[str] = []
    gaps: list[str] = []

    def check(rows: FileRows) -> None:
        path = files[rows.index]
        if rows.gaps:
            gaps.append(f"{path}: {rows.gaps}")
        if rows.reason:
            failed.append(path)
            terminal.write(f"error: {path}: {rows.reason}", sys.stderr)

    asked = args.workers
    if asked is None:
        asked = 0 if len(files) == 1 else -1  # without starting a process, to be quick
    workers = min(loader_workers(asked, world.local_size), len(files))
    options = {"views": args.views or CLIPS, "crops": args.crops, "every": args.every or 0.0}
    options |= {"workers": workers, "timeout": max(TIMEOUT, 2 * longest_wait(files[0]))}
    # check before the storage can fail
    options["skip"] = {path: DENIED for path in inputs if os.path.exists(path) and not os.access(path, os.R_OK)}
    timelines = {"segments": args.segments, "timeline": args.timeline, "threshold": args.threshold}
    draw = partial(write_timelines, classifier, files, **timelines)
    if args.out:
        progress = partial(counter, desc="predicting", unit="files")
        options |= {"top_k": args.top_k, "world": world, "overwrite": args.overwrite, "progress": progress}
        options["about"] = {**describe_weights(args.weights), "model": classifier.model.name}
        table = predict_table(classifier, files, args.out, on_rows=check, on_table=draw, **options)
        unreadable = len(table.reasons) if table else len(failed)
    else:
        draw(_print(args, classifier, files, predict_files(classifier, files, **options), check))
        unreadable = len(failed)
    if gaps:
        more = f" ({len(gaps)} files have gaps)" if gaps[1:] else ""
        terminal.write(f"warning: {gaps[0]}{more}", sys.stderr)
    return unreadable


def _print(
    args: argparse.Namespace,
    classifier: Classifier,
    files: Sequence[str],
    found: Generator[FileRows],
    check: Callable[[FileRows], Any],
) -> list[FileRows]:
    """Print the predictions as they are computed. Return the probabilities that a timeline needs."""
    from video_rs.inference.predictions_file import columns_of, results_of

    write = _write_json if args.json else _write_csv if args.csv else _write_text
    if args.csv:
        _csv_row(columns_of(bool(args.every))[:-1])
    kept: list[FileRows] = []
    # on a terminal the results show the progress
    bar = terminal.Bar(len(files), "predicting", hidden=sys.stdout.isatty() or len(files) < 2)
    with closing(found):
        for rows in found:
            check(rows)
            for result in [] if rows.reason else results_of(classifier, files[rows.index], rows, args.top_k):
                write(result)
            if args.segments or args.timeline:
                kept.append(rows)
            bar.advance(rows.is_last)
    bar.close()
    return kept


def seconds(text: str) -> float:
    """Parse ``"1s"``, ``"0.5"`` or ``"500ms"`` as seconds (an argparse type)."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s|)", text.strip())
    value = float(match[1]) * (0.001 if match[2] == "ms" else 1) if match else 0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0 such as 1s, 0.5s or 500ms")
    return value


def probability(text: str) -> float:
    """Parse a number in [0, 1] (an argparse type)."""
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    if args.every and args.views:
        parser.error("--views or --clips (spread over the video) and --every (sliding window) cannot be combined")
    for name, needed in (("timeline", "every"), ("segments", "every"), ("overwrite", "out")):
        if getattr(args, name) and not getattr(args, needed):
            parser.error(f"--{name} needs --{needed}")
    if args.threshold is not None and not (args.timeline or args.segments):
        parser.error("--threshold needs --timeline or --segments")
    if args.out:
        if args.json or args.csv:
            parser.error("--json and --csv print the predictions; with --out, the name of the file chooses its format")
        from video_rs.inference.features_file import check_suffix
        from video_rs.inference.predictions_file import SUFFIXES

        check_suffix(args.out, SUFFIXES)
    args.top_k = args.top_k or (1 if args.every else 5)
    args.threshold = THRESHOLD if args.threshold is None else args.threshold
    return args


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, prog=program("predict"))
    inputs = "folders are searched, with their subfolders; a folder of frames is a video"
    parser.add_argument("inputs", nargs="+", type=input_path, metavar="FILE|FOLDER", help=inputs)
    parser.add_weights()
    out = "write a table, .csv, .json or .parquet; the same command resumes"
    parser.add_argument("--out", type=output_path, metavar="FILE", help=out)
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    parser.add_argument("--top-k", type=positive, metavar="K", help="classes to show (default: 5; 1 with --every)")
    parser.add_argument("--every", type=seconds, metavar="TIME", help="slide over the video, e.g. 1s or 500ms")
    segments = "write when each class is shown to a csv file (with --every)"
    parser.add_argument("--segments", type=output_path, metavar="FILE", help=segments)
    timeline = "draw the probabilities over time: a png file, or a folder for several videos (with --every)"
    parser.add_argument("--timeline", type=output_path, metavar="FILE", help=timeline)
    threshold = f"a segment has at least this probability (default: {THRESHOLD})"
    parser.add_argument("--threshold", type=probability, metavar="P", help=threshold)
    views = f"clips per video (default: {CLIPS}; not with --every)"
    parser.add_argument("--views", "--clips", type=positive, metavar="N", help=views)
    parser.add_forward()
    workers = "processes that decode; -1 for one per core (default: -1; 0 for a single file)"
    parser.add_argument("--workers", type=int, metavar="N", help=workers)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one line of JSON per file (with --every: per window)")
    form.add_argument("--csv", action="store_true", help="one row per file (or window) and class, with a header")
    return parser


def _write_json(result: Result) -> None:
    print(json.dumps(result.as_dict()), flush=True)


def _write_csv(result: Result) -> None:
    from video_rs.inference.predictions_file import csv_cells

    for row in result.as_rows():
        _csv_row(csv_cells(row, bool(result.times))[:-1])
    sys.stdout.flush()


def _csv_row(cells: Sequence[Any]) -> None:
    csv.writer(sys.stdout, lineterminator="\n").writerow(map(safe_cell, cells))


def _write_text(result: Result) -> None:
    """Print the name of the file before its first window, then a line per class, with a bar on a terminal."""
    times = result.times
    if not times or times[0] == 0:
        terminal.write(result.path)
    block = "\N{FULL BLOCK}" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    width = BAR if sys.stdout.isatty() else 0
    window = [" - ".join(map(_clock, times))] if times else []
    rows = [(*window, p.label, f"{100 * p.score:.1f} %", block * round(p.score * width)) for p in result.predictions]
    for line in terminal.table(rows, right=[len(window) + 1]):
        print(f"  {line}", flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 3), 60)  # frames are at least 1 ms apart
    return f"{int(minutes):3d}:{rest:06.3f}"
