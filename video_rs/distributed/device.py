"""A common interface for the devices ``cpu``, ``cuda`` and ``xla``. Only this module uses torch_xla.

A precision is one of ``float64``, ``float32`` (the type of the parameters, no autocast), ``bf16`` and ``fp16`` (float32
parameters under autocast).

torch_xla records operations and runs them as one compiled graph at :func:`flush`. It compiles a new graph for each
shape and each Python number, so values that change from step to step must be tensors. Processes that reduce together
must run the same graphs in the same order.
"""

import functools
import importlib.metadata
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor

from video_rs.distributed.device_name import parse_device
from video_rs.distributed.forks import check_fork, was_forked
from video_rs.distributed.launcher import can_start_processes
from video_rs.errors import MachineError, UserError, first_line, missing_resource
from video_rs.terminal import counted

INSTALL_XLA = "pip install torch==2.9.0 torchvision==0.24.0 'torch_xla[tpu]==2.9.0', in an environment of its own"


def compiles_graphs(device: torch.device) -> bool:
    """Return True if a device compiles a graph for each shape and Python number, which makes the first two steps slow.

    Such a device has no fused optimizers and no ``DistributedDataParallel``: the caller averages gradients, with
    :func:`all_reduce`. In batch norm, torch stores the biased variance.
    """
    return device.type == "xla"


def warmup_steps(device: torch.device) -> int:
    """Return the number of steps before a measurement, to select kernels or compile graphs."""
    return {"cuda": 1, "xla": 2}.get(device.type, 0)


# Selection ------------------------------------------------------------------------------------------------------------


