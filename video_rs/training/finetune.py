"""Finetuning: the depth of each parameter, frozen stages and linear probes."""

from collections.abc import Iterator
from functools import partial

from torch import nn

from video_rs.errors import UserError
from video_rs.models.base import classifier_names


def depths(model: nn.Module, *, by_stage: bool = False) -> dict[str, int]:
    """Return the depth of each parameter: 0 for the stem, from 1 for the blocks, and the last for the head.

    The depth is defined by the model's ``group_matcher``, as in timm. A block of ResNet-RS is a bottleneck, as in
    timm's ResNets. A block of PyTorchVideo is a member of ``blocks``, which is a stage in its convolutional networks.

    Args:
        model: a network from ``create_model``.
        by_stage: count stages instead of blocks.

    Returns:
        ``{name of the parameter: depth}``.

    Raises:
        UserError: the order of the model's blocks is unknown.
    """
    matcher = model.group_matcher(coarse=by_stage) if hasattr(model, "group_matcher") else None
    if not matcher:
        raise UserError(
            f"{getattr(model, 'name', type(model).__name__)}: the order of its blocks is unknown; set "
            "optim.layer_decay=1 and train.freeze=0 (train.linear_probe=true works)"
        )
    from timm.models import group_parameters

    return group_parameters(model, matcher, reverse=True)


def freeze(model: nn.Module, stages: int = 0, *, but_head: bool = False) -> None:
    """Freeze weights, and keep their batch norm in evaluation mode, even after ``model.train()``.

    Stochastic depth still applies to frozen blocks in training.

    Args:
        model: a network from ``create_model``, after conversion of batch norm.
        stages: number of leading stages to freeze, see :func:`depths`. The stem is the first.
        but_head: freeze everything except the head, for a linear probe.

    Raises:
        UserError: the network has fewer stages.
    """
    if but_head:
        frozen = {name for name, _ in model.named_parameters()} - set(classifier_names(model))
    else:
        depth = depths(model, by_stage=True)
        available = max(depth.values())
        if stages > available:
            raise UserError(f"train.freeze={stages}: the network has {available} stages including the stem")
        frozen = {name for name, stage in depth.items() if stage < stages}
    model.frozen_for_run = [name for name, p in model.named_parameters() if name in frozen and p.requires_grad]
    for name in model.frozen_for_run:
        model.get_parameter(name).requires_grad_(False)
    for norm in _frozen_norms(model):
        norm.eval()
        norm.train = partial(_stay_in_eval, norm)  # model.train() calls it


def unfreeze(model: nn.Module) -> None:
    """Undo :func:`freeze`. Parameters that the caller has frozen stay frozen."""
    for name in vars(model).pop("frozen_for_run", ()):
        model.get_parameter(name).requires_grad_(True)
    for module in model.modules():
        vars(module).pop("train", None)  # of frozen batch norm


def _stay_in_eval(norm: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(norm, False)


def _frozen_norms(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the batch norm layers of modules whose parameters are all frozen."""
    trained = [p.requires_grad for p in module.parameters()]
    if trained and not any(trained):
        yield from (norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm))
    else:
        for child in module.children():
            yield from _frozen_norms(child)
