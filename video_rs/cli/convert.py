"""Weights of other tools and formats as a checkpoint of this package, or with timm's names.

tools/convert_weights.py --from garden resnet-rs-50-i160/ --out garden_rs50.safetensors
tools/convert_weights.py --from keras resnet-rs-50-i160.h5 --out rs50.pt
tools/convert_weights.py --from timm --model resnet_rs_50 --out rs50.safetensors
tools/convert_weights.py --from video_rs --to timm runs/images/best.pt --out resnetrs50.safetensors

Every weight must find its place: what is missing, left over or of another shape is named, and nothing is written.
"""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_rs.cli.common import Parser, command, program
from video_rs.contract import DataContract
from video_rs.errors import UserError
from video_rs.models.layout import GARDEN_3D
from video_rs.models.presets import BLOCKS, PRESETS, Preset

if TYPE_CHECKING:
    from torch import Tensor, nn

    from video_rs.models.convert_tensorflow import Found, Variables

NETWORKS = {"timm": "resnet_rs_*", "tpu": "resnet_rs_*", "keras": "resnet_rs_*", "garden": "garden_*"}
"""Which presets compute what the code of each computes; other presets may agree in names and shapes."""

SWAPPED = ("best_ckpt-", "average_weights-")
"""How the Model Garden's trainer names exports in which averages and variables have changed places."""

SUFFIXES = (".pt", ".pth", ".safetensors")


@dataclass
class Weights:
    """What was read.

    Attributes:
        state: weights with this package's names.
        model_args: the arguments of ``create_model`` for their network.
        contract: what they expect to see; None: what the preset says.
        kept: entries of the checkpoint they come from that the new one takes over.
        averages: which of them are moving averages, in words.
        ignored: what else is in the file.
    """

    state: Mapping[str, Tensor]
    model_args: dict[str, Any]
    contract: DataContract | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    averages: str = "none, the file has the weights alone"
    ignored: list[str] = field(default_factory=list)


def main(argv: list[str]) -> int:
    """Parses the arguments, converts, says what was matched and ignored, and writes the file."""
    args = _parse(argv)
    import torch

    from video_rs import checkpoint
    from video_rs.models import convert, zoo
    from video_rs.models.state_dict import complete

    weights = _read(args)
    with torch.device("meta"):
        model = zoo.create_model(**weights.model_args, contract=weights.contract)
    try:
        weights.state = complete(weights.state, model)
    except UserError as error:
        raise UserError(f"{_called(args)} does not fit {weights.model_args['name']}: {error}") from None
    if args.to == "timm":
        _check_timm_has(weights.model_args)
        state = convert.to_timm(weights.state)
    else:
        state = {"format": checkpoint.FORMAT, "config": {}, "step": 0, **weights.kept}
        state |= {"model_args": weights.model_args, "contract": model.contract.to_dict()}
        state |= {"model": weights.state, "ema": None}
    _tell(args, weights, model)
    checkpoint.save(args.out, state)
    print(f"wrote {args.out}; next: {_next(args, model)}")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=program("convert"), description=__doc__, formatter_class=layout)
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        choices=READERS,
        help="whose weights: this package's; timm's resnetrs*; a checkpoint of the TF Model Garden or of the TPU "
        "repository (its prefix, folder or .index file); an h5 file of tf_keras.applications",
    )
    parser.add_argument("--to", default="video_rs", choices=("video_rs", "timm"), help="(default: %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="the network (default: as the weights tell)")
    parser.add_argument(
        "--no-averages",
        action="store_true",
        help="garden: take the variables even where the optimizer keeps averages of them. Right for exports in which "
        f"the two have changed places, and done for those that are named {' or '.join(SWAPPED)}*",
    )
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="video_rs, timm, keras: also https://... or hf-hub:...; may be left out for timm's public weights",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help=f"to write: {', '.join(SUFFIXES)}")
    args = parser.parse_intermixed_args(argv)
    if Path(args.out).suffix not in SUFFIXES:
        parser.error(f"--out ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, not as {args.out}")
    if args.file is None and (args.source != "timm" or not args.model):
        parser.error("give the FILE of weights, or --from timm --model resnet_rs_50 for timm's public weights")
    if args.file and Path(args.file).resolve() == Path(args.out).resolve():
        parser.error(f"--out {args.out} is the file to convert; give another")
    if args.no_averages and args.source != "garden":
        parser.error("--no-averages is for --from garden")
    return args


