"""Measure feature extraction against decoding alone, forward passes alone, and a plain loop.

python benchmarks/features.py /tmp/clips --clips 300                    # see real_clips.py
python benchmarks/features.py /tmp/clips --model resnet3d_rs_26 --views 4 data.num_frames=8
python benchmarks/features.py --tiny 10000

"decoding" reads the views of all files in this process and drops them; "forward" computes the features of as many views
in memory. Their sum is the limit. "plain loop" is the usual script for networks of timm: a DataLoader whose workers
decode with PyAV, and timm's own transform. Times are CPU seconds of all processes: on a CPU, workers and the network
share the cores. "of the limit" compares with the sum in the same round. All values are medians over --rounds.

--tiny makes that many files of 2 frames and 32x32 pixels, for a small network on one frame. It also prints the time per
file above the limit, and the memory of all processes after a tenth of the files and after the last.
"""

from __future__ import annotations

import itertools
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch
from common import environment, find_videos, memory_mb, note, process_tree, table
from torch.utils.data import DataLoader, Dataset

from video_rs.cli.common import Parser, positive, run
from video_rs.data.sources.records import Records
from video_rs.data.tools.motion import encode
from video_rs.errors import UserError
from video_rs.experiment.inputs import network_of_name
from video_rs.inference.features import extract_features
from video_rs.inference.predict import Classifier

NETWORK = ["data.test_size=224"]
TINY_NETWORK = ["model.width=0.125", "data.train_size=32", "data.short_side=32", "data.test_size=32"]
TINY_FOLDER = 1000  # files in a folder


