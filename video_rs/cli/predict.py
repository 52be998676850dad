"""Classify videos or images.

tools/predict.py --weights runs/k400_rs50/best.pt clip.mp4
tools/predict.py --weights runs/k400_rs50/best.pt --json my_videos/ > predictions.jsonl
tools/predict.py --weights runs/k400_rs50/best.pt --every 1s long_video.mp4

A file that cannot be read is reported on stderr, and the other files are predicted; the exit code is then 2.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_rs import terminal
from video_rs.cli.common import Parser, positive, program
from video_rs.errors import MediaError

if TYPE_CHECKING:
    from video_rs.inference.predict import Classifier, Prediction

BAR = 24  # characters of a full bar
CLIPS = 4


def main(argv: list[str]) -> int:
    """Entry point of ``tools/predict.py`` and ``video-rs predict``."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    if args.every and args.clips:
        parser.error("--clips (spread over the video) and --every (one after another) exclude each other; give one")
    from video_rs.inference.predict import load

    classifier = load(args.weights, args.device)
    files, failed = _find_files(args.inputs, images=classifier.takes_images)
    write = _write_json if args.json else _write_csv if args.csv else _write_text
    if args.csv:
        _csv_row("path", *(["start", "end"] if args.every else []), "rank", "label", "index", "score")
    top_k = args.top_k or (1 if args.every else 5)
    # on a terminal the results show the progress
    bar = terminal.Bar(len(files), "predicting", hidden=sys.stdout.isatty() or len(files) < 2)
    predicted = 0
    for path in files:
        try:
            for start, end, predictions in _predict(classifier, path, top_k, args):
                write(path, start, end, predictions)
            predicted += 1
        except MediaError as error:
            failed.append(str(error))
            terminal.write(f"error: {error}", sys.stderr)
        bar.advance()
    bar.close()
    if failed and len(files) > 1:
        print(f"{len(failed)} of {len(failed) + predicted} could not be predicted", file=sys.stderr)
    return 2 if failed else 0


def seconds(text: str) -> float:
    """Parse ``"1s"``, ``"0.5"`` or ``"500ms"`` as seconds; an argparse type."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s|)", text.strip())
    value = float(match[1]) * (0.001 if match[2] == "ms" else 1) if match else 0
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0 such as 1s, 0.5s or 500ms")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, prog=program("predict"))
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE|FOLDER",
        help="folders are searched, with their subfolders; a folder of frames is a video",
    )
    parser.add_weights("a checkpoint, a run folder, https://... or hf-hub:owner/name")
    parser.add_argument("--top-k", type=positive, metavar="K", help="classes to show (default: 5; 1 with --every)")
    parser.add_argument("--every", type=seconds, metavar="TIME", help="slide over the video, e.g. 1s or 500ms")
    parser.add_argument(
        "--clips", type=positive, metavar="N", help=f"clips per video (default: {CLIPS}; not with --every)"
    )
    parser.add_argument("--crops", type=int, default=1, choices=(1, 3), help="crops per clip (default: %(default)s)")
    parser.add_device()
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one line of JSON per file (with --every: per window)")
    form.add_argument("--csv", action="store_true", help="one row per file (or window) and class, with a header")
    return parser


def _predict(classifier: Classifier, path: str, top_k: int, args: argparse.Namespace) -> Iterator[tuple]:
    """Yield (start, end, predictions) of a file; without ``--every`` one, with None for the times."""
    if args.every:
        yield from classifier.predict_windows(path, args.every, top_k, crops=args.crops)
    else:
        yield None, None, classifier.predict(path, top_k, clips=args.clips or CLIPS, crops=args.crops)


def _find_files(inputs: list[str], images: bool) -> tuple[list[str], list[str]]:
    """Return the files to predict, and an error for each folder without any."""
    from video_rs.inference.inputs import find_files

    files: list[str] = []
    errors: list[str] = []
    for entry in inputs:
        try:
            files += find_files(entry, images=images) if Path(entry).is_dir() else [entry]
        except MediaError as error:
            errors.append(str(error))
            print(f"error: {error}", file=sys.stderr)
    return files, errors


def _write_json(path: str, start: float | None, end: float | None, predictions: list[Prediction]) -> None:
    times = {} if start is None else {"start": round(start, 3), "end": round(end, 3)}
    found = [{"label": p.label, "index": p.index, "score": round(p.score, 6)} for p in predictions]
    print(json.dumps({"path": path, **times, "predictions": found}), flush=True)


def _write_csv(path: str, start: float | None, end: float | None, predictions: list[Prediction]) -> None:
    times = [] if start is None else [f"{start:.3f}", f"{end:.3f}"]
    for rank, p in enumerate(predictions, 1):
        _csv_row(path, *times, rank, p.label, p.index, f"{p.score:.6f}")
    sys.stdout.flush()


def _csv_row(*cells: Any) -> None:
    csv.writer(sys.stdout, lineterminator="\n").writerow(cells)


def _write_text(path: str, start: float | None, end: float | None, predictions: list[Prediction]) -> None:
    """Print the name of the file before its first window, then a line per class, with a bar on a terminal."""
    if not start:  # the first window starts at 0
        print(path)
    times = [] if start is None else [f"{_clock(start)} - {_clock(end)}"]
    rows = [(*times, p.label, f"{100 * p.score:.1f} %", _bar(p.score)) for p in predictions]
    for line in terminal.table(rows, right=[len(times) + 1]):
        print(f"  {line}", flush=True)


def _bar(score: float) -> str:
    if not sys.stdout.isatty():
        return ""
    block = "\N{FULL BLOCK}" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    return block * round(score * BAR)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 3), 60)  # frames are at least 1 ms apart
    return f"{int(minutes):3d}:{rest:06.3f}"
