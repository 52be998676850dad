"""``torch.compile`` around a network in training, and what its failures mean."""

from __future__ import annotations

import torch
from torch import nn

from video_rs.errors import MachineError, first_line


def compiled(network: nn.Module) -> nn.Module:
    """The network through ``torch.compile``, which compiles for each shape of clips when they first come.

    One replicated with DistributedDataParallel is compiled around it, as torch advises: the compiler then cuts the
    graph where gradients are sent, and they are sent while the rest is computed.
    """
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # or more clip sizes run eager
    return torch.compile(network, dynamic=False)


def explain(error: BaseException) -> None:
    """Raises MachineError where an error is one of the compiler, not of what it has compiled."""
    if any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__):
        raise MachineError(
            f"torch.compile failed ({type(error).__name__}: {first_line(error)}): train with train.compile=false, or "
            "mend the compiler"
        ) from error
