#!/usr/bin/env python3
"""Show the status of runs from their folders: ``tools/run_status.py runs``. See ``--help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("status")
