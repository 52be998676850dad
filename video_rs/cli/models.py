"""Lists the networks with what they cost and what others published of them, or prints one stage by stage.

video-rs models                      all networks of this package
video-rs models 'garden_*'           those that match
video-rs models resnet3d_rs_50       one, stage by stage; also timm/resnet50, pytorchvideo/slow_r50, ...
video-rs models 'pytorchvideo/*'     the names of another package's networks that match, or 'timm/resnet*'
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from video_rs.cli.common import Parser, program
from video_rs.contract import DataContract
from video_rs.errors import UserError
from video_rs.models import layout
from video_rs.models.presets import PRESETS, Preset, Published, list_models

if TYPE_CHECKING:
    from torch import nn

    from video_rs.models.cost import Cost

    Measured = tuple[DataContract, Cost, int, list[str]]

LAYOUTS = {
    layout.RESNET_RS_2D: "image",
    layout.RESNET_RS_3D: "video",
    layout.GARDEN_2D: "Garden image",
    layout.GARDEN_3D: "Garden video",
    layout.INFLATED_GARDEN_2D: "Garden image, inflated",
    layout.R3D: "Garden R3D",
    layout.R3D_G: "Garden R3D-g",
    layout.SLOW_ONLY: "Garden SlowOnly",
}
"""The layouts in words; docs/models.md says what they are."""

PUBLISHED = "published top-1"
COLUMNS = {  # heading: width, negative for text
    "model": -max(map(len, PRESETS)),
    "layout": -max(map(len, LAYOUTS.values())),
    "input": -10,
    "parameters": 11,
    "reference": 16,
    "GMACs": 8,
    "reference GMACs": 17,
    "MiB": 6,
    PUBLISHED: -1,
}
LESS_WIDE = (("reference", "reference GMACs"), (PUBLISHED,), ("layout",))
"""What a terminal that is too narrow for the table does without, in this order."""
CLASSES = 1000
"""Of a network that has none of its own, where it is shown."""
TEST_COLUMNS = ("model", "test crop", "GMACs", "reference GMACs")
PUBLISHED_COLUMNS = ("model", "data", "views", "top-1", "top-5", "source")
NOTES = """\
GMACs: 10^9 multiply-accumulates of a forward pass, half of what the papers call FLOPs. MiB: activations that a
training step keeps for each clip, in float32. reference: the same of the code that the layout is from, and what ours
has more or less. Published accuracies are others'; none was reproduced here. See docs/models.md."""


