"""Many distinct two-second clips cut from a few recorded videos: a set for load and usability tests.

python benchmarks/real_clips.py shared/videos/*.m* /tmp/clips --clips 300
video-rs train --cfg finetune_rs50.yaml data.root=/tmp/clips data.train=clips.csv

Each video becomes a class folder. Clips differ in offset, crop and speed (half to double). ``clips.csv`` has the
columns path, label and source. A source is five seconds of a video, and no clip crosses its end: splits by source share
no frame. The clips of a class come from one recording: no accuracy on them says anything about a network.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from video_rs.cli.common import Parser, positive, run
from video_rs.data.tools.motion import encode
from video_rs.data.tools.pool import Beat, watched_calls
from video_rs.data.video.decode import open_video, probe
from video_rs.errors import MachineError, MediaError, UserError
from video_rs.files import write_csv

SECONDS, FPS, SOURCE_SECONDS = 2, 25, 5
SIZE = (240, 320)  # height and width of a clip, pixels


class Clip(NamedTuple):
    """One clip to cut. `start` is in seconds; `crop` is (scale, vertical place, horizontal place), each 0 to 1."""

    video: str
    number: int
    start: float
    speed: float
    crop: tuple[float, float, float]

    @property
    def label(self) -> str:
        return Path(self.video).stem

    @property
    def path(self) -> str:
        return f"{self.label}/{self.number:05d}.mp4"

    @property
    def source(self) -> str:
        return f"{self.label}_{int(self.start // SOURCE_SECONDS):03d}"


def main(argv: list[str]) -> int:
    parser = Parser(__doc__, prog="real_clips.py")
    parser.add_argument("videos", nargs="+", help="recorded videos, at least two seconds each; no two of one name")
    parser.add_argument("out", help="a new folder")
    parser.add_argument("--clips", type=positive, default=300, help="how many in all (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of offsets, crops and speeds (default: 0)")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.exists():
        raise UserError(f"{out}: already exists; name a new folder")
    videos = _usable(args.videos)
    clips = schedule(videos, args.clips, args.seed)
    for video in videos:
        (out / Path(video).stem).mkdir(parents=True)
    for clip, problem in watched_calls(partial(cut, out=out), clips, os.cpu_count() or 1, timeout=0):
        if problem is not None:
            raise MachineError(f"{clip.video}: {problem}")
    write_csv(out / "clips.csv", ["path", "label", "source"], ([clip.path, clip.label, clip.source] for clip in clips))
    print(
        f"{len(clips)} clips of {len(videos)} videos, {len({clip.source for clip in clips})} sources: {out}/clips.csv"
    )
    return 0


def _usable(paths: list[str]) -> dict[str, float]:
    """Return the duration in seconds of every video that decodes to its end; the others are named on stderr."""
    durations: dict[str, float] = {}
    for path in paths:
        try:
            duration = probe(path).duration
            if duration < SECONDS:
                raise MediaError(f"{path}: shorter than {SECONDS} seconds")
            with open_video(path) as video:
                for _ in video.stream(np.arange(video.num_frames), short_side=32):
                    pass
        except MediaError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        durations[path] = duration
    if not durations:
        raise UserError("no usable video: give recorded videos of at least two seconds")
    if len({Path(path).stem for path in durations}) < len(durations):
        raise UserError("two videos have one name: their class folders would be one; rename one of them")
    return durations


def schedule(durations: dict[str, float], num_clips: int, seed: int) -> list[Clip]:
    """Draw distinct clips, the videos in turn. A clip lies within one source."""
    rng = np.random.default_rng(seed)
    clips = []
    for i in range(num_clips):
        video = list(durations)[i % len(durations)]
        ends = np.arange(SOURCE_SECONDS, durations[video] + SOURCE_SECONDS, SOURCE_SECONDS).clip(max=durations[video])
        starts = np.arange(len(ends)) * SOURCE_SECONDS
        source = rng.choice(np.flatnonzero(ends - starts >= SECONDS / 2))
        begin, end = starts[source], ends[source]
        speed = float(rng.uniform(0.5, min(2.0, (end - begin) / SECONDS)))
        start = float(rng.uniform(begin, end - SECONDS * speed))
        crop = (float(rng.uniform(0.6, 1.0)), float(rng.random()), float(rng.random()))
        clips.append(Clip(video, i, start, speed, crop))
    return clips


def cut(clip: Clip, beat: Beat, out: Path) -> None:
    """Write one clip."""
    with open_video(clip.video) as video:
        seconds = clip.start + np.arange(SECONDS * FPS) / FPS * clip.speed
        indices = np.minimum((seconds * video.fps).astype(int), video.num_frames - 1)
        encode(out / clip.path, video.read(indices, crop=partial(_box, clip.crop), size=SIZE).numpy(), FPS)


def _box(crop: tuple[float, float, float], height: int, width: int) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) in pixels of a crop of the clips' shape."""
    scale, down, right = crop
    unit = scale * min(height / SIZE[0], width / SIZE[1])
    box_height, box_width = int(SIZE[0] * unit), int(SIZE[1] * unit)
    return int((height - box_height) * down), int((width - box_width) * right), box_height, box_width


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
