"""Convert timm's weights or bare weights to a checkpoint of this package, or a checkpoint to timm's names.

tools/convert_weights.py --weights runs/images/best.pt --out best.safetensors
tools/convert_weights.py --weights resnetrs50.pth --out rs50.pt
tools/convert_weights.py --from timm --model resnet_rs_50 --out rs50.safetensors
tools/convert_weights.py --to timm --weights runs/images/best.pt --out resnetrs50.safetensors

Every weight must match. If a weight is missing, unexpected or of the wrong shape, the error names it and nothing is
written. Settings that the weights do not determine, such as the resolution, are printed.
From Python: ``video_rs.models.weights.load.load_network``.
Weights of TensorFlow and Keras: tools/convert_tensorflow.py in the repository.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from video_rs import terminal
from video_rs.cli.common import Parser, checkpoint_path, command, input_path, program
from video_rs.errors import UserError, truncate
from video_rs.hub import redact_url

if TYPE_CHECKING:
    from video_rs.models.weights.load import Loaded

TENSORFLOW = ("garden", "tpu", "keras")  # sources of tools/convert_tensorflow.py


def main(argv: list[str]) -> int:
    """Parse the arguments, convert, report what was matched and ignored, and write the file."""
    args = _parse(argv)
    from video_rs.models.weights.load import load_network

    loaded = load_network(args.file, args.model, timm={"timm": True, "video_rs": False}.get(args.source))
    write(loaded, redact_url(args.file or "timm's public weights"), args.out, to=args.to)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__, prog=program("convert"))
    source = {"dest": "source", "choices": ("video_rs", "timm", *TENSORFLOW), "metavar": "{video_rs,timm}"}
    help = "whose weights: this package's, or timm's resnetrs* (default: found from the names in FILE)"
    parser.add_argument("--from", **source, help=help)
    parser.add_argument("--to", default="video_rs", choices=("video_rs", "timm"), help="(default: %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="the network (default: found from the weights)")
    help = "a file, https://... or hf-hub:owner/name; without it --from timm downloads public weights"
    parser.add_weights(help, required=False)
    parser.add_argument("file", nargs="?", type=input_path, help=argparse.SUPPRESS)  # the spelling of version 0.1
    add_out(parser)
    args = parser.parse_intermixed_args(argv)
    if args.weights and args.file:
        parser.error(f"{args.file} and --weights {args.weights}: give one file")
    args.file = args.weights or args.file
    if args.source in TENSORFLOW or args.file and _is_tensorflow(Path(args.file)):
        advice = "convert them with tools/convert_tensorflow.py of the repository"
        raise UserError(f"{redact_url(args.file or '--from')}: weights of TensorFlow or Keras; {advice}")
    if args.file is None and (args.source != "timm" or not args.model):
        parser.error("give --weights FILE, or --from timm --model resnet_rs_50 for timm's public weights")
    if args.file and Path(args.file).resolve() == Path(args.out).resolve():
        parser.error(f"--out {args.out} is the file to convert; give another")
    return args


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, a file of weights."""
    wanted = "to write, or to replace: .pt, .pth, .safetensors"
    parser.add_argument("--out", required=True, type=checkpoint_path, metavar="FILE", help=wanted)


def _is_tensorflow(path: Path) -> bool:
    """Return True for an h5 file or a TensorFlow checkpoint (its prefix, one of its files, or its folder)."""
    if path.suffix in (".h5", ".hdf5", ".keras", ".index"):
        return True
    try:
        return Path(f"{path}.index").exists() or path.suffix.startswith(".data-") or any(path.glob("*.index"))
    except OSError:  # for example a name that is too long; reported when the file is read
        return False


def write(loaded: Loaded, source: str, out: str, *, to: str = "video_rs") -> None:
    """Report what was loaded, write it, and print the next command.

    Args:
        loaded: the network and information on its weights.
        source: name of the file that was loaded.
        out: the file to write.
        to: "video_rs" for a checkpoint, "timm" for a state dict with its names.
    """
    from video_rs import checkpoint
    from video_rs.models.weights.timm import export_to_timm

    network, data_config, state = loaded.network, loaded.network.data_config, loaded.network.state_dict()
    tensors = sum(not name.endswith("num_batches_tracked") for name in state)
    if to == "timm":
        name, options, state = export_to_timm(network, loaded.model_args)
        arguments = "".join(f", {key}={value!r}" for key, value in {**options, "checkpoint_path": out}.items())
        after = f"timm.create_model({name!r}{arguments}) in Python"
    else:
        state = checkpoint.from_weights(loaded.model_args, data_config, state, **loaded.record)
        after = command("predict", "--weights", out, "image.jpg" if data_config.num_frames == 1 else "clip.mp4")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    entries = "1 entry" if len(loaded.ignored) == 1 else f"{len(loaded.ignored)} entries"
    print(f"{source} -> {loaded.model_args['name']}, {network.num_classes} classes, {parameters:,} parameters")
    for note in loaded.notes:
        terminal.write(note)
    print(f"matched: all {tensors} tensors of the network")
    print(f"moving averages: {loaded.averages}")
    terminal.write(f"ignored: {f'{entries}: {truncate(loaded.ignored, 3)}' if loaded.ignored else 'nothing'}")
    if origin := loaded.record.get("weights_from"):
        terminal.write(f"first weights: {origin['source']}, licence {origin['licence'] or 'unknown'}")
    checkpoint.save(out, state)
    print(f"wrote {out}; next: {after}")
