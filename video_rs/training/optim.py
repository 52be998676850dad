"""Optimizers: parameter groups, and a step that the device can skip."""

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from video_rs.distributed.device import compiles_graphs
from video_rs.errors import UserError, did_you_mean, one_line
from video_rs.training.finetune import depths
from video_rs.training.lamb import Lamb


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Group the trainable parameters by depth and by whether weight decay applies.

    Weight decay applies to weights of convolutions and linear layers, including squeeze-and-excitation and the head. It
    does not apply to biases, batch norm and self-gating, which have no L2 term in the published video recipe. It also
    does not apply to parameters outside of torch's layers (class tokens, position embeddings, and the kernels of timm's
    ``CondConv2d``) and to those in ``model.no_weight_decay()``.

    Args:
        model: the network without the wrappers of DistributedDataParallel or ``torch.compile``, which change names.
        weight_decay: weight decay of the groups that have it.
        layer_decay: ratio of the learning rates of one depth and the next, as in timm; 1 for no grouping by depth. The
            factor of the learning rate of each group is its ``lr_scale``.

    Raises:
        UserError: ``layer_decay`` is not 1, and the order of the model's blocks is unknown.
    """
    excluded = getattr(model, "no_weight_decay", set)()
    layers = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)]
    weights = {id(layer.weight) for layer in layers}
    depth = depths(model) if layer_decay != 1 else {}
    deepest = max(depth.values(), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {
        (at, decays): [] for at in range(deepest + 1) for decays in (True, False)
    }
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups[depth.get(name, 0), id(p) in weights and name not in excluded].append(p)
    return [
        {"params": params, "weight_decay": weight_decay * decays, "lr_scale": layer_decay ** (deepest - at)}
        for (at, decays), params in groups.items()
        if params or deepest == 0
    ]


def describe_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return a line per group with its size, weight decay and learning rate, and a line for frozen parameters."""
    lines = [
        f"{_counted(group['params'])}: weight decay {group['weight_decay']:g}, "
        f"learning rate x {group.get('lr_scale', 1):.4g}"
        for group in optimizer.param_groups
        if group["params"]
    ]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return lines + [f"{_counted(frozen)}: frozen"] * bool(frozen)


def _counted(parameters: list[nn.Parameter]) -> str:
    return f"{len(parameters)} tensors, {sum(p.numel() for p in parameters):,} parameters"


def create(
    name: str,
    model: nn.Module,
    *,
    weight_decay: float,
    layer_decay: float = 1.0,
    lr: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """Create an optimizer over :func:`parameter_groups`. The trainer sets the learning rates before every step.

    Args:
        name: ``sgd``, ``adamw`` (Loshchilov & Hutter 2017, arXiv 1711.05101), ``lamb``, or an optimizer of timm.
        model: the network to train.
        weight_decay, layer_decay: see :func:`parameter_groups`.
        lr: peak learning rate, which timm's corrected weight decay is relative to.
        momentum: momentum of SGD and of timm's optimizers with momentum.
        nesterov: use Nesterov momentum in SGD.
        betas, eps: parameters of AdamW and LAMB.
        options: other arguments of timm's optimizer.

    Raises:
        UserError: timm's optimizer does not accept an option or its value; or the device is XLA, which would compile
            each step of timm's optimizers.
    """
    groups = parameter_groups(model, weight_decay, layer_decay)
    is_compiled = compiles_graphs(next(model.parameters()).device)
    kind = {"fused": False, "foreach": False} if is_compiled else {"fused": True}
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, **kind)
        if momentum:  # allocate state now: a skipped first step would leave it undefined
            for p in (p for group in groups for p in group["params"]):
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer
    if name == "adamw":  # capturable counts steps on the device
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, capturable=is_compiled, **kind)
    if name == "lamb":
        return Lamb(groups, lr=lr, betas=betas, eps=eps)
    if is_compiled:
        raise UserError(f"optim.name={name} does not support XLA; use sgd, adamw or lamb")
    return _from_timm(name, groups, lr, {"momentum": momentum, **(options or {})})


def _from_timm(name: str, groups: list[dict], lr: float, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    from timm.optim import get_optimizer_class

    make = get_optimizer_class(name, bind_defaults=True)
    known = [key for key in signature(make).parameters if key not in ("params", "lr", "weight_decay")]
    options = {key: _number(value) for key, value in options.items() if key in known or key != "momentum"}
    for key in options:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise UserError(f"optim.options: {name} has no {key!r}; it has {', '.join(known)}{hint}")
    with one_line(f"optim.options: {name} refuses {options}", (AssertionError, RuntimeError, TypeError, ValueError)):
        return make(groups, lr=lr, **options)


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value  # PyYAML reads 1e-3 as text
    except ValueError:
        return value


def step_unless(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """Take a step unless ``skip``, bool ``[]`` on the device, is true.

    SGD, AdamW and LAMB do not synchronize. timm's optimizers synchronize once per step, because most of them count
    steps on the host.
    """
    if isinstance(optimizer, Lamb) or optimizer.defaults.get("fused"):
        optimizer.grad_scale, optimizer.found_inf = None, skip.float()
        optimizer.step()
    elif compiles_graphs(skip.device):
        before = {key: value.clone() for key, value in _tensors(optimizer)}
        optimizer.step()
        for key, value in _tensors(optimizer):  # new state starts with zeros
            value.copy_(torch.where(skip, before.get(key, torch.zeros_like(value)), value))
    elif not skip:
        optimizer.step()


def _tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[tuple[int, str], Tensor]]:
    """Yield the parameters and the tensors of their state, with a key for each."""
    for p in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
        yield (id(p), ""), p.detach()
        yield from (((id(p), name), value) for name, value in optimizer.state[p].items())


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load a state dict, which may be from another device type or an earlier version."""
    keys = ("fused", "foreach", "capturable")
    own = [{key: group[key] for key in keys if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)
    for p, entries in optimizer.state.items():  # fused kernels assume the same memory order
        for name, value in entries.items():
            if torch.is_tensor(value) and value.shape == p.shape and value.stride() != p.stride():
                entries[name] = torch.empty_like(p, requires_grad=False).copy_(value)
