"""The console script: ``video-rs <command> ...``."""

import atexit
import gc
import importlib
import os
import sys

from video_rs.cli.common import COMMANDS, run
from video_rs.errors import UserError, did_you_mean


def dispatch(argv: list[str]) -> int:
    """Run the command ``argv[0]`` with the other arguments and return its exit code."""
    try:
        os.getcwd()
    except FileNotFoundError:  # torch's libraries would end the process
        raise UserError("the working folder was deleted; change to another folder") from None
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: video-rs COMMAND ...\n\ncommands (each has its own --help):")
        print("\n".join(f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items()))
        return 0
    if argv[0] not in COMMANDS:
        raise UserError(f"unknown command {argv[0]}" + did_you_mean(argv[0], COMMANDS, f"; {', '.join(COMMANDS)}"))
    module = importlib.import_module(f"video_rs.cli.{argv[0].replace('-', '_')}")
    return module.main(argv[1:])


def main(*command: str) -> None:
    """Run the console script. The scripts in ``tools/`` name their ``command``."""
    argv = [*command, *sys.argv[1:]]
    atexit.register(gc.freeze)  # faster: Python collects no garbage while it exits
    sys.exit(run(dispatch, argv))
