"""The console script: ``video-rs <command> ...``."""

from __future__ import annotations

import difflib
import importlib
import sys

from video_rs.cli.common import run
from video_rs.errors import UserError

COMMANDS = {
    "train": "train a network from a config",
    "status": "tell where runs are, from their folders alone",
    "test": "score a checkpoint by multi-view evaluation and write a report",
    "predict": "name what is in videos or images",
    "show-clips": "draw what the network will see",
    "prepare": "re-encode all videos of a dataset once, so that training reads them fast",
    "check": "decode all files of a dataset and tell which are broken, too short, odd, or there twice",
    "index": "look at all videos of a dataset once, so that clips open faster",
    "models": "list the networks, or print one stage by stage",
    "inflate": "turn 2D weights into a 3D checkpoint",
    "convert": "turn weights of timm, or bare ones, into a checkpoint, or a checkpoint into timm's",
    "make-motion": "make the embedded dataset",
}


def dispatch(argv: list[str]) -> int:
    """Runs ``argv[0]`` with the rest of the arguments."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: video-rs COMMAND ...\n\ncommands (each has its own --help):")
        print("\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items()))
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        raise UserError(f"unknown command {argv[0]}; " + (f"did you mean {near[0]}?" if near else ", ".join(COMMANDS)))
    module = importlib.import_module(f"video_rs.cli.{argv[0].replace('-', '_')}")
    return module.main(argv[1:])


def main(*command: str) -> None:
    """Entry point of the console script; the scripts in ``tools/`` name their ``command``."""
    sys.exit(run(dispatch, [*command, *sys.argv[1:]]))
