"""List the networks with their costs and published accuracies, or print one stage by stage.

video-rs models                      all networks of this package
video-rs models 'garden_*'           networks whose names match
video-rs models resnet3d_rs_50       one, stage by stage; also timm/resnet50, pytorchvideo/slow_r50, ...
video-rs models 'pytorchvideo/*'     the names of another package's networks that match, or 'timm/resnet*'
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence

from video_rs.cli.common import Parser, program
from video_rs.data_config import DataConfig
from video_rs.errors import UserError, format_value
from video_rs.models import architecture
from video_rs.models.presets import PRESETS, Preset
from video_rs.models.registry import PACKAGES, list_models, no_package
from video_rs.terminal import table

# Names of the architectures that docs/models.md describes.
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
NUMBERS = ("parameters", "reference", "GMACs", "reference GMACs", "MiB")
COLUMNS = ("model", "architecture", "input", *NUMBERS, "published top-1")
STAGE_COLUMNS = ("", "output", "parameters", "GMACs", "layers")
CLASSES = 1000  # number of classes assumed for a network without a default
NOTES = """\
GMACs: 10^9 multiply-accumulates of a forward pass, half of the papers' FLOPs. MiB: activations per clip that a training
step keeps, in float32. reference: the counts of the reference implementation, and the relative difference. None of the
published accuracies was reproduced here. See docs/models.md."""


def main(argv: list[str]) -> int:
    """Entry point of ``tools/list_models.py`` and ``video-rs models``."""
    parser = Parser(__doc__, prog=program("models"))
    parser.add_argument("name", nargs="?", default="*", metavar="NAME", help="a network, or a pattern with * and ?")
    parser.add_plugins()
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/models.md")
    args = parser.parse_intermixed_args(argv)
    is_pattern, is_external = any(character in args.name for character in "*?["), "/" in args.name
    if args.markdown and (is_external or not is_pattern):
        raise UserError("--markdown is for the table of our own networks: give a pattern such as 'garden_*', or none")
    if not is_pattern:
        print(*describe(args.name), sep="\n")
        return 0
    names = _matching(args.name)
    if args.markdown:
        print(*markdown(names), sep="\n")
    elif is_external:  # too many to measure each
        print(*names, sep="\n")
        print(f"{program('models')} NAME prints one stage by stage", file=sys.stderr)
    else:
        rows = table(_rows(names), COLUMNS, [COLUMNS.index(name) for name in NUMBERS])
        others = [name for name in names if name not in PRESETS]  # registered by a plugin
        print(*rows, *others, "", NOTES, sep="\n")
    return 0


def _matching(pattern: str) -> list[str]:
    """Return the names that match a pattern. Raise UserError if there are none."""
    package, slash, name = pattern.rpartition("/")
    if slash and package not in PACKAGES:
        raise no_package(pattern)
    if names := list_models(pattern):
        return names
    everything = f"'{package}/*' lists all of {package}" if slash else "lists them all"
    elsewhere = []
    for other in (name, *(f"{package}/{name}" for package in PACKAGES)):
        with contextlib.suppress(ImportError, UserError):  # a package that cannot be imported
            elsewhere += [f"{other!r} lists {len(list_models(other))}"] if list_models(other) else []
    hint = " and ".join(elsewhere) or everything
    raise UserError(f"no model matches {format_value(pattern)}; {program('models')} {hint}")


def row(preset: Preset) -> list[str]:
    """Return the table row of a preset, one cell per column in ``COLUMNS``."""
    ours, reference = preset.cost, preset.reference
    gmacs = ours.macs / 1e9
    published = [f"{p.top1:.1f} {p.dataset}, {p.source.split()[0]}" for p in preset.published]
    return [
        preset.name,
        ARCHITECTURES[preset.architecture],
        _input(preset.data_config),
        f"{ours.parameters:,}",
        f"{reference.parameters:,} ({ours.parameters - reference.parameters:+d})" if reference else "",
        f"{gmacs:.3f}",
        _beside(gmacs, reference.gmacs) if reference else "",
        f"{ours.activation_bytes / 2**20:,.0f}",
        published[0] if published else "",
    ]


def _rows(names: Sequence[str]) -> list[list[str]]:
    return [row(PRESETS[name]) for name in names if name in PRESETS]


def _beside(ours: float, theirs: float) -> str:
    percent = round(100 * (ours / theirs - 1), 2) + 0  # no negative zero
    return f"{theirs:g} ({percent:+.2f} %)"


def _input(data_config: DataConfig, size: int | None = None) -> str:
    side = size or data_config.train_size
    return f"{data_config.num_frames}x{side}x{side}".removeprefix("1x")


def markdown(names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the generated part of docs/models.md."""
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *_rows(names)):
        yield f"| {' | '.join(cells)} |"


def describe(name: str) -> Iterator[str]:
    """Yield lines that describe a network: its stages, regularisation, published accuracies and data config."""
    from video_rs.models.adapters.base import NoClasses
    from video_rs.models.summary import summarize

    try:
        summary, note = summarize(name), []
    except NoClasses:
        note = [f"Shown with {CLASSES} classes, as the network has no default; set model.num_classes"]
        summary = summarize(name, num_classes=CLASSES)
    preset, cost, data_config = PRESETS.get(name), summary.cost, summary.data_config
    words = f"{ARCHITECTURES[preset.architecture]} architecture, " if preset else ""
    yield f"{name}: {words}{_input(data_config)}, {cost.parameters:,} parameters, {cost.macs / 1e9:.3f} GMACs"
    yield from note
    rows = []
    for stage in summary.stages:
        shapes = " + ".join("x".join(map(str, shape)) for shape in stage.shapes)
        rows.append([stage.name, shapes, f"{stage.parameters:,}", f"{stage.macs / 1e9:.3f}", stage.layers])
    yield from table(rows, STAGE_COLUMNS, right=(2, 3))
    yield f"On test crops, {_input(data_config, data_config.test_size)}: {summary.test_macs / 1e9:.3f} GMACs"
    kept = cost.activation_bytes / 2**20
    yield f"Activations per clip that a training step keeps: {kept:,.0f} MiB in float32"
    if preset:
        yield from _preset_lines(preset)
    if weights := summary.public_weights:
        yield f"Public weights: {weights['source']}, licence {weights['licence'] or 'unknown'}"
    yield "Data config:"
    for key, value in data_config.to_dict().items():
        if key != "class_names":
            yield f"  {key} {value}"


def _preset_lines(preset: Preset) -> Iterator[str]:
    rates = ", ".join(f"{preset.drop_path * i / 5:g}" for i in (2, 3, 4, 5))
    yield "Regularisation in its recipe:"
    yield f"  dropout {preset.dropout:g}"
    yield f"  drop path {preset.drop_path:g}" + (f" (by stage: {rates})" if preset.drop_path else "")
    yield f"  RandAugment {'none' if preset.rand_augment is None else f'2 layers, magnitude {preset.rand_augment:g}'}"
    if reference := preset.reference:
        yield f"Reference: {reference.parameters:,} parameters, {reference.gmacs:g} GMACs ({reference.source})"
    yield "Published accuracies, none reproduced here:" if preset.published else "No published accuracies."
    for p in preset.published:
        top5 = "" if p.top5 is None else f", top-5 {p.top5}"
        yield f"  {p.dataset}, {p.views}: top-1 {p.top1}{top5} ({p.source})"
