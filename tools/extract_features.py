#!/usr/bin/env python3
"""Write features: ``tools/extract_features.py --weights W --data ROOT --out f.npz``. See ``--help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("features")
