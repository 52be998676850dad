"""Turn image weights into a video checkpoint to start training from.

video-rs inflate timm --out inflated.pt    timm's public weights into resnet3d_rs_50
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from video_rs.cli.common import Parser, command, positive, program
from video_rs.errors import UserError
from video_rs.experiment.config import load_config
from video_rs.hub import redact_url
from video_rs.models.architecture import INFLATIONS, TEMPORAL_PADDINGS

if TYPE_CHECKING:
    from video_rs.data_config import DataConfig

NEXT_CONFIG = "finetune_rs50.yaml"


def main(argv: list[str]) -> int:
    """Parse the arguments, inflate, print the report and write the checkpoint."""
    args = _parse(argv)
    names = _class_names(args.class_names, args.num_classes)
    from video_rs import checkpoint
    from video_rs.models.weights.load import load_inflated

    loaded, report = load_inflated(
        args.weights,
        args.model,
        num_classes=args.num_classes,
        class_names=names,
        method=args.method,
        temporal_padding=args.temporal_padding,
    )
    model, model_args = loaded.network, loaded.model_args
    state = checkpoint.from_weights(model_args, model.data_config, model.state_dict(), **loaded.record)
    checkpoint.save(args.out, state)
    print(f"{redact_url(args.weights)} into {args.model}, {model.num_classes} classes, method {args.method}")
    print(report.table())
    if differences := report.about_architectures():
        print(differences)
    if args.method == "average" and model.architecture.temporal_padding == "zeros":
        print("the ends of a clip see less than whole kernels: --temporal-padding replicate is exact on still clips")
    overrides = [f"train.init_from={args.out}", *_next_overrides(model_args, model.data_config)]
    print(f"wrote {args.out}; next: {command('train', '--cfg', NEXT_CONFIG, *overrides)}")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__, prog=program("inflate"))
    parser.add_weights("image weights: a checkpoint or state dict (also timm's), its address, or timm", old="--from")
    parser.add_argument("--out", required=True, metavar="FILE", help="the checkpoint to write (.pt or .safetensors)")
    parser.add_argument("--model", default="resnet3d_rs_50", help="the video network (default: %(default)s)")
    parser.add_argument(
        "--num-classes", type=positive, metavar="N", help="(default: the source's; another number starts a new head)"
    )
    parser.add_argument(
        "--method",
        default="center",
        choices=INFLATIONS,
        help="put the image kernel on the middle frame, or spread it over all frames (default: %(default)s)",
    )
    parser.add_argument(
        "--temporal-padding",
        choices=TEMPORAL_PADDINGS,
        help="before the first and after the last frame; with replicate, average is exact too (default: the network's)",
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="one name a line: classes that the source has under the same name keep their part of the head",
    )
    return parser.parse_args(argv)


def _class_names(file: str | None, num_classes: int | None) -> tuple[str, ...]:
    if not file:
        return ()
    from video_rs.data.sources.class_names import read_class_names

    names = read_class_names(file, "--class-names")
    if not names or (num_classes and num_classes != len(names)):
        wanted = f", but --num-classes={num_classes}" if num_classes else ""
        raise UserError(f"--class-names={file}: has {len(names)} names{wanted}")
    return names


def _next_overrides(model_args: dict[str, Any], data_config: DataConfig) -> list[str]:
    """Return the overrides that make the next command's config fit the network and the pixels of its weights."""
    config = load_config(NEXT_CONFIG)
    given = {key: model_args[key] for key in ("name", "width", "temporal_padding") if key in model_args}
    changed = [f"model.{key}={value}" for key, value in given.items() if value != getattr(config.model, key)]
    pixels = config.data_config().differences(data_config, ("mean", "std", "filter"))
    changed += [f"data.{key}={list(v) if isinstance(v, tuple) else v}" for key, (_, v) in pixels.items()]
    return changed
