"""Reads the packets of all videos of a dataset once, decoding none, so that training need not read them for each clip.

tools/index_dataset.py --cfg k400_rs50.yaml data.root=/data/k400

It tells which decoder each file will get and why, how long the videos are, and which files cannot be read. Commands
that use the same files find the result by themselves, in the cache folder ($VIDEO_RS_CACHE, else ~/.cache/video_rs).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from video_rs.cli.common import config_parser, progress
from video_rs.config import load_config
from video_rs.errors import UserError

if TYPE_CHECKING:
    from video_rs.data.records import Records


def main(argv: list[str]) -> int:
    """Entry point of ``tools/index_dataset.py`` and ``video-rs index``."""
    args = config_parser("index", __doc__).parse_intermixed_args(argv)
    config = load_config(args.cfg, args.overrides)

    from video_rs import runtime
    from video_rs.cli.build import build_records
    from video_rs.data.decode import is_image
    from video_rs.data.index import index_file

    splits: dict[Path, tuple[str, Records]] = {}
    for split, records in build_records(config, indexed=False).items():
        splits.setdefault(index_file(records), (split, records))  # val may stand in for test
    for file, (split, records) in splits.items():
        if is_image(records.path(0)):
            raise UserError(f"the files of the {split} split are images ({records.path(0)}): only videos need an index")
        file.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    for file, (split, records) in splits.items():
        for line in make(records, split, file, max(1, runtime.loader_workers(config.data.workers))):
            print(line)
    return 0


def make(records: Records, split: str, file: Path, workers: int) -> list[str]:
    """Makes and saves the index of one split; returns what there is to say about its files."""
    from video_rs.data.index import pack, scan_file
    from video_rs.pool import map_in_processes

    decoders, lengths, broken = Counter(), [], []

    def scans():
        paths = [records.path(number) for number in range(len(records))]
        for size, scan, problem in progress(
            map_in_processes(scan_file, paths, workers), total=len(paths), desc=split, unit="files"
        ):
            if scan is None:
                broken.append(problem)
            else:
                decoders[f"PyAV ({scan.decord_problem})" if scan.decord_problem else "decord"] += 1
                lengths.append(scan.num_frames)
            yield size, scan

    index = pack(scans(), len(records))
    index.save(file)
    known = int((index.rows["bytes"] > 0).sum())
    lines = [f"{split}: {len(records)} files, {known} of them in the index {file}"]
    lines += [f"  {count} for {decoder}" for decoder, count in decoders.most_common()]
    counted = sorted(length for length in lengths if length)
    if counted:
        lines.append(f"  {counted[0]} to {counted[-1]} frames, {counted[len(counted) // 2]} in the middle of them")
    if broken:
        lines += [f"  {len(broken)} cannot be read, the first:", *(f"    {problem}" for problem in broken[:3])]
    return lines
