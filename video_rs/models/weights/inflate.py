"""Inflate image weights to a video network (Carreira & Zisserman 2017, "Quo Vadis, Action Recognition?", sec. 2.1).

The 2D and 3D networks of the family have the same layer names, so weights are matched by name. There are two methods to
extend a 2D kernel in time:

* ``center``: the 2D kernel at the middle frame, zeros elsewhere. On a still clip, the inflated network returns the
  logits of its source with any padding.
* ``average``: the 2D kernel at every frame, divided by the number of frames. This is also exact on still clips with
  replicated temporal padding. With zero padding, kernels are cut at the first and last frames. On still clips of 8
  frames, the logits of the default architecture then differ by 15 % of the largest logit with the initial batch norm
  statistics, and by more with trained statistics (30 to 150 % in the small random network of the tests, on noise).
  Twice the frames halve the error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from video_rs.errors import UserError, truncate
from video_rs.models.architecture import INFLATIONS, Differences
from video_rs.models.base import classifier_names
from video_rs.models.resnet_rs import ResNetRS
from video_rs.models.weights.find import find_weights
from video_rs.models.weights.state_dict import State, sizes_in_files, to_ours


@dataclass
class InflationReport:
    """The result of loading weights into a network, by the name of each weight in the network.

    Attributes:
        matched: weights that were loaded unchanged.
        inflated: kernels that were inflated.
        adapted: weights that were adapted or not loaded, with the reason: a head for other classes, a stem for other
            channels.
        unused: weights of the source that the network does not have.
        missing: weights of the network that the source does not have. They keep their initial values.
        differences: differences of the architectures, ``{field: (source, network)}``. If there are any, the logits of
            still clips differ from those of the source.
        compared: False if the architecture of the source is unknown.
        notes: the place of the weights in the file, its unused content, and a head whose classes are unknown.
    """

    matched: list[str] = field(default_factory=list)
    inflated: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    differences: Differences = field(default_factory=dict)
    compared: bool = True
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} weights unchanged"]
        parts += [f"{len(self.inflated)} inflated"] if self.inflated else []
        parts += [f"{name} ({reason})" for name, reason in self.adapted.items() if name.endswith("weight")]
        parts += [f"not used: {truncate(self.unused)}"] if self.unused else []
        parts += [f"not in the source: {truncate(self.missing)}"] if self.missing else []
        return ", ".join(filter(None, [*parts, self.about_architectures(), *self.notes]))

    def about_architectures(self) -> str:
        """Describe the differences of the architectures; "" if there are none."""
        if not self.compared:
            return "architecture of the source unknown: not compared"
        shown = ", ".join(f"{name} {theirs} -> {own}" for name, (theirs, own) in self.differences.items())
        return f"differs from the source: {shown} (the logits will differ)" if shown else ""

    def table(self) -> str:
        """Return a line for each list of weights."""
        rows = {name: getattr(self, name) for name in ("matched", "inflated", "adapted", "unused", "missing")}
        rows["adapted"] = [f"{name} ({reason})" for name, reason in self.adapted.items()]
        lines = [f"{row:<9}{len(names):5d}  {truncate(names)}".rstrip() for row, names in rows.items()]
        return "\n".join([*lines, *self.notes])


def inflate(state_dict_2d: State, model_3d: nn.Module, method: str = "center") -> InflationReport:
    """Load image weights into a video network, in place, by names and shapes.

    This does not compare activation and padding, and accepts weights that only one of the networks has; check the
    report. ``video_rs.models.weights.init_from.init_from`` compares the architectures and is strict.

    Args:
        state_dict_2d: state dict of an image network, with this package's names or timm's. Kernels that already have
            the network's temporal size are loaded unchanged.
        model_3d: a ``ResNetRS``, which may differ in temporal kernels, class count and input channels.
        method: "center" or "average".

    Returns:
        A report of the matched, inflated, adapted, unused and missing weights.

    Raises:
        UserError: a weight has a wrong shape. The network is unchanged.
    """
    found = find_weights(state_dict_2d, sizes_in_files(model_3d))
    weights, report = match(to_ours(found.weights), model_3d, method)
    model_3d.load_state_dict(weights, strict=False)
    return report


def match(
    state: State, model: nn.Module, method: str = "center", class_names: Sequence[str] = ()
) -> tuple[dict[str, Tensor], InflationReport]:
    """Return the weights to load into a network, and the report.

    Args:
        state: weights with the network's names.
        model: the network, which is not changed. Outside of the family, only the head may have another shape.
        method: "center" or "average".
        class_names: class names of the weights, empty if unknown. Those of the network are in its data config.

    Raises:
        UserError: weights have a wrong shape. The message names the first few.
    """
    if method not in INFLATIONS:
        raise UserError(f"the inflation method is {' or '.join(INFLATIONS)}, not {method!r}")
    report, loaded, misfits = InflationReport(), {}, []
    family, first = isinstance(model, ResNetRS), first_kernel(model)
    targets, head = model.state_dict(), classifier_names(model)
    for name, target in targets.items():
        source = state.get(name)
        if source is None:
            if not name.endswith("num_batches_tracked"):
                report.missing.append(name)
            continue
        if name in head and source.shape[1:] == target.shape[1:]:
            source, reason = adapt_head(source, target, class_names, model.data_config.class_names)
            if reason:
                report.adapted[name] = reason
            if source is None:
                continue
        if family and name == first and source.ndim == 5 and source.shape[1] != target.shape[1]:
            report.adapted[name] = f"{source.shape[1]} -> {target.shape[1]} input channels"
            source = average_channels(source, target.shape[1])
        if source.shape == target.shape:
            if name not in report.adapted:
                report.matched.append(name)
        elif family and target.ndim == 5 and source.shape == (*target.shape[:2], 1, *target.shape[3:]):
            report.inflated.append(name)
            source = inflate_kernel(source, target.shape[2], method)
        else:
            misfits.append(f"{name} is {list(source.shape)} but {list(target.shape)} in the network")
            if name == first and not family and source.shape[1:2] != target.shape[1:2]:
                misfits[-1] += " (input channels are only adapted for the ResNet-RS family)"
        loaded[name] = source
    if misfits:
        more = f"; ... ({len(misfits) - 3} more)" if len(misfits) > 3 else ""
        raise UserError(f"weights have other shapes: {'; '.join(misfits[:3])}{more}")
    names = model.data_config.class_names
    if names and tuple(class_names) != tuple(names) and set(head) & set(report.matched):
        report.notes.append(f"{head[0]} kept: the class names of the source are unknown")
    report.unused = [name for name in state if name not in targets]
    return loaded, report


def inflate_kernel(kernel: Tensor, length: int, method: str) -> Tensor:
    """Extend a kernel ``[out, in, 1, h, w]`` to ``[out, in, length, h, w]``."""
    if method == "average":
        return kernel.expand(-1, -1, length, -1, -1) / length
    inflated = torch.zeros_like(kernel).repeat(1, 1, length, 1, 1)
    inflated[:, :, length // 2] = kernel[:, :, 0]
    return inflated


def adapt_head(source: Tensor, target: Tensor, theirs: Sequence[str], ours: Sequence[str]) -> tuple[Tensor | None, str]:
    """Return a weight of the head for the classes of the network (None for a new head), and a note on the change.

    Args:
        source: one row per class of the source.
        target: one row per class of the network. Classes that the source does not have keep their rows.
        theirs, ours: class names of the source and the network, empty if unknown. An equal number of classes does not
            imply the same classes.
    """
    rows, wanted = _rows_by_name(theirs, source), _rows_by_name(ours, target)
    if not rows or not wanted:
        if source.shape[0] == target.shape[0]:
            return source, ""
        return None, f"{source.shape[0]} -> {target.shape[0]} classes, new head"
    if tuple(theirs) == tuple(ours):
        return source, ""
    if not (shared := [name for name in wanted if name in rows]):
        return None, "other class names, new head"
    adapted = target.clone()
    adapted[[wanted[name] for name in shared]] = source[[rows[name] for name in shared]].to(target)
    return adapted, f"{len(shared)} of {target.shape[0]} classes by name"


def _rows_by_name(names: Sequence[str], rows: Tensor) -> dict[str, int]:
    """Return the row of each named class. A class whose name is its own number is not named."""
    return {name: i for i, name in enumerate(names) if name != str(i)} if len(names) == len(rows) else {}


def first_kernel(model: nn.Module) -> str:
    """Return the name of the weight of the first convolution."""
    return next((name for name, weight in model.named_parameters() if weight.ndim in (4, 5)), "")


def average_channels(kernel: Tensor, channels: int) -> Tensor:
    """Return the kernel for another number of input channels: the mean, scaled to keep the output on grey images."""
    return (kernel.sum(1, keepdim=True) / channels).expand(-1, channels, -1, -1, -1)
