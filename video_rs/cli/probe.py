"""Measure how well features separate the classes, with k nearest neighbours and logistic regression.

tools/probe_features.py train.npz --test test.npz
tools/probe_features.py train.npz --folds 5 --out folds
tools/probe_features.py train.npz --test test.npz --head-out probe.pt --overwrite

The arguments are features files of tools/extract_features.py. No source video is on both sides of a split. The report
describes logistic regression. --head-out writes the network with the probe as its classification layer, for "predict"
and "test".
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from video_rs import terminal
from video_rs.cli.common import Parser, checkpoint_path, command, input_path, output_path, program
from video_rs.errors import UserError


def main(argv: list[str]) -> int:
    """Entry point of ``tools/probe_features.py`` and ``video-rs probe``."""
    args = _parse(argv)
    from video_rs.files import refuse_links
    from video_rs.inference.features_file import read_features
    from video_rs.inference.probe import probe
    from video_rs.inference.probe_report import methods_table, write_probe

    source = Path(args.features)
    out = Path(args.out or source.with_name(f"{source.stem}-probe"))
    for path in filter(None, (out / "report.html", args.head_out)):
        if os.path.lexists(path) and not args.overwrite:
            raise UserError(f"{path} exists; give another path, or add --overwrite")
    train = read_features(source)
    test = read_features(args.test) if args.test else None
    refuse_links(out.parent, out)
    if args.head_out:
        from video_rs.inference.probe_head import network_of, write_head

        network = network_of(train, args.weights or "")
    result = probe(train, test, folds=args.folds, log=terminal.write)
    protocol = f"measured on {args.test}" if args.test else f"{args.folds} folds"
    about = {"features": f"{source}, {protocol}", **{key: train.about.get(key, "") for key in ("model", "weights")}}
    report = write_probe(out, result, train if test is None else test, title=f"Probe of {source.name}", about=about)
    table = methods_table(result)
    for line in terminal.table(table.rows, table.head, right=(1, 3, 4)):
        print(line)
    print(f"report: {report}")
    if args.head_out:
        write_head(args.head_out, network, train, result.linear, test)
        about = (test or train).about
        data, place = about.get("data") or "FOLDER", "root"
        if os.path.isfile(data):
            place = "list" if about.get("split") else "test"
        print(f"wrote {args.head_out}; next: {command('test', '--weights', args.head_out, f'data.{place}={data}')}")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__, prog=program("probe"))
    parser.add_argument("features", type=input_path, metavar="FILE", help="features file to train on, .npz or .parquet")
    against = parser.add_mutually_exclusive_group()
    against.add_argument("--test", type=input_path, metavar="FILE", help="features file to measure on")
    against.add_argument(
        "--folds", type=int, default=5, metavar="N", help="cross-validation without --test (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=output_path,
        metavar="FOLDER",
        help="folder of the report (default: <name of FILE>-probe beside it)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing report and --head-out")
    help = "checkpoint to write, with the probe as classification layer: .pt, .pth, .safetensors"
    parser.add_argument("--head-out", type=checkpoint_path, metavar="FILE", help=help)
    parser.add_weights("for --head-out: the weights of the features, if their file has been moved", required=False)
    args = parser.parse_intermixed_args(argv)
    if args.weights and not args.head_out:
        parser.error("--weights needs --head-out")
    return args
