"""Generate the built-in motion dataset: small videos of eight classes that differ only in motion.

tools/make_motion.py --out data/motion
tools/make_motion.py --long long.mp4                # only one video of all classes, and their times in long.csv
"""

import time
from functools import partial

from video_rs.cli.common import Parser, output_path, program, progress


def main(argv: list[str]) -> int:
    """Entry point of ``tools/make_motion.py`` and ``video-rs make-motion``."""
    parser = Parser(__doc__, prog=program("make-motion"))
    parser.add_argument(
        "--out",
        default="data/motion",
        type=output_path,
        metavar="FOLDER",
        help="folder to write (default: %(default)s)",
    )
    for split, count in {"train": 3600, "val": 400, "test": 400}.items():
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help="videos (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=24, help="frames per video (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all files (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one per processor)")
    help = "instead of a dataset, write one video of all classes in turn, and their times to a csv file beside it"
    parser.add_argument("--long", type=output_path, metavar="FILE", help=help)
    args = vars(parser.parse_intermixed_args(argv))
    out, long = args.pop("out"), args.pop("long")

    from video_rs.data.tools import motion

    if long:
        times = motion.make_long(long, **{name: args[name] for name in ("size", "frames", "seed")})
        print(f"wrote {long}; the times of its classes are in {times}")
        return 0
    videos = f"{sum(args[split] for split in motion.SPLITS)} videos of {len(motion.CLASSES)} classes"
    print(f"{out}: {videos}, {args['frames']} frames, {args['size']} pixels square")
    start = time.monotonic()
    made = motion.make(out, **args, progress=partial(progress, desc="encoding", unit="videos"))
    print(f"{out} is complete ({time.monotonic() - start:.0f} s)" if made else f"{out} is there already")
    return 0
