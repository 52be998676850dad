"""Compare the memory that a training step needs with what is available, before the first step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from video_rs.distributed.device import compiles_graphs
from video_rs.distributed.memory import available_bytes, too_large
from video_rs.models import cost

if TYPE_CHECKING:
    from video_rs.training.job import Job

CPU = torch.device("cpu")
PREFETCHED = 2  # micro-batches per loader worker, in shared memory
MARGIN = 1.3  # for gradients of activations and heap fragments, which are not counted


def check_memory(job: Job) -> None:
    """Raise MachineError, naming a micro-batch that fits, if a step certainly needs more memory than is available.

    A step needs at least the gradients, and the activations and pixels of a micro-batch. The batches that loader
    workers prefetch are in shared memory, which counts as memory of the host. Weights and optimizer state exist
    already. Nothing is checked for compiled steps, which may recompute activations, or for networks that cannot run
    on the meta device.
    """
    trainer, schedule, world, device = job.trainer, job.trainer.schedule, job.world, job.device
    shape = cost.input_shape(job.model.data_config)
    if job.options.compile or compiles_graphs(device) or (job.options.sync_bn and world.size > 1):
        return
    try:
        activations = cost.activation_bytes(job.model, shape, on_meta=True)
    except Exception:  # networks of other packages may fail on the meta device
        return
    if job.precision in ("bf16", "fp16"):
        activations /= 2
    gradients = sum(p.numel() * p.element_size() for p in job.model.parameters() if p.requires_grad)
    prefetched = min(PREFETCHED * job.loading()["workers"], schedule.num_steps * schedule.accumulation_steps)
    host, own = available_bytes(CPU) / world.local_size, available_bytes(device)
    pixels = math.prod(shape)

    def needed(micro_batch: int, margin: float = 1.0) -> list[tuple[float, float]]:
        """Return the bytes needed and available on the device and on the host."""
        loading = micro_batch * pixels * (1 + prefetched)
        step = gradients + micro_batch * activations * margin
        return [(step + loading, host)] if device == CPU else [(step, own), (loading, host)]

    def fits(micro_batch: int, margin: float = 1.0) -> bool:
        return all(need <= free for need, free in needed(micro_batch, margin))

    if fits(schedule.micro_batch):
        return
    need, free = max(needed(schedule.micro_batch), key=lambda pair: pair[0] - pair[1])
    sizes = trainer.smaller_micro_batches()
    fitting = [size for size in sizes if fits(size, MARGIN)] or [size for size in sizes[:1] if fits(size)]
    amounts = f"a step needs about {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
    raise too_large(schedule.micro_batch, f": {amounts}", max(fitting, default=0))
