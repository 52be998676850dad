"""``inflate``: turns image weights into a video checkpoint to start training from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from video_rs.cli.common import Parser, command, program
from video_rs.cli.predict import positive
from video_rs.config import load_config
from video_rs.models.layout import INFLATIONS

if TYPE_CHECKING:
    from video_rs.contract import DataContract

NEXT_CONFIG = "finetune_rs50.yaml"


def main(argv: list[str]) -> int:
    """Parses the arguments, inflates, prints the report and writes the checkpoint."""
    parser = Parser(prog=program("inflate"), description=__doc__)
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="FILE|timm",
        help="image weights: a checkpoint, a state dict (.pt, .pth, .safetensors; also timm's), or timm's download",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the checkpoint to write")
    parser.add_argument("--model", default="resnet3d_rs_50", help="the video network (default: %(default)s)")
    parser.add_argument(
        "--num-classes", type=positive, metavar="N", help="(default: the source's; another starts a new head)"
    )
    parser.add_argument(
        "--method",
        default="center",
        choices=INFLATIONS,
        help="the image kernel on the middle frame, or its share on every frame (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    from video_rs import checkpoint
    from video_rs.models import init, zoo

    preset = zoo.find_preset(args.model)
    source = init.read_timm(preset.blocks) if args.source == "timm" else init.read(args.source)
    model_args = {"name": args.model, **init.sizes(source)}
    model_args["num_classes"] = args.num_classes or model_args["num_classes"]
    model = zoo.create_model(**model_args)
    report = init.load_into(model, source, args.source, method=args.method)
    print(f"{args.source} into {args.model}, {model.num_classes} classes, method {args.method}")
    print(report.weights)
    state = {
        "format": checkpoint.FORMAT,
        "config": {},
        "model_args": model_args,
        "contract": model.contract.to_dict(),
        "model": model.state_dict(),
        "ema": None,
        "step": 0,
    }
    checkpoint.save(args.out, state)
    overrides = [f"train.init_from={args.out}", *next_overrides(model_args, model.contract)]
    print(f"wrote {args.out}; next: {command('train', '--cfg', NEXT_CONFIG, *overrides)}")
    return 0


def next_overrides(model_args: dict[str, Any], contract: DataContract) -> list[str]:
    """What the config to go on with must be told of the network, and of the pixels its weights expect."""
    config = load_config(NEXT_CONFIG)
    changed = [
        f"model.{key}={model_args[key]}" for key in ("name", "width") if model_args[key] != getattr(config.model, key)
    ]
    pixels = config.contract().differences(contract, ("mean", "std", "filter"))
    changed += [f"data.{key}={list(v) if isinstance(v, tuple) else v}" for key, (_, v) in pixels.items()]
    return changed
