"""Index the packets of all videos of a dataset, without decoding. Training then opens clips faster.

tools/index_dataset.py --cfg k400_rs50.yaml data.root=/data/k400

The command prints how many files data.decoder=decord would read with decord, the lengths of the videos, and the files
that cannot be opened. The index is written to the cache folder ($VIDEO_RS_CACHE, by default ~/.cache/video_rs), where
other commands find it.
"""

from functools import partial
from statistics import median

from video_rs import terminal
from video_rs.cli.common import config_parser, parse_config, progress
from video_rs.errors import UserError

_LISTED = 20  # maximum number of unreadable files listed on the terminal


def main(argv: list[str]) -> int:
    """Entry point of ``tools/index_dataset.py`` and ``video-rs index``."""
    _, config = parse_config(config_parser("index", __doc__), argv)

    from video_rs.data.sources.dataset_index import index_file
    from video_rs.data.tools.index import index_videos
    from video_rs.distributed.device import loader_workers
    from video_rs.experiment.build import build_own_records, require_video_files

    splits = build_own_records(config)
    files = {split: index_file(records) for split, records in splits.items()}
    for split, records in splits.items():
        print(f"{split}: {records.describe()}")
        require_video_files(records, "index")
        folder = files[split].parent
        try:
            folder.mkdir(parents=True, exist_ok=True)  # fail early
        except OSError as error:
            hint = "set VIDEO_RS_CACHE to another folder"
            raise UserError(f"{folder} cannot be made ({error.strerror}); {hint}") from None
    workers = max(1, loader_workers(config.data.workers))
    for split, records in splits.items():
        show = partial(progress, desc=split, unit="files")
        found = index_videos(records, workers, config.data.timeout, show)
        found.index.save(files[split])
        indexed = int((found.index.rows["bytes"] > 0).sum())
        print(f"{split}: {len(found.index)} files, {indexed} of them in the index {files[split]}")
        if unindexed := len(found.lengths) - indexed:
            print(f"  {unindexed} more can be opened, but not indexed: their timestamps are uneven or unreliable")
        for decoder, count in found.decoders.most_common():
            print(f"  {count} for {decoder} with data.decoder=decord")
        if lengths := [length for length in found.lengths if length]:
            print(f"  {min(lengths)} to {max(lengths)} frames, median {round(median(lengths))}")
        if found.problems:
            print(f"  {len(found.problems)} cannot be opened{', the first' if len(found.problems) > _LISTED else ''}:")
            for problem in found.problems[:_LISTED]:
                terminal.write(f"    {problem}")
    return 0
