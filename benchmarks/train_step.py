"""Clips per second of a forward pass and a training step, on clips that are already on the device.

python benchmarks/train_step.py
python benchmarks/train_step.py --compile --stages --routes
python benchmarks/train_step.py --device cuda --frames 32 --size 224 --batch 32 64 128 --compile --stages --routes

  video_rs                 our network: 1xkxk and kx1x1 kernels as 2D convolutions on the same memory
  video_rs, compiled       the same under torch.compile (--compile)
  video_rs, conv3d         the same with 3D convolutions throughout
  video_rs, trainer        the whole training step: mixup, drop path, SGD, EMA, metrics
  PyTorchVideo slow_r50    the peer, from its model zoo, with the same step

A step is forward, cross entropy, backward and SGD with momentum, on float clips [N, 3, T, H, W] in channels-last
memory; the trainer takes uint8 clips. Ways alternate in each of --rounds rounds, and the table has the medians. FLOPs
are twice the multiply-accumulates that video_rs.models.cost counts, three times that for training. "of matmul" is
relative to a large matrix product in the same precision in the same run, "of peak" to the vendor's number (dense bf16,
for the GPUs listed below). --batch with several sizes gives the peak memory of each. --stages times the stages of our
network, --routes its distinct convolutions both ways.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from common import environment, missing, note, peak_rss_mb, table
from torch import Tensor, nn

from video_rs.cli.common import Parser, positive, run
from video_rs.data_config import DataConfig
from video_rs.distributed.device import (
    autocast,
    configure_torch,
    describe,
    select_device,
    select_precision,
    synchronize,
)
from video_rs.errors import MachineError, is_out_of_memory
from video_rs.models.cost import macs
from video_rs.models.layers import Conv
from video_rs.models.registry import create_model
from video_rs.training.ema import EMA
from video_rs.training.losses import CrossEntropy
from video_rs.training.optim import create
from video_rs.training.schedule import Schedule
from video_rs.training.trainer import Trainer

CLASSES = 400
PEAKS = {"H100 80GB HBM3": 989, "H100 PCIe": 756, "H100 NVL": 835, "H200": 989, "A100": 312, "B200": 2250, "L40S": 362}
"""Dense bf16 TFLOP/s of the vendor's data sheets (sparsity counted out), by what torch calls the GPU."""


