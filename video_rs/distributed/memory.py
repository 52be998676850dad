"""Out of memory: what would have fitted, found out by trying."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Callable, Iterable

_SIGNS = re.compile(  # the last ones are cuBLAS's and cuDNN's, XLA's, and oneDNN's
    "can't allocate memory|out of memory|bad_alloc|_STATUS_ALLOC_FAILED|RESOURCE_EXHAUSTED|"
    "attempting to (reserve|allocate)|could not create a primitive$",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch says that the host or the device has no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return True
    return isinstance(error, RuntimeError) and bool(_SIGNS.search(str(error)))


def let_go(error: BaseException) -> None:
    """Frees what an error keeps alive: the tensors of the functions that it came through."""
    traceback.clear_frames(error.__traceback__)


def free() -> None:
    """Collect garbage and give back the GPU memory that torch keeps for later."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def largest_that_fits(sizes: Iterable[int], attempt: Callable[[int], object]) -> int:
    """The largest of ``sizes`` with which ``attempt`` does not run out of memory; 0 if there is none."""
    return next((size for size in sorted(sizes, reverse=True) if _fits(size, attempt)), 0)


def _fits(size: int, attempt: Callable[[int], object]) -> bool:
    free()
    try:
        attempt(size)
    except (RuntimeError, MemoryError) as error:  # libraries short of memory say so in many ways
        let_go(error)
        return False
    return True
