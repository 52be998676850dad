#!/usr/bin/env python3
"""Measure how well features separate the classes: ``tools/probe_features.py f_train.npz``. See ``--help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("probe")