def select_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``xla``, without initializing it.

    Raises:
        UserError: the device is unknown or not available, or :func:`check_fork` fails.
    """
    kind, index = parse_device(name)
    if kind == "xla":
        _torch_xla()
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        raise UserError(f"device {name}: {why}; use cpu or auto, or fix the driver")
    if index is not None and index >= torch.cuda.device_count():
        gpus = counted(torch.cuda.device_count(), "GPU")
        raise UserError(f"device {name}: this process sees {gpus}, counted from 0; use cuda, or another index")
    device = torch.device(kind, index)
    check_fork(device)
    return device


def claim_device(
    device: torch.device | str, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1
) -> None:
    """Initialize the device of this process. Call this before creating any tensor on the device.

    Args:
        device: from :func:`select_device`.
        rank, size: rank of this process and number of processes.
        local_rank, local_size: the same among the processes of this machine.

    Raises:
        UserError: there are fewer devices than processes, or several processes and one GPU by its index.
        MachineError: the XLA device cannot be used.
    """
    device = torch.device(device)
    kind, index = device.type, device.index
    if index is not None and size > 1:
        raise UserError(f"device {device}: each of {size} processes has its own GPU; use cuda, or one process")
    if index is not None:
        torch.cuda.set_device(index)
    if kind == "cuda" and size > 1:
        gpus = torch.cuda.device_count()
        own = 0 if gpus == 1 and "SLURM_GPUS_PER_TASK" in os.environ else local_rank  # a task sees only its GPU
        if own >= gpus:
            raise UserError(
                f"rank {rank}: {local_rank + 1} or more processes on a machine with {gpus} GPUs; start one per GPU "
                "(torchrun --nproc_per_node=gpu)"
            )
        torch.cuda.set_device(own)
    if kind == "xla":
        _claim_xla(local_rank, local_size)
        if size > 1 and _xla_size() != size:
            raise UserError(
                f"rank {rank}: {size} processes were started, and XLA has {_xla_size()} devices for them; start one "
                "per chip (TPU v4-8: torchrun --nproc_per_node=4); XLA's CPU device is for one process"
            )


def select_precision(name: str, device: torch.device) -> str:
    """Return the precision to use. ``auto`` is bf16 on TPUs and on Ampere or newer GPUs, otherwise float32.

    Raises:
        UserError: the device does not support the precision: bf16 needs CUDA or XLA, fp16 needs CUDA.
    """
    if name == "auto":
        if device.type == "cuda":  # older GPUs emulate bf16, many times slower than float32
            with torch.cuda.device(device):
                has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            has_bf16 = device.type == "xla" and not _is_xla_cpu()
        return "bf16" if has_bf16 else "float32"
    kinds = {"bf16": ("cuda", "xla"), "fp16": ("cuda",)}.get(name)
    if kinds and device.type not in kinds:
        raise UserError(
            f"train.precision={name} needs CUDA{' or a TPU' * len(kinds[1:])}; use float32 on {device.type}"
        )
    return name


def parameter_dtype(precision: str) -> torch.dtype:
    """Return the dtype of parameters and input: float64 for ``float64``, otherwise float32."""
    return torch.float64 if precision == "float64" else torch.float32


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the autocast context of a precision, which does nothing for float32 and float64."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def configure_torch(threads: int = 0, deterministic: bool = False) -> None:
    """Configure torch: CPU threads (0: torch's default), no TF32, optionally deterministic kernels."""
    if threads and not was_forked():
        torch.set_num_threads(threads)
    check_threads(torch.get_num_threads())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable only with a fixed workspace
        torch.use_deterministic_algorithms(True, warn_only=True)


@functools.cache
def check_threads(count: int) -> None:
    """Raise MachineError if ``count`` threads cannot run at once. OpenMP would end the process."""
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(count - 1)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        raise MachineError(missing_resource(error)) from error
    finally:
        end.set()


def loader_workers(asked: int, processes: int = 1) -> int:
    """Return the number of loader processes: ``asked``, or one per CPU core of this process if it is -1.

    In a daemonic process it is 0, see :func:`launcher.can_start_processes`.

    Args:
        processes: number of processes on this machine that share its cores, unless each is bound to some cores.
    """
    if asked and not can_start_processes():
        return 0
    if asked >= 0:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores // processes if cores * processes > os.cpu_count() else cores)


def describe(device: torch.device) -> str:
    """Describe a device: name and memory of a GPU, or the number of CPU threads."""
    if device.type == "xla":
        return f"xla on {_torch_xla().runtime.device_type()}, torch_xla {_torch_xla().__version__}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{device.type}, {counted(torch.get_num_threads(), 'thread')}"


# Work on the device ---------------------------------------------------------------------------------------------------


class ToDevice:
    """Copy batches to a device. Copies to a GPU use a separate stream.

    Such a copy overlaps with work that was queued earlier, and only work that is queued later waits for it. This
    requires pinned memory; otherwise the host waits.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Return the tensors on the device, ready for its current stream."""
        if self._stream is None:
            return [tensor.to(self.device, non_blocking=True) for tensor in tensors]
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(current)  # otherwise the next copy could reuse the memory too early
        return copies


def flush(device: torch.device) -> None:
    """Start the recorded work of a device. The host does not wait."""
    if device.type == "xla":
        _sync_xla(wait=False)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "xla":
        _sync_xla(wait=True)


def finishes_within(device: torch.device, seconds: float) -> bool:
    """Return True if the device finishes its work within ``seconds``. It can be waiting for a lost process."""
    if device.type != "cuda":
        return device.type == "cpu"
    done, end = torch.cuda.Event(), time.monotonic() + seconds
    done.record(torch.cuda.current_stream(device))
    while not done.query():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def reducing_processes(device: torch.device) -> int:
    """Return the number of processes in :func:`all_reduce` and :func:`all_gather`."""
    if device.type == "xla":
        return _xla_size()
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce(tensors: Sequence[Tensor], scale: float = 1.0) -> None:
    """Replace each tensor by its sum over all processes, times ``scale``."""
    if tensors[0].device.type == "xla":
        _all_reduce_xla(tensors, scale)
        return
    for tensor in tensors:
        dist.all_reduce(tensor)
        if scale != 1.0:
            tensor.mul_(scale)


def all_gather(values: Tensor) -> Tensor:
    """Gather ``[n]`` of every process as ``[processes, n]``, in the same order on all processes."""
    if values.device.type == "xla":  # a sum; torch_xla's all_gather may build different graphs per process, and hang
        rows = torch.where(_own_row(values.device), values, torch.zeros_like(values))
        _all_reduce_xla([rows])
        return rows
    rows = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, values)
    return torch.stack(rows)


