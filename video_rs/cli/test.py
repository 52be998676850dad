"""Test a checkpoint on many views of each video, and write a report.

tools/test_net.py --cfg motion_rs.yaml
tools/test_net.py --cfg runs/k400_rs50
tools/test_net.py --weights hf-hub:owner/name data.root=/data/k400
tools/test_net.py --cfg k400_rs50.yaml data.root=/data/k400 --weights runs/k400_rs50/last.pt
tools/test_net.py --cfg k400_rs50.yaml data.root=/data/k400 test.clips=1 test.crops=1 test.split=val

The default weights are <out>/best.pt. With --weights and without --cfg, the config in the checkpoint is used. The
report on <out>/best.pt is written to <out>/<split>/, and the report on other weights to a folder named after them.
With torchrun or srun, the videos are divided among the processes.
"""

from collections.abc import Sequence
from typing import Any

from video_rs import terminal
from video_rs.cli.common import command, config_parser, counter, input_path, parse_settings
from video_rs.errors import ConfigError, UserError
from video_rs.experiment.checks import check_timeouts
from video_rs.experiment.config import Config, load_config


def main(argv: list[str]) -> int:
    """Entry point of ``tools/test_net.py`` and ``video-rs test``."""
    config, state = read_config(argv)
    from video_rs.distributed.device import select_device
    from video_rs.distributed.world import start_world
    from video_rs.experiment.evaluate import evaluate

    world = start_world(select_device(config.train.device), config.train.peer_timeout)
    try:
        check_timeouts(config, world.size)
        with world.together("the test"):
            found = evaluate(config, world, state=state, progress=lambda total: counter(total, "testing", "videos"))
    finally:
        world.close()
    if found:
        print_metrics(found.metrics)
        for index, reason in found.scores.errors[:3]:
            terminal.write(f"not scored: {found.paths[index]}: {reason}")
        print(f"report: {found.report}")
        example = found.paths[int(found.scores.scored.argmax())]
        plugins = [word for plugin in config.plugins for word in ("--plugins", plugin)]
        print(f"next: {command('predict', *plugins, '--weights', found.weights, example)}")
    return 0


def read_config(argv: Sequence[str]) -> tuple[Config, dict[str, Any] | None]:
    """Return the config of the command line, and the checkpoint if the config was read from it."""
    parser = config_parser("test", __doc__, needs_config=False)
    help = f"{parser.WEIGHTS}; without --cfg, its config is used"
    parser.add_argument("--weights", type=input_path, metavar="FILE", help=help)
    args = parse_settings(parser, argv)
    given = [text for key, _, text in (word.partition("=") for word in args.overrides) if key.strip() == "weights"]
    if args.weights and given:
        parser.error("--weights and weights= are the same: give one of them")
    if args.weights:
        args.overrides.append(f"weights={args.weights}")
    if args.cfg is not None:
        return load_config(args.cfg, args.overrides), None
    weights = args.weights or (given[-1] if given else "")
    if not weights:
        parser.error("--cfg or --weights is required")
    from video_rs.experiment.evaluate import config_for

    try:
        return config_for(input_path(weights), args.overrides)
    except UserError as error:
        raise ConfigError(str(error)) from None  # all ranks fail equally; print one line


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print a table of the metrics. In the column "of all", videos that could not be scored count as wrong."""
    from video_rs.evaluation.metrics import metric_names

    rows = [
        [name, *(f"{100 * metrics[key + suffix]:.2f} %" for suffix in ("", "_all"))]
        for key, name in metric_names(metrics).items()
    ]
    print(f"{metrics['num_scored']} of {metrics['num_videos']} scored")
    for line in terminal.table(rows, ("", "of scored", "of all"), right=(1, 2)):
        print(f"  {line}")
