#!/usr/bin/env python3
"""List the networks, or print one stage by stage: ``tools/list_models.py resnet3d_rs_50``. See ``--help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("models")
