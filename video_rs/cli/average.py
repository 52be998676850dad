"""Average the weights of checkpoints of one network (model soups, arXiv 2203.05482).

tools/average_weights.py runs/a runs/b runs/c --out soup.pt
tools/average_weights.py runs/a runs/b runs/c --out soup.pt --val
tools/average_weights.py runs/mine/checkpoints/*.pt --out last.pt data.root=/data/mine train.precise_bn=4096

The arguments are checkpoints, run folders or addresses. The EMA of a checkpoint is averaged if it has one. With --val
the average is greedy: from the best checkpoint to the worst, each is added unless the metric of the val split gets
worse. Batch norm statistics are computed again from train.precise_bn training clips (0: 1024, or all if there are
fewer). The data are those of the first checkpoint; data.root=... names another place.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from video_rs import terminal
from video_rs.cli.common import checkpoint_path, command, config_parser, counter, input_path, parse_settings

if TYPE_CHECKING:
    from argparse import Namespace

    from video_rs.experiment.average import Ingredient


def main(argv: list[str]) -> int:
    """Entry point of ``tools/average_weights.py`` and ``video-rs average``."""
    args = _parse(argv)
    from video_rs.experiment.average import average

    tried = average(
        args.checkpoints,
        args.out,
        val=args.val,
        overrides=args.overrides,
        overwrite=args.overwrite,
        log=terminal.write,
        progress=counter,
    )
    if args.val:
        _print_table(tried)
    count = f"the average of {sum(each.added for each in tried)} of {len(tried)} checkpoints"
    print(f"wrote {args.out}, {count}; next: {command('test', '--weights', args.out, *args.overrides)}")
    return 0


def _print_table(tried: list[Ingredient]) -> None:
    from video_rs.training.run_status import NAMES

    monitored = next(iter(tried[0].alone))
    rows = [
        [
            each.name,
            *(f"{100 * found[monitored]:.2f} %" for found in (each.alone, each.together)),
            ("no", "yes")[each.added],
        ]
        for each in tried
    ]
    for line in terminal.table(rows, ("checkpoint", NAMES[monitored], "of the average with it", "added"), right=(1, 2)):
        print(line)


def _parse(argv: list[str]) -> Namespace:
    parser = config_parser("average", __doc__, needs_config=None)
    help = "checkpoints, run folders, hf-hub:owner/name or https://..."
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT", help=help)
    help = "the checkpoint to write: .pt, .pth or .safetensors"
    parser.add_argument("--out", required=True, type=checkpoint_path, metavar="FILE", help=help)
    help = "greedy: add a checkpoint unless the average gets worse on the val split"
    parser.add_argument("--val", action="store_true", help=help)
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    args = parse_settings(parser, argv)
    words = [*args.overrides, *args.checkpoints]
    args.overrides = [word for word in words if re.match(r"[\w.-]+=", word) and not os.path.lexists(word)]
    args.checkpoints = [input_path(word) for word in words if word not in args.overrides]
    return args
