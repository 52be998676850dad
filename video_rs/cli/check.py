"""Decodes every frame of every file of a dataset, and tells what is wrong with it.

tools/check_dataset.py --cfg k400_rs50.yaml data.root=/data/k400

OUT gets files.csv (a row a file), problems.csv (path, kind, detail), summary.json and check.png. The exit code is 2 if
a file is broken, if the same content is in two splits or has two labels; docs/datasets.md tells what the kinds mean.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from video_rs.cli.common import command, config_parser, counter, positive, size_text
from video_rs.errors import UserError
from video_rs.experiment.config import load_config
from video_rs.files import atomic_write, write_csv, write_json
from video_rs.terminal import duration

if TYPE_CHECKING:
    from video_rs.data.shards import Member
    from video_rs.data.sources.records import Records
    from video_rs.data.tools.check import Entries, FileTable, Problem

FIELDS = (
    ("split", "path", "label", "frames", "fps", "seconds", "height", "width")
    + ("rotation", "codec", "decoder", "sha1", "problems")
)  # fmt: skip
_NAMED = 10  # classes that the summary on the terminal names


def main(argv: list[str]) -> int:
    """Entry point of ``tools/check_dataset.py`` and ``video-rs check``."""
    parser = config_parser("check", __doc__)
    parser.add_argument("--out", metavar="DIR", help="where the results go (default: check/ in the run folder)")
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: as data.workers)")
    args = parser.parse_intermixed_args(argv)
    config = load_config(args.cfg, args.overrides)

    from video_rs.data.clips import TemporalSampling
    from video_rs.data.tools.check import Entries, find_problems
    from video_rs.distributed import device as runtime
    from video_rs.experiment.build import build_own_records

    out = Path(args.out or Path(config.out) / "check")
    splits = build_own_records(config)
    _begin(out)
    entries = Entries(splits)
    workers = min(args.workers or max(1, runtime.loader_workers(config.data.workers)), len(entries.first))
    for name, records in splits.items():
        print(f"{name}: {records.describe()}{'; made of training files' if records.held_out else ''}")
    print(f"{len(entries.first)} files are decoded in {workers} processes, results go to {out}", flush=True)
    table = _decode_all(entries, workers, config.data.timeout)
    problems = list(find_problems(entries, table, TemporalSampling.of(config.data_config())))
    named = ((entries.path(problem.entry), problem.kind, problem.detail) for problem in problems)
    write_csv(out / "problems.csv", ("path", "kind", "detail"), named)
    write_csv(out / "files.csv", FIELDS, _rows(entries, table, problems))
    summary = _summary(splits, entries, table, problems)
    write_json(out / "summary.json", summary)
    _draw(out / "check.png", entries, table)
    _tell(summary, out)
    if serious := Counter(problem.kind for problem in problems if problem.grave):
        text = ", ".join(f"{count} x {kind}" for kind, count in serious.items())
        raise UserError(f"the dataset has problems ({text}): {out / 'problems.csv'} names them")
    print(f"next: {command('train', '--cfg', args.cfg, *args.overrides)}")
    return 0


def _begin(out: Path) -> None:
    """Makes the folder, and removes the results of an earlier check: a summary would belong to other files."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("summary.json", "files.csv", "problems.csv", "check.png"):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): give another folder") from None
    if not os.access(out, os.W_OK):
        raise UserError(f"--out {out} cannot be written: give another folder")


def _decode_all(entries: Entries, workers: int, timeout: float) -> FileTable:
    from video_rs.data.tools.check import FileTable
    from video_rs.data.tools.check_file import Facts
    from video_rs.data.tools.pool import Lost, watched_calls

    table, count = FileTable(len(entries.first)), counter(len(entries.first), "check", "files")
    places = map(entries.at, entries.first)
    todo = ((file, records.file(index)) for file, (records, index) in enumerate(places))
    with closing(watched_calls(_check, todo, workers, timeout)) as results:
        for (file, _), facts in results:
            table.put(file, Facts(problem=facts.reason) if isinstance(facts, Lost) else facts)
            count(1)
    return table


def _check(item: tuple[int, str | Member], beat: Any) -> Any:
    from video_rs.data.tools.check_file import check_file

    return check_file(item[1], beat)


