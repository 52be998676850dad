"""Measure the cost of checkpoints: training steps with and without them, in one process.

python benchmarks/checkpointing.py
python benchmarks/checkpointing.py --model resnet3d_rs_50 --every 60 --rounds 3

Real steps (forward, backward, SGD, EMA) on clips of noise, on the CPU or a GPU. A round has three parts of --every
seconds: steps without a checkpoint, with one that a thread writes as in training, and with one that the steps wait for
("synchronous"). Each round starts with a different part. "of none" is the median ratio over the rounds. The last line
gives the time of the copy, of the write, and of writing and syncing as many zero bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from common import environment, note, table

from video_rs.cli.common import Parser, positive, run
from video_rs.data_config import DataConfig
from video_rs.distributed.device import select_device, select_precision, synchronize
from video_rs.models.registry import create_model
from video_rs.training.checkpointer import Checkpointer
from video_rs.training.ema import EMA
from video_rs.training.losses import CrossEntropy
from video_rs.training.optim import create
from video_rs.training.schedule import Schedule
from video_rs.training.trainer import Trainer


def main(argv: list[str]) -> int:
    """Entry point."""
    parser = Parser(__doc__, prog="checkpointing.py")
    parser.add_argument("--model", default="resnet3d_rs_26", help="a name of create_model")
    parser.add_argument("--frames", type=positive, default=8)
    parser.add_argument("--size", type=positive, default=112, help="pixels")
    parser.add_argument("--batch", type=positive, default=4)
    parser.add_argument("--every", type=positive, default=20, help="seconds from one checkpoint to the next")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args(argv)
    trainer, batch = make(args)
    for _ in range(3):
        step(trainer, batch)
    rates: dict[str, list[float]] = {"none": [], "in the background": [], "synchronous": []}
    with tempfile.TemporaryDirectory(dir=".") as folder, Checkpointer(folder, keep=1) as saver:
        copies = []
        ways = list(rates)
        for number in range(args.rounds):
            for way in ways[number % 3 :] + ways[: number % 3]:
                rates[way].append(seconds_of_steps(trainer, batch, args.every, way, saver, copies))
            note(f"round {number + 1} of {args.rounds} done")
        size = os.path.getsize(Path(folder) / "last.pt")
        start = time.monotonic()
        saver.save(trainer.state_dict(), 0)
        saver.wait()
        write = time.monotonic() - start
        raw = raw_write(Path(folder) / "zeros", size)
    rows = []
    for way, found in rates.items():
        ratios = [rate / base for rate, base in zip(found, rates["none"], strict=True)]
        rows.append([way, f"{median(found):.3f}", f"{median(ratios):.4f}", f"{min(ratios):.3f} to {max(ratios):.3f}"])
    print(environment())
    clips = f"{args.batch} clips {args.frames} x {args.size}^2"
    print(f"{args.model}, {clips}, a checkpoint of {size / 1e6:.0f} MB each {args.every} s")
    print(table(["checkpoints", "steps/s", "of none", "in the rounds"], rows))
    print(f"copy {median(copies):.3f} s; copy and write {write:.2f} s; write and fsync of as many zeros {raw:.2f} s")
    return 0


def make(args: argparse.Namespace) -> tuple[Trainer, dict]:
    """Return a trainer and one batch."""
    device = select_device(args.device)
    data_config = DataConfig(num_frames=args.frames, stride=1, train_size=args.size, test_size=args.size)
    model = create_model(args.model, num_classes=400, data_config=data_config)
    model.to(device, memory_format=torch.channels_last_3d)
    schedule = Schedule(num_samples=10**6, num_steps=10**6, batch_size=args.batch, micro_batch=args.batch)
    trainer = Trainer(
        model,
        schedule,
        criterion=CrossEntropy(0.1),
        optimizer=create("sgd", model, momentum=0.9, nesterov=True, weight_decay=4e-5),
        learning_rate=lambda step: 0.01,
        ema=EMA(model, 0.9999),
        precision=select_precision("auto", device),
    )
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (args.batch, args.frames, args.size, args.size, 3), dtype=np.uint8)
    return trainer, {"clip": torch.from_numpy(clip), "label": torch.arange(args.batch), "broken": []}


def step(trainer: Trainer, batch: dict) -> None:
    """Run one step and wait for the device."""
    trainer.train_step([batch])
    synchronize(trainer.device)


def seconds_of_steps(
    trainer: Trainer, batch: dict, seconds: float, way: str, saver: Checkpointer, copies: list[float]
) -> float:
    """Return steps per second over at least `seconds`, with a checkpoint after the first step."""
    saver.wait()
    start, steps = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        step(trainer, batch)
        steps += 1
        if steps == 1 and way != "none":
            asked = time.monotonic()
            saver.save(trainer.state_dict(), trainer.step)
            copies.append(time.monotonic() - asked)
            if way == "synchronous":
                saver.wait()
    return steps / (time.monotonic() - start)


def raw_write(path: Path, size: int) -> float:
    """Return the seconds to write and sync `size` bytes."""
    content = bytes(size)
    start = time.monotonic()
    with open(path, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    return time.monotonic() - start


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
