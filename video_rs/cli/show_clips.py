"""Draws what the network will see, after sampling and augmentation, with frame numbers and labels.

tools/show_clips.py --cfg k400_rs50.yaml data.root=/data/k400
tools/show_clips.py --cfg motion_rs.yaml --split test --num 9 --gif

The train split shows the first samples of the first epoch as training draws them, but for mixup and cutmix, which
happen on the device. The others show test views: test.clips clips of a video, test.crops crops of each.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from video_rs.cli.common import config_parser, positive
from video_rs.errors import UserError
from video_rs.experiment.config import Config, load_config

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from video_rs.data.samples import ClipDataset, ViewDataset

HEADER = 16  # pixels above each row, for its label
WIDEST = 2400  # pixels of a grid; frames are drawn smaller to fit, but not smaller than SMALLEST
SMALLEST = 48


class Row(NamedTuple):
    """A clip and what is written above it."""

    clip_THWC: np.ndarray  # uint8
    frames: list[int]  # their numbers in the file
    label: str
    path: str


def main(argv: list[str]) -> int:
    """Entry point of ``tools/show_clips.py`` and ``video-rs show-clips``."""
    parser = config_parser("show-clips", __doc__)
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="default: %(default)s")
    parser.add_argument("--num", type=positive, default=8, metavar="N", help="clips to draw (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE.png", help="default: clips_<split>.png in the run folder")
    parser.add_argument("--gif", action="store_true", help="also write each clip as an animated GIF beside the PNG")
    args = parser.parse_intermixed_args(argv)
    config = load_config(args.cfg, args.overrides)
    out = Path(args.out or Path(config.out) / f"clips_{args.split}.png")
    if out.suffix != ".png":
        raise UserError(f"--out must end in .png; found {out}")

    out.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    rows = list(itertools.islice(_rows(config, args.split), args.num))
    if not rows:
        raise UserError(f"no file of the {args.split} split can be read")
    grid(rows).save(out)
    print(f"{out}: {len(rows)} clips of {len(rows[0].frames)} frames")
    if args.gif:
        for number, row in enumerate(rows):
            path = out.with_name(f"{out.stem}_{number}.gif")
            save_gif(row, path)
            print(f"{path}: {row.label}, frames {row.frames[0]} to {row.frames[-1]}")
    return 0


def _rows(config: Config, split: str) -> Iterator[Row]:
    from video_rs.experiment.build import build_records, train_dataset, view_dataset
    from video_rs.experiment.run import options_of
    from video_rs.training.recipe import order

    records = build_records(config, [split])[split]
    if split == "train":
        return train_rows(train_dataset(config, records), **order(options_of(config), records))
    return view_rows(view_dataset(config, records, config.test.clips, config.test.crops))


def train_rows(dataset: ClipDataset, **order: Any) -> Iterator[Row]:
    """The training samples of epoch 0, in the order of training, which is ``recipe.order``."""
    from video_rs.data.sampler import BatchStream

    stream = BatchStream(
        len(dataset),
        batch_size=1,
        num_steps=len(dataset) * dataset.repeats,
        seed=dataset.seed,
        **{"repeats": dataset.repeats, **order},
    )
    for (key,) in stream:
        sample = dataset[key]
        for path, reason in sample["broken"]:
            print(f"replaced {path}: {reason}", file=sys.stderr)
        yield _row(sample["clip"], sample["frames"], dataset, sample["index"])


def view_rows(dataset: ViewDataset) -> Iterator[Row]:
    """The test views of every video, in the order of the dataset."""
    for index in range(len(dataset)):
        item = dataset[index]
        if item["views"] is None:
            print(f"left out {dataset.records.path(index)}: {item['error']}", file=sys.stderr)
            continue
        crops = len(item["views"]) // len(item["frames"])
        for view, clip in enumerate(item["views"]):
            yield _row(clip, item["frames"][view // crops], dataset, index)


def _row(clip, frames, dataset: ClipDataset | ViewDataset, index: int) -> Row:
    records = dataset.records
    return Row(clip.numpy(), frames.tolist(), "; ".join(records.label_names(index)), records.path(index))


def grid(rows: list[Row]) -> Image.Image:
    """One image: a row per clip under its label, a column per frame with its number."""
    from PIL import Image, ImageDraw

    num_frames, size = rows[0].clip_THWC.shape[:2]
    tile = min(size, max(SMALLEST, WIDEST // num_frames))
    image = Image.new("RGB", (max(320, num_frames * (tile + 1)), len(rows) * (tile + HEADER)), "white")
    draw = ImageDraw.Draw(image)
    for number, row in enumerate(rows):
        top = number * (tile + HEADER)
        draw.text((2, top + 2), f"{row.label}   {row.path}", fill="black")
        for column, (pixels, frame) in enumerate(zip(row.clip_THWC, row.frames, strict=True)):
            left = column * (tile + 1)
            image.paste(Image.fromarray(pixels).resize((tile, tile)), (left, top + HEADER))
            _number(draw, frame, left, top + HEADER)
    return image


def save_gif(row: Row, path: Path, milliseconds: int = 100) -> None:
    """The clip as an endless animation, each frame with its number, for ``milliseconds``."""
    from PIL import Image, ImageDraw

    images = [Image.fromarray(pixels) for pixels in row.clip_THWC]
    for image, frame in zip(images, row.frames, strict=True):
        _number(ImageDraw.Draw(image), frame, 0, 0)
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, loop=0)


def _number(draw, frame: int, left: int, top: int) -> None:
    box = draw.textbbox((left + 2, top + 1), str(frame))
    draw.rectangle((left, top, box[2] + 1, box[3] + 1), fill="black")
    draw.text((left + 2, top + 1), str(frame), fill="white")
