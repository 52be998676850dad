"""Lists the networks with what they cost and what others published of them, or prints one stage by stage.

video-rs models                      all networks of this package
video-rs models 'garden_*'           those that match
video-rs models resnet3d_rs_50       one, stage by stage; also timm/resnet50, pytorchvideo/slow_r50, ...
video-rs models 'pytorchvideo/*'     the names of another package's networks that match, or 'timm/resnet*'
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from video_rs.cli.common import Parser, program
from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.models import architecture as architecture
from video_rs.models.presets import PRESETS, Preset, Published
from video_rs.models.registry import PACKAGES, list_models, no_package
from video_rs.terminal import table

if TYPE_CHECKING:
    from torch import nn

    from video_rs.models.cost import Cost
    from video_rs.models.summary import Stage

ARCHITECTURES = {
    architecture.RESNET_RS_2D: "image",
    architecture.RESNET_RS_3D: "video",
    architecture.GARDEN_2D: "Garden image",
    architecture.GARDEN_3D: "Garden video",
    architecture.INFLATED_GARDEN_2D: "Garden image, inflated",
    architecture.R3D: "Garden R3D",
    architecture.R3D_G: "Garden R3D-g",
    architecture.SLOW_ONLY: "Garden SlowOnly",
}
"""The architectures in words; docs/models.md says what they are."""

COLUMNS = (
    *(
        "model",
        "architecture",
        "input",
        "parameters",
        "reference",
        "GMACs",
        "reference GMACs",
        "MiB",
        "published top-1",
    ),
)
NUMBERS = range(3, 8)
"""Columns of numbers."""
STAGE_COLUMNS = ("", "output", "parameters", "GMACs", "layers")
CLASSES = 1000
"""Of a network that has none of its own, where it is shown."""
NOTES = """\
GMACs: 10^9 multiply-accumulates of a forward pass, half of what the papers call FLOPs. MiB: activations that a
training step keeps for each clip, in float32. reference: the same of the code that the architecture is from, and the
difference of ours. Published accuracies are others'; none was reproduced here. See docs/models.md."""


def main(argv: list[str]) -> int:
    """Entry point of ``tools/list_models.py`` and ``video-rs models``."""
    parser = Parser(__doc__, prog=program("models"))
    parser.add_argument("name", nargs="?", default="*", metavar="NAME", help="a network, or a pattern with * and ?")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/models.md")
    args = parser.parse_args(argv)
    pattern, others = any(character in args.name for character in "*?["), "/" in args.name
    if args.markdown and (others or not pattern):
        raise UserError("--markdown is for the table of our own networks: give a pattern such as 'garden_*', or none")
    if others and pattern:
        print(*_names_of_others(args.name), sep="\n")
        print(f"{program('models')} NAME prints one stage by stage", file=sys.stderr)
    elif others or not pattern:
        one(args.name)
    elif not (names := list_models(args.name)):
        raise UserError(f"no model matches {args.name!r}; {program('models')} lists them all")
    elif args.markdown:
        print(*markdown(names), sep="\n")
    else:
        print(*table((row(PRESETS[name]) for name in names if name in PRESETS), COLUMNS, NUMBERS), sep="\n")
        print(*(name for name in names if name not in PRESETS), sep="\n")
        print(f"\n{NOTES}")
    return 0


def _names_of_others(pattern: str) -> list[str]:
    """Return the names of another package's networks, which are too many to measure each."""
    package = pattern.partition("/")[0]
    if package not in PACKAGES:
        raise no_package(pattern)
    if names := list_models(pattern):
        return names
    raise UserError(f"no model matches {pattern!r}; {program('models')} '{package}/*' lists all of {package}")


def row(preset: Preset) -> list[str]:
    """Return the cells under ``COLUMNS``."""
    from video_rs.models.cost import cost

    ours, reference = cost(preset.name), preset.reference
    gmacs = ours.macs / 1e9
    return [
        preset.name,
        ARCHITECTURES[preset.architecture],
        _input(preset.data_config),
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


def _input(data_config: DataConfig, size: int | None = None) -> str:
    frames = f"{data_config.num_frames}x" if data_config.num_frames > 1 else ""
    side = size or data_config.train_size
    return f"{frames}{side}x{side}"


def _in_short(published: Published) -> str:
    repository = published.source.split()[0]
    return f"{published.top1:.1f} {published.dataset}, {repository}"


def markdown(names: Sequence[str]) -> Iterator[str]:
    """Return the generated part of docs/models.md."""
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *(row(PRESETS[name]) for name in names)):
        yield f"| {' | '.join(cells)} |"


def one(name: str) -> None:
    """Print a network stage by stage, then its regularisation, its data config and its published accuracies."""
    from video_rs.models.adapters.base import NoClasses
    from video_rs.models.cost import without_memory

    preset, note = PRESETS.get(name), ""
    try:
        data_config, cost, tested, stages = without_memory(name, _measured)
    except NoClasses:
        data_config, cost, tested, stages = without_memory(name, _measured, num_classes=CLASSES)
        note = f"Shown with {CLASSES} classes, for it has none of its own: say how many with model.num_classes"
    words = f"{ARCHITECTURES[preset.architecture]} architecture, " if preset else ""
    print(f"{name}: {words}{_input(data_config)}, {cost.parameters:,} parameters, {cost.macs / 1e9:.3f} GMACs")
    if note:
        print(note)
    print(*table(map(_stage_row, stages), STAGE_COLUMNS, right=(2, 3)), sep="\n")
    print(f"On test crops, {_input(data_config, data_config.test_size)}: {tested / 1e9:.3f} GMACs")
    kept = cost.activation_bytes / 2**20
    print(f"Activations that a training step keeps for each clip: {kept:,.0f} MiB in float32")
    if preset:
        print(*_known(preset), sep="\n")
    print("Data config, what it expects of its input:")
    print(*(f"  {key} {value}" for key, value in data_config.to_dict().items() if key != "class_names"), sep="\n")


def _measured(model: nn.Module) -> tuple[DataConfig, Cost, int, list[Stage]]:
    """Return the data config, the cost, the MACs of a test crop and the stages."""
    from video_rs.models.cost import input_shape, macs, measure
    from video_rs.models.summary import stages

    data_config = model.data_config
    tested = macs(model, input_shape(data_config, data_config.test_size))
    return data_config, measure(model), tested, stages(model, input_shape(data_config))


def _stage_row(stage: Stage) -> list[str]:
    shapes = " + ".join("x".join(map(str, shape)) for shape in stage.shapes)
    return [stage.name, shapes, f"{stage.parameters:,}", f"{stage.macs / 1e9:.3f}", stage.what]


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
