"""What finetuning asks of a network: how deep each parameter lies, and stages that keep their weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from torch import nn

from video_rs.errors import UserError
from video_rs.models.adapters.base import External
from video_rs.models.resnet_rs import ResNetRS


def depths(model: nn.Module, *, by_stage: bool = False) -> dict[str, int]:
    """How deep each parameter lies: 0 for the stem, 1 and so on for the blocks, then one more for the head.

    A block of ResNet-RS is a bottleneck, as timm counts its ResNets (``group_matcher``); of timm's networks it is what
    their ``group_matcher`` says; of PyTorchVideo's a member of ``blocks``: a stage of its convolutional networks.

    Args:
        model: as ``create_model`` makes it.
        by_stage: count stages, not blocks.

    Returns:
        ``{name of the parameter: depth}``.

    Raises:
        UserError: nobody knows the order of the network's blocks.
    """
    if isinstance(model, ResNetRS):
        return _counted(model, r"stages\.(\d+)" if by_stage else r"stages\.(\d+)\.(\d+)")
    if isinstance(model, External) and model.name.startswith("timm/") and hasattr(model.network, "group_matcher"):
        from timm.models import group_parameters

        prefix = "network."
        found = group_parameters(model.network, model.network.group_matcher(coarse=by_stage), reverse=True)
        return {prefix + name: depth for name, depth in found.items()}
    if isinstance(model, External) and model.name.startswith("pytorchvideo/"):
        return _counted(model, r"network\.blocks\.(\d+)")
    raise UserError(
        f"{getattr(model, 'name', type(model).__name__)} does not tell the order of its blocks: set "
        "optim.layer_decay=1 and train.freeze=0 (train.linear_probe=true works)"
    )


def _counted(model: nn.Module, block: str) -> dict[str, int]:
    """Depths by the pattern of a block's name: what comes before the first is the stem, else it is of the last one."""
    found, last, depth_of = {}, None, {}
    for name, _ in model.named_parameters():
        if name in model.head_names:
            continue
        matched = re.match(block, name)
        last = matched.groups() if matched else last
        found[name] = depth_of.setdefault(last, len(depth_of))
    return found | dict.fromkeys(model.head_names, len(depth_of))


def freeze(model: nn.Module, stages: int = 0, *, but_head: bool = False) -> None:
    """Keeps weights as they are, and their batch norm in evaluation mode, also after ``model.train()``.

    Frozen blocks still drop paths in training, as the config says.

    Args:
        model: as ``create_model`` makes it; batch norm is already of the kind that the run has.
        stages: leading ones, see :func:`depths`; the stem is the first.
        but_head: all but the head, a linear probe.

    Raises:
        UserError: the network has fewer stages.
    """
    if but_head:
        frozen = {name for name, _ in model.named_parameters()} - set(model.head_names)
    else:
        depth = depths(model, by_stage=True)
        available = max(depth.values())
        if stages > available:
            raise UserError(f"train.freeze={stages}: the network has {available} stages, the stem included")
        frozen = {name for name, stage in depth.items() if stage < stages}
    for name, p in model.named_parameters():
        if name in frozen:
            p.requires_grad_(False)
    for norm in _frozen_norms(model):
        norm.eval()
        norm.train = partial(_stay, norm)  # which model.train() calls


def _stay(norm: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(norm, False)


def _frozen_norms(module: nn.Module) -> Iterator[nn.Module]:
    """Batch norm inside of what has parameters, none of which is trained."""
    trained = [p.requires_grad for p in module.parameters()]
    if trained and not any(trained):
        yield from (norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm))
    else:
        for child in module.children():
            yield from _frozen_norms(child)
