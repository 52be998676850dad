"""Create mutants and run all calls with them: ``python -m tests.fuzz SEED NUMBER ...``, or ``SEED FIRST:END``."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

from tests import corpus
from tests.fuzz.calls import OTHERS
from tests.fuzz.run import Fuzzer


def _numbers(text: str) -> range:
    first, _, end = text.partition(":")
    return range(int(first), int(end) if end else int(first) + 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("numbers", nargs="+", help="42, or 0:100")
    parser.add_argument("--kind", default="videos", choices=("videos", *OTHERS))
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder to write the mutants to")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    corpus.set_folder(args.out / "corpus")
    numbers = [number for text in args.numbers for number in _numbers(text)]
    start = time.monotonic()
    found = Fuzzer(args.out).run(args.kind, args.seed, numbers, args.workers, partial(print, flush=True))
    if len(numbers) < 10:
        for file in found.outcomes.values():
            for name, outcome in file.items():
                print(f"{name:12}{outcome}")
    print(found.summary(), f"{time.monotonic() - start:.0f} s")
