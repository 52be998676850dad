"""CPU time of one training clip as RGB, and as YUV 4:2:0 that a device would convert.

python benchmarks/pixel_format.py --videos /data/k400/val
python benchmarks/pixel_format.py --videos arm_wrestling.mp4 k400_sample.mp4 --clips 32

  decode                   decode the frames of a clip only: the lower limit
  RGB of the crop          as in training: crop and convert in one pass, resize to --size
  YUV of the crop          copy the planes of the crop; the device would convert colours and resize
  YUV of the frame         copy whole frames, so that clips of a batch can have one shape

PyAV, one thread, random crops and frames as in training, the same for all ways, which alternate clip by clip. MB is the
size of a clip on its way to the device. The last column is the largest possible gain for the host.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import mean

import av
import numpy as np
import torch
from common import environment, find_videos, note, table

from video_rs.cli.common import Parser, positive, run
from video_rs.data.clip_datasets import ClipDataset
from video_rs.data.clips import TemporalSampling
from video_rs.data.sampler import BatchStream
from video_rs.data.sources.records import Records
from video_rs.data.transforms.crops import TrainTransform, resize
from video_rs.data.video.pyav import PyAVReader
from video_rs.data.video.stream_index import PLAIN_FORMATS, best_stream, open_container
from video_rs.errors import MediaError
from video_rs.rng import keyed_rng


def main(argv: list[str]) -> int:
    """Entry point."""
    parser = Parser(__doc__, prog="pixel_format.py")
    parser.add_argument("--videos", nargs="+", required=True, help="files or folders")
    parser.add_argument("--clips", type=positive, default=32)
    parser.add_argument("--frames", type=positive, default=32)
    parser.add_argument("--size", type=positive, default=224, help="pixels")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    paths = usable(find_videos(args.videos))
    records = Records(paths, [0] * len(paths), ["video"])
    transform, sampling = TrainTransform(args.size), TemporalSampling(args.frames, 2)
    dataset = ClipDataset(records, sampling=sampling, transform=transform, seed=0, decoder="pyav")
    stream = BatchStream(len(paths), batch_size=args.clips, num_steps=1, seed=0)
    ways = {"decode": decoded, "RGB of the crop": rgb, "YUV of the crop": yuv_crop, "YUV of the frame": yuv_frame}
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    for key in next(iter(stream)):
        indices = dataset[key]["frames"]
        for name, way in ways.items():
            reader = PyAVReader(paths[key.index])
            box = box_of(key, transform)
            start = time.process_time()
            size = way(reader, indices, box, args.size)
            found[name].append((time.process_time() - start, size))
            reader.close()
    print(environment())
    print(f"{args.clips} clips of {args.frames} frames, stride 2, {args.size} pixels, of {len(paths)} files")
    now = mean(seconds for seconds, _ in found["RGB of the crop"])
    rows = []
    for name, values in found.items():
        seconds, size = (mean(column) for column in zip(*values, strict=True))
        rows.append([name, f"{1e3 * seconds:.1f}", f"{size / 1e6:.2f}", f"{100 * (seconds / now - 1):+.1f} %"])
    print(table(["way", "CPU ms a clip", "MB a clip", "against RGB"], rows))
    return 0


def usable(paths: list[str]) -> list[str]:
    """Return the files with 4:2:0 frames that need no rotation."""
    kept = []
    for path in paths:
        try:
            with open_container(path) as container:
                frame = next(container.decode(best_stream(container, path)), None)
        except (MediaError, av.FFmpegError) as error:
            note(f"left out {path}: {error}")
            continue
        if frame is None or frame.format.name not in PLAIN_FORMATS or frame.rotation:
            note(f"left out {path}: not plain 4:2:0")
        else:
            kept.append(path)
    return kept


ChooseBox = Callable[[int, int], tuple[int, int, int, int]]


def box_of(key: tuple, transform: TrainTransform) -> ChooseBox:
    """Return the crop of a clip, the same for all ways."""
    return lambda height, width: transform.box(height, width, keyed_rng(0, "pixel_format", *key))


def decoded(reader: PyAVReader, indices: np.ndarray, box: ChooseBox, size: int) -> int:
    for _ in reader._chosen(indices):
        pass
    return 0


def rgb(reader: PyAVReader, indices: np.ndarray, box: ChooseBox, size: int) -> int:
    out, done = torch.empty(len(indices), size, size, 3, dtype=torch.uint8), 0
    for piece in reader.frames(indices, box):
        out[done : done + len(piece)] = resize(piece, size, size)
        done += len(piece)
    return out.numel()


def yuv_crop(reader: PyAVReader, indices: np.ndarray, box: ChooseBox, size: int) -> int:
    return _planes(reader, indices, box)


def yuv_frame(reader: PyAVReader, indices: np.ndarray, box: ChooseBox, size: int) -> int:
    return _planes(reader, indices, lambda height, width: (0, 0, height, width))


def _planes(reader: PyAVReader, indices: np.ndarray, box: ChooseBox) -> int:
    out: list[np.ndarray] = []
    for i, frame in enumerate(reader._chosen(indices)):
        top, left, height, width = box(frame.height, frame.width)
        for number, plane in enumerate(frame.planes):
            share = 2 if number else 1
            rows = slice(top // share, -(-(top + height) // share))
            columns = slice(left // share, -(-(left + width) // share))
            pixels = _pixels(plane)[rows, columns]
            if not i:
                out.append(np.empty((len(indices), *pixels.shape), np.uint8))
            out[number][i] = pixels
    return sum(plane.nbytes for plane in out)


def _pixels(plane: av.video.plane.VideoPlane) -> np.ndarray:
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
