#!/usr/bin/env python3
"""Draw activation maps: ``tools/explain.py --weights runs/x/best.pt --out cam.mp4 clip.mp4``. See ``--help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("explain")
