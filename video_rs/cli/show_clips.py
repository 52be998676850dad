"""Draw the clips that the network sees, after sampling and augmentation, with frame numbers and labels.

tools/show_clips.py --cfg k400_rs50.yaml data.root=/data/k400
tools/show_clips.py --cfg motion_rs.yaml --split test --num 9 --gif

For the train split, these are the first samples of the first epoch, without mixup and cutmix, which are applied on the
device. For other splits, these are the test views: test.clips clips per video with test.crops crops each.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from video_rs import terminal
from video_rs.cli.common import config_parser, output_path, parse_config, positive
from video_rs.errors import UserError
from video_rs.experiment.schema import Config
from video_rs.files import atomic_write


def main(argv: list[str]) -> int:
    """Entry point of ``tools/show_clips.py`` and ``video-rs show-clips``."""
    parser = config_parser("show-clips", __doc__)
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="default: %(default)s")
    parser.add_argument("--num", type=positive, default=8, metavar="N", help="clips to draw (default: %(default)s)")
    parser.add_argument(
        "--out", type=output_path, metavar="FILE.png", help="default: clips_<split>.png in the run folder"
    )
    parser.add_argument("--gif", action="store_true", help="also write each clip as an animated GIF next to the PNG")
    args, config = parse_config(parser, argv)
    out = Path(args.out or Path(config.out) / f"clips_{args.split}.png")
    if out.suffix != ".png":
        raise UserError(f"--out must end in .png; found {out}")

    from video_rs.data.tools.clip_grid import draw_grid, save_gif

    out.parent.mkdir(parents=True, exist_ok=True)  # fail early
    rows = list(itertools.islice(read_rows(config, args.split), args.num))
    if not rows:
        raise UserError(f"no file of the {args.split} split can be read")
    with atomic_write(out) as file:
        draw_grid(rows).save(file, "PNG")
    print(f"{out}: {len(rows)} clips of {len(rows[0].frames)} frames")
    for number, row in enumerate(rows) if args.gif else ():
        path = out.with_name(f"{out.stem}_{number}.gif")
        save_gif(row, path)
        terminal.write(f"{path}: {row.label}, frames {row.frames[0]} to {row.frames[-1]}")
    return 0


def read_rows(config: Config, split: str) -> Iterator:
    """Return the clips of a split as training or the test reads them, as ``clip_grid.Row``."""
    from video_rs.data.tools.clip_grid import train_rows, view_rows
    from video_rs.experiment.build import build_records, train_dataset, view_dataset
    from video_rs.experiment.run import options_of
    from video_rs.training.recipe import order

    records = build_records(config, [split])[split]
    if split == "train":
        return train_rows(train_dataset(config, records), **order(options_of(config), records))
    return view_rows(view_dataset(config, records, config.test.clips, config.test.crops))
