#!/usr/bin/env python3
"""Turn image weights into a video checkpoint: ``tools/inflate_weights.py --weights timm --out inflated.pt``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("inflate")
