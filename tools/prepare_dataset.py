#!/usr/bin/env python3
"""Re-encode a dataset: ``tools/prepare_dataset.py --cfg k400_rs50.yaml --out /data/small``. See ``--help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("prepare")
