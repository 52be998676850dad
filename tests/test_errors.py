"""Errors as one line, and those of memory."""

import errno

import pytest
import torch

from video_rs.errors import ConfigError, MediaError, UserError, first_line, is_out_of_memory


def test_what_a_person_can_mend_is_no_value_error():
    for kind in (UserError, ConfigError, MediaError):
        assert not issubclass(kind, ValueError)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("\n  bad size.\nat line 3"), "bad size"),
        (RuntimeError(""), "RuntimeError"),
        (OSError(errno.ENOSPC, "No space left on device", "/out/best.pt"), "No space left on device"),
        (OSError("connection closed"), "connection closed"),
        (ValueError("x" * 300), "x" * 200),
    ],
)
def test_first_line(error, line):
    assert first_line(error) == line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("Error preparing computation: Out of memory allocating 68719476736 bytes."), True),
        (RuntimeError("Attempting to reserve 9.1G at the bottom of memory. There are 3.2G free"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a convolution"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected
