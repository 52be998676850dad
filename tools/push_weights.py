#!/usr/bin/env python3
"""Publish a checkpoint on the hub: ``tools/push_weights.py --weights runs/x --repo me/x``. See ``--help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("push")
