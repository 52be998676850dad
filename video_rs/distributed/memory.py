"""The memory that is available to this process, and what to do when it runs out.

On the host, Linux kills a process that uses more memory than the machine or its control group has, without an error.
:func:`limited` turns that into an exception.
"""

import contextlib
import functools
import gc
import math
import re
import resource
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from video_rs.errors import MachineError

PROC = Path("/proc")
_RESERVE = 0.05  # fraction of the available memory that is left to other processes
_GROUP_FILES = {  # by version of control groups: limits, usage. Above memory.high, the kernel slows a group to a halt
    "cgroup2": (("memory.max", "memory.high"), "memory.current"),
    "cgroup": (("memory.limit_in_bytes",), "memory.usage_in_bytes"),
}
_is_limited = threading.Lock()


def available_bytes(device: torch.device) -> float:
    """Return the bytes that this process can still allocate on a device, swap included; inf if unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return math.inf
    machine = _values(PROC / "meminfo")
    swap = machine.get("SwapFree", 0)
    in_groups = [_free_in_group(folder, kind, swap) for folder, kind in _groups(PROC)]
    return max(0, min([machine.get("MemAvailable", math.inf) + swap, *in_groups, *_free_below_limits()]))


@contextlib.contextmanager
def limited(device: torch.device, processes: int = 1) -> Iterator[None]:
    """Raise an error in this context if the host runs out of memory. Otherwise the kernel kills the process.

    This limits the private memory of the process to its current size plus the available memory. Other devices raise
    errors anyway. If several threads are in this context, the first one sets the limit.

    Args:
        device: device of the computation.
        processes: number of processes on this machine that compute at the same time.
    """
    if device.type != "cpu" or not _is_limited.acquire(blocking=False):
        yield
        return
    before = soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        used, free = _values(PROC / "self/status").get("VmData", math.inf), available_bytes(device)
        stacks = torch.get_num_threads() * _stack_bytes()  # of threads that start here; they count, but stay empty
        limit = used + stacks + free * (1 - _RESERVE) / processes
        if limit < min(_finite(soft), _finite(hard)):
            resource.setrlimit(resource.RLIMIT_DATA, (int(limit), hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
        _is_limited.release()


def free_memory(error: BaseException | None = None) -> None:
    """Collect garbage and release cached GPU memory, including tensors in the traceback of ``error``."""
    if error:
        traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def largest_that_fits(sizes: Iterable[int], attempt: Callable[[int], object]) -> int:
    """Return the largest of ``sizes`` for which ``attempt`` does not fail, or 0 if there is none."""
    for size in sorted(sizes, reverse=True):
        free_memory()
        try:
            attempt(size)
        except (RuntimeError, MemoryError) as error:  # libraries raise different errors if out of memory
            traceback.clear_frames(error.__traceback__)
        else:
            return size
    return 0


def too_large(micro_batch: int, reason: str, fits: int) -> MachineError:
    """Return the error for a micro-batch that does not fit in memory.

    Args:
        micro_batch: the micro-batch.
        reason: the step that failed, or the memory that it needs.
        fits: a smaller micro-batch that fits; 0 for none.
    """
    advice = f"; restart with train.micro_batch={fits}"
    if not fits:
        advice = ": no smaller one fits; lower data.num_frames or data.train_size, or choose a smaller network"
    return MachineError(f"not enough memory for train.micro_batch={micro_batch}{reason}{advice}")


@functools.cache
def _groups(proc: Path) -> list[tuple[Path, str]]:
    """Return the folders and versions of this process's control groups for memory, and of the groups above them."""
    paths: dict[str, str] = {}
    groups: list[tuple[Path, str]] = []
    for line in _read(proc / "self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            paths["cgroup2" if number == "0" else "cgroup"] = path
    for line in _read(proc / "self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        root, point = mount.split()[3:5]
        kind, _, options = system.split(" ")[:3]  # the source can be empty
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            top = Path(point)
            group = top / paths.get(kind, "/").removeprefix(root.rstrip("/")).lstrip("/")
            if ".." in group.parts or not group.is_dir():  # a container sees its own group as the top
                group = top
            folders = [group, *group.parents][: len(group.parts) - len(top.parts) + 1]
            groups += [(folder, kind) for folder in folders]
    return groups


def _free_in_group(folder: Path, kind: str, swap: int) -> float:
    """Return the bytes left in one control group, with free swap of the machine that it may use.

    The page cache is not counted as used; shared memory is.
    """
    limits, used = _GROUP_FILES[kind]
    stat = _values(folder / "memory.stat")
    above = stat.get("hierarchical_memory_limit", math.inf)  # includes groups outside of a container
    limit = min(above, *(_number(folder / name, math.inf) for name in limits))
    cache = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("inactive_file", "active_file"))
    may_swap = _number(folder / "memory.swap.max", 0) - _number(folder / "memory.swap.current", 0)
    return limit - max(0, _number(folder / used, 0) - cache) + max(0, min(swap, may_swap))


def _free_below_limits() -> Iterator[float]:
    """Yield the bytes left below each limit of this process (``ulimit -v`` and ``-d``)."""
    status = _values(PROC / "self/status")
    for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        if used in status:
            yield _finite(resource.getrlimit(limit)[0]) - status[used]


def _stack_bytes() -> int:
    """Return the size of the stack of a new thread."""
    size = resource.getrlimit(resource.RLIMIT_STACK)[0]
    return size if size != resource.RLIM_INFINITY else 2 << 20  # glibc's default on x86


def _values(path: Path) -> dict[str, int]:
    """Read lines such as ``MemAvailable: 3 kB`` or ``active_file 4096``, in bytes."""
    found = re.findall(r"^(\w+):?\s+(\d+)( kB)?$", _read(path), re.MULTILINE)
    return {name: int(value) * (1024 if unit else 1) for name, value, unit in found}


def _number(path: Path, otherwise: float) -> float:
    """Read a file with one number, or ``max``. Return ``otherwise`` if there is none."""
    text = _read(path).strip()
    return float(text.replace("max", "inf")) if text else otherwise


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _finite(limit: int) -> float:
    return math.inf if limit == resource.RLIM_INFINITY else limit
