"""Reads the packets of all videos of a dataset once, decoding none, so that training need not read them for each clip.

tools/index_dataset.py --cfg k400_rs50.yaml data.root=/data/k400

It lists how many files data.decoder=decord would read with decord, how long the videos are, and which files cannot be
opened. Commands that use the same files find the result by themselves, in the cache folder ($VIDEO_RS_CACHE, else
~/.cache/video_rs).
"""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from video_rs.cli.common import config_parser, progress
from video_rs.errors import UserError
from video_rs.experiment.config import load_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from video_rs.data.sources.dataset_index import Version
    from video_rs.data.sources.records import Records
    from video_rs.data.video.stream_index import StreamIndex


def main(argv: list[str]) -> int:
    """Entry point of ``tools/index_dataset.py`` and ``video-rs index``."""
    args = config_parser("index", __doc__).parse_intermixed_args(argv)
    config = load_config(args.cfg, args.overrides)

    from video_rs.data.sources.dataset_index import index_file
    from video_rs.distributed import device as runtime
    from video_rs.experiment.build import build_own_records, require_video_files

    splits = build_own_records(config)
    for records in splits.values():
        require_video_files(records, "index")
        file = index_file(records)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        except OSError as error:
            raise UserError(
                f"{file.parent} cannot be made ({error.strerror}): set VIDEO_RS_CACHE to another folder"
            ) from None
    for split, records in splits.items():
        for line in make(records, split, index_file(records), max(1, runtime.loader_workers(config.data.workers))):
            print(line)
    return 0


def make(records: Records, split: str, file: Path, workers: int) -> list[str]:
    """Makes and saves the index of one split; returns what there is to say about its files."""
    from video_rs.data.sources.dataset_index import index_video, pack
    from video_rs.data.tools.pool import map_in_processes

    decoders, lengths, broken = Counter(), [], []
    missing = "" if find_spec("decord") else "decord is not installed"

    def indexes() -> Iterator[tuple[Version, StreamIndex | None]]:
        paths = [records.path(number) for number in range(len(records))]
        for version, index, problem in progress(
            map_in_processes(index_video, paths, workers), total=len(paths), desc=split, unit="files"
        ):
            if index is None:
                broken.append(problem)
            else:
                problem = index.decord_problem or missing
                decoders[f"PyAV ({problem})" if problem else "decord"] += 1
                lengths.append(index.num_frames)
            yield version, index

    index = pack(indexes(), len(records))
    index.save(file)
    known = int((index.rows["bytes"] > 0).sum())
    lines = [f"{split}: {len(records)} files, {known} of them in the index {file}"]
    if uneven := len(lengths) - known:
        lines.append(f"  {uneven} more can be opened, but their timestamps are uneven or no guide: no index helps")
    lines += [f"  {count} for {decoder} where data.decoder=decord" for decoder, count in decoders.most_common()]
    if counted := [length for length in lengths if length]:
        lines.append(f"  {min(counted)} to {max(counted)} frames, median {round(median(counted))}")
    if broken:
        lines.append(f"  {len(broken)} cannot be opened{', the first 20' if len(broken) > 20 else ''}:")
        lines += [f"    {problem}" for problem in broken[:20]]
    return lines
