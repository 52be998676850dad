"""Classify videos or images.

tools/predict.py --weights runs/k400_rs50/best.pt clip.mp4
tools/predict.py --weights runs/k400_rs50/best.pt --json my_videos/ > predictions.jsonl
tools/predict.py --weights runs/k400_rs50/best.pt --every 1s long_video.mp4

A file that cannot be read is reported on stderr, and the other files are predicted; the exit code is then 2. If the
other files cannot be read either, the storage fails: the command stops with exit code 3.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_rs import terminal
from video_rs.cli.common import Parser, input_path, positive, program
from video_rs.data import storage
from video_rs.errors import EXIT_USER, MediaError, PathError, StorageError
from video_rs.files import safe_cell

if TYPE_CHECKING:
    from video_rs.inference.predict import Prediction

BAR = 24  # width of a full bar, in characters
CLIPS = 4
Times = tuple[float, ...]  # start and end of a window in seconds, or none


def main(argv: list[str]) -> int:
    """Entry point of ``tools/predict.py`` and ``video-rs predict``."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    if args.every and args.clips:
        parser.error("--clips (spread over the video) and --every (sliding window) cannot be combined")
    from video_rs.data.video.search import LeftOut
    from video_rs.inference.inputs import existing, find_files
    from video_rs.inference.predict import load

    inputs, missing = existing(args.inputs)
    failed = len(missing)
    for line in missing:
        _note(f"error: {line}")
    if not inputs:
        return EXIT_USER
    classifier = load(args.weights, args.device)
    files: list[str] = []
    left_out, done = LeftOut(), 0
    for entry in inputs:
        try:
            is_folder = Path(entry).is_dir()
            files += find_files(entry, classifier.takes_images, left_out) if is_folder else [entry]
        except MediaError as error:
            failed += 1
            _note(f"error: {error}")
    if left_out.count:
        _note(f"note: {left_out.describe()}")
    top_k = args.top_k or (1 if args.every else 5)
    write = _write_json if args.json else _write_csv if args.csv else _write_text
    if args.csv:
        _csv_row("path", *(["start", "end"] if args.every else []), "rank", "label", "index", "score")
    # on a terminal the results show the progress
    bar = terminal.Bar(len(files), "predicting", hidden=sys.stdout.isatty() or len(files) < 2)
    denied = {path for path in inputs if not os.access(path, os.R_OK)}  # check before the storage can fail
    gaps: list[str] = []
    for number, path in enumerate(files):
        try:
            if args.every:
                windows = classifier.predict_windows(path, args.every, top_k, crops=args.crops, warn=gaps.append)
                for start, end, predictions in windows:
                    write(path, (start, end), predictions)
            else:
                write(path, (), classifier.predict(path, top_k, clips=args.clips or CLIPS, crops=args.crops))
            done += 1
        except (MediaError, StorageError) as error:
            if isinstance(error, StorageError) and path not in denied:
                others = [each for each in files[:number][::-1] + files[number + 1 :] if each not in denied]
                if others or not isinstance(error, PathError):
                    error = storage.diagnose(error, others)
            if not isinstance(error, MediaError):
                raise error from None
            failed += 1
            _note(f"error: {error}")
        bar.advance()
    bar.close()
    if gaps:
        more = f" ({len(gaps)} files have gaps)" if gaps[1:] else ""
        _note(f"warning: {gaps[0]}{more}")
    if failed and failed + done > 1:
        _note(f"{failed} of {failed + done} could not be predicted")
    return EXIT_USER if failed else 0


def _note(text: str) -> None:
    terminal.write(text, sys.stderr)


def seconds(text: str) -> float:
    """Parse ``"1s"``, ``"0.5"`` or ``"500ms"`` as seconds (an argparse type)."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s|)", text.strip())
    value = float(match[1]) * (0.001 if match[2] == "ms" else 1) if match else 0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0 such as 1s, 0.5s or 500ms")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, prog=program("predict"))
    inputs = "folders are searched, with their subfolders; a folder of frames is a video"
    parser.add_argument("inputs", nargs="+", type=input_path, metavar="FILE|FOLDER", help=inputs)
    parser.add_weights("a checkpoint, a run folder, https://... or hf-hub:owner/name")
    parser.add_argument("--top-k", type=positive, metavar="K", help="classes to show (default: 5; 1 with --every)")
    parser.add_argument("--every", type=seconds, metavar="TIME", help="slide over the video, e.g. 1s or 500ms")
    clips = f"clips per video (default: {CLIPS}; not with --every)"
    parser.add_argument("--clips", type=positive, metavar="N", help=clips)
    parser.add_argument("--crops", type=int, default=1, choices=(1, 3), help="crops per clip (default: %(default)s)")
    device = "auto (CUDA if there is a GPU), cpu, cuda or cuda:1 (default: %(default)s)"
    parser.add_argument("--device", default="auto", help=device)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one line of JSON per file (with --every: per window)")
    form.add_argument("--csv", action="store_true", help="one row per file (or window) and class, with a header")
    return parser


def _write_json(path: str, times: Times, predictions: list[Prediction]) -> None:
    window = {name: round(time, 3) for name, time in zip(("start", "end"), times)}
    found = [{"label": p.label, "index": p.index, "score": round(p.score, 6)} for p in predictions]
    print(json.dumps({"path": path, **window, "predictions": found}), flush=True)


def _write_csv(path: str, times: Times, predictions: list[Prediction]) -> None:
    for rank, p in enumerate(predictions, 1):
        _csv_row(path, *(f"{time:.3f}" for time in times), rank, p.label, p.index, f"{p.score:.6f}")
    sys.stdout.flush()


def _csv_row(*cells: Any) -> None:
    csv.writer(sys.stdout, lineterminator="\n").writerow(map(safe_cell, cells))


def _write_text(path: str, times: Times, predictions: list[Prediction]) -> None:
    """Print the name of the file before its first window, then a line per class, with a bar on a terminal."""
    if not times or times[0] == 0:
        terminal.write(path)
    block = "\N{FULL BLOCK}" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    width = BAR if sys.stdout.isatty() else 0
    window = [" - ".join(map(_clock, times))] if times else []
    rows = [(*window, p.label, f"{100 * p.score:.1f} %", block * round(p.score * width)) for p in predictions]
    for line in terminal.table(rows, right=[len(window) + 1]):
        print(f"  {line}", flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 3), 60)  # frames are at least 1 ms apart
    return f"{int(minutes):3d}:{rest:06.3f}"
