"""Generate the motion dataset: small videos of eight classes that differ only in motion.

A textured shape translates (four directions), rotates (two) or zooms (two) over a textured, drifting, noisy background;
64x64 pixels, 24 frames, H.264. A single frame contains no information on the class:

* Everything except the motion is drawn from distributions that all classes share.
* The motion is symmetric about the middle of the video. Left and right, clockwise and counter-clockwise, in and out
  have the same frames in reverse order.
* The shape moves on a torus and its pose is uniform, so position and angle are uniform in every frame. A shape that
  does not zoom has the size of a zooming shape at a random time.

Each file depends only on (seed, split, class, number).
"""

import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from video_rs.data.tools.encode import h264_writer
from video_rs.data.tools.pool import Beat, Lost, Progress, no_progress, watched_calls
from video_rs.errors import MachineError, UserError
from video_rs.files import atomic_write, read_settings, refuse_links, write_csv, write_json
from video_rs.rng import keyed_rng

SPLITS = ("train", "val", "test")
STAMP = "motion.json"
FPS = 12

# The direction of (x, y, angle, log size) for each class. y points down, and an increasing angle rotates clockwise.
_DIRECTIONS = {
    "rotate_clockwise": (0, 0, 1, 0),
    "rotate_counterclockwise": (0, 0, -1, 0),
    "translate_down": (0, 1, 0, 0),
    "translate_left": (-1, 0, 0, 0),
    "translate_right": (1, 0, 0, 0),
    "translate_up": (0, -1, 0, 0),
    "zoom_in": (0, 0, 0, 1),
    "zoom_out": (0, 0, 0, -1),
}
CLASSES = tuple(_DIRECTIONS)


class Item(NamedTuple):
    """One video of the dataset, of the class `name`."""

    split: str
    name: str
    number: int

    @property
    def path(self) -> str:
        """Return the path relative to the root of the dataset."""
        return f"{self.split}/{self.name}/{self.number:05d}.mp4"


