"""Train a network from a config.

tools/train_net.py --cfg k400_rs50.yaml data.root=/data/k400
tools/train_net.py --cfg motion_rs.yaml
tools/train_net.py --cfg finetune_rs50.yaml data.root=/data/mine train.init_from=runs/k400_rs50/best.pt
tools/train_net.py --cfg k400_rs50.yaml data.root=/data/k400 --dry-run

If the run folder has a checkpoint of the same config, training resumes from it.
"""

from video_rs.cli.common import command, config_parser, parse_config
from video_rs.errors import EXIT_INTERRUPTED
from video_rs.experiment.config import Config
from video_rs.signals import exit_on_signals


def main(argv: list[str]) -> int:
    """Entry point of ``tools/train_net.py`` and ``video-rs train``."""
    parser = config_parser("train", __doc__)
    cost = "build everything, run one batch, print what a run costs"
    parser.add_argument("--dry-run", action="store_true", help=cost)
    parser.add_argument("--resume", action="store_true", help="fail if there is no run to resume")
    args, config = parse_config(parser, argv)

    if args.dry_run:
        from video_rs.experiment.run import dry_run

        dry_run(config)
        return 0
    return train(config, must_resume=args.resume)


def train(config: Config, *, must_resume: bool = False) -> int:
    """Train and return the exit code. With `must_resume`, raise UserError if there is no checkpoint to resume from."""
    with exit_on_signals(" before the first step; restart to begin"):
        from video_rs.experiment.run import run

        try:
            resume, test = (command(name, "--cfg", config.out) for name in ("train", "test"))  # with its config.yaml
            predict = command("predict", "--weights", f"{config.out}/best.pt", "FILE")
            run(config, resume=resume, test=test, predict=predict, must_resume=must_resume)
        except KeyboardInterrupt as stop:
            if not stop.args:  # a second Ctrl-C, without a checkpoint
                raise
            return EXIT_INTERRUPTED
    return 0
