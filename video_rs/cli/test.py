"""Test a checkpoint on many views of each video, and write a report.

tools/test_net.py --cfg motion_rs.yaml
tools/test_net.py --cfg runs/k400_rs50
tools/test_net.py --cfg k400_rs50.yaml data.root=/data/k400 weights=runs/k400_rs50/best.pt
tools/test_net.py --cfg k400_rs50.yaml data.root=/data/k400 test.clips=1 test.crops=1 test.split=val

The weights are <out>/best.pt unless weights= gives another file or URL. The report is written to <out>/<split>/. With
torchrun or srun, the videos are divided among the processes.
"""

from typing import Any

from video_rs import terminal
from video_rs.cli.common import command, config_parser, counter, parse_config
from video_rs.experiment.checks import check_timeouts


def main(argv: list[str]) -> int:
    """Entry point of ``tools/test_net.py`` and ``video-rs test``."""
    _, config = parse_config(config_parser("test", __doc__), argv)
    from video_rs.distributed.device import select_device
    from video_rs.distributed.world import start_world
    from video_rs.experiment.evaluate import evaluate

    world = start_world(select_device(config.train.device).type, config.train.peer_timeout)
    try:
        check_timeouts(config, world.size)
        with world.together("the test"):
            found = evaluate(config, world, progress=lambda total: counter(total, "testing", "videos"))
    finally:
        world.close()
    if found:
        print_metrics(found.metrics)
        for index, reason in found.scores.errors[:3]:
            print(f"not scored: {found.paths[index]}: {reason}")
        print(f"report: {found.report}")
        example = found.paths[int(found.scores.scored.argmax())]
        plugins = [word for plugin in config.plugins for word in ("--plugins", plugin)]
        print(f"next: {command('predict', *plugins, '--weights', found.weights, example)}")
    return 0


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
