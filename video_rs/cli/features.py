"""Write the features of all files of a dataset: the input of the classification layer, or the output of any layer.

tools/extract_features.py --weights runs/k400_rs50 --data /data/mine --split train --out train.npz
tools/extract_features.py --model timm/resnet50 --init-from pretrained --data /data/mine --out mine.parquet
tools/extract_features.py --weights runs/k400_rs50 --data long.mp4 --per-window 2s --out long.npz

--data is a dataset (a folder with class folders or splits, a list, or shards), or any files and folders. A video
network averages four clips of a video, an image network all frames. A killed command resumes from <out>.parts. With
torchrun or srun, the files are divided among the processes. docs/inference.md describes the features file.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from video_rs import terminal
from video_rs.cli.common import (
    command,
    config_parser,
    counter,
    input_path,
    output_path,
    parse_settings,
    positive,
    seconds,
)
from video_rs.cli.predict import warn_gaps
from video_rs.errors import truncate

if TYPE_CHECKING:
    from argparse import Namespace

    from video_rs.inference.features_file import Features


def main(argv: list[str]) -> int:
    """Entry point of ``tools/extract_features.py`` and ``video-rs features``."""
    args = _parse(argv)
    from video_rs.distributed.device import configure_torch, describe, loader_workers, select_device
    from video_rs.distributed.world import start_world
    from video_rs.experiment.checks import check_timeouts
    from video_rs.experiment.inputs import find_records, network_of_name, network_of_weights
    from video_rs.inference.features import extract_features
    from video_rs.inference.features_file import SUFFIXES, check_suffix
    from video_rs.inference.predict import Classifier

    device = select_device(args.device)
    world = start_world(device)
    gaps: list[str] = []
    try:
        with world.together("the features"):
            check_suffix(args.out, SUFFIXES)
            if args.weights:
                model, config, about = network_of_weights(args.weights, args.overrides)
            else:
                model, config, about = network_of_name(args.model, args.init_from or "", args.overrides)
            check_timeouts(config, world.size)
            world.timeout = config.train.peer_timeout
            configure_torch(config.train.threads, config.train.deterministic)
            images = model.data_config.num_frames == 1
            records, note = find_records(args.data, config, split=args.split, images=images)
            classifier = Classifier(model, device, views_per_forward=args.batch_size)
            if world.is_main:
                print(f"device: {describe(device)}")
                print(f"model: {model.name} from {args.weights or args.init_from or 'random weights'}")
                terminal.write(f"data: {records.describe() if records.class_names else f'{len(records)} files'}")
                if note:
                    terminal.write(f"note: {note}")
            found = extract_features(
                classifier,
                records,
                args.out,
                views=args.views,
                crops=args.crops,
                per_window=args.per_window,
                pool=args.pool,
                layer=args.layer,
                decoder=config.data.decoder,
                about=about | {"split": args.split, "data": truncate(args.data)},
                world=world,
                workers=loader_workers(args.workers, world.local_size),
                timeout=config.data.timeout,
                overwrite=args.overwrite,
                progress=lambda total: counter(total, "features", "files"),
                on_rows=lambda rows: gaps.extend([f"{records.name(rows.index)}: {rows.gaps}"] if rows.gaps else ()),
            )
    finally:
        world.close()
    warn_gaps(gaps)
    if found:
        _report(found, args.out)
    return 0


def _report(found: Features, out: str) -> None:
    for path, reason in [pair for pair in zip(found.paths, found.reason) if pair[1]][:3]:
        terminal.write(f"no features: {path}: {reason}")
    count, width = found.features.shape
    print(f"{out}: {found.scored.sum()} of {count} rows with features, {width} values each")
    if found.class_names:
        print(f"next: {command('probe', out)}")


def _parse(argv: list[str]) -> Namespace:
    parser = config_parser("features", __doc__, needs_config=None)
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--weights", type=input_path, metavar="FILE", help=parser.WEIGHTS)
    network.add_argument("--model", metavar="NAME", help="a name listed by video-rs models, e.g. timm/resnet50")
    parser.add_plugins()
    help = "weights for --model: pretrained, timm, a file or an address (default: random ones)"
    parser.add_argument("--init-from", type=input_path, metavar="FILE", help=help)
    help = "a dataset (folder, list or shards), or any files and folders"
    parser.add_argument("--data", nargs="+", required=True, type=input_path, metavar="ROOT|LIST|FILE", help=help)
    parser.add_argument("--split", choices=("train", "val", "test"), default="", help="one of several splits")
    help = "features file to write, .npz or .parquet; the same command resumes"
    parser.add_argument("--out", required=True, type=output_path, metavar="FILE", help=help)
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    help = "clips per video; all: clips that cover it, or every frame (default: 4; all for an image network)"
    parser.add_argument("--views", type=_views, metavar="N", help=help)
    help = "one row per window; windows start every TIME, e.g. 2s or 500ms (not with --views)"
    parser.add_argument("--per-window", type=seconds, default=0.0, metavar="TIME", help=help)
    help = "how the views of a row are combined (default: %(default)s)"
    parser.add_argument("--pool", default="mean", choices=("mean", "mean+std", "max"), help=help)
    help = "a stage or a module, such as stage3 (default: the input of the classification layer)"
    parser.add_argument("--layer", default="", metavar="NAME", help=help)
    parser.add_forward()
    args = parse_settings(parser, argv)
    settings = [word for word in args.data if re.match(r"[\w.-]+=", word) and not os.path.lexists(word)]
    args.overrides += settings
    args.data = [word for word in args.data if word not in settings]
    if not args.data:
        parser.error("--data is required")
    if args.per_window and args.views is not None:
        parser.error("--views and --per-window cannot be combined: a window is one clip, or all its frames")
    if args.init_from and not args.model:
        parser.error("--init-from needs --model; leave it out with --weights")
    return args


def _views(text: str) -> int:
    return 0 if text == "all" else positive(text)
