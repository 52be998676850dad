"""Multi-view testing: one decode per video, compared with opening the file for each view or clip.

python benchmarks/multiview.py --video /data/k400/val/abseiling/0wR5jVB-WPk_000417_000427.mp4
python benchmarks/multiview.py --video clip.mp4 --hour        # also memory on a one-hour video

The 30 views are 10 clips of 32 frames (stride 2) times 3 crops of 256 pixels. "per view" and "per clip" do what a
dataset of single views or single clips does: open the file, decode the clip, resize, crop. "once" is
video_rs.data.clip_datasets.ViewDataset. All run alternately in one thread with the same decoder; times are medians over
--rounds.

--hour makes a one-hour video (320x240, 25 frames/s) and reads it in a new process for each row: all 30 views, and
Classifier.predict_windows (a window every 10 s) with a trivial network. --hour 0.1 makes six minutes.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from common import environment, find_videos, fresh_process, missing, note, peak_rss_mb, table

from video_rs.cli.common import Parser, positive, run
from video_rs.data.clip_datasets import ViewDataset
from video_rs.data.clips import TemporalSampling
from video_rs.data.sources.records import Records
from video_rs.data.transforms.crops import ViewTransform
from video_rs.data.video.decode import open_video
from video_rs.data_config import DataConfig
from video_rs.errors import MediaError, UserError
from video_rs.inference.predict import Classifier

RATE, HEIGHT, WIDTH, SECONDS = 25, 240, 320, 10  # seconds of the long video that repeat


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    files = find_videos(args.video)
    torch.set_num_threads(1)
    print(f"{environment()}\n")
    decoders = ["pyav", "decord"]
    if reason := missing("decord"):
        note(f"no row for decord: {reason}")
        decoders.remove("decord")
    views = Views(args.frames, args.stride, args.clips, args.size)
    rows, identical = [], True
    for path, decoder in itertools.product(files, decoders):
        try:
            row, same = compare(path, decoder, views, args.rounds)
        except MediaError as error:
            note(f"no row for {decoder}: {error}")
            continue
        rows.append(row)
        identical &= same
    if not rows:
        raise UserError("no video could be read")
    columns = ["per view", "per clip", "once", "view / once", "clip / once"]
    print(f"{3 * args.clips} views ({args.clips} clips x 3 crops of {args.size} pixels), CPU ms a video:\n")
    print(table(["video", "decoder", *columns], rows), end="\n\n")
    print(f"pixels of the three ways: {'identical' if identical else 'DIFFERENT'}")
    if args.hour:
        print(f"\n{long_video(args.hour, views, decoders)}")
    return 0 if identical else 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--video", nargs="+", required=True, metavar="FILE", help="videos, or folders of them")
    parser.add_argument("--clips", type=positive, default=10, metavar="N", help="default: %(default)s")
    parser.add_argument("--frames", type=positive, default=32, metavar="N", help="of a clip (default: %(default)s)")
    parser.add_argument("--stride", type=positive, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--size", type=positive, default=256, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--hour", type=_hours, nargs="?", const=1.0, metavar="HOURS", help="memory with a long video (default: 1 hour)"
    )
    return parser


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0
    if not 0.01 <= hours <= 10:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0.01 and 10 hours")
    return hours


class Views:
    """Three ways to read the views of a video, uint8 ``[clips * 3, T, size, size, 3]``."""

    def __init__(self, frames: int, stride: int, clips: int, size: int) -> None:
        self.sampling, self.clips = TemporalSampling(frames, stride), clips
        self.transform = ViewTransform(size, size, crops=3)
        self.ways = {"per view": self.per_view, "per clip": self.per_clip, "once": self.once}

    def per_view(self, path: str, decoder: str) -> torch.Tensor:
        views = itertools.product(range(self.clips), range(3))
        return torch.stack([self._crops(path, decoder, clip)[crop] for clip, crop in views])

    def per_clip(self, path: str, decoder: str) -> torch.Tensor:
        return torch.cat([self._crops(path, decoder, clip) for clip in range(self.clips)])

    def once(self, path: str, decoder: str) -> torch.Tensor:
        records = Records([path], [0], ["video"])
        options = {"sampling": self.sampling, "clips": self.clips, "transform": self.transform}
        return ViewDataset(records, **options, decoder=decoder)[0]["views"]

    def _crops(self, path: str, decoder: str, clip: int) -> torch.Tensor:
        with open_video(path, decoder) as video:
            indices = self.sampling.even_clips(video.num_frames, self.clips, video.times)[clip]
            return self.transform(video.read(indices, short_side=self.transform.short_side))


def compare(path: str, decoder: str, views: Views, rounds: int) -> tuple[list[str], bool]:
    """Return a row of the table, and True if all ways gave the same pixels."""
    times: dict[str, list[float]] = {name: [] for name in views.ways}
    expected = views.once(path, decoder)  # also warms up the file cache and the libraries
    same = True
    for _ in range(rounds):
        for name, way in views.ways.items():
            begin = time.process_time()
            result = way(path, decoder)
            times[name].append(1000 * (time.process_time() - begin))
            same &= torch.equal(result, expected)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [f"{medians[name] / medians['once']:.1f}" for name in ("per view", "per clip")]
    return [Path(path).name, decoder, *(f"{value:.0f}" for value in medians.values()), *ratios], same


def long_video(hours: float, views: Views, decoders: list[str]) -> str:
    """Return a table of the memory needed to read a long video."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = make_long_video(Path(folder) / "long.mp4", hours)
        jobs: list[tuple[str, Callable[..., Any], tuple]] = [
            (f"{3 * views.clips} views, {decoder}", views.once, (path, decoder)) for decoder in decoders
        ]
        jobs.append(("predict_windows", windows, (path,)))
        for name, function, arguments in jobs:
            with fresh_process() as process:
                before, peak, seconds = process.submit(peak_of, function, *arguments).result()
            rows.append([name, f"{before:.0f}", f"{peak:.0f}", f"{seconds:.1f}"])
    header = [f"{hours:g} h of {WIDTH}x{HEIGHT} at {RATE} frames/s", "RSS before (MB)", "peak RSS (MB)", "seconds"]
    return table(header, rows)


