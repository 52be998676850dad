"""Where the arithmetic happens: device, precision, threads.

Everything that knows of a kind of device or of other processes is here, so that the training loop and the evaluation do
not. A precision is one of ``float64``, ``float32`` (the parameters' type, no autocast), ``bf16`` and ``fp16`` (float32
parameters under CUDA autocast).
"""

from __future__ import annotations

import os
import resource
import sys
from contextlib import AbstractContextManager, nullcontext

import torch

from video_rs.errors import UserError


def select_device(name: str = "auto") -> torch.device:
    """The device for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: when it is not there; MPS is not supported.
    """
    if name == "mps":
        raise UserError("device mps is not supported; use device cpu, or a machine with CUDA")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        raise UserError(f"device cuda was asked for, but {why}; use cpu or auto, or mend the driver")
    return torch.device(name)


def select_precision(name: str, device: torch.device) -> str:
    """``auto`` becomes bf16 on CUDA and float32 elsewhere; bf16 and fp16 are for CUDA only (UserError)."""
    if name == "auto":
        return "bf16" if device.type == "cuda" else "float32"
    if name in ("bf16", "fp16") and device.type != "cuda":
        raise UserError(f"train.precision={name} needs CUDA; use float32 on {device.type}")
    return name


def parameter_dtype(precision: str) -> torch.dtype:
    """Type of parameters and input: float64 for ``float64``, else float32."""
    return torch.float64 if precision == "float64" else torch.float32


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The autocast context of a precision; nothing for float32 and float64."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def set_up(threads: int = 0, deterministic: bool = False) -> None:
    """Process-wide settings of torch: CPU threads (0: torch's choice), TF32 off, repeatable kernels if asked for.

    Raises:
        UserError: when started as one of several processes, which this version cannot be.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but only one process can train; start it without torchrun"
        )
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is only repeatable with a fixed workspace
        torch.use_deterministic_algorithms(True, warn_only=True)


def loader_workers(asked: int) -> int:
    """The number of loader processes: ``asked``, or one per CPU core this process may use for -1."""
    return asked if asked >= 0 else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def describe(device: torch.device) -> str:
    """One phrase for the start-up lines: the GPU's name and memory, or the CPU's thread count."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{device.type}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> float:
    """Most memory used so far, in GiB: on the GPU, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def synchronize(device: torch.device) -> None:
    """Waits for the device, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
