"""``inflate``: turns image weights into a video checkpoint to start training from."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from video_rs.cli.common import Parser, command, positive, program
from video_rs.errors import UserError
from video_rs.experiment.config import load_config
from video_rs.models.architecture import INFLATIONS, TEMPORAL_PADDINGS

if TYPE_CHECKING:
    from video_rs.data_config import DataConfig
    from video_rs.models.resnet_rs import ResNetRS
    from video_rs.models.weights.inflate import InflationReport

NEXT_CONFIG = "finetune_rs50.yaml"


def main(argv: list[str]) -> int:
    """Parses the arguments, inflates, prints the report and writes the checkpoint."""
    parser = Parser(prog=program("inflate"), description=__doc__)
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="FILE|timm",
        help="image weights: a checkpoint or state dict (.pt, .pth, .safetensors; timm's too), its address, or timm",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the checkpoint to write (.pt or .safetensors)")
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
    parser.add_argument(
        "--temporal-padding",
        choices=TEMPORAL_PADDINGS,
        help="before the first and after the last frame; with replicate, average is exact too (default: the network's)",
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="one name a line: what the source calls alike keeps its part of the head, the rest of it starts anew",
    )
    args = parser.parse_args(argv)
    names = _class_names(args.class_names, args.num_classes)

    from video_rs import checkpoint
    from video_rs import hub as download

    model, model_args, report = _inflated(args, names)
    checkpoint.save(args.out, checkpoint.from_weights(model_args, model.data_config, model.state_dict()))
    print(f"{download.redact_url(args.source)} into {args.model}, {model.num_classes} classes, method {args.method}")
    print(report.table())
    if said := report.about_architectures():
        print(said)
    if args.method == "average" and model.architecture.temporal_padding == "zeros":
        print("the ends of a clip see less than whole kernels: --temporal-padding replicate is exact on still clips")
    overrides = [f"train.init_from={args.out}", *next_overrides(model_args, model.data_config)]
    print(f"wrote {args.out}; next: {command('train', '--cfg', NEXT_CONFIG, *overrides)}")
    return 0


def _inflated(args: argparse.Namespace, names: tuple[str, ...]) -> tuple[ResNetRS, dict[str, Any], InflationReport]:
    """The network, the arguments of ``create_model`` for it, and what became of the weights."""
    from video_rs import hub as download
    from video_rs.models import registry as zoo
    from video_rs.models.weights import init_from as init
    from video_rs.models.weights import load as sources
    from video_rs.models.weights.state_dict import sizes_of

    name = download.redact_url(args.source)
    preset = zoo.find_preset(args.model)
    if preset.architecture.for_images:
        raise UserError(f"--model {args.model} is for images; name a video network, such as resnet3d_rs_{preset.depth}")
    source = init.read_timm(preset.blocks) if args.source == "timm" else init.read(args.source)
    with sources.named(name):
        model_args = {"name": args.model, **sizes_of(source.state)}
    if any(weight.ndim == 5 and weight.shape[2] > 1 for weight in source.state.values()):
        called = f" ({source.name})" if source.name else ""
        raise UserError(f"{name} is already a video network{called}; start from it with train.init_from={name}")
    model_args["num_classes"] = len(names) or args.num_classes or model_args["num_classes"]
    if args.temporal_padding:
        model_args["temporal_padding"] = args.temporal_padding
    model = zoo.create_model(**model_args)
    model.data_config = dataclasses.replace(model.data_config, class_names=names)
    return model, model_args, init.load_into(model, source, name, method=args.method)


def _class_names(file: str | None, num_classes: int | None) -> tuple[str, ...]:
    if not file:
        return ()
    from video_rs.data.sources.class_names import read_class_names

    names = read_class_names(file, "--class-names")
    if not names or (num_classes and num_classes != len(names)):
        wanted = f", --num-classes says {num_classes}" if num_classes else ""
        raise UserError(f"--class-names={file}: has {len(names)} names{wanted}")
    return names


def next_overrides(model_args: dict[str, Any], data_config: DataConfig) -> list[str]:
    """What the config to go on with must be told of the network, and of the pixels its weights expect."""
    config = load_config(NEXT_CONFIG)
    keys = ("name", "width", "temporal_padding")
    changed = [
        f"model.{key}={model_args[key]}"
        for key in keys
        if key in model_args and model_args[key] != getattr(config.model, key)
    ]
    pixels = config.data_config().differences(data_config, ("mean", "std", "filter"))
    changed += [f"data.{key}={list(v) if isinstance(v, tuple) else v}" for key, (_, v) in pixels.items()]
    return changed
