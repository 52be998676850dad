"""LAMB (You et al. 2019, "Large Batch Optimization for Deep Learning", arXiv 1904.00962, algorithm 2)."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from video_rs.training.ema import foreach_lerp_


class Lamb(Optimizer):
    """Adam with a trust ratio: the length of a tensor's step is the learning rate times the tensor's norm.

    Equal to timm's ``Lamb(max_grad_norm=None)``: means of the gradients and of their squares are bias-corrected; weight
    decay is added to the update, not to the gradient; tensors without decay use Adam's step. Gradients are not clipped.

    If the attribute ``found_inf``, a float32 tensor on the device, is 1, a step changes nothing, as with torch's fused
    optimizers. This does not synchronize.

    Args:
        params: parameters or parameter groups. A group has one dtype and one device.
        lr: learning rate.
        betas: decay rates of the two means.
        eps: term added to the root of the mean square.
        weight_decay: coefficient of the decoupled decay.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for group in self.param_groups:
            if params := [p for p in group["params"] if p.grad is not None]:
                self._step(params, group)

    def _step(self, params: list[Tensor], group: dict) -> None:
        states = [self._state(p) for p in params]
        means, squares, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "steps"))
        gradients, taken = [p.grad for p in params], torch.ones_like(steps[0])
        if self.found_inf is not None:
            skip = self.found_inf.to(taken.device).bool().squeeze()
            taken = (~skip).to(taken.dtype)
            gradients = [g.masked_fill(skip, 0) for g in gradients]  # inf * 0 is not 0
        beta1, beta2 = group["betas"]
        torch._foreach_add_(steps, taken)
        foreach_lerp_(means, gradients, taken * (1 - beta1))
        foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), taken * (1 - beta2))
        updates = _adam(means, squares, torch.stack(steps), group)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            torch._foreach_mul_(updates, _trust(params, updates))
        torch._foreach_mul_(updates, taken * group["lr"])
        torch._foreach_sub_(params, updates)

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:  # not "step", which torch does not move to the device when loading
            state["steps"] = torch.zeros((), dtype=p.dtype, device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        return state


def _adam(means: list[Tensor], squares: list[Tensor], steps: Tensor, group: dict) -> list[Tensor]:
    """Return Adam's step without the learning rate. It is finite even before the first step."""
    (beta1, beta2), steps = group["betas"], steps.clamp(min=1)
    denominators = torch._foreach_sqrt(squares)
    torch._foreach_div_(denominators, list(_correction(beta2, steps).sqrt().unbind()))
    torch._foreach_add_(denominators, group["eps"])
    torch._foreach_mul_(denominators, list(_correction(beta1, steps).unbind()))
    return torch._foreach_div(means, denominators)


def _correction(beta: float, steps: Tensor) -> Tensor:
    """Return ``1 - beta ** steps`` without cancellation."""
    return -torch.expm1(steps * math.log(max(beta, 1e-300)))


def _trust(params: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """Return the ratio of the norm of each tensor and the norm of its update, or 1 if one of them is 0."""
    weights, steps = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, updates))
    return list(torch.where((weights > 0) & (steps > 0), weights / steps, 1.0).unbind())
