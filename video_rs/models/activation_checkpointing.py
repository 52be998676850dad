"""Activation checkpointing that leaves no trace: what is computed again must not be counted again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *inputs: Any) -> Tensor:
    """``block(*inputs)``, of which the inputs alone are kept for the backward pass.

    There the block is computed again, with copies of its buffers: batch norm's running statistics have had this batch.
    What is random in it must depend on the inputs alone.
    """
    options = {"use_reentrant": False, "preserve_rng_state": False}
    if torch.compiler.is_compiling():  # which knows what a block changes, and does not do that again
        return checkpoint(block, *inputs, **options)
    is_again = False

    def run(*inputs: Any) -> Tensor:
        nonlocal is_again
        if is_again:
            return functional_call(block, {name: buffer.clone() for name, buffer in block.named_buffers()}, inputs)
        is_again = True
        return block(*inputs)

    return checkpoint(run, *inputs, **options)
