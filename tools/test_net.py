#!/usr/bin/env python3
"""Test a checkpoint on many views of each video: ``tools/test_net.py --cfg k400_rs50.yaml``. See ``--help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("test")
