"""The effect of preparing a dataset: bytes, PSNR and time per training clip, before and after.

python benchmarks/prepare.py --videos /data/k400/val
python benchmarks/prepare.py --videos /data/k400/val --short-side 256 --crf 20 --gop 16 --out docs

Each file is re-encoded as by video-rs prepare. PSNR (RGB, mean over sampled frames) is against the source at the size
of the copy, so it includes the loss of the encoder and the difference between two scalers. "ms a clip" is the CPU time
of one training clip (ClipDataset, TrainTransform) in this process, one thread: open, decode from a random start, crop,
resize, flip; the median over --rounds of the mean over the files. Files before and after alternate. --out FOLDER also
writes prepare.md there.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from common import environment, find_videos, missing, note, table, with_copies

from video_rs.cli.common import Parser, positive, run
from video_rs.data.clip_datasets import ClipDataset
from video_rs.data.clips import TemporalSampling
from video_rs.data.sampler import SampleKey
from video_rs.data.sources.records import Records
from video_rs.data.tools.encode import Settings, encode_video
from video_rs.data.transforms.crops import TrainTransform
from video_rs.data.video.decode import open_video
from video_rs.errors import MediaError, UserError

LOOKED_AT = 20  # frames per file


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    settings = Settings(args.short_side, args.crf, args.gop)
    files = find_videos(args.videos)
    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)  # fail before the work starts
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        pairs = make_pairs(files, Path(folder), settings)
        seconds = time.process_time() - begin
        quality = [psnr(*pair) for pair in pairs]
        before, after = (list(paths) for paths in zip(*pairs))
        sizes = [sum(map(os.path.getsize, paths)) / 1e6 for paths in (before, after)]
        rows = [["MB", *(f"{size:.2f}" for size in sizes), f"{sizes[1] / sizes[0]:.2f}"]]
        for decoder in ["pyav"] if missing("decord") else ["pyav", "decord"]:
            try:
                times = clip_times(before, after, decoder, args)
            except UserError as error:
                note(f"no row for {decoder}: {error}")
            else:
                rows.append([f"ms a clip, {decoder}", *(f"{ms:.1f}" for ms in times), f"{times[1] / times[0]:.2f}"])
    lines = [
        environment(),
        f"{len(pairs)} files; short side {settings.short_side}, crf {settings.crf}, a keyframe every {settings.gop} "
        f"frames; clips of {args.frames} frames, stride {args.stride}, {args.size} pixels; {args.rounds} rounds",
        table(["", "before", "after", "after / before"], rows),
        f"PSNR {np.mean(quality):.1f} dB, lowest file {min(quality):.1f}; {seconds / len(pairs):.1f} s of CPU a file",
    ]
    text = "\n\n".join(lines)
    print(text)
    if args.out:
        (Path(args.out) / "prepare.md").write_text(f"`{shlex.join(['python', *sys.argv])}`\n\n{text}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--videos", nargs="+", required=True, metavar="FILE|FOLDER", help="folders with subfolders")
    numbers = {"short-side": 256, "crf": 20, "gop": 16, "frames": 32, "stride": 2, "size": 224, "rounds": 5}
    for name, default in numbers.items():
        help = "default: %(default)s"
        parser.add_argument(f"--{name}", type=positive, default=default, metavar="N", help=help)
    parser.add_argument("--out", metavar="FOLDER", help="write prepare.md there")
    return parser


def make_pairs(files: list[str], folder: Path, settings: Settings) -> list[tuple[str, str]]:
    """Return (file, re-encoded file) pairs of the readable files."""

    def copy_of(number: int, path: str) -> str:
        encode_video(path, copy := str(folder / f"{number}.mp4"), settings)
        return copy

    return with_copies(files, copy_of)


def psnr(source: str, copy: str) -> float:
    """Return the PSNR in dB over frames spread over the video."""
    with open_video(source, "pyav") as before, open_video(copy, "pyav") as after:
        frames = np.unique(np.linspace(0, after.num_frames - 1, LOOKED_AT).astype(int))
        found = after.read(frames)
        height, width = found.shape[1:3]

        def same_part(h: int, w: int) -> tuple[int, int, int, int]:  # an odd row or column is cut off, not scaled
            return (0, 0, height, width) if 0 <= h - height < 2 and 0 <= w - width < 2 else (0, 0, h, w)

        expected = before.read(frames, crop=same_part, size=(height, width))
    return float(10 * np.log10(255**2 / (expected.double() - found.double()).square().mean().item()))


def clip_times(before: list[str], after: list[str], decoder: str, args: argparse.Namespace) -> list[float]:
    """Return CPU ms per clip before and after. Raise UserError if the decoder cannot read one of the files."""
    times: list[list[float]] = [[], []]
    for number in range(args.rounds + 1):
        for row, paths in zip(times, (before, after)):
            row.append(round_of_clips(paths, decoder, number, args))
    return [median(row[1:]) for row in times]  # the first round imports packages


def round_of_clips(paths: list[str], decoder: str, number: int, args: argparse.Namespace) -> float:
    records = Records(paths, [0] * len(paths), ["video"])
    sampling = TemporalSampling(args.frames, args.stride)
    dataset = ClipDataset(records, sampling=sampling, transform=TrainTransform(args.size), seed=0, decoder=decoder)
    begin = time.process_time()
    for index in range(len(paths)):
        batch = dataset.__getitems__([SampleKey(number, index, 0)])
        if batch["broken"]:
            raise MediaError(": ".join(batch["broken"][0]))
    return 1000 * (time.process_time() - begin) / len(paths)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
