#!/usr/bin/env python3
"""Make the embedded dataset: ``tools/make_motion.py --out data/motion``. See ``--help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("make-motion")