def main(argv: list[str]) -> int:
    """Entry point of ``tools/list_models.py`` and ``video-rs models``."""
    parser = Parser(prog=program("models"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="*", metavar="NAME", help="a network, or a pattern with * and ?")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/models.md")
    args = parser.parse_args(argv)
    pattern, others = any(character in args.name for character in "*?["), "/" in args.name
    if args.markdown and (others or not pattern):
        raise UserError("--markdown is for tables of our own networks: give a pattern such as 'garden_*', or none")
    if others and pattern:
        lines: Iterable[str] = _names_of_others(args.name)
    elif others or args.name in PRESETS:
        lines = one(args.name)
    else:
        names = list_models(args.name) or _unknown(args.name, pattern)
        lines = markdown(names) if args.markdown else table(names, _columns(names))
    for line in lines:
        print(line, flush=True)
    if others and pattern:
        print(f"{program('models')} NAME prints one stage by stage", file=sys.stderr)
    return 0


def _unknown(name: str, pattern: bool) -> NoReturn:
    from video_rs.models.zoo import find_preset

    if pattern:
        raise UserError(f"no model matches {name!r}; {program('models')} lists them all")
    find_preset(name)  # raises, with the nearest names
    raise AssertionError(name)


def _names_of_others(pattern: str) -> list[str]:
    """The names of another package's networks, which are too many to measure each."""
    from video_rs.models import external

    package = pattern.partition("/")[0]
    if package not in external.PACKAGES:
        raise external.no_package(pattern)
    if names := external.names(pattern):
        return names
    raise UserError(f"no model matches {pattern!r}; {program('models')} '{package}/*' lists all of {package}")


def table(names: Sequence[str], columns: Sequence[str]) -> Iterator[str]:
    """Aligned lines, each as soon as its network is measured."""
    yield _aligned(COLUMNS, columns)
    for name in names:
        yield _aligned(row(PRESETS[name]), columns)
    yield f"\n{NOTES}"
    if left_out := [heading for heading in COLUMNS if heading not in columns]:
        yield f"Left out for want of width: {', '.join(left_out)}."


def _columns(names: Sequence[str]) -> list[str]:
    """Those of ``COLUMNS`` for which the terminal is wide enough; into files and pipes go all."""
    columns = list(COLUMNS)
    if not sys.stdout.isatty():
        return columns
    last = max((len(_in_short(PRESETS[name].published[0])) for name in names if PRESETS[name].published), default=0)
    widths = {key: abs(width) for key, width in COLUMNS.items()} | {PUBLISHED: max(last, len(PUBLISHED))}
    for leaves_out in LESS_WIDE:
        if sum(widths[key] + 2 for key in columns) - 2 > shutil.get_terminal_size().columns:
            columns = [key for key in columns if key not in leaves_out]
    return columns


def _aligned(cells: Iterable[str], columns: Sequence[str]) -> str:
    parts = [
        cell.ljust(-width) if width < 0 else cell.rjust(width)
        for cell, (key, width) in zip(cells, COLUMNS.items(), strict=True)
        if key in columns
    ]
    return "  ".join(parts).rstrip()


def row(preset: Preset) -> list[str]:
    """The cells under ``COLUMNS``."""
    from video_rs.models.cost import cost

    ours, reference = cost(preset.name), preset.reference
    gmacs = ours.macs / 1e9
    return [
        preset.name,
        LAYOUTS[preset.layout],
        _input(preset.contract),
        f"{ours.parameters:,}",
        f"{reference.parameters:,} ({ours.parameters - reference.parameters:+d})" if reference else "",
        f"{gmacs:.3f}",
        _beside(gmacs, reference.gmacs) if reference else "",
        f"{ours.activation_bytes / 2**20:,.0f}",
        _in_short(preset.published[0]) if preset.published else "",
    ]


def _beside(ours: float, theirs: float) -> str:
    percent = round(100 * (ours / theirs - 1), 2) + 0  # no negative zero
    return f"{theirs:g} ({percent:+.2f} %)"


def _input(contract: DataContract, size: int | None = None) -> str:
    frames = f"{contract.num_frames}x" if contract.num_frames > 1 else ""
    side = size or contract.train_size
    return f"{frames}{side}x{side}"


def _in_short(published: Published) -> str:
    repository = published.source.split()[0]
    return f"{published.top1:.1f} {published.dataset}, {repository}"


def markdown(names: Sequence[str]) -> Iterator[str]:
    """The generated part of docs/models.md: costs, those of test crops, published accuracies."""
    yield from _markdown_table(COLUMNS, (row(PRESETS[name]) for name in names))
    tested = [PRESETS[name] for name in names if PRESETS[name].reference and PRESETS[name].reference.test_gmacs]
    if tested:
        yield "\nThe same networks on the crops that they are tested on:\n"
        yield from _markdown_table(TEST_COLUMNS, map(_test_row, tested))
    yield "\nPublished accuracies, in per cent:\n"
    rows = ([name, *_accuracy(published)] for name in names for published in PRESETS[name].published)
    yield from _markdown_table(PUBLISHED_COLUMNS, rows)


def _markdown_table(columns: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for cells in rows:
        yield f"| {' | '.join(cells)} |"


def _test_row(preset: Preset) -> list[str]:
    from video_rs.models.cost import cost

    size = preset.contract.test_size
    gmacs = cost(preset.name, size).macs / 1e9
    return [preset.name, _input(preset.contract, size), f"{gmacs:.2f}", _beside(gmacs, preset.reference.test_gmacs)]


def _accuracy(published: Published) -> list[str]:
    top5 = "" if published.top5 is None else str(published.top5)
    return [published.dataset, published.views, str(published.top1), top5, published.source]


def one(name: str) -> Iterator[str]:
    """The network stage by stage, then its regularisation, its data contract and its published accuracies."""
    preset = PRESETS.get(name)
    (contract, cost, tested, lines), note = _measured_by_name(name)
    words = f"{LAYOUTS[preset.layout]} layout, " if preset else ""
    yield f"{name}: {words}{_input(contract)}, {cost.parameters:,} parameters, {cost.macs / 1e9:.3f} GMACs"
    if note:
        yield note
    yield from lines
    yield f"On test crops, {_input(contract, contract.test_size)}: {tested / 1e9:.3f} GMACs"
    yield f"Activations that a training step keeps for each clip: {cost.activation_bytes / 2**20:,.0f} MiB in float32"
    if preset:
        yield from _known(preset)
    yield "Data contract, what it expects of its input:"
    yield from (f"  {key} {value}" for key, value in contract.to_dict().items() if key != "class_names")


def _measured_by_name(name: str) -> tuple[Measured, str]:
    """The network measured, and what is to be said of that; those that end in features get ImageNet's classes."""
    from video_rs.models.cost import without_memory
    from video_rs.models.external import NoClasses

    try:
        return without_memory(name, _measured), ""
    except NoClasses as error:
        measured = _with_classes(name, error)
    return measured, f"Shown with {CLASSES} classes, for it has none of its own: say how many with model.num_classes"


def _with_classes(name: str, error: UserError) -> Measured:
    import torch

    from video_rs.models.zoo import create_model

    try:
        with torch.device("meta"):
            return _measured(create_model(name, num_classes=CLASSES).to("meta"))
    except (RuntimeError, TypeError):  # it looks at numbers
        raise error from None


def _measured(model: nn.Module) -> Measured:
    """Its contract, its cost, MACs of a test crop, and the lines of its stages."""
    from video_rs.models.cost import input_shape, macs, measure
    from video_rs.models.stages import stages

    rows = [("", "output", "parameters", "GMACs", "")]
    for stage in stages(model, input_shape(model.contract)):
        shapes = " + ".join("x".join(map(str, shape)) for shape in stage.shapes)
        rows.append((stage.name, shapes, f"{stage.parameters:,}", f"{stage.macs / 1e9:.3f}", stage.what))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"  {name:<{widths[0]}}  {shape:<{widths[1]}}  {parameters:>{widths[2]}}  {gmacs:>{widths[3]}}  {what}".rstrip()
        for name, shape, parameters, gmacs, what in rows
    ]
    tested = macs(model, input_shape(model.contract, model.contract.test_size))
    return model.contract, measure(model), tested, lines


def _known(preset: Preset) -> Iterator[str]:
    """What the preset says beyond the architecture."""
    rates = ", ".join(f"{preset.drop_path * i / 5:g}" for i in (2, 3, 4, 5))
    yield "Regularisation of its recipe:"
    yield f"  dropout {preset.dropout:g}"
    yield f"  drop path {preset.drop_path:g}" + (f" (by stage: {rates})" if preset.drop_path else "")
    yield f"  RandAugment {'none' if preset.rand_augment is None else f'2 layers, magnitude {preset.rand_augment:g}'}"
    if preset.reference:
        counted = preset.reference
        yield f"Reference: {counted.parameters:,} parameters, {counted.gmacs:g} GMACs ({counted.source})"
    yield "Published accuracies, none reproduced here:" if preset.published else "No accuracy is published for it."
    for p in preset.published:
        top5 = "" if p.top5 is None else f", top-5 {p.top5}"
        yield f"  {p.dataset}, {p.views}: top-1 {p.top1}{top5} ({p.source})"
