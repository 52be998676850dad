#!/usr/bin/env python3
"""Draw the clips that the network sees: ``tools/show_clips.py --cfg k400_rs50.yaml``. See ``--help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("show-clips")
