"""Measure which part of the activation maps is on the moving shape, in the embedded dataset.

python benchmarks/activation_maps.py --weights runs/motion_rs/best.pt --data data/motion --min-ratio 2

The box of the shape extends its radius to each side of its centre. It is known from the trajectory that the video was
rendered with, and wraps around the border, as the shape does. The ratio is the mean fraction of the maps inside the box
divided by the mean fraction of the area inside the box: 1 for maps that ignore the shape. With --min-ratio, a lower
ratio is an error.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from common import table

from video_rs import load
from video_rs.cli.common import Parser, input_path, positive, run
from video_rs.data.tools.motion import CLASSES, SPLITS, STAMP, trajectory
from video_rs.errors import UserError
from video_rs.files import parse_json
from video_rs.rng import keyed_rng


def box_of_shape(name: str, number: int, frames: int, size: int, seed: int) -> np.ndarray:
    """Return the pixels of the shape's box in each frame of a test video, bool ``[T, size, size]``."""
    rng = keyed_rng(seed, "motion", SPLITS.index("test"), CLASSES.index(name), number)
    x, y, _, radius = trajectory(name, frames, size, rng)
    pixels = np.arange(size)
    right, down = (np.abs((pixels - at[:, None] + size / 2) % size - size / 2) <= radius[:, None] for at in (x, y))
    return down[:, :, None] & right[:, None, :]


def main(argv: list[str]) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--weights", required=True, type=input_path)
    parser.add_argument("--data", required=True, type=input_path, help="folder of the embedded dataset")
    parser.add_argument("--class", dest="name", default="translate_left", choices=CLASSES)
    parser.add_argument("--videos", default=50, type=positive)
    parser.add_argument("--layer", default="", help="default: the default layer of explain")
    parser.add_argument("--min-ratio", default=0.0, type=float)
    args = parser.parse_args(argv)

    classifier, root = load(args.weights, "cpu"), Path(args.data)
    stamp, size = parse_json((root / STAMP).read_text()), classifier.data_config.test_size
    if classifier.data_config.short_side != stamp["size"]:
        raise UserError(f"{args.weights}: its frames are resized; use a network of the embedded dataset")
    crop = slice((stamp["size"] - size) // 2, (stamp["size"] + size) // 2)
    inside, area = [], []
    for number in range(args.videos):
        path = root / "test" / args.name / f"{number:05d}.mp4"
        found = classifier.explain(path, args.name, layer=args.layer)[0]
        box = box_of_shape(args.name, number, stamp["frames"], stamp["size"], stamp["seed"])[:, crop, crop]
        inside.append((found.maps * box).sum() / max(found.maps.sum(), 1e-9))
        area.append(box.mean())
    ratio = np.mean(inside) / np.mean(area)
    row = [args.name, found.layer, f"{np.mean(inside):.1%}", f"{np.mean(area):.1%}", f"{ratio:.2f}"]
    print(table(["class", "layer", "of the map in the box", "of the area in the box", "ratio"], [row]))
    if ratio < args.min_ratio:
        raise UserError(f"the ratio is below {args.min_ratio:g}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
