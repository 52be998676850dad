"""Activation checkpointing with the same numbers: the second forward pass must not update batch norm again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *inputs: Any) -> Tensor:
    """Return ``block(*inputs)`` and keep only the inputs for the backward pass.

    The backward pass runs the block again, on copies of its buffers, because the running statistics of batch norm
    already contain this batch. Random numbers in the block must depend on the inputs alone.
    """
    options = {"use_reentrant": False, "preserve_rng_state": False}
    if torch.compiler.is_compiling():  # the compiler handles buffer updates itself
        return checkpoint(block, *inputs, **options)
    is_second = False

    def run(*inputs: Any) -> Tensor:
        nonlocal is_second
        if is_second:
            return functional_call(block, {name: buffer.clone() for name, buffer in block.named_buffers()}, inputs)
        is_second = True
        return block(*inputs)

    return checkpoint(run, *inputs, **options)
