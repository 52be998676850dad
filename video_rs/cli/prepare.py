"""Re-encode every video of a dataset for fast training: small frames, frequent keyframes, no sound.

tools/prepare_dataset.py --cfg k400_rs50.yaml data.root=/data/k400 --out /data/k400_256
tools/prepare_dataset.py --cfg k400_rs50.yaml data.root=/data/k400 --out /data/k400_256 --shards

Writes videos/, a list per split (train.csv, val.csv, test.csv), class_names.txt in the order of the labels, failed.csv
(videos that could not be re-encoded, with the reason) and summary.json. With --shards it also packs the videos into
large tar files in shards/, for storage that is slow with small files. The source is never changed. An interrupted
command resumes when it is run again: existing copies are kept.
"""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from video_rs import terminal
from video_rs.cli.common import (
    Parser,
    command,
    config_parser,
    counter,
    output_path,
    parse_config,
    positive,
    progress,
    size_text,
)
from video_rs.errors import UserError
from video_rs.experiment.config import Config
from video_rs.terminal import duration

SHARD_MB = 1000
_REPLACED = {
    "data.root",
    "data.train",
    "data.val",
    "data.test",
    "data.list",
    "data.class_names",
}  # set by _next_overrides


def main(argv: list[str]) -> int:
    """Entry point of ``tools/prepare_dataset.py`` and ``video-rs prepare``."""
    args, config = parse_config(_parser(), argv)
    if "://" in args.out:
        raise UserError(f"--out {args.out}: give a local folder, and upload its content afterwards")
    if args.shard_mb and not args.shards:
        raise UserError("--shard-mb has no effect without --shards")

    from video_rs.data.tools import shard_writer
    from video_rs.data.tools.encode import Settings
    from video_rs.data.tools.prepare import prepare_dataset, summarize
    from video_rs.distributed.device import loader_workers
    from video_rs.experiment.build import build_own_records, build_records, require_video_files

    out, settings = Path(args.out), Settings(args.short_side, args.crf, args.gop)
    splits = build_own_records(config)
    # a split by the sources that a list names is kept: the prepared lists cannot make it again
    if "val" in splits and splits["val"].held_out and splits["val"].sources is None:
        del splits["val"]
        whole = replace(config, data=replace(config.data, val_fraction=0.0))
        splits |= build_records(whole, ("train",), indexed=False)
    for split, records in splits.items():
        print(f"{split}: {records.describe()}")
        require_video_files(records, "prepare")
    if args.shards:
        shard_writer.require_packable(splits)
    workers = args.workers or max(1, loader_workers(config.data.workers))

    def show(results: Iterable, total: int) -> Iterable:
        encoding = f"short side {settings.short_side}, crf {settings.crf}, a keyframe every {settings.gop} frames"
        print(f"{total} videos into {out}: {encoding}; workers: {workers}", flush=True)
        return progress(results, total, desc="prepare", unit="videos")

    def pack(copies: Mapping[str, str]) -> None:
        shard_bytes, count = 1_000_000 * (args.shard_mb or SHARD_MB), partial(counter, desc="pack", unit="videos")
        shards = shard_writer.pack(out, splits, copies, shard_bytes, count)
        size = size_text(sum(shard.num_bytes for shard in shards))
        print(f"{len(shards)} shards in {out / shard_writer.FOLDER}: {size}")
        print(f"{out / 'videos'} can be deleted if only the shards are used; packing again would then re-encode")

    options = {"root": config.data.root, "workers": workers, "timeout": config.data.timeout, "progress": show}
    results = prepare_dataset(splits, out, settings, pack=pack if args.shards else None, **options)
    summary, failed = summarize(results), [result for result in results if result.problem]
    before, after = size_text(summary["bytes_before"]), size_text(summary["bytes_after"])
    print(f"{summary['files']} videos, {duration(summary['seconds_after'])} in total: {before} before, {after} after")
    if failed:
        terminal.write(f"{len(failed)} could not be re-encoded, see {out / 'failed.csv'}; the first: {failed[0]}")
    overrides = _next_overrides(args, config, out)
    for step in ("check", "train"):
        print(f"{step}: {command(step, '--cfg', args.cfg, *overrides)}")
    return 0


def _parser() -> Parser:
    parser = config_parser("prepare", __doc__)
    parser.add_argument(
        "--out", required=True, type=output_path, metavar="FOLDER", help="folder of the prepared dataset"
    )
    short_side = "pixels (default: 256); smaller videos keep their size"
    parser.add_argument("--short-side", type=positive, default=256, metavar="N", help=short_side)
    parser.add_argument("--crf", type=int, default=20, metavar="N", help="quality, 0 best to 51 worst (default: 20)")
    parser.add_argument("--gop", type=positive, default=16, metavar="N", help="frames between keyframes (default: 16)")
    parser.add_argument("--shards", action="store_true", help="also pack the copies into tar files, OUT/shards")
    parser.add_argument("--shard-mb", type=positive, metavar="N", help=f"size of a shard (default: {SHARD_MB})")
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: as data.workers)")
    return parser


def _next_overrides(args: argparse.Namespace, config: Config, out: Path) -> list[str]:
    """Return the config overrides that select the prepared dataset."""
    root = out / "shards" if args.shards else out
    overrides = [each for each in args.overrides if each.partition("=")[0] not in _REPLACED]
    overrides += [f"data.root={root}", f"data.class_names={root / 'class_names.txt'}"]
    for key in ("train", "val", "test"):
        if getattr(config.data, key):  # override the list in the config
            file = root / f"{key}.csv"
            overrides.append(f"data.{key}={file if file.exists() else ''}")
    if config.data.list:
        overrides.append("data.list=")
    return overrides
