"""Training from files: speed of the loader alone, of the steps alone, and of both together.

python benchmarks/end_to_end.py
python benchmarks/end_to_end.py --cfg k400_rs50.yaml data.root=/data/k400 train.batch_size=64 train.micro_batch=64
python benchmarks/end_to_end.py --cfg motion_rs.yaml data.root=data/motion --steps 40 --rounds 3

Without --cfg it makes a small motion dataset and trains motion_rs.yaml on it. "loader" is the rate of the workers when
nothing else runs, "steps" is the training step on batches in memory, "training" is the step on batches of the loader.
The slower of the first two is the limit; without a GPU they share the CPU cores. Other settings are given as key=value.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from common import environment, note, table

from video_rs.cli.common import Parser, positive, run
from video_rs.data.tools import motion
from video_rs.distributed.device import describe, synchronize
from video_rs.errors import UserError
from video_rs.experiment.config import load_config
from video_rs.experiment.run import make_job
from video_rs.training.job import Job


def main(argv: list[str]) -> int:
    """Entry point."""
    parser = Parser(__doc__, prog="end_to_end.py")
    parser.add_argument("--cfg", help="of the run; default: motion_rs.yaml on a small dataset of its own")
    parser.add_argument("--steps", type=positive, default=20, help="timed in each turn")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        overrides = list(args.overrides)
        if not args.cfg:
            motion.make(Path(folder) / "motion", train=400, val=8, test=8)
            overrides.insert(0, f"data.root={folder}/motion")
        config = load_config(args.cfg or "motion_rs.yaml", overrides)
        if config.train.device == "xla":
            raise UserError("end_to_end.py is for CPUs and GPUs: set train.device=auto")
        job = make_job(config)
        report(job, args.steps, args.rounds)
    return 0


def report(job: Job, steps: int, rounds: int) -> None:
    """Print the table."""
    turns = {"loader": loader, "steps": steps_alone, "training": training}
    found: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, turn in turns.items():
            found[name].append(turn(job, steps))
        note(f"round {number + 1} of {rounds} done")
    schedule, data_config = job.trainer.schedule, job.model.data_config
    rates = {name: median(values) for name, values in found.items()}
    bound = min(("loader", "steps"), key=rates.get)
    print(environment())
    workers = f"{job.loading()['workers']} loader workers"
    print(f"{describe(job.device)}, {job.precision}; {workers}; {job.model.model_args['name']}")
    print(f"batches of {schedule.batch_size} clips {data_config.num_frames} x {data_config.train_size}^2")
    rows = [[name, f"{rate:.1f}", f"{rate / rates[bound]:.2f}"] for name, rate in rates.items()]
    print(table(["part", "clips/s", "of the limit"], rows))
    print(f"the {bound} {'is' if bound == 'loader' else 'are'} the limit")


def batches_of(job: Job, steps: int) -> Iterator[dict]:
    """Return micro-batches of the loader, after those that its workers have prefetched."""
    parts, ahead = job.trainer.schedule.accumulation_steps, 3 * max(1, job.loading()["workers"])
    batches = iter(job.loader(0, num_steps=steps + -(-ahead // parts), phase_ends=()))  # more than the run may have
    return itertools.islice(batches, ahead, ahead + steps * parts)


def loader(job: Job, steps: int) -> float:
    """Return clips/s of the loader alone."""
    batches, clips = batches_of(job, steps), 0
    next(batches)
    start = time.monotonic()
    for batch in batches:
        clips += len(batch["label"])
    return clips / (time.monotonic() - start)


def steps_alone(job: Job, steps: int) -> float:
    """Return clips/s of steps on batches in memory."""
    parts = list(itertools.islice(iter(job.loader(0)), job.trainer.schedule.accumulation_steps))
    job.trainer.train_step(parts)
    synchronize(job.device)
    start = time.monotonic()
    for _ in range(steps):
        job.trainer.train_step(parts)
    synchronize(job.device)
    return steps * job.trainer.schedule.batch_size / (time.monotonic() - start)


def training(job: Job, steps: int) -> float:
    """Return clips/s of steps on batches of the loader."""
    schedule, batches = job.trainer.schedule, batches_of(job, steps + 1)
    for _ in range(schedule.accumulation_steps):
        next(batches)  # skip the prefetched batches
    start = time.monotonic()
    for _ in range(steps):
        job.trainer.train_step(itertools.islice(batches, schedule.accumulation_steps))
    synchronize(job.device)
    return steps * schedule.batch_size / (time.monotonic() - start)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