class Bench:
    """Clips, device and timer that all ways share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = select_device(args.device)
        self.precision = select_precision(args.precision, self.device)
        self.model, self.frames, self.size, self.seconds = args.model, args.frames, args.size, args.seconds
        self.data_config = DataConfig(num_frames=args.frames, stride=1, train_size=args.size, test_size=args.size)

    def clips(self, batch: int) -> Tensor:
        clip = torch.rand(batch, self.frames, self.size, self.size, 3, device=self.device)
        return clip.permute(0, 4, 1, 2, 3)

    def seconds_of(self, function: Callable[[], object]) -> float:
        """Return the seconds per call, averaged over enough calls."""
        synchronize(self.device)
        start, calls = time.monotonic(), 0
        while not calls or time.monotonic() - start < self.seconds:
            function()
            calls += 1
            if self.device.type == "cuda" and calls % 4 == 0:
                synchronize(self.device)
        synchronize(self.device)
        return (time.monotonic() - start) / calls

    def autocast(self):
        return autocast(self.device, self.precision)

    def network(self, name: str) -> nn.Module:
        options = {"data_config": self.data_config} if "/" not in name else {}
        return create_model(name, num_classes=CLASSES, **options).to(self.device, memory_format=torch.channels_last_3d)


def main(argv: list[str]) -> int:
    """Entry point."""
    parser = Parser(__doc__, prog="train_step.py")
    parser.add_argument("--model", default="resnet3d_rs_50", help="ours; default: %(default)s")
    parser.add_argument("--frames", type=positive, default=8)
    parser.add_argument("--size", type=positive, default=112, help="pixels")
    parser.add_argument("--batch", type=positive, nargs="+", default=[2], help="clips; the first is the table's")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of a turn")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bf16"))
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--stages", action="store_true", help="time the parts of our network")
    parser.add_argument("--routes", action="store_true", help="time its convolutions as 2D and 3D ones")
    args = parser.parse_args(argv)
    bench, batch = Bench(args), args.batch[0]
    configure_torch()
    torch.manual_seed(0)
    ways = all_ways(bench, batch, args.compile)
    rows, product = compare(bench, ways, batch, args.rounds)
    del ways  # free the memory of the other networks
    gc.collect()
    print(environment())
    where = f"{describe(bench.device)}, {bench.precision}"
    print(f"{where}; {batch} clips {args.frames} x {args.size}^2 a step; large matrix products {product:.2f} TFLOP/s")
    header = ["way", "GFLOP a clip", "forward clips/s", "step clips/s", "step TFLOP/s", "of matmul", "of peak"]
    print(table([*header, "x slow_r50 per GFLOP"], rows), flush=True)
    if len(args.batch) > 1:
        print("\n" + table(["clips a step", "peak MB", "clips/s"], [by_batch(bench, size) for size in args.batch]))
    if args.stages:
        header = ["part", "GFLOP a clip", "forward ms", "backward ms", "forward TFLOP/s", "backward TFLOP/s"]
        print("\n" + table(header, list(stage_rows(bench, batch))))
    if args.routes:
        header = ["convolution", "input", "times", "as 2D, ms", "conv3d, ms", "2D / conv3d"]
        print("\n" + table(header, list(route_rows(bench, batch))))
    return 0


Way = tuple[float, Callable[[], object], Callable[[], object]]  # GFLOP per clip, forward, step


def all_ways(bench: Bench, batch: int, compiled: bool) -> dict[str, Way]:
    """Return the ways by name."""
    clips, labels = bench.clips(batch), torch.arange(batch, device=bench.device)
    ways = {"video_rs": plain(bench, bench.network(bench.model), clips, labels)}
    if compiled:
        ways["video_rs, compiled"] = plain(bench, bench.network(bench.model), clips, labels, torch.compile)
    in_3d = bench.network(bench.model)
    for conv in (module for module in in_3d.modules() if isinstance(module, Conv)):
        conv.as_2d = False
    ways["video_rs, conv3d"] = plain(bench, in_3d, clips, labels)
    ways["video_rs, trainer"] = (ways["video_rs"][0], lambda: None, trainer_step(bench, batch))
    if compiled:
        ways["video_rs, compiled trainer"] = (ways["video_rs"][0], lambda: None, trainer_step(bench, batch, True))
    if why := missing("pytorchvideo"):
        note(f"no row for slow_r50: {why}")
    else:
        ways["PyTorchVideo slow_r50"] = plain(bench, bench.network("pytorchvideo/slow_r50"), clips, labels)
    return ways


def plain(
    bench: Bench,
    model: nn.Module,
    clips: Tensor,
    labels: Tensor,
    wrap: Callable[[nn.Module], Callable[[Tensor], Tensor]] = lambda model: model,
) -> Way:
    """Return the forward pass and the step of any network."""
    gflop = 2 * macs(model, (3, *clips.shape[2:])) / 1e9
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
    call = wrap(model)

    @torch.no_grad()
    def forward() -> None:
        model.eval()
        with bench.autocast():
            call(clips)

    def step() -> None:
        model.train()
        with bench.autocast():
            loss = F.cross_entropy(call(clips).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return gflop, forward, step


def trainer_step(bench: Bench, batch: int, compiled: bool = False) -> Callable[[], object]:
    """Return one step of the trainer on uint8 clips. Mixup needs pairs: it is off for an odd batch."""
    model = bench.network(bench.model)
    schedule = Schedule(num_samples=10**6, num_steps=10**6, batch_size=batch, micro_batch=batch)
    optimizer = create("sgd", model, momentum=0.9, nesterov=True, weight_decay=4e-5)
    options = {"ema": EMA(model, 0.9999), "precision": bench.precision, "mixup": 0.0 if batch % 2 else 0.2}
    rate = {"learning_rate": lambda step: 1e-4, "criterion": CrossEntropy(0.1), "optimizer": optimizer}
    trainer = Trainer(model, schedule, compile=compiled, **rate, **options)
    clip = torch.randint(0, 256, (batch, bench.frames, bench.size, bench.size, 3), dtype=torch.uint8)
    data = {"clip": clip.to(bench.device), "label": torch.arange(batch, device=bench.device), "broken": []}
    return lambda: trainer.train_step([data])


def compare(bench: Bench, ways: dict[str, Way], batch: int, rounds: int) -> tuple[list[list[str]], float]:
    """Return the rows of the table, and the rate of large matrix products in TFLOP/s."""
    for _, forward, step in ways.values():
        forward(), step()  # warm up: kernels are chosen and compiled
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    products = []
    for number in range(rounds):
        products.append(matmul_rate(bench))
        for name, (_, forward, step) in ways.items():
            found[name].append((bench.seconds_of(forward), bench.seconds_of(step)))
        note(f"round {number + 1} of {rounds} done")
    product, peak = median(products), peak_of(bench)
    peer = "PyTorchVideo slow_r50"
    rows = []
    for name, (gflop, *_) in ways.items():
        forward, step = (batch / median(times) for times in zip(*found[name], strict=True))
        rate = 3 * gflop * step / 1e3
        share = (
            median(ours / theirs for ours, theirs in zip(_steps(found, name), _steps(found, peer)))
            if peer in ways
            else 0
        )
        beside = f"{gflop / ways[peer][0] / share:.2f}" if share else "-"
        whole = name.endswith("trainer")
        cells = [
            f"{gflop:.1f}",
            "-" if whole else f"{forward:.2f}",
            f"{step:.2f}",
            f"{rate:.3f}",
            f"{rate / product:.2f}",
        ]
        rows.append([name, *cells, f"{rate / peak:.2f}" if peak else "-", beside])
    return rows, product


def _steps(found: dict[str, list[tuple[float, float]]], name: str) -> Iterable[float]:
    return (step for _, step in found[name])


def matmul_rate(bench: Bench) -> float:
    """Return TFLOP/s of one large matrix product."""
    side = 8192 if bench.device.type == "cuda" else 2048
    dtype = torch.bfloat16 if bench.precision == "bf16" else torch.float32
    a = torch.rand(side, side, device=bench.device, dtype=dtype)
    a @ a
    return 2 * side**3 / bench.seconds_of(lambda: a @ a) / 1e12


def peak_of(bench: Bench) -> float:
    """Return the vendor's TFLOP/s; 0 if it is unknown for this device or precision."""
    if bench.device.type != "cuda" or bench.precision != "bf16":
        return 0.0
    name = torch.cuda.get_device_name(bench.device)
    return next((float(peak) for part, peak in PEAKS.items() if part in name), 0.0)