def _rows(entries: Entries, table: FileTable, problems: Sequence[Problem]) -> Iterator[list[Any]]:
    """Yield the values of ``FIELDS`` for each entry."""
    kinds: dict[int, dict[str, None]] = defaultdict(dict)  # of each entry, in the order of KINDS
    for problem in problems:
        kinds[problem.entry][problem.kind] = None
    for entry, file in enumerate(entries.file):
        row = table.rows[file]
        fps = float(row["fps"])
        yield (
            [entries.names[entries.split[entry]], entries.path(entry), entries.label_text(entry), row["frames"]]
            + [f"{fps:.6g}", f"{row['frames'] / fps if fps else 0:.6g}", row["height"], row["width"]]
            + [row["rotation"], row["codec"], row["decoder"], table.sha1(file), ";".join(kinds.get(entry, ()))]
        )


def _summary(
    splits: dict[str, Records], entries: Entries, table: FileTable, problems: Sequence[Problem]
) -> dict[str, Any]:
    counts, good = entries.class_counts(), table.rows[~table.rows["broken"]]
    missing = [entries.class_names[i] for i in np.flatnonzero(counts["train"] == 0)] if "train" in counts else []
    fps = good["fps"][good["fps"] > 0]
    return {
        "files": {name: len(records) for name, records in splits.items()},
        "made": [name for name, records in splits.items() if records.held_out],
        "missing": {name: records.num_missing for name, records in splits.items()},
        "bytes": int(table.rows["bytes"].sum()),
        "seconds": round(float((good["frames"] / np.where(good["fps"] > 0, good["fps"], np.inf)).sum()), 3),
        "frames": _spread(good["frames"]),
        "fps": _spread(fps),
        "height": _spread(good["height"]),
        "width": _spread(good["width"]),
        "codecs": dict(Counter(table.rows["codec"].tolist())),
        "decoders": dict(Counter(table.rows["decoder"].tolist())),
        "problems": dict(Counter(problem.kind for problem in problems)),
        "classes_without_training_files": missing,
        "empty_class_folders": {
            name: list(records.empty_folders) for name, records in splits.items() if records.empty_folders
        },
        "classes": {
            name: {split: int(count[i]) for split, count in counts.items()}
            for i, name in enumerate(entries.class_names)
        },
    }


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """Least, median and largest; None of nothing."""
    if not len(values):
        return None
    return {name: round(float(f(values)), 4) for name, f in (("min", np.min), ("median", np.median), ("max", np.max))}


def _draw(path: Path, entries: Entries, table: FileTable) -> None:
    from video_rs.data.tools.check_plot import dataset_png

    good = table.rows[~table.rows["broken"]]
    timed = good[good["fps"] > 0]
    lengths, unit = (timed["frames"] / timed["fps"], "seconds") if len(timed) else (good["frames"], "frames")
    sizes = np.stack([good["height"], good["width"]], axis=1)
    with atomic_write(path) as file:
        file.write(dataset_png(lengths, sizes, entries.class_counts(), entries.class_names, unit=unit))


def _tell(summary: dict[str, Any], out: Path) -> None:
    total = sum(summary["files"].values())
    print(f"{total} files, {size_text(summary['bytes'])}, {duration(summary['seconds'])}")
    for name in ("frames", "fps", "height", "width"):
        if spread := summary[name]:
            print(f"  {name}: {spread['min']:g} to {spread['max']:g}, median {spread['median']:g}")
    for name in ("codecs", "decoders"):
        print(f"  {name}: " + ", ".join(f"{word or 'unknown'} {count}" for word, count in summary[name].items()))
    for split in summary["files"]:
        counts = [of_class[split] for of_class in summary["classes"].values()]
        print(f"  {split}: {min(counts)} to {max(counts)} files a class, median {np.median(counts):g}")
    if missing := summary["missing"] if any(summary["missing"].values()) else None:
        print("  listed files that are missing: " + ", ".join(f"{name} {count}" for name, count in missing.items()))
    _name("classes without a training file", summary["classes_without_training_files"])
    for split, folders in summary["empty_class_folders"].items():
        _name(f"class folders of {split} without a file", folders)
    for kind, count in summary["problems"].items():
        print(f"  {kind}: {count}")
    print(f"{'problems are in' if summary['problems'] else 'no problems;'} {out / 'problems.csv'}, plots in check.png")


def _name(what: str, names: list[str]) -> None:
    if names:
        more = ", ..." if len(names) > _NAMED else ""
        print(f"  {what}: {len(names)} ({', '.join(names[:_NAMED])}{more})")
