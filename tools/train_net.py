#!/usr/bin/env python3
"""Trains a network: ``tools/train_net.py --cfg k400_rs50.yaml data.root=/data/k400``. See ``--help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from video_rs.cli.common import run  # noqa: E402
from video_rs.cli.train import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