def by_batch(bench: Bench, batch: int) -> list[str]:
    """Return clips per step, peak memory and clips/s of the trainer."""
    gc.collect()
    try:
        step = trainer_step(bench, batch)
        step()
        reset_peak(bench.device)
        seconds = bench.seconds_of(step)
    except (MachineError, RuntimeError, MemoryError) as error:
        if "not enough memory" not in str(error) and not is_out_of_memory(error):  # ours, or torch's
            raise
        return [str(batch), "does not fit", "-"]
    peak = torch.cuda.max_memory_allocated() / 2**20 if bench.device.type == "cuda" else peak_rss_mb()
    return [str(batch), f"{peak:.0f}", f"{batch / seconds:.2f}"]


def reset_peak(device: torch.device) -> None:
    """Reset the peak memory counter."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def stage_rows(bench: Bench, batch: int) -> Iterable[list[str]]:
    """Return the time of the stem and each stage of our network."""
    model, x = bench.network(bench.model).train(), bench.clips(batch)
    keys = torch.arange(batch, device=bench.device)

    def blocks(stage: nn.ModuleList, x: Tensor) -> Tensor:
        for block in stage:
            x = block(x, keys)
        return x

    parts = {"stem": model.stem}
    parts |= {f"stage {i}": partial(blocks, stage) for i, stage in enumerate(model.stages, 1)}
    for name, part in parts.items():
        x = x.detach().requires_grad_(name != "stem")
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, bench.autocast():
            y = part(x)
        gflop = counter.get_total_flops() / 1e9 / batch

        def forward(part=part, x=x) -> Tensor:
            with bench.autocast():
                return part(x)

        gradient = torch.rand_like(y)
        ahead = bench.seconds_of(forward)
        both = bench.seconds_of(lambda forward=forward, gradient=gradient: forward().backward(gradient))
        back = max(both - ahead, 1e-9)
        rates = [gflop * batch / seconds / 1e3 for seconds in (ahead, back / 2)]
        yield [name, f"{gflop:.1f}", f"{1e3 * ahead:.1f}", f"{1e3 * back:.1f}", *(f"{rate:.3f}" for rate in rates)]
        x = y


def route_rows(bench: Bench, batch: int) -> Iterable[list[str]]:
    """Return the time of each distinct convolution of our network, forward and backward, as 2D and as 3D."""
    model, seen = bench.network(bench.model), {}

    def note_input(module: Conv, args: tuple[Tensor], output: Tensor) -> None:
        x = args[0]
        key = (module.kernel_size, module.stride, module.in_channels, module.out_channels, tuple(x.shape))
        seen.setdefault(key, [module, x.shape, output.shape, 0])[3] += 1

    for conv in (module for module in model.modules() if isinstance(module, Conv)):
        conv.register_forward_hook(note_input)
    with torch.no_grad(), bench.autocast():
        model.eval()(bench.clips(batch))
    for conv, shape, out_shape, times in seen.values():
        is_3d = conv.kernel_size[0] > 1 and conv.kernel_size[1] > 1
        if is_3d or shape[-1] == 1:  # only one way, or negligible time
            continue
        conv._forward_hooks.clear()
        x, gradient = (
            torch.rand(size, device=bench.device).contiguous(memory_format=torch.channels_last_3d)
            for size in (shape, out_shape)
        )
        x.requires_grad_()

        def step(conv=conv, x=x, gradient=gradient) -> None:
            with bench.autocast():
                y = conv(x)
            y.backward(gradient.to(y.dtype))

        found = []
        for conv.as_2d in (True, False):
            step()
            found.append(1e3 * bench.seconds_of(step))
        kernel = "x".join(map(str, conv.kernel_size)) + "".join(f"/{s}" for s in conv.stride if s > 1)
        name = f"{kernel}, {conv.in_channels} to {conv.out_channels}"
        times_each = [f"{ms:.2f}" for ms in found]
        yield [name, "x".join(map(str, shape[2:])), str(times), *times_each, f"{found[0] / found[1]:.2f}"]


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
