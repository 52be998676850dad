"""Draw clips as images: training samples and test views, with labels and frame numbers."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from video_rs import terminal
from video_rs.data.clip_datasets import ClipDataset, ViewDataset
from video_rs.data.sampler import BatchStream
from video_rs.files import atomic_write

HEADER = 16  # pixels above each row, for the label
MAX_WIDTH = 2400  # pixels; frames are scaled down to fit, but not below MIN_TILE
MIN_TILE = 48


class Row(NamedTuple):
    """A clip and the text above it."""

    clip_THWC: np.ndarray  # uint8
    frames: list[int]  # frame numbers in the file
    label: str
    path: str  # with the segment, if there is one


def train_rows(dataset: ClipDataset, **order: Any) -> Iterator[Row]:
    """Yield the training samples of epoch 0 in the order of training.

    Args:
        order: arguments of ``BatchStream``, see :func:`video_rs.training.recipe.order`.
    """
    options = {"batch_size": 1, "num_steps": len(dataset) * dataset.repeats, "seed": dataset.seed}
    for (key,) in BatchStream(len(dataset), **options, **{"repeats": dataset.repeats, **order}):
        sample = dataset[key]
        for path, reason in sample["broken"]:
            terminal.write(f"replaced {path}: {reason}", sys.stderr)
        yield _row(sample["clip"], sample["frames"], dataset, sample["index"])


def view_rows(dataset: ViewDataset) -> Iterator[Row]:
    """Yield the views of each video, in the order of the dataset."""
    for index in range(len(dataset)):
        item = dataset[index]
        if item["views"] is None:
            terminal.write(f"skipped {dataset.records.name(index)}: {item['error']}", sys.stderr)
            continue
        crops = len(item["views"]) // len(item["frames"])
        for view, clip in enumerate(item["views"]):
            yield _row(clip, item["frames"][view // crops], dataset, index)


def _row(clip: Tensor, frames: np.ndarray, dataset: ClipDataset | ViewDataset, index: int) -> Row:
    records = dataset.records
    return Row(clip.numpy(), frames.tolist(), "; ".join(records.label_names(index)), records.name(index))


def draw_grid(rows: Sequence[Row]) -> Image.Image:
    """Return an image with a row per clip and a column per frame, with labels and frame numbers."""
    num_frames, size = rows[0].clip_THWC.shape[:2]
    tile = min(size, max(MIN_TILE, MAX_WIDTH // num_frames))
    image = Image.new("RGB", (max(320, num_frames * (tile + 1)), len(rows) * (tile + HEADER)), "white")
    for top, row in zip(range(0, image.height, tile + HEADER), rows, strict=True):
        ImageDraw.Draw(image).text((2, top + 2), f"{row.label}   {row.path}", fill="black")
        for column, frame in enumerate(numbered_frames(row, tile)):
            image.paste(frame, (column * (tile + 1), top + HEADER))
    return image


def save_gif(row: Row, path: Path, milliseconds: int = 100) -> None:
    """Save a clip as a looping GIF that shows each frame for ``milliseconds``."""
    images = numbered_frames(row, len(row.clip_THWC[0]))
    with atomic_write(path) as file:
        images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)


def numbered_frames(row: Row, size: int) -> list[Image.Image]:
    """Return the frames of a clip as square images of ``size`` pixels, each with its number."""
    images = [Image.fromarray(pixels).resize((size, size)) for pixels in row.clip_THWC]
    for image, frame in zip(images, row.frames, strict=True):
        ImageDraw.Draw(image).text((2, 1), str(frame), fill="white", stroke_width=1, stroke_fill="black")
    return images
