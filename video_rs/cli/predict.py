"""Classify videos or images.

tools/predict.py --weights runs/k400_rs50/best.pt clip.mp4
tools/predict.py --weights runs/k400_rs50/best.pt --json my_videos/ > predictions.jsonl
tools/predict.py --weights runs/k400_rs50/best.pt --out predictions.parquet my_videos/
tools/predict.py --weights runs/k400_rs50/best.pt --every 1s --timeline timeline.png long_video.mp4

A file that cannot be read is reported on stderr, and the other files are predicted; the exit code is then 2. If the
storage fails, the command stops with exit code 3. With --out, the same command resumes after an interruption, and
torchrun or srun divide the files among processes.
"""

from __future__ import annotations

import argparse
import csv
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from video_rs import terminal
from video_rs.cli.common import Parser, counter, input_path, output_path, positive, program, seconds
from video_rs.errors import EXIT_USER, UserError
from video_rs.files import check_writable, safe_cell

if TYPE_CHECKING:
    from video_rs.data.chunk_dataset import ChunkDataset
    from video_rs.distributed.world import World
    from video_rs.inference.predict import Classifier
    from video_rs.inference.rows import FileRows

BAR = 24  # width of a full bar, in characters
TIMEOUT = 300.0  # seconds that a loader process may take for one chunk of a file
DENIED = f"cannot be read ({os.strerror(errno.EACCES)})"


def main(argv: list[str]) -> int:
    """Entry point of ``tools/predict.py`` and ``video-rs predict``."""
    args = _arguments(argv)
    from video_rs.distributed.device import select_device
    from video_rs.distributed.world import start_world

    world = start_world(select_device(args.device))
    try:
        with world.together("the predictions"):
            return _predict(args, world)
    finally:
        world.close()


def _predict(args: argparse.Namespace, world: World) -> int:
    """Find the files and predict them. Return the exit code."""
    from video_rs.inference.inputs import existing, find_all, output_files
    from video_rs.inference.predict import CLIPS, load
    from video_rs.inference.predictions import clip_dataset

    if world.size > 1 and not args.out:
        raise UserError(f"{world.size} processes write their predictions to a table; add --out FILE")
    note = partial(terminal.write, file=sys.stderr) if world.is_main else lambda text: None
    inputs, missing = existing(args.inputs)
    for line in missing:
        note(f"error: {line}")
    if not inputs:
        return EXIT_USER
    for path in filter(None, (args.segments, args.timeline)):
        check_writable(path)  # fail early
    classifier = load(args.weights, args.device, views_per_forward=args.batch_size)
    files, empty = find_all(inputs, classifier.takes_images, note)
    if not files:
        return EXIT_USER
    if args.timeline:
        output_files(args.timeline, files, (".png",), overwrite=True)  # fail early
    # checked here: if all files were denied, it would look like a failed storage
    denied = {path: DENIED for path in inputs if os.path.exists(path) and not os.access(path, os.R_OK)}
    options = {"views": args.views or CLIPS, "crops": args.crops, "every": args.every, "skip": denied}
    others = len(missing) + empty
    failed = others + _compute(args, classifier, clip_dataset(classifier, files, **options), world)
    if failed and others + len(files) > 1:
        note(f"{failed} of {others + len(files)} could not be predicted")
    return EXIT_USER if failed else 0


def _compute(args: argparse.Namespace, classifier: Classifier, clips: ChunkDataset, world: World) -> int:
    """Print the predictions, or write them to a file. Return the number of files that cannot be read."""
    from video_rs.data.storage import longest_wait
    from video_rs.distributed.device import loader_workers
    from video_rs.experiment.inputs import describe_weights
    from video_rs.inference.predictions import predict_files, predict_table, write_timelines

    failed: list[str] = []
    gaps: list[str] = []

    def check(rows: FileRows) -> None:
        path = clips.records.path(rows.index)
        if rows.gaps:
            gaps.append(f"{path}: {rows.gaps}")
        if rows.reason:
            failed.append(path)
            terminal.write(f"error: {path}: {rows.reason}", sys.stderr)

    alone = len(clips) == 1 and args.workers < 0  # starting a process takes longer than decoding one clip
    workers = 0 if alone else loader_workers(args.workers, world.local_size)
    options = {"workers": workers, "timeout": max(TIMEOUT, 2 * longest_wait(clips.records.path(0)))}
    if args.out:
        options |= {"top_k": args.top_k, "world": world, "overwrite": args.overwrite, "on_rows": check}
        options["about"] = {**describe_weights(args.weights), "model": classifier.model.name}
        options["progress"] = partial(counter, desc="predicting", unit="files")
        table = predict_table(classifier, clips, args.out, **options)
        found, unreadable = (table.by_file(), len(table.reasons)) if table else ([], len(failed))
        if table:
            terminal.write(f"{args.out}: predictions of {len(clips) - unreadable} of {len(clips)} files")
    else:
        show, found = _printer(args, classifier, clips), []
        # on a terminal the results show the progress
        bar = terminal.Bar(len(clips), "predicting", hidden=sys.stdout.isatty() or len(clips) < 2)
        with closing(predict_files(classifier, clips, **options)) as predicted:
            for rows in predicted:
                check(rows)
                show(rows)
                if args.segments or args.timeline:
                    found.append(rows)
                bar.advance(rows.is_last)
        bar.close()
        unreadable = len(failed)
    if world.is_main:
        timelines = {"segments": args.segments, "timeline": args.timeline, "threshold": args.threshold}
        write_timelines(classifier, clips, found, **timelines)
    warn_gaps(gaps)
    return unreadable


