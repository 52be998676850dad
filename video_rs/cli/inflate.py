"""Turn image weights into a video checkpoint to start training from.

video-rs inflate --weights timm --out inflated.pt    timm's public weights into resnet3d_rs_50
"""

from typing import Any

from video_rs.cli.common import Parser, command, input_path, output_path, positive, program
from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.experiment.config import load_config
from video_rs.hub import redact_url
from video_rs.models.architecture import INFLATIONS, TEMPORAL_PADDINGS

NEXT_CONFIG = "finetune_rs50.yaml"


def main(argv: list[str]) -> int:
    """Parse the arguments, inflate, print the report and write the checkpoint."""
    options = _parse(argv)
    weights, name, out, _ = (options.pop(key) for key in ("weights", "model", "out", "plugins"))
    options["class_names"] = _class_names(options["class_names"], options["num_classes"])
    from video_rs import checkpoint
    from video_rs.models.weights.load import load_inflated

    loaded, report = load_inflated(weights, name, **options)
    model, model_args, method = loaded.network, loaded.model_args, options["method"]
    state = checkpoint.from_weights(model_args, model.data_config, model.state_dict(), **loaded.record)
    checkpoint.save(out, state)
    print(f"{redact_url(weights)} into {name}, {model.num_classes} classes, method {method}")
    print(report.table())
    if differences := report.about_architectures():
        print(differences)
    if method == "average" and model.architecture.temporal_padding == "zeros":
        print("kernels are cut at the ends of a clip; --temporal-padding replicate makes still clips exact")
    overrides = [f"train.init_from={out}", *_next_overrides(model_args, model.data_config)]
    print(f"wrote {out}; next: {command('train', '--cfg', NEXT_CONFIG, *overrides)}")
    return 0


def _parse(argv: list[str]) -> dict[str, Any]:
    parser = Parser(__doc__, prog=program("inflate"))
    parser.add_weights("image weights: a checkpoint or state dict (also timm's), its URL, or timm", old="--from")
    parser.add_argument(
        "--out", required=True, type=output_path, metavar="FILE", help="the checkpoint to write (.pt or .safetensors)"
    )
    parser.add_argument("--model", default="resnet3d_rs_50", help="the video network (default: %(default)s)")
    number = "(default: the source's; another number creates a new head)"
    parser.add_argument("--num-classes", type=positive, metavar="N", help=number)
    method = "put the image kernel on the middle frame, or spread it over all frames (default: %(default)s)"
    parser.add_argument("--method", default="center", choices=INFLATIONS, help=method)
    padding = "before the first and after the last frame; with replicate, average is exact too (default: the network's)"
    parser.add_argument("--temporal-padding", choices=TEMPORAL_PADDINGS, help=padding)
    names = "one name a line: classes that the source has under the same name keep their part of the head"
    parser.add_argument("--class-names", type=input_path, metavar="FILE", help=names)
    return vars(parser.parse_intermixed_args(argv))


def _class_names(file: str | None, num_classes: int | None) -> tuple[str, ...]:
    from video_rs.data.sources.names_file import read_class_names

    names = read_class_names(file, "--class-names") if file else ()
    if file and len(names) != (num_classes or len(names)):
        wanted = f", but --num-classes={num_classes}" if num_classes else ""
        raise UserError(f"--class-names={file}: has {len(names)} names{wanted}")
    return names


def _next_overrides(model_args: dict[str, Any], data_config: DataConfig) -> list[str]:
    """Return config overrides for training from the checkpoint: model and data keys that differ from NEXT_CONFIG."""
    config = load_config(NEXT_CONFIG)
    given = {key: model_args[key] for key in ("name", "width", "temporal_padding") if key in model_args}
    changed = [f"model.{key}={value}" for key, value in given.items() if value != getattr(config.model, key)]
    pixels = config.data_config().differences(data_config, ("mean", "std", "filter"))
    changed += [f"data.{key}={list(v) if isinstance(v, tuple) else v}" for key, (_, v) in pixels.items()]
    return changed