def main(argv: list[str]) -> int:
    """Entry point."""
    parser = Parser(__doc__, prog="features.py")
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="videos, or folders of them; and key=value")
    parser.add_argument("--model", metavar="NAME", help="default: timm/resnet50; resnet_rs_26 for --tiny")
    parser.add_argument("--clips", type=positive, default=300, metavar="N", help="number of videos (default: 300)")
    parser.add_argument("--views", type=positive, metavar="K", help="of a video (default: 8; 1 for --tiny)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="views (default: 8)")
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="default: 1")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: 3")
    parser.add_argument("--tiny", type=positive, metavar="N", help="make N tiny files, and read those")
    args = parser.parse_intermixed_args(argv)
    overrides = [word for word in args.videos if "=" in word and not Path(word).exists()]
    videos = [word for word in args.videos if word not in overrides]
    if bool(videos) == bool(args.tiny):
        raise UserError("features.py: give videos, or --tiny")
    torch.set_num_threads(1)
    name = args.model or ("resnet_rs_26" if args.tiny else "timm/resnet50")
    settings = TINY_NETWORK if args.tiny and not args.model else NETWORK
    network, *_ = network_of_name(name, overrides=[*settings, *overrides])
    classifier = Classifier(network, views_per_forward=args.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        files = make_tiny(Path(folder) / "videos", args.tiny) if args.tiny else spread(find_videos(videos), args.clips)
        ways = Ways(classifier, files, args.views or (1 if args.tiny else 8), args.batch_size, Path(folder))
        report(ways, name, args.workers, args.rounds, is_tiny=bool(args.tiny))
    return 0


def spread(files: list[str], count: int) -> list[str]:
    """Return at most `count` files, evenly spaced in the list."""
    return files[:: max(1, len(files) // count)][:count]


def make_tiny(folder: Path, count: int) -> list[str]:
    """Write copies of a video of 2 frames."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    encode(folder / "first.mp4", noise, 25)
    paths = [folder / f"{number // TINY_FOLDER:03d}" / f"{number:06d}.mp4" for number in range(count)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / "first.mp4", path)
    return [str(path) for path in paths]


class Ways:
    """The functions to measure. Each one processes all files once."""

    def __init__(self, classifier: Classifier, files: list[str], views: int, batch_size: int, folder: Path) -> None:
        self.classifier, self.files, self.views, self.batch_size = classifier, files, views, batch_size
        self.records = Records(files, [0] * len(files), ["video"])
        self.dataset = classifier.chunks(self.records, views=views)
        self.out = folder / "features.npz"
        self.memory: list[float] = []  # MB, of the last call of `features`

    def decoding(self) -> None:
        for index in range(len(self.files)):
            for _ in self.dataset.chunks(index):
                pass

    def forward(self) -> None:
        views = next(self.dataset.chunks(0))["views"][:1]
        left = self.views * len(self.files)
        while left > 0:
            self.classifier.forward(views.expand(min(left, self.batch_size), *views.shape[1:]), features=True)
            left -= self.batch_size

    def features(self, workers: int) -> None:
        self.memory, done = [], itertools.count(1)

        def on_rows(rows: object) -> None:
            if next(done) in (len(self.files) // 10, len(self.files)):
                self.memory.append(memory_mb(process_tree()))

        options = {"workers": workers, "overwrite": True, "on_rows": on_rows}
        extract_features(self.classifier, self.records, self.out, views=self.views, **options)

    def plain_loop(self, name: str, workers: int) -> None:
        import timm

        network = timm.create_model(name.removeprefix("timm/"), num_classes=0).eval()
        size = self.classifier.data_config.test_size
        settings = timm.data.resolve_data_config({"input_size": (3, size, size)}, model=network)
        transform = timm.data.create_transform(**settings)
        batch = max(1, self.batch_size // self.views)
        rows = []
        with torch.no_grad():
            for clips_NTCHW in DataLoader(Frames(self.files, self.views, transform), batch, num_workers=workers):
                rows.append(network(clips_NTCHW.flatten(0, 1)).unflatten(0, clips_NTCHW.shape[:2]).mean(1))
        np.savez(self.out, torch.cat(rows).numpy())


class Frames(Dataset):
    """Evenly spaced frames of videos, as float32 ``[T, C, H, W]``."""

    def __init__(self, files: list[str], count: int, transform: Callable) -> None:
        self.files, self.count, self.transform = files, count, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with av.open(self.files[index]) as container:
            frames = list(container.decode(video=0))
        kept = np.linspace(0, len(frames) - 1, self.count).round().astype(int)
        return torch.stack([self.transform(frames[i].to_image()) for i in kept])


def report(ways: Ways, name: str, workers: int, rounds: int, is_tiny: bool) -> None:
    """Print the table."""
    turns: dict[str, Callable[[], None]] = {
        "decoding": ways.decoding,
        "forward": ways.forward,
        "features, 0 workers": lambda: ways.features(0),
        f"features, {workers} workers": lambda: ways.features(workers),
    }
    if name.startswith("timm/") and not is_tiny:
        turns[f"plain loop, {workers} workers"] = lambda: ways.plain_loop(name, workers)
    found: dict[str, list[tuple[float, float]]] = {turn: [] for turn in turns}
    ways.classifier.forward(next(ways.dataset.chunks(0))["views"], features=True)  # warm up
    memory = []
    for number in range(rounds):
        for turn, function in turns.items():
            found[turn].append(timed(function))
            memory = ways.memory if turn.endswith("workers") and "features" in turn else memory
        note(f"round {number + 1} of {rounds} done")
    count, size = len(ways.files), ways.classifier.data_config.test_size
    limits = [decoding[1] + forward[1] for decoding, forward in zip(found["decoding"], found["forward"])]
    print(environment())
    frames = ways.classifier.data_config.num_frames
    print(f"{name}; {count} videos, {ways.views} views of {frames} x {size}^2, batches of {ways.batch_size} views")
    print(table(["part", "seconds", "CPU s", "CPU ms a video", "of the limit"], list(_rows(found, limits, count))))
    if is_tiny:
        for turn in list(found)[2:]:
            above = median((cpu - limit) / count for (_, cpu), limit in zip(found[turn], limits))
            print(f"{turn}: {1000 * above:.2f} ms a file above decoding and forward")
        print(f"memory after {count // 10} files {memory[0]:.0f} MB, after {count} files {memory[-1]:.0f} MB")


def _rows(found: dict[str, list[tuple[float, float]]], limits: list[float], count: int) -> Iterator[list[str]]:
    for turn, times in found.items():
        seconds, cpu = (median(values) for values in zip(*times))
        ratio = median(used / limit for (_, used), limit in zip(times, limits))
        yield [turn, f"{seconds:.1f}", f"{cpu:.1f}", f"{1000 * cpu / count:.1f}", f"{ratio:.2f}"]


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds and the CPU seconds of a call, with its ended processes."""
    begin, cpu = time.monotonic(), _cpu()
    function()
    return time.monotonic() - begin, _cpu() - cpu


def _cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
