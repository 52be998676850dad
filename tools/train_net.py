#!/usr/bin/env python3
"""Train a network: ``tools/train_net.py --cfg k400_rs50.yaml data.root=/data/k400``. See ``--help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("train")
