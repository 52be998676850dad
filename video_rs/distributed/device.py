"""Where the arithmetic happens: which device, in which precision, with how many threads; copies to it, waiting for it.

A precision is one of ``float64``, ``float32`` (the parameters' type, no autocast), ``bf16`` and ``fp16`` (float32
parameters under autocast).
"""

from __future__ import annotations

import os
import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from video_rs.distributed import xla
from video_rs.errors import UserError


def select_device(name: str = "auto") -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``xla``; the last is not touched yet.

    Raises:
        UserError: when it is not there; MPS is not supported.
    """
    if name == "mps":
        raise UserError("device mps is not supported; use device cpu, or a machine with CUDA")
    if name == "xla":
        xla.load()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        raise UserError(f"device cuda was asked for, but {why}; use cpu or auto, or mend the driver")
    return torch.device(name)


def select_precision(name: str, device: torch.device) -> str:
    """``auto`` becomes bf16 on TPUs and on GPUs that compute in it (Ampere and later), and float32 elsewhere.

    Raises:
        UserError: bf16 is for CUDA and XLA, fp16 for CUDA only.
    """
    if name == "auto":
        if device.type == "cuda":  # older GPUs have it as well, many times slower than float32
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            has_bf16 = device.type == "xla" and not xla.is_cpu()
        return "bf16" if has_bf16 else "float32"
    kinds = {"bf16": ("cuda", "xla"), "fp16": ("cuda",)}.get(name)
    if kinds and device.type not in kinds:
        raise UserError(
            f"train.precision={name} needs CUDA{' or a TPU' * len(kinds[1:])}; use float32 on {device.type}"
        )
    return name


def parameter_dtype(precision: str) -> torch.dtype:
    """Type of parameters and input: float64 for ``float64``, else float32."""
    return torch.float64 if precision == "float64" else torch.float32


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The autocast context of a precision; nothing for float32 and float64."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


class ToDevice:
    """Copies batches to a device; to a GPU in a stream of its own.

    There the copy does not wait for the work that is queued, only the work that is queued after it for the copy. It
    takes pinned memory for that: of other memory the host waits for the copy.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors on the device, for its current stream."""
        if self._stream is None:
            return [tensor.to(self.device, non_blocking=True) for tensor in tensors]
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(current)  # or its memory would be free for the next copy while it is still read
        return copies


def set_up(threads: int = 0, deterministic: bool = False) -> None:
    """Process-wide settings of torch: CPU threads (0: torch's choice), TF32 off, repeatable kernels if asked for."""
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is only repeatable with a fixed workspace
        torch.use_deterministic_algorithms(True, warn_only=True)


def loader_workers(asked: int, processes: int = 1) -> int:
    """The number of loader processes: ``asked``, or for -1 as many as this process has CPU cores.

    Args:
        processes: on this machine, which share its cores, unless each was given some of its own.
    """
    if asked >= 0:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores // processes if cores * processes > os.cpu_count() else cores)


def describe(device: torch.device) -> str:
    """One phrase for the start-up lines: the GPU's name and memory, or the CPU's thread count."""
    if device.type == "xla":
        return xla.describe()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{device.type}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> float:
    """Most memory used so far, in GiB: on the GPU, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "xla" and not xla.is_cpu():
        return xla.peak_memory(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def synchronize(device: torch.device) -> None:
    """Waits for the device, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "xla":
        xla.sync(wait=True)


def finishes(device: torch.device, seconds: float) -> bool:
    """Whether a device has done what was asked of it, or does in so many seconds: it may wait for a lost process."""
    if device.type != "cuda":
        return device.type == "cpu"
    done, end = torch.cuda.Event(), time.monotonic() + seconds
    done.record()
    while not done.query():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def flush(device: torch.device) -> None:
    """Starts what was asked of a device that waits to be told to; the host does not wait."""
    if device.type == "xla":
        xla.sync()
