"""Decode every frame of every file of a dataset, and report the problems.

tools/check_dataset.py --cfg k400_rs50.yaml data.root=/data/k400

Writes files.csv (a row per file), problems.csv (path, kind, detail), summary.json and check.png. The exit code is 2 if
a file is broken, if the same content or source is in two splits, or if the same content has two labels; see
docs/datasets.md.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from video_rs import terminal
from video_rs.cli.common import command, config_parser, output_path, parse_config, positive, progress, size_text
from video_rs.data.sources.lookalikes import difference
from video_rs.errors import UserError
from video_rs.files import refuse_links
from video_rs.terminal import duration

_NAMED = 10  # maximum number of classes listed on the terminal
_PAIRS = 3  # maximum number of leaks in the error message


def main(argv: list[str]) -> int:
    """Entry point of ``tools/check_dataset.py`` and ``video-rs check``."""
    parser = config_parser("check", __doc__)
    parser.add_argument(
        "--out", type=output_path, metavar="FOLDER", help="folder for the results (default: check/ in the run folder)"
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: as data.workers)")
    args, config = parse_config(parser, argv)

    from video_rs.data.clips import TemporalSampling
    from video_rs.data.tools.check import FILES, check_dataset
    from video_rs.distributed.device import loader_workers
    from video_rs.experiment.build import build_own_records

    out = Path(args.out or Path(config.out) / "check")
    splits = build_own_records(config)
    refuse_links(args.out or config.out, out)
    _prepare_folder(out, FILES)
    for name, records in splits.items():
        print(f"{name}: {records.describe()}{'; held out from the training files' if records.held_out else ''}")
    workers = args.workers or max(1, loader_workers(config.data.workers))

    def show(results: Iterable, total: int) -> Iterable:
        print(f"decoding {total} files with {min(workers, total)} workers, results in {out}", flush=True)
        return progress(results, total, desc="check", unit="files")

    sampling = TemporalSampling.of(config.data_config())
    check = check_dataset(splits, sampling, workers=workers, timeout=config.data.timeout, progress=show)
    check.write(out)
    _print_summary(check.summary(), out)
    if short := check.short_videos():
        print(f"short videos: {short}")
    if grave := Counter(problem.kind for problem in check.problems if problem.grave):
        text = ", ".join(f"{count} x {kind}" for kind, count in grave.items())
        text = "; ".join([f"the dataset has problems ({text})", *check.leaks()[:_PAIRS]])
        raise UserError(f"{text}; see {out / 'problems.csv'}")
    print(f"next: {command('train', '--cfg', args.cfg, *args.overrides)}")
    return 0


def _prepare_folder(out: Path, names: Sequence[str]) -> None:
    """Create the folder and delete the results of an earlier check."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in names:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); give another folder") from None
    if not os.access(out, os.W_OK):
        raise UserError(f"--out {out} cannot be written; give another folder")


def _print_summary(summary: dict[str, Any], out: Path) -> None:
    length = f", {duration(summary['seconds'])} of video" if summary["seconds"] else ""
    files, listed = sum(summary["codecs"].values()), sum(summary["files"].values())
    times = f", listed {listed} times" if listed != files else ""
    print(f"{files} files{times}, {size_text(summary['bytes'])}{length}")
    for name in ("frames", "fps", "height", "width"):
        if spread := summary[name]:
            print(f"  {name}: {spread['min']:g} to {spread['max']:g}, median {spread['median']:g}")
    for name, title in (("codecs", "codecs"), ("decoders", "decoders if data.decoder=decord")):
        counts = (f"{word or 'unknown'} ({count} files)" for word, count in summary[name].items())
        print(f"  {title}: {', '.join(counts)}")
    for split in summary["files"]:
        counts = [of_class[split] for of_class in summary["classes"].values()]
        print(f"  {split}: {min(counts)} to {max(counts)} files per class, median {median(counts):g}")
    if any(summary["missing"].values()):
        missing = ", ".join(f"{name} {count}" for name, count in summary["missing"].items())
        print(f"  listed files that are missing: {missing}")
    similar = [difference(*pair) for pair in summary["similar_class_names"]]
    _print_names("class names that look alike", similar)
    _print_names("classes without a training file", summary["classes_without_training_files"])
    for split, folders in summary["empty_class_folders"].items():
        _print_names(f"class folders of {split} without a file", folders)
    for kind, count in summary["problems"].items():
        print(f"  {kind}: {count}")
    print(f"{'problems are in' if summary['problems'] else 'no problems;'} {out / 'problems.csv'}, plots in check.png")


def _print_names(title: str, names: Sequence[str]) -> None:
    if names:
        more = ", ..." if len(names) > _NAMED else ""
        terminal.write(f"  {title}: {len(names)} ({', '.join(names[:_NAMED])}{more})")