def _tell(args: argparse.Namespace, weights: Weights, model: nn.Module) -> None:
    from video_rs.models.state_dict import few

    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{_called(args)} -> {weights.model_args['name']}, {model.num_classes} classes, {parameters:,} parameters")
    tensors = sum(not name.endswith("num_batches_tracked") for name in weights.state)
    print(f"matched: {tensors} tensors, all that the network has")
    print(f"moving averages: {weights.averages}")
    entries = "1 entry" if len(weights.ignored) == 1 else f"{len(weights.ignored)} entries"
    print(f"ignored: {f'{entries}: {few(weights.ignored, 2)}' if weights.ignored else 'nothing'}")


def _called(args: argparse.Namespace) -> str:
    return args.file or "timm's public weights"


def _next(args: argparse.Namespace, model: nn.Module) -> str:
    if args.to == "timm":
        options = f"num_classes={model.num_classes}, checkpoint_path={args.out!r}"
        return f"timm.create_model('resnetrs{_depth(model.blocks)}', {options}) in Python"
    return command("predict", "--weights", args.out, "image.jpg" if model.contract.num_frames == 1 else "clip.mp4")


def _depth(blocks: tuple[int, ...]) -> int | str:
    return next((depth for depth, known in BLOCKS.items() if known == blocks), "unknown")


def _check_timm_has(model_args: Mapping[str, Any]) -> None:
    from video_rs.models.init import TIMM_DEPTHS

    name, width = model_args["name"], model_args.get("width", 1.0)
    ours = fnmatch.fnmatchcase(name, NETWORKS["timm"]) and PRESETS[name].depth in TIMM_DEPTHS
    if not ours or width != 1:
        known = ", ".join(map(str, TIMM_DEPTHS))
        raise UserError(f"timm has resnet_rs_* of depths {known} and width 1, it has no {name} of width {width:g}")


# Which network ------------------------------------------------------------------------------------------------------


def _presets(args: argparse.Namespace, names: Mapping[str, object], *, video: bool = False) -> list[Preset]:
    """The networks that may have weights of these names, the likeliest first; ``--model`` alone, if it may."""
    from video_rs.models.state_dict import blocks_of

    blocks, like = blocks_of(names), NETWORKS[args.source]
    depth = f"depth {_depth(blocks)} (blocks {', '.join(map(str, blocks))})"
    kind = "videos" if video else "images"
    if args.model:
        preset = _named(args)
        if (preset.blocks, _for_videos(preset)) != (blocks, video):
            own = f"depth {preset.depth} for {'videos' if _for_videos(preset) else 'images'}"
            raise UserError(f"{_called(args)} holds a network of {depth} for {kind}; {preset.name} is of {own}")
        return [preset]
    found = [preset for preset in PRESETS.values() if fnmatch.fnmatchcase(preset.name, like)]
    found = [preset for preset in found if preset.blocks == blocks and _for_videos(preset) == video]
    if not found:
        raise UserError(f"{_called(args)} holds a network of {depth} for {kind}, and no {like} is that")
    excite = any(".se." in name for name in names)
    return sorted(found, key=lambda preset: (bool(preset.layout.se_ratio) != excite, len(preset.name)))


def _named(args: argparse.Namespace) -> Preset:
    from video_rs.models.zoo import find_preset

    if args.model in PRESETS and not fnmatch.fnmatchcase(args.model, NETWORKS[args.source]):
        raise UserError(
            f"weights of {args.source} are those of {NETWORKS[args.source]}; {args.model} would compute something else "
            "with them. Convert them as what they are, then start from the result (train.init_from, inflate)"
        )
    return find_preset(args.model)


def _for_videos(preset: Preset) -> bool:
    return preset.contract.num_frames > 1


# Reading ------------------------------------------------------------------------------------------------------------


def _read(args: argparse.Namespace) -> Weights:
    try:
        return READERS[args.source](args)
    except UserError as error:
        if args.file is None or args.file in str(error):
            raise
        raise UserError(f"{args.file}: {error}") from None


