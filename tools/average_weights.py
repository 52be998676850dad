#!/usr/bin/env python3
"""Average the weights of checkpoints: ``tools/average_weights.py runs/a runs/b --out soup.pt``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from video_rs.cli.main import main

    main("average")
