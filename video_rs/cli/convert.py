"""Weights of timm or bare weights as a checkpoint of this package, or a checkpoint with timm's names.

tools/convert_weights.py runs/images/best.pt --out best.safetensors
tools/convert_weights.py resnetrs50.pth --out rs50.pt
tools/convert_weights.py --from timm --model resnet_rs_50 --out rs50.safetensors
tools/convert_weights.py --to timm runs/images/best.pt --out resnetrs50.safetensors

Every weight must find its place: what is missing, left over or of another shape is named, and nothing is written.
What the weights do not tell, such as a resolution, is said. From Python: ``video_rs.models.weights.load.read``.
Weights of TensorFlow and Keras: tools/convert_tensorflow.py in the repository.
"""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_rs.cli.common import Parser, command, program
from video_rs.errors import UserError
from video_rs.models.presets import PRESETS

if TYPE_CHECKING:
    from torch import Tensor

    from video_rs.models.weights.load import Weights

SUFFIXES = (".pt", ".pth", ".safetensors")
TENSORFLOW = ("garden", "tpu", "keras")
"""Sources that are the script's, tools/convert_tensorflow.py."""


def main(argv: list[str]) -> int:
    """Parse the arguments, convert, report what was matched and ignored, and write the file."""
    args = _parse(argv)
    from video_rs import hub as download
    from video_rs.models.weights import load as sources

    weights = sources.read(args.file, args.model, timm={"timm": True, "video_rs": False}.get(args.source))
    write(weights, download.redact_url(args.file or "timm's public weights"), args.out, to=args.to)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=program("convert"), description=__doc__, formatter_class=layout)
    parser.add_argument(
        "--from",
        dest="source",
        choices=("video_rs", "timm", *TENSORFLOW),
        metavar="{video_rs,timm}",
        help="whose weights: this package's, or timm's resnetrs* (default: as the names in FILE tell)",
    )
    parser.add_argument("--to", default="video_rs", choices=("video_rs", "timm"), help="(default: %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="the network (default: as the weights tell)")
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="also https://... or hf-hub:...; may be left out with --from timm, for its public weights",
    )
    add_out(parser)
    args = parser.parse_intermixed_args(argv)
    if args.source in TENSORFLOW or args.file and _is_tensorflow(Path(args.file)):
        from video_rs.hub import redact_url

        raise UserError(
            f"{redact_url(args.file or '--from')}: weights of TensorFlow or Keras; convert them with "
            "tools/convert_tensorflow.py of the repository"
        )
    if args.file is None and (args.source != "timm" or not args.model):
        parser.error("give the FILE of weights, or --from timm --model resnet_rs_50 for timm's public weights")
    if args.file and Path(args.file).resolve() == Path(args.out).resolve():
        parser.error(f"--out {args.out} is the file to convert; give another")
    return args


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, whose suffix must be one of ``SUFFIXES``."""

    def out(name: str) -> str:
        if Path(name).suffix not in SUFFIXES:
            raise argparse.ArgumentTypeError(f"it must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}: {name}")
        return name

    wanted = f"to write, or to replace: {', '.join(SUFFIXES)}"
    parser.add_argument("--out", required=True, type=out, metavar="FILE", help=wanted)


def _is_tensorflow(path: Path) -> bool:
    """Return True for an h5 file, and for a checkpoint of TensorFlow: its prefix, one of its files, or its folder."""
    if path.suffix in (".h5", ".hdf5", ".keras", ".index"):
        return True
    try:
        return Path(f"{path}.index").exists() or path.suffix.startswith(".data-") or any(path.glob("*.index"))
    except OSError:  # such as a name that is too long, which the reader of the file reports
        return False


def write(weights: Weights, source: str, out: str, *, to: str = "video_rs") -> None:
    """Print what became of the weights, write them and print what to do next.

    Args:
        weights: what was read.
        source: where from.
        out: the file to write.
        to: "video_rs" for a checkpoint, "timm" for a state dict with its names.
    """
    from video_rs import checkpoint
    from video_rs.models.weights.state_dict import truncate

    network, state = weights.network, weights.network.state_dict()
    tensors = sum(not name.endswith("num_batches_tracked") for name in state)
    if to == "timm":
        state, after = _for_timm(weights, out)
    else:
        state = checkpoint.from_weights(weights.model_args, network.data_config, state, **weights.record)
        after = command("predict", "--weights", out, "image.jpg" if network.data_config.num_frames == 1 else "clip.mp4")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    entries = "1 entry" if len(weights.ignored) == 1 else f"{len(weights.ignored)} entries"
    print(f"{source} -> {weights.model_args['name']}, {network.num_classes} classes, {parameters:,} parameters")
    print(*weights.notes, f"matched: {tensors} tensors, all that the network has", sep="\n")
    print(f"moving averages: {weights.averages}")
    print(f"ignored: {f'{entries}: {truncate(weights.ignored, 3)}' if weights.ignored else 'nothing'}")
    checkpoint.save(out, state)
    print(f"wrote {out}; next: {after}")


def _for_timm(weights: Weights, out: str) -> tuple[dict[str, Tensor], str]:
    """Return the weights with timm's names, and the call that makes its network of them in Python."""
    from video_rs.models.adapters.base import PREFIX
    from video_rs.models.weights.names import to_timm

    name, network = weights.model_args["name"], weights.network
    data_config, state = network.data_config, network.state_dict()
    options: dict[str, Any] = {"num_classes": network.num_classes}
    if data_config.in_channels != 3:
        options["in_chans"] = data_config.in_channels
    if name.startswith("timm/"):
        name, state = name.removeprefix("timm/"), {k.removeprefix(PREFIX): v for k, v in state.items()}
        cfg = network.network.pretrained_cfg
        if cfg.get("fixed_input_size") and data_config.train_size != cfg["input_size"][-1]:
            options["img_size"] = data_config.train_size
    else:
        name, state = _timms_name(weights.model_args), to_timm(state)
    shown = "".join(f", {key}={value!r}" for key, value in (options | {"checkpoint_path": out}).items())
    return state, f"timm.create_model({name!r}{shown}) in Python"


def _timms_name(model_args: dict[str, Any]) -> str:
    from video_rs.models.weights.init_from import TIMM_DEPTHS
    from video_rs.models.weights.load import TIMM

    name, width = model_args["name"], model_args.get("width", 1.0)
    ours = fnmatch.fnmatchcase(name, TIMM) and PRESETS[name].depth in TIMM_DEPTHS
    if not ours or width != 1:
        known = ", ".join(map(str, TIMM_DEPTHS))
        raise UserError(f"timm has resnet_rs_* of depths {known} and width 1, it has no {name} of width {width:g}")
    return f"resnetrs{PRESETS[name].depth}"
