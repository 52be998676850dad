"""Image weights into a video network (Carreira & Zisserman 2017, "Quo Vadis, Action Recognition?", sec. 2.1).

The 2D and 3D networks of the family name their layers alike, so that a weight finds its place by its name and the only
question is what becomes of a kernel that gains a temporal extent:

* ``center``: the image kernel on the frame itself, zeros on its neighbours. On a still clip the inflated network gives
  the logits of its source, whatever the padding.
* ``average``: the image kernel on every frame, divided by their number. The same holds with replicated temporal
  padding. With zeros, the frames at the borders see less than the whole kernel. On still clips of 8 frames the logits
  of the default architecture are then 15 % of the largest off while batch norm has a fresh network's statistics, from
  the stem alone; and more with the statistics of whole kernels, as trained weights have them (30 to 150 % in
  the tests' small network with random weights, on noise). Twice the frames halve it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from video_rs.errors import UserError
from video_rs.models.architecture import INFLATIONS, Differences
from video_rs.models.resnet_rs import ResNetRS
from video_rs.models.weights.names import State, ours
from video_rs.models.weights.state_dict import truncate


@dataclass
class InflationReport:
    """What became of every weight, by the name of its place.

    Attributes:
        matched: taken as they are.
        inflated: kernels that gained a temporal extent.
        adapted: changed or not taken, and how: the head for other classes, the stem for other channels.
        unused: of the source, without a place in the network.
        missing: of the network, without a source; they keep their initial values.
        differences: of the architectures, ``{field: (the source's, the network's)}``; with any, a still clip does not
            give the source's logits.
        compared: True if the architectures were; they are not where the source's is unknown.
    """

    matched: list[str] = field(default_factory=list)
    inflated: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    differences: Differences = field(default_factory=dict)
    compared: bool = True

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} weights as they are"]
        parts += [f"{len(self.inflated)} inflated"] if self.inflated else []
        parts += [f"{name} ({how})" for name, how in self.adapted.items() if name.endswith("weight")]
        parts += [f"not used: {truncate(self.unused)}"] if self.unused else []
        parts += [f"not in the source: {truncate(self.missing)}"] if self.missing else []
        return ", ".join(filter(None, [*parts, self.about_architectures()]))

    def about_architectures(self) -> str:
        """Return the differences of the architectures and what they mean, or that they are unknown; "" without any."""
        if not self.compared:
            return "architecture of the source unknown: not compared"
        shown = ", ".join(f"{name} {theirs} -> {own}" for name, (theirs, own) in self.differences.items())
        return f"differs from the source: {shown} (its logits will not be the source's)" if shown else ""

    def table(self) -> str:
        """Return a line for each list of weights."""
        rows = {name: getattr(self, name) for name in ("matched", "inflated", "adapted", "unused", "missing")}
        rows["adapted"] = [f"{name} ({how})" for name, how in self.adapted.items()]
        return "\n".join(f"{row:<9}{len(names):5d}  {truncate(names)}".rstrip() for row, names in rows.items())


def inflate(state_dict_2d: State, model_3d: nn.Module, method: str = "center") -> InflationReport:
    """Loads image weights into a video network, in place, by their names and shapes alone.

    Whether the two networks compute alike (activation, padding, ...) is not asked, and what only one of them has is no
    error: read the report. ``video_rs.models.weights.init_from.init_from`` compares the architectures and is strict.

    Args:
        state_dict_2d: of an image network, this package's or timm's. Kernels that have the network's temporal extent
            already are taken as they are.
        model_3d: a ``ResNetRS`` that may differ in temporal kernels, class count and input channels.
        method: "center" or "average".

    Returns:
        What was matched, inflated, adapted, left unused and left at its initial value.

    Raises:
        UserError: a weight has a shape that does not fit; the network is unchanged.
    """
    weights, report = match(ours(state_dict_2d), model_3d, method)
    model_3d.load_state_dict(weights, strict=False)
    return report


def match(
    state: State, model: nn.Module, method: str = "center", class_names: Sequence[str] = ()
) -> tuple[dict[str, Tensor], InflationReport]:
    """What of weights with the network's names would be loaded, and the report.

    Args:
        state: the weights.
        model: the network, which stays as it is. One that is not of the family takes exact shapes and a new head alone.
        method: of inflation.
        class_names: of the weights, empty when unknown; the network's are those of its data_config.

    Raises:
        UserError: a weight has a shape that does not fit; the message names the first few.
    """
    if method not in INFLATIONS:
        raise UserError(f"the inflation method is {' or '.join(INFLATIONS)}, not {method!r}")
    report, loaded, misfits = InflationReport(), {}, []
    family, pixels = isinstance(model, ResNetRS), first_kernel(model)
    targets = model.state_dict()
    for name, target in targets.items():
        source = state.get(name)
        if source is None:
            if not name.endswith("num_batches_tracked"):
                report.missing.append(name)
            continue
        if name in model.head_names and source.shape[1:] == target.shape[1:]:
            source, how = adapt_head(source, target, class_names, model.data_config.class_names)
            if how:
                report.adapted[name] = how
            if source is None:
                continue
        if family and name == pixels and source.ndim == 5 and source.shape[1] != target.shape[1]:
            report.adapted[name] = f"{source.shape[1]} -> {target.shape[1]} input channels"
            source = average_channels(source, target.shape[1])
        if source.shape == target.shape:
            report.matched += [name] if name not in report.adapted else []
        elif family and target.ndim == 5 and source.shape == (*target.shape[:2], 1, *target.shape[3:]):
            report.inflated.append(name)
            source = inflate_kernel(source, target.shape[2], method)
        else:
            hint = ""
            if name == pixels and not family and source.shape[1:2] != target.shape[1:2]:
                hint = " (weights for other input channels are adapted for the ResNet-RS family alone)"
            misfits.append(f"{name} is {list(source.shape)} but {list(target.shape)} in the network{hint}")
        loaded[name] = source
    if misfits:
        more = f"; ... ({len(misfits) - 3} more)" if len(misfits) > 3 else ""
        raise UserError(f"weights have other shapes: {'; '.join(misfits[:3])}{more}")
    report.unused = [name for name in state if name not in targets]
    return loaded, report


def inflate_kernel(kernel: Tensor, length: int, method: str) -> Tensor:
    """``[out, in, 1, h, w]`` -> ``[out, in, length, h, w]``."""
    if method == "average":
        return kernel.expand(-1, -1, length, -1, -1) / length
    inflated = torch.zeros_like(kernel).repeat(1, 1, length, 1, 1)
    inflated[:, :, length // 2] = kernel[:, :, 0]
    return inflated


def adapt_head(source: Tensor, target: Tensor, theirs: Sequence[str], ours: Sequence[str]) -> tuple[Tensor | None, str]:
    """A weight of the head for the network's classes, None where it starts anew; and what was done, "" for nothing.

    Args:
        source: a row for each of its classes.
        target: a row for each of the network's; classes that the source does not know keep theirs.
        theirs, ours: names of the source's and the network's classes, empty when unknown. As many classes are not the
            same classes.
    """
    rows, wanted = _names(theirs, source), _names(ours, target)
    if not rows or not wanted:
        if source.shape[0] == target.shape[0]:
            return source, ""
        return None, f"{source.shape[0]} -> {target.shape[0]} classes, starts anew"
    if tuple(theirs) == tuple(ours):
        return source, ""
    if not (shared := [name for name in wanted if name in rows]):
        return None, "other class names, starts anew"
    adapted = target.clone()
    adapted[[wanted[name] for name in shared]] = source[[rows[name] for name in shared]].to(target)
    return adapted, f"{len(shared)} of {target.shape[0]} classes by name"


def _names(names: Sequence[str], rows: Tensor) -> dict[str, int]:
    """The row of every class with a name; a class that is called by its own number has none."""
    return {name: i for i, name in enumerate(names) if name != str(i)} if len(names) == len(rows) else {}


def first_kernel(model: nn.Module) -> str:
    """The name of the weight that meets the pixels."""
    return next((name for name, weight in model.named_parameters() if weight.ndim in (4, 5)), "")


def average_channels(kernel: Tensor, channels: int) -> Tensor:
    """The mean over the input channels for each of ``channels``, scaled so that a grey image gives what it gave."""
    return (kernel.sum(1, keepdim=True) / channels).expand(-1, channels, -1, -1, -1)