def _read_video_rs(args: argparse.Namespace) -> Weights:
    from video_rs import checkpoint, download
    from video_rs.models import convert, init, zoo

    saved = checkpoint.load(download.local(args.file))
    if checkpoint.is_run(saved):
        checkpoint.check_format(saved, args.file)
        model_args = saved["model_args"]
        if args.model not in (None, model_args["name"]):
            raise UserError(f"{args.file} holds {model_args['name']}, not {args.model}; leave --model out")
        contract = DataContract.from_dict(saved["contract"], args.file)
        kept = {key: saved[key] for key in checkpoint.TRAVELS if key in saved}
        averaged = saved.get("ema") is not None
        ignored = sorted(saved.keys() - checkpoint.RUN.keys() - kept.keys() - {"ema"}) + ["model"] * averaged
        averages = "all tensors are those of the run" if averaged else Weights.averages
        return Weights(checkpoint.weights(saved), model_args, contract, kept, averages, ignored)
    source = init.read(args.file)
    if convert.looks_like_timm(source.weights):
        raise UserError(f"{args.file} has timm's names: give --from timm")
    if not args.model:
        raise UserError(f"{args.file} holds bare weights, which do not tell of which network: give --model")
    return Weights(source.state, {"name": zoo.find_preset(args.model).name, **init.sizes(source)})


def _read_timm(args: argparse.Namespace) -> Weights:
    from video_rs.models import convert, init

    source = init.read(args.file) if args.file else init.read_timm(_named(args).blocks)
    if not convert.looks_like_timm(source.weights):
        raise UserError(f"{args.file} does not have the names of timm's resnetrs*; are they this package's (video_rs)?")
    state = convert.from_timm(source.weights)
    return Weights(state, _model_args(_presets(args, state)[0], state))


def _read_tpu(args: argparse.Namespace) -> Weights:
    from video_rs.models import convert_tensorflow, tensorflow_files

    variables = tensorflow_files.read_checkpoint(args.file)
    return _built(args, convert_tensorflow.find_tpu(variables), variables)


def _read_keras(args: argparse.Namespace) -> Weights:
    from video_rs import download
    from video_rs.models import convert_tensorflow, tensorflow_files

    variables = tensorflow_files.read_h5(download.local(args.file))
    return _built(args, convert_tensorflow.find_keras(variables), variables)


def _read_garden(args: argparse.Namespace) -> Weights:
    from video_rs.models import convert_tensorflow, tensorflow_files

    variables = tensorflow_files.read_checkpoint(args.file)
    swapped = variables.prefix.name.startswith(SWAPPED)
    averages = not (swapped or args.no_averages)
    names = convert_tensorflow.find_garden(variables, GARDEN_3D).names
    first = names.get("stem.conv1.conv.weight")
    presets = _presets(args, names, video=first is not None and variables[first].ndim == 5)
    faults = []
    for preset in presets:
        found = convert_tensorflow.find_garden(variables, preset.layout, averages=averages)
        try:
            weights = _built(args, found, variables, preset)
        except UserError as error:
            faults.append(error)
            continue
        if swapped:
            weights.averages = f"all tensors: {variables.prefix.name} holds them in place of the variables"
        elif args.no_averages:
            weights.averages = "not taken, as --no-averages says"
        elif found.averaged:
            weights.averages += f". If the file was named {SWAPPED[0]}* when it was written, give --no-averages"
        return weights
    raise faults[0]


def _built(args: argparse.Namespace, found: Found, variables: Variables, preset: Preset | None = None) -> Weights:
    from video_rs.models.convert_tensorflow import build

    preset = preset or _presets(args, found.names)[0]
    try:
        state = build(found, variables, preset.layout)
    except UserError as error:
        raise UserError(f"{args.file} does not fit {preset.name}: {error}") from None
    averages = f"{found.averaged} of {len(found.names)} tensors" if found.averaged else "none"
    return Weights(state, _model_args(preset, state), averages=averages, ignored=found.ignored)


def _model_args(preset: Preset, state: dict[str, Tensor]) -> dict[str, Any]:
    from video_rs.models import init

    return {"name": preset.name, **init.sizes(init.Source(state))}


READERS = {
    "video_rs": _read_video_rs,
    "timm": _read_timm,
    "garden": _read_garden,
    "tpu": _read_tpu,
    "keras": _read_keras,
}
