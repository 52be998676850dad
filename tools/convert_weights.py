#!/usr/bin/env python3
"""Convert timm or bare weights to a checkpoint: ``tools/convert_weights.py --weights resnetrs50.pth --out rs50.pt``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("convert")
