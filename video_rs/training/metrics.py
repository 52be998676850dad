"""Training metrics between log lines. They are summed on the device, and read by the host only for a log line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class StepMetrics:
    """Sums of loss and correct predictions over steps, and flags of non-finite steps and samples.

    Args:
        per_rank_batch: number of samples per step on this rank.
        window: maximum number of steps between two reads of the flags.
        device: device of the losses.

    Attributes:
        of_step: sums of this step: loss, correct predictions and samples, float64 ``[3]``.
    """

    def __init__(self, per_rank_batch: int, window: int, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct predictions, samples
        self.of_step = torch.zeros_like(self.sums)
        self._bad = torch.zeros(window, dtype=torch.bool, device=device)
        self._bad_samples = torch.zeros(window, per_rank_batch, dtype=torch.bool, device=device)
        self._bad_of_step = torch.zeros(per_rank_batch, dtype=torch.bool, device=device)
        # index of the next flag, on the device: XLA would compile a graph for each value of a Python number
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)
        self._steps: list[int] = []  # steps whose flags are on the device
        self._found: dict[int, list[int]] = {}

    def begin(self) -> None:
        """Start a step, and drop the sums of an unfinished step."""
        if len(self._steps) == len(self._bad):
            self._read_flags()
        self.of_step.zero_()
        self._bad_of_step.zero_()

    def add(self, losses: Tensor, correct: Tensor, positions: Tensor) -> None:
        """Add a micro-batch: ``[n]`` losses, correct predictions (0 or 1) and int64 positions in the per-rank batch."""
        self.of_step += torch.stack([losses.sum(), correct.sum(), torch.ones_like(correct).sum()])
        self._bad_of_step.index_copy_(0, positions, ~losses.isfinite())

    def end(self, step: int, sums: Tensor, bad: Tensor) -> None:
        """End a step with its sums over all ranks. ``bad``, bool ``[]`` on the device, is true if it was skipped."""
        self.sums += torch.where(bad, torch.zeros_like(sums), sums)
        self._bad.index_copy_(0, self._slot, bad[None])
        self._bad_samples.index_copy_(0, self._slot, self._bad_of_step[None])
        self._slot += 1
        self._steps.append(step)

    def bad_steps(self) -> dict[int, list[int]]:
        """Return the steps that were skipped since the last call. Waits for the device.

        Returns:
            For each step, the positions in this rank's batch of the samples with a non-finite loss; an empty list if
            only the gradient was non-finite.
        """
        self._read_flags()
        found, self._found = self._found, {}
        return found

    def _read_flags(self) -> None:
        flags = self._bad.tolist() if self._steps else []
        for slot, (step, bad) in enumerate(zip(self._steps, flags)):
            if bad:
                self._found[step] = self._bad_samples[slot].cpu().nonzero()[:, 0].tolist()
        self._drop_flags()

    def _drop_flags(self) -> None:
        self._steps.clear()
        self._slot.zero_()

    def means(self) -> tuple[float, float]:
        """Return mean loss and accuracy since :meth:`clear`, or nan if all steps were skipped. Waits for the device."""
        loss, correct, samples = self.sums.tolist()
        return (loss / samples, correct / samples) if samples else (float("nan"), float("nan"))

    def clear(self) -> None:
        """Reset the sums."""
        self.sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint. Call :meth:`bad_steps` first."""
        return {"meter": self.sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.sums.copy_(state["meter"])
        self._drop_flags()
        self._found.clear()
