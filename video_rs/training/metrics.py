"""What happens in the steps between two log lines, counted on the device and read by the host at the log line only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Sums over steps.

    Args:
        share: samples of a global batch that this process takes.
        window: steps from one reading to the next; after as many the flags are read in any case.
        device: of the losses.
    """

    def __init__(self, share: int, window: int, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, hits, samples
        self._of_step = torch.zeros_like(self.sums)
        self._bad = torch.zeros(window, dtype=torch.bool, device=device)
        self._bad_samples = torch.zeros(window, share, dtype=torch.bool, device=device)
        self._bad_of_step = torch.zeros(share, dtype=torch.bool, device=device)
        # where the step's flags go: on the device, as XLA would compile a graph for each number that Python knows
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)
        self._steps: list[int] = []  # whose flags are on the device
        self._found: dict[int, list[int]] = {}

    def begin(self) -> None:
        """A new step; what one that was given up has counted is forgotten."""
        if len(self._steps) == len(self._bad):
            self._read_flags()
        self._of_step.zero_()
        self._bad_of_step.zero_()

    def add(self, losses: Tensor, hits: Tensor, positions: Tensor) -> None:
        """The samples of a micro-batch: ``[n]`` losses, hits and positions in the share (int64)."""
        self._of_step += torch.stack([losses.sum(), hits.sum(), torch.ones_like(hits).sum()])
        self._bad_of_step.index_copy_(0, positions, ~losses.isfinite())

    def of_step(self) -> Tensor:
        """Sums of the step's losses, hits and samples so far, float64 ``[3]``."""
        return self._of_step

    def end(self, step: int, sums: Tensor, bad: Tensor) -> None:
        """The step is over: its sums over all processes, and whether (bool ``[]``, on the device) it was not taken."""
        self.sums += torch.where(bad, torch.zeros_like(sums), sums)
        self._bad.index_copy_(0, self._slot, bad[None])
        self._bad_samples.index_copy_(0, self._slot, self._bad_of_step[None])
        self._slot += 1
        self._steps.append(step)

    def bad_steps(self) -> dict[int, list[int]]:
        """The steps since the last call that were not taken. Waits for the device.

        Returns:
            of each, the positions in this process's share of the samples whose loss was not finite; none where only the
            gradient was not.
        """
        self._read_flags()
        found, self._found = self._found, {}
        return found

    def _read_flags(self) -> None:
        flags = self._bad.tolist() if self._steps else []
        for slot, (step, bad) in enumerate(zip(self._steps, flags)):
            if bad:
                self._found[step] = self._bad_samples[slot].cpu().nonzero()[:, 0].tolist()
        self._forget()

    def _forget(self) -> None:
        self._steps.clear()
        self._slot.zero_()

    def means(self) -> tuple[float, float]:
        """Mean loss and part of hits since :meth:`clear`; nan where no step was taken. Waits for the device."""
        loss, hits, samples = self.sums.tolist()
        return (loss / samples, hits / samples) if samples else (float("nan"), float("nan"))

    def clear(self) -> None:
        """Starts the means anew."""
        self.sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, once :meth:`bad_steps` were read."""
        return {"meter": self.sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.sums.copy_(state["meter"])
        self._forget()
        self._found.clear()