# Memory ---------------------------------------------------------------------------------------------------------------


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of the GPU or TPU, or else of this process, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "xla" and not _is_xla_cpu():
        used = _torch_xla().core.xla_model.get_memory_info(device)
        return used.get("peak_bytes_used", used["bytes_used"]) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


# torch_xla ------------------------------------------------------------------------------------------------------------


@functools.cache
def _torch_xla() -> ModuleType:
    """Import torch_xla, which makes ``torch.device("xla")`` usable. Raise UserError if it is missing or mismatched."""
    try:
        own, its_torch = (importlib.metadata.version(name) for name in ("torch_xla", "torch"))
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"device xla needs torch_xla, which is not installed: {INSTALL_XLA}") from None
    if own.split(".")[:2] != its_torch.split(".")[:2]:
        raise UserError(f"torch_xla {own} does not work with torch {its_torch}: {INSTALL_XLA}")
    os.environ.setdefault("PJRT_DEVICE", "TPU")  # torch_xla would fall back to the CPU
    try:
        import torch_xla
        import torch_xla.core.xla_model
        import torch_xla.runtime
    except ImportError as error:
        raise UserError(f"torch_xla {own} cannot be imported ({first_line(error)}): {INSTALL_XLA}") from error
    return torch_xla


def _claim_xla(local_rank: int, local_size: int) -> None:
    _torch_xla()
    from torch_xla import backends
    from torch_xla._internal import pjrt

    torch.autograd.set_multithreading_enabled(False)  # tensors of another thread would become part of the graph
    logging.getLogger("torch_xla.backends").setLevel(logging.ERROR)  # it warns of a second call, even the first time
    backends.set_mat_mul_precision("highest")  # float32 means float32; a TPU would round it to bf16
    try:
        if local_size > 1:
            pjrt.initialize_multiprocess(local_rank, local_size)
        else:
            pjrt.initialize_singleprocess()
    except Exception as error:  # from torch_xla, or from its requests for the shape of the slice
        raise MachineError(
            f"PJRT_DEVICE={os.environ['PJRT_DEVICE']}, but no such device can be used ({first_line(error)}): check "
            "whether another process uses it, or set PJRT_DEVICE=CPU to use XLA on the CPU"
        ) from error


def _xla_size() -> int:
    return _torch_xla().runtime.world_size()


def _is_xla_cpu() -> bool:
    return _torch_xla().runtime.device_type() == "CPU"


def _sync_xla(wait: bool) -> None:
    _torch_xla().sync(wait=wait)


def _all_reduce_xla(tensors: Sequence[Tensor], scale: float = 1.0) -> None:
    """Sum over processes. TPUs do not send 64-bit numbers, so each is sent as two float32 numbers (48 bits)."""
    xla_model = _torch_xla().core.xla_model
    splits = not _is_xla_cpu()
    wide = [tensor for tensor in tensors if splits and tensor.dtype == torch.float64]
    narrow = [tensor for tensor in tensors if not splits or tensor.dtype != torch.float64]
    high = [tensor.float() for tensor in wide]
    low = [(tensor - part.double()).float() for tensor, part in zip(wide, high)]
    xla_model.all_reduce(xla_model.REDUCE_SUM, [*narrow, *high, *low], scale=scale)
    for tensor, upper, lower in zip(wide, high, low):
        tensor.copy_(upper.double() + lower.double())


@functools.cache
def _own_row(device: torch.device) -> Tensor:
    """Return a one-hot mask of this process, bool ``[processes, 1]`` on the device, not a number in the graph."""
    mark = torch.zeros(_xla_size(), 1, dtype=torch.bool)
    mark[_torch_xla().runtime.global_ordinal()] = True
    return mark.to(device)
