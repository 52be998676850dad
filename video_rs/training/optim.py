"""Optimizers: parameter groups, and a step that the device can skip."""

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from video_rs.distributed.device import traits
from video_rs.errors import UserError, did_you_mean, one_line
from video_rs.training.finetune import depths
from video_rs.training.lamb import Lamb


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Group the trained parameters, for each depth those with weight decay and those without.

    Weights of convolutions and linear layers decay, squeeze-and-excitation and the head included. Biases, batch norm
    and self-gating do not: the L2 term of the published video recipe is on the kernels that have a regulariser, and the
    self-gating kernel has none. Parameters outside of torch's layers do not decay either: class tokens, position
    embeddings, but also the kernels of timm's ``CondConv2d``. Nor do those that ``model.no_weight_decay()`` names.

    Args:
        model: without the wrappers of DistributedDataParallel or ``torch.compile``, which change names.
        weight_decay: of the groups that decay.
        layer_decay: ratio of the learning rates of one depth and the next, as in timm; 1 puts all depths together.
            Each group has the factor for its learning rate as ``lr_scale``.

    Raises:
        UserError: ``layer_decay`` is not 1, and the model does not know the order of its blocks.
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
    """Return a line for each group: tensors, parameters, decay and learning rate; and a line for what is frozen."""
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
    """Create an optimizer over :func:`parameter_groups`; the trainer sets the learning rates before every step.

    Args:
        name: ``sgd``, ``adamw`` (Loshchilov & Hutter 2017, arXiv 1711.05101), ``lamb``, or a name of timm's.
        model: the network to train.
        weight_decay, layer_decay: see :func:`parameter_groups`.
        lr: the highest learning rate, to which timm's corrected weight decay is relative.
        momentum: of SGD, and of those of timm's that have one.
        nesterov: of SGD.
        betas, eps: of AdamW and LAMB.
        options: arguments of timm's class; the others keep timm's defaults.

    Raises:
        UserError: timm's optimizer does not have an option or its value; or the device compiles graphs, and would
            compile one for each step of timm's.
    """
    groups = parameter_groups(model, weight_decay, layer_decay)
    device = traits(next(model.parameters()).device)
    kind = {"fused": True} if device.has_fused_optimizers else {"fused": False, "foreach": False}
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, **kind)
        if momentum:  # allocate state now: a skipped first step would leave it undefined
            for p in (p for group in groups for p in group["params"]):
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer
    if name == "adamw":  # capturable, or the host counts its steps
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, capturable=device.compiles_graphs, **kind)
    if name == "lamb":
        return Lamb(groups, lr=lr, betas=betas, eps=eps)
    if device.compiles_graphs:
        raise UserError(f"optim.name={name} is not for XLA; use sgd, adamw or lamb")
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
    """Take one step, or none if ``skip``, bool ``[]`` on the device, is true.

    With SGD, AdamW and LAMB the host does not wait for the device. With optimizers of timm's it waits once a step,
    because most of them count their steps on the host.
    """
    if isinstance(optimizer, Lamb) or optimizer.defaults.get("fused"):
        optimizer.grad_scale, optimizer.found_inf = None, skip.float()
        optimizer.step()
    elif traits(skip.device).compiles_graphs:
        before = {key: value.clone() for key, value in _tensors(optimizer)}
        optimizer.step()
        for key, value in _tensors(optimizer):  # new state starts with zeros
            value.copy_(torch.where(skip, before.get(key, torch.zeros_like(value)), value))
    elif not skip:
        optimizer.step()


def _tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[tuple[int, str], Tensor]]:
    """Yield the parameters and their state, each with its name."""
    for p in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
        yield (id(p), ""), p.detach()
        yield from (((id(p), name), value) for name, value in optimizer.state[p].items())


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load a state dict, also from another kind of device or an earlier version."""
    keys = ("fused", "foreach", "capturable")
    own = [{key: group[key] for key in keys if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)
    for p, entries in optimizer.state.items():  # fused kernels assume the same memory order
        for name, value in entries.items():
            if torch.is_tensor(value) and value.shape == p.shape and value.stride() != p.stride():
                entries[name] = torch.empty_like(p, requires_grad=False).copy_(value)
