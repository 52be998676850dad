"""Show where and when a network sees a class: activation maps over time (Grad-CAM, arXiv 1610.02391).

tools/explain.py --weights runs/k400_rs50/best.pt --out cam.mp4 clip.mp4
tools/explain.py --weights runs/k400_rs50/best.pt --out cam.png --class yoga --layer stage3 clip.mp4
tools/explain.py --weights runs/k400_rs50/best.pt --out cams/ --top-k 3 my_videos/
tools/explain.py --weights runs/k400_rs50/best.pt --worst 6

--out is a video (.mp4, .webp) or a strip of frames (.png). For several files, it is a folder with an mp4 for each video
and a png for each image. Several classes are side by side, or below each other in a png. The frames are those that the
network gets: the test crop of each sampled frame. A file that cannot be read is reported on stderr; the exit code is
then 2.

--worst explains the most confident mistakes of a test, the predicted class next to the true one, in its report.html.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from video_rs import terminal
from video_rs.cli.common import Parser, input_path, output_path, positive, program
from video_rs.errors import EXIT_USER, MediaError, StorageError

MAX_CLASSES = 12  # of a picture: a WebP is at most 16,383 pixels wide


def main(argv: list[str]) -> int:
    """Entry point of ``tools/explain.py`` and ``video-rs explain``."""
    args = _arguments(argv)
    return _explain_mistakes(args) if args.worst else _explain_files(args)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__, prog=program("explain"))
    inputs = "folders are searched, with their subfolders; a folder of frames is a video"
    parser.add_argument("inputs", nargs="*", type=input_path, metavar="FILE|FOLDER", help=inputs)
    parser.add_weights()
    parser.add_argument("--out", type=output_path, metavar="FILE|FOLDER", help="a file (.mp4, .webp, .png) or a folder")
    layer = "a stage or a module, such as stage3 (default: the last stage with at least 7 x 7 cells)"
    parser.add_argument("--layer", default="", metavar="NAME", help=layer)
    classes = parser.add_mutually_exclusive_group()
    named = "class to explain; repeat it for several (default: the most probable one)"
    classes.add_argument("--class", dest="classes", action="append", metavar="NAME", help=named)
    classes.add_argument("--top-k", type=positive, default=1, metavar="K", help="explain the K most probable classes")
    parser.add_argument("--views", type=positive, default=0, metavar="N", help="clips per video (default: all frames)")
    parser.add_argument("--worst", type=positive, metavar="K", help="explain the worst mistakes of a test, up to 12")
    parser.add_argument("--split", help="with --worst: the split that was tested (default: test)")
    parser.add_device()
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    args = parser.parse_intermixed_args(argv)
    if args.worst and (args.inputs or args.out or args.classes or args.top_k > 1):
        parser.error("--worst takes files and classes from a test and writes to its report; leave out the others")
    if not args.worst and not (args.inputs and args.out):
        parser.error("give files to explain and --out, or --worst")
    if max(args.top_k, len(args.classes or ())) > MAX_CLASSES:
        parser.error(f"at most {MAX_CLASSES} classes fit side by side")
    if args.split and not args.worst:
        parser.error("--split needs --worst")
    return args


def _explain_files(args: argparse.Namespace) -> int:
    from video_rs.data.sources.records import Records
    from video_rs.inference.inputs import existing, find_all, output_files
    from video_rs.inference.overlay import SUFFIXES, draw, frame_rate, write
    from video_rs.inference.predict import load

    inputs, missing = existing(args.inputs)
    for line in missing:
        _note(f"error: {line}")
    if not inputs:
        return EXIT_USER
    classifier = load(args.weights, args.device)
    files, empty = find_all(inputs, classifier.takes_images, _note)
    records, failed = Records(files, [-1] * len(files), ()), len(missing) + empty
    outputs = output_files(args.out, files, SUFFIXES, overwrite=args.overwrite)
    for index, (path, out) in enumerate(zip(files, outputs)):
        try:
            options = {"top_k": args.top_k, "layer": args.layer, "clips": args.views}
            found = classifier.explain(path, args.classes or (), **options)
        except (MediaError, StorageError) as error:
            failed += 1
            _note(f"error: {path}: {records.fault(error, index)}")
            continue
        write(out, draw(found), frame_rate(found[0].times))
        named = ", ".join(f"{each.label} {each.score:.1%}" for each in found)
        terminal.write(f"{out}: {named} (Grad-CAM of {found[0].layer})")
    return EXIT_USER if failed else 0


def _explain_mistakes(args: argparse.Namespace) -> int:
    from video_rs.inference.explain_mistakes import explain_mistakes
    from video_rs.inference.predict import load
    from video_rs.training.reports import find_test

    folder, unreadable = find_test(args.weights, args.split or "test"), []
    classifier = load(args.weights, args.device)
    count = explain_mistakes(classifier, folder, args.worst, layer=args.layer, warn=unreadable.append)
    for line in unreadable:
        _note(f"error: {line}")
    none = not count and not unreadable
    explained = f"{folder / 'report.html'}: {terminal.counted(count, 'mistake')} explained"
    terminal.write(f"{folder}: the test has no mistakes" if none else explained)
    return EXIT_USER if unreadable else 0


def _note(text: str) -> None:
    terminal.write(text, sys.stderr)
