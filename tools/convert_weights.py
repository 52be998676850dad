#!/usr/bin/env python3
"""Weights of other tools into a checkpoint: ``tools/convert_weights.py --from keras FILE.h5 --out rs50.pt``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("convert")