def _printer(args: argparse.Namespace, classifier: Classifier, clips: ChunkDataset) -> Callable[[FileRows], None]:
    """Return a function that prints probabilities as text, JSON or csv. The header of csv is printed at once."""
    from video_rs.inference.predictions_file import columns_of, results_of, rows_of

    write = _print_json if args.json else _print_text
    if args.csv:
        columns = [name for name in columns_of(args.every) if name != "reason"]
        table = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        table.writeheader()

        def print_csv(result: dict[str, Any]) -> None:
            table.writerows({name: safe_cell(value) for name, value in row.items()} for row in rows_of(result))

        write = print_csv

    def show(rows: FileRows) -> None:
        for result in results_of(classifier, clips.records.path(rows.index), rows, args.top_k):
            if not result.pop("reason"):
                write(result)
        sys.stdout.flush()

    return show


def _print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result))


def _print_text(result: dict[str, Any]) -> None:
    """Print the name of the file before its first window, then a line per class, with a bar on a terminal."""
    if not result.get("start"):
        terminal.write(result["path"])
    block = "\N{FULL BLOCK}" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    width = BAR if sys.stdout.isatty() else 0
    window = [f"{_clock(result['start'])} - {_clock(result['end'])}"] if "start" in result else []
    rows = [
        (*window, each["label"], f"{100 * each['score']:.1f} %", block * round(each["score"] * width))
        for each in result["predictions"]
    ]
    for line in terminal.table(rows, right=[len(window) + 1]):
        print(f"  {line}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes):3d}:{rest:06.3f}"


def probability(text: str) -> float:
    """Parse a number in [0, 1] (an argparse type)."""
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")


def warn_gaps(gaps: Sequence[str]) -> None:
    """Print one warning about the files whose windows leave out frames."""
    if gaps:
        more = f" ({len(gaps)} files have gaps)" if gaps[1:] else ""
        terminal.write(f"warning: {gaps[0]}{more}", sys.stderr)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    if args.every and args.views:
        parser.error("--views or --clips (spread over the video) and --every (windows) cannot be combined")
    for name, needed in (("timeline", "every"), ("segments", "every"), ("overwrite", "out")):
        if getattr(args, name) and not getattr(args, needed):
            parser.error(f"--{name} needs --{needed}")
    if args.segments and not args.segments.endswith(".csv"):
        parser.error(f"--segments {args.segments}: must end in .csv")
    if args.threshold != parser.get_default("threshold") and not (args.timeline or args.segments):
        parser.error("--threshold needs --timeline or --segments")
    if args.out and (args.json or args.csv):
        parser.error("--json and --csv cannot be combined with --out, whose suffix sets the format")
    args.top_k = args.top_k or (1 if args.every else 5)
    return args


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, prog=program("predict"))
    inputs = "folders are searched, with their subfolders; a folder of frames is a video"
    parser.add_argument("inputs", nargs="+", type=input_path, metavar="FILE|FOLDER", help=inputs)
    parser.add_weights()
    out = "table to write, .csv, .json or .parquet; the same command resumes"
    parser.add_argument("--out", type=output_path, metavar="FILE", help=out)
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    parser.add_argument("--top-k", type=positive, metavar="K", help="classes per row (default: 5; 1 with --every)")
    every = "predict a window every TIME, e.g. 1s or 500ms"
    parser.add_argument("--every", type=seconds, default=0.0, metavar="TIME", help=every)
    segments = "csv file to write, with the times of each class (with --every)"
    parser.add_argument("--segments", type=output_path, metavar="FILE", help=segments)
    timeline = "plot of the probabilities over time: a png file, or a folder for several videos (with --every)"
    parser.add_argument("--timeline", type=output_path, metavar="FILE", help=timeline)
    threshold = "lowest probability of a window in a segment (default: %(default)s)"
    parser.add_argument("--threshold", type=probability, default=0.5, metavar="P", help=threshold)
    views = "clips per video (default: 4; not with --every)"
    parser.add_argument("--views", "--clips", type=positive, metavar="N", help=views)
    parser.add_forward()
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one line of JSON per file (with --every: per window)")
    form.add_argument("--csv", action="store_true", help="one row per file (or window) and class, with a header")
    return parser