def trajectory(name: str, frames: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return the pose of the shape in every frame of a video of class ``name``.

    Returns:
        x, y (pixels, modulo ``size``), angle (radians) and radius (pixels), each ``[frames]``.
    """
    time = np.arange(frames) - (frames - 1) / 2
    x, y, angle = rng.uniform((0, 0, 0), (size, size, 2 * np.pi))
    speed = rng.uniform((0.02, 0.08), (0.045, 0.18))  # heights per frame; radians per frame
    growth = rng.uniform(0.03, 0.05)  # of log size per frame
    log_radius = np.log(size) + rng.uniform(np.log(0.2), np.log(0.28))
    moment = rng.choice(time)  # time whose size is used if the shape does not zoom

    dx, dy, turn, zoom = _DIRECTIONS[name]
    return (
        (x + dx * speed[0] * size * time) % size,
        (y + dy * speed[0] * size * time) % size,
        angle + turn * speed[1] * time,
        np.exp(log_radius + growth * (zoom * time if zoom else moment * np.ones(frames))),
    )


def render(name: str, frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the frames of one video of class ``name``: uint8 ``[frames, size, size, 3]``, RGB."""
    x, y, angle, radius = (v.astype(np.float32)[:, None, None] for v in trajectory(name, frames, size, rng))
    rows, columns = np.mgrid[:size, :size].astype(np.float32)[:, None]
    right, down = ((columns - x + size / 2) % size - size / 2, (rows - y + size / 2) % size - size / 2)

    # an outline with lobes and a texture that moves with it, in coordinates in which the radius of the shape is 1
    lobes, depth = rng.integers(2, 5), rng.uniform(0.25, 0.5)
    u = (np.cos(angle) * right + np.sin(angle) * down) / radius
    v = (np.cos(angle) * down - np.sin(angle) * right) / radius
    outline = (1 + depth * np.cos(lobes * np.arctan2(v, u))) / (1 + depth)
    inside = np.clip((outline - np.hypot(u, v)) * radius + 0.5, 0, 1)[..., None]
    shape_texture = _texture(u, v, waves=rng.normal(0, 3.5, (4, 2)), rng=rng)

    # the background drifts independently, more slowly than the shape
    time = np.arange(frames, dtype=np.float32)[:, None, None]
    drift_x, drift_y = rng.normal(0, 0.004 * size, 2).astype(np.float32)  # pixels per frame
    ground_u, ground_v = (2 * (columns + drift_x * time) / size, 2 * (rows + drift_y * time) / size)
    ground_texture = _texture(ground_u, ground_v, waves=rng.normal(0, 6, (4, 2)), rng=rng)

    # bright on dark: with random colours, a small network is still at chance after three epochs
    ground, shape = rng.uniform(20, 110, 3), rng.uniform(130, 235, 3)
    ground_contrast, shape_contrast = rng.uniform(10, 40, (2, 3)).astype(np.float32)
    behind = ground.astype(np.float32) + ground_texture[..., None] * ground_contrast
    before = shape.astype(np.float32) + shape_texture[..., None] * shape_contrast
    pixels = behind + inside * (before - behind)
    pixels += np.float32(rng.uniform(2, 12)) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _texture(u: np.ndarray, v: np.ndarray, waves: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a sum of plane waves over the coordinates ``u`` and ``v``, roughly within [-1, 1]."""
    phases = rng.uniform(0, 2 * np.pi, len(waves))
    total = sum(np.sin(a * u + b * v + c) for (a, b), c in zip(waves.astype(np.float32), phases.astype(np.float32)))
    return total / np.float32(np.sqrt(len(waves)))


def encode(path: Path, frames_THWC: np.ndarray, fps: int = FPS) -> None:
    """Write uint8 RGB frames to an H.264 mp4 file atomically. The bytes depend only on the frames and on libx264."""
    # libx264's macroblock tree is not deterministic on frames this small
    options = {"preset": "veryfast", "crf": "20", "g": "12", "mbtree": "0"}
    height, width = frames_THWC.shape[1:3]
    with atomic_write(path) as file, h264_writer(file.name, height, width, fps, options) as (container, stream):
        for image in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))


def items(counts: dict[str, int]) -> Iterator[Item]:
    """Yield all videos of a dataset with ``counts`` videos per split. Class sizes differ by at most one."""
    for split, count in counts.items():
        for label, name in enumerate(CLASSES):
            for number in range(count // len(CLASSES) + (label < count % len(CLASSES))):
                yield Item(split, name, number)


def make(
    root: str | Path,
    *,
    train: int = 3600,
    val: int = 400,
    test: int = 400,
    size: int = 64,
    frames: int = 24,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = no_progress,
) -> bool:
    """Generate the missing files of the dataset, ``root/{train,val,test}/<class>/<number>.mp4``.

    Args:
        root: folder to write into.
        train, val, test: number of videos per split, over all classes.
        size: height and width in pixels, an even number.
        frames: number of frames per video.
        seed: seed of all files. They do not depend on the number of workers.
        workers: number of processes; None for one per processor.
        progress: called with the finished videos and their number; returns an iterator that displays the progress.

    Returns:
        False if the dataset was complete already.

    Raises:
        UserError: ``root`` contains other files or a dataset with other parameters, or a parameter is out of range.
    """
    root = Path(root)
    counts = {"train": train, "val": val, "test": test}
    _check(size, frames, seed)
    if min(counts.values()) < 0 or (workers is not None and workers < 1):
        raise UserError(f"impossible motion dataset: {counts} (0 or more each), workers={workers} (1 or more)")
    stamp = {"version": 1, **counts, "size": size, "frames": frames, "seed": seed}
    if read_settings(root / STAMP, stamp).get("complete"):
        return False

    refuse_links(root, *(root / split / name for split in SPLITS for name in CLASSES))
    for split in SPLITS:
        for name in CLASSES:
            (root / split / name).mkdir(parents=True, exist_ok=True)
    write_json(root / STAMP, stamp | {"complete": False})
    todo = [item for item in items(counts) if not (root / item.path).exists()]
    write = partial(_write, root=root, size=size, frames=frames, seed=seed)
    with closing(watched_calls(write, todo, min(workers or os.cpu_count() or 1, len(todo)), timeout=0)) as calls:
        for item, result in progress(calls, len(todo)):
            if isinstance(result, Lost):
                raise MachineError(f"{root / item.path}: {result.reason}; start the command again")
    write_json(root / STAMP, stamp | {"complete": True})
    return True


def make_long(path: str | Path, *, shots: int = 2, size: int = 64, frames: int = 24, seed: int = 0) -> Path:
    """Generate one video that shows all classes, one after the other in a random order.

    Args:
        path: file to write, ``.mp4``.
        shots: number of shots of each class. Each shot is one video of the dataset: `frames` frames of a new shape.
        size, frames, seed: as for :func:`make`.

    Returns:
        The csv file beside it, with the columns of a list: path, start, end (seconds) and label of each class.

    Raises:
        UserError: a file exists, the path cannot be written, or a parameter is out of range.
    """
    path = Path(path)
    table = path.with_suffix(".csv")
    if path.suffix.lower() != ".mp4":
        raise UserError(f"{path}: a long video is an mp4 file; use a name that ends in .mp4")
    for file in (path, table):
        if file.exists():
            raise UserError(f"{file} exists; delete it, or give another name")
    _check(size, frames, seed)
    rng, duration = keyed_rng(seed, "long motion"), shots * frames / FPS
    order = rng.permutation(CLASSES).tolist()
    encode(path, np.concatenate([render(name, frames, size, rng) for name in order for _ in range(shots)]))
    rows = ((path.name, f"{i * duration:.3f}", f"{(i + 1) * duration:.3f}", name) for i, name in enumerate(order))
    write_csv(table, ("path", "start", "end", "label"), rows)
    return table


def _check(size: int, frames: int, seed: int) -> None:
    if size % 2 or size < 16 or frames < 2:
        raise UserError(f"impossible motion videos: size={size} (even, >= 16), frames={frames} (>= 2)")
    if not 0 <= seed < 2**32:
        raise UserError(f"impossible motion videos: seed={seed} (0 to 2**32 - 1)")


def _write(item: Item, beat: Beat, *, root: Path, size: int, frames: int, seed: int) -> None:
    rng = keyed_rng(seed, "motion", SPLITS.index(item.split), CLASSES.index(item.name), item.number)
    encode(root / item.path, render(item.name, frames, size, rng))