def peak_of(function: Callable[..., Any], *arguments: Any) -> tuple[float, float, float]:
    """Return the peak RSS in MB before and after a call, and its seconds. Call it in a new process."""
    torch.set_num_threads(1)
    before, begin = peak_rss_mb(), time.perf_counter()
    function(*arguments)
    return before, peak_rss_mb(), time.perf_counter() - begin


class Mean(torch.nn.Module):
    """A trivial network, to measure everything around it."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.data_config, self.head = DataConfig(), torch.nn.Linear(3, self.num_classes)

    def forward(self, clips_NCTHW: torch.Tensor) -> torch.Tensor:
        return self.head(clips_NCTHW.mean(dim=(2, 3, 4)))


def windows(path: str) -> None:
    for _ in Classifier(Mean()).predict_windows(path, 10):
        pass


def make_long_video(path: Path, hours: float) -> str:
    """Write a long video by repeating the packets of a few seconds; this avoids encoding an hour."""
    repeats = max(1, round(hours * 3600 / SECONDS))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, RATE)
        stream.options = {"g": str(RATE), "bf": "0", "preset": "veryfast"}
        packets = []
        for number in range(RATE * SECONDS):
            ramps = [x + 3 * number, y + 2 * number, x + y + number]  # every pixel changes
            pixels = np.stack([ramp % 256 for ramp in ramps], axis=-1).astype(np.uint8)
            packets += stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
        packets += stream.encode()
        contents = [(bytes(packet), packet.is_keyframe) for packet in packets]
        for number, (content, is_keyframe) in enumerate(itertools.chain(*itertools.repeat(contents, repeats))):
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, RATE), is_keyframe
            packet.pts = packet.dts = number
            container.mux(packet)
    return str(path)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
