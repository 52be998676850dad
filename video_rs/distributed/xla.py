"""TPUs, and XLA's CPU device, through torch_xla: the only module that knows of it.

torch_xla records what is asked of a tensor, and runs it as one compiled graph when told to (:func:`sync`). A graph is
compiled for each shape in it, and for each number that Python knew: whatever changes from step to step has to be a
tensor. Processes that reduce together must run the same graphs, in the same order.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from video_rs.errors import MachineError, UserError, first_line

INSTALL = "pip install torch==2.9.0 torchvision==0.24.0 'torch_xla[tpu]==2.9.0', in an environment of its own"


@functools.cache
def load() -> ModuleType:
    """torch_xla, which makes ``torch.device("xla")`` usable; no device is taken yet.

    Raises:
        UserError: it is not installed, or is not the one of this torch.
    """
    try:
        own, its_torch = (importlib.metadata.version(name) for name in ("torch_xla", "torch"))
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"device xla needs torch_xla, which is not installed: {INSTALL}") from None
    if own.split(".")[:2] != its_torch.split(".")[:2]:
        raise UserError(f"torch_xla {own} does not work with torch {its_torch}: {INSTALL}")
    os.environ.setdefault("PJRT_DEVICE", "TPU")  # torch_xla would take the CPU where it finds none
    try:
        import torch_xla
        import torch_xla.core.xla_model
        import torch_xla.runtime
    except ImportError as error:
        raise UserError(f"torch_xla {own} cannot be imported ({first_line(error)}): {INSTALL}") from error
    return torch_xla


def start(local_rank: int = 0, local_size: int = 1) -> None:
    """Takes the device that is this process's, before any tensor is on it.

    Raises:
        MachineError: there is no such device.
    """
    load()
    from torch_xla import backends
    from torch_xla._internal import pjrt

    record_alone()
    logging.getLogger("torch_xla.backends").setLevel(logging.ERROR)  # it warns of a second call, also at the first
    backends.set_mat_mul_precision("highest")  # float32 means float32; a TPU would round it to bf16
    try:
        if local_size > 1:
            pjrt.initialize_multiprocess(local_rank, local_size)
        else:
            pjrt.initialize_singleprocess()
    except Exception as error:  # also what asks Google's servers for the shape of the slice
        raise MachineError(
            f"PJRT_DEVICE={os.environ['PJRT_DEVICE']}, and no such device can be used ({first_line(error)}): see "
            "whether another process has it; PJRT_DEVICE=CPU is XLA without a TPU"
        ) from error


def record_alone() -> None:
    """Has this thread record its backward passes itself: what another still keeps would be part of a graph."""
    torch.autograd.set_multithreading_enabled(False)


def size() -> int:
    """How many devices take part in :func:`sum_`."""
    return load().runtime.world_size()


def is_cpu() -> bool:
    """Whether it is XLA's CPU device."""
    return load().runtime.device_type() == "CPU"


def describe() -> str:
    """One phrase for the start-up lines."""
    return f"xla on {load().runtime.device_type()}, torch_xla {load().__version__}"


def sync(wait: bool = False) -> None:
    """Runs what was recorded; ``wait``: until it is done."""
    load().sync(wait=wait)


def sum_(tensors: Sequence[Tensor], scale: float = 1.0) -> None:
    """Makes each tensor the sum of all processes', times a number.

    A TPU computes in 64 bits with pairs of numbers, but does not send such: they go as two float32 parts of each.
    """
    xla_model = load().core.xla_model
    wide = (
        [] if is_cpu() else [tensor for tensor in tensors if tensor.is_floating_point() and tensor.element_size() == 8]
    )
    halves = [half for tensor in wide for half in _halves(tensor)]
    narrow = [tensor for tensor in tensors if all(tensor is not other for other in wide)]
    xla_model.all_reduce(xla_model.REDUCE_SUM, [*narrow, *halves], scale=scale)
    for tensor, high, low in zip(wide, halves[::2], halves[1::2], strict=True):
        tensor.copy_(high.to(tensor.dtype) + low.to(tensor.dtype))


def _halves(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Two float32 tensors whose sum is a float64 one to 48 bits."""
    high = tensor.float()
    return high, (tensor - high.to(tensor.dtype)).float()


def gathered(tensor: Tensor) -> Tensor:
    """``[n]`` of every process, in any order: ``[processes, n]``.

    A sum, as torch_xla's own may have another graph in each process, which then wait for each other for ever.
    """
    rows = torch.where(_own_row(tensor.device), tensor, torch.zeros_like(tensor))
    sum_([rows])
    return rows


@functools.cache
def _own_row(device: torch.device) -> Tensor:
    """bool ``[processes, 1]``, true for this one: sent to the device, so that it is no number of the graph."""
    mark = torch.zeros(size(), 1, dtype=torch.bool)
    mark[load().runtime.global_ordinal()] = True
    return mark.to(device)


def peak_memory(device: torch.device) -> float:
    """Most memory used so far on a TPU, GiB."""
    used = load().core.xla_model.get_memory_info(device)
    return used.get("peak_bytes_used", used["bytes_used"]) / 2**30
