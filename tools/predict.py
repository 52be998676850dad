#!/usr/bin/env python3
"""Classify videos or images: ``tools/predict.py --weights runs/x/best.pt clip.mp4``. See ``--help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("predict")
