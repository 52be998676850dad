"""``make-motion``: makes the embedded dataset, eight classes of small videos that only their motion tells apart."""

from __future__ import annotations

import time

from video_rs.cli.common import Parser, program, progress


def main(argv: list[str]) -> int:
    """Parses the arguments, writes the dataset, says where it is."""
    parser = Parser(prog=program("make-motion"), description=__doc__)
    parser.add_argument("--out", default="data/motion", metavar="FOLDER", help="where to write (default: %(default)s)")
    for split, count in {"train": 3600, "val": 400, "test": 400}.items():
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help="videos (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="height and width, pixels (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=24, help="frames of a video (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="every file depends on it (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one per processor)")
    args = vars(parser.parse_args(argv))
    out = args.pop("out")

    from video_rs.data.tools import motion

    total = sum(args[split] for split in motion.SPLITS)
    print(
        f"{out}: {total} videos of {len(motion.CLASSES)} classes, {args['frames']} frames, {args['size']} pixels square"
    )
    start = time.monotonic()
    made = motion.make(
        out, **args, progress=lambda done, left: progress(done, total=left, desc="encoding", unit="videos")
    )
    print(f"{out} is complete ({time.monotonic() - start:.0f} s)" if made else f"{out} is there already")
    return 0
