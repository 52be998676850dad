"""Weights of other tools and formats as a checkpoint of this package, or with timm's names.

tools/convert_weights.py --from garden resnet-rs-50-i160/ --out garden_rs50.safetensors
tools/convert_weights.py --from keras resnet-rs-50-i160.h5 --out rs50.pt
tools/convert_weights.py --from timm --model resnet_rs_50 --out rs50.safetensors
tools/convert_weights.py --from video_rs --to timm runs/images/best.pt --out resnetrs50.safetensors

Every weight must find its place: what is missing, left over or of another shape is named, and nothing is written.
What the weights do not tell, such as a resolution, is said. From Python: ``video_rs.models.sources.read``.
"""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_rs.cli.common import Parser, command, program
from video_rs.errors import UserError
from video_rs.models.presets import PRESETS, SOURCES

if TYPE_CHECKING:
    from torch import Tensor

    from video_rs.models.sources import Weights

SUFFIXES = (".pt", ".pth", ".safetensors")


def main(argv: list[str]) -> int:
    """Parses the arguments, converts, says what was matched and ignored, and writes the file."""
    args = _parse(argv)
    from video_rs import checkpoint, download
    from video_rs.models import sources

    weights = sources.read(args.file, args.source, args.model, averages=not args.no_averages)
    if args.to == "timm":
        state, after = _for_timm(weights, args.out)
    else:
        state = checkpoint.of_weights(weights.model_args, weights.contract, weights.state, **weights.record)
        media = "image.jpg" if weights.contract.num_frames == 1 else "clip.mp4"
        after = command("predict", "--weights", args.out, media)
    _tell(download.shown(args.file) if args.file else "timm's public weights", weights)
    checkpoint.save(args.out, state)
    print(f"wrote {args.out}; next: {after}")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=program("convert"), description=__doc__, formatter_class=layout)
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        choices=SOURCES,
        help="whose weights: this package's; timm's resnetrs*; a checkpoint of the TF Model Garden or of the TPU "
        "repository (its prefix, folder or .index file); an h5 file of tf_keras.applications",
    )
    parser.add_argument("--to", default="video_rs", choices=("video_rs", "timm"), help="(default: %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="the network (default: as the weights tell)")
    parser.add_argument(
        "--no-averages",
        action="store_true",
        help="garden: take the variables even where the optimizer keeps averages of them. Right for exports in which "
        "the two have changed places, and done for those that are named best_ckpt-* or average_weights-*",
    )
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="video_rs, timm, keras: also https://... or hf-hub:...; may be left out for timm's public weights",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help=f"to write, or to replace: {', '.join(SUFFIXES)}")
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


def _tell(called: str, weights: Weights) -> None:
    from video_rs.models.state_dict import few

    network = weights.network
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{called} -> {weights.model_args['name']}, {network.num_classes} classes, {parameters:,} parameters")
    for note in weights.notes:
        print(note)
    tensors = sum(not name.endswith("num_batches_tracked") for name in weights.state)
    print(f"matched: {tensors} tensors, all that the network has")
    print(f"moving averages: {weights.averages}")
    entries = "1 entry" if len(weights.ignored) == 1 else f"{len(weights.ignored)} entries"
    print(f"ignored: {f'{entries}: {few(weights.ignored, 3)}' if weights.ignored else 'nothing'}")


def _for_timm(weights: Weights, out: str) -> tuple[dict[str, Tensor], str]:
    """The weights with timm's names, and what makes its network of them in Python."""
    from video_rs.models.convert import to_timm
    from video_rs.models.external import PREFIX

    name, contract = weights.model_args["name"], weights.contract
    options: dict[str, Any] = {"num_classes": weights.network.num_classes}
    if contract.in_channels != 3:
        options["in_chans"] = contract.in_channels
    if name.startswith("timm/"):
        name, state = name.removeprefix("timm/"), {k.removeprefix(PREFIX): v for k, v in weights.state.items()}
        cfg = weights.network.network.pretrained_cfg
        if cfg.get("fixed_input_size") and contract.train_size != cfg["input_size"][-1]:
            options["img_size"] = contract.train_size
    else:
        name, state = _timms_name(weights.model_args), to_timm(weights.state)
    shown = "".join(f", {key}={value!r}" for key, value in (options | {"checkpoint_path": out}).items())
    return state, f"timm.create_model({name!r}{shown}) in Python"


def _timms_name(model_args: dict[str, Any]) -> str:
    from video_rs.models.init import TIMM_DEPTHS

    name, width = model_args["name"], model_args.get("width", 1.0)
    ours = fnmatch.fnmatchcase(name, SOURCES["timm"]) and PRESETS[name].depth in TIMM_DEPTHS
    if not ours or width != 1:
        known = ", ".join(map(str, TIMM_DEPTHS))
        raise UserError(f"timm has resnet_rs_* of depths {known} and width 1, it has no {name} of width {width:g}")
    return f"resnetrs{PRESETS[name].depth}"
