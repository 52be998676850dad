"""Tells where runs are, from their folders alone: while they train, on another machine too, and after they ended.

video-rs status runs/k400_rs50            one run
video-rs status runs                      all runs in a folder, one line each
video-rs status runs/k400_rs50 --json     for programs

It is running, stopped without saying so (killed, or silent for far longer than it usually is), complete, interrupted,
preempted, or failed with the reason. The last line is the command that goes on with it, or that comes next.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from video_rs.cli.common import Parser, command, program, size_text
from video_rs.errors import UserError
from video_rs.files import json_values
from video_rs.training.sight import SIGNS, Sight, is_run, look
from video_rs.training.status import ENDED, MERITS, duration, shown

WIDTH = 12  # of the column of headings
COLUMNS = ("run", "state", "step", "epoch", "clips/s", "left", "best", "last sign")


def main(argv: list[str]) -> int:
    """Entry point of ``tools/run_status.py`` and ``video-rs status``."""
    parser = Parser(prog=program("status"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or a folder of run folders")
    parser.add_argument("--json", action="store_true", help="print one JSON object a run")
    args = parser.parse_args(argv)
    sights = [_with_command(look(folder)) for name in args.runs for folder in runs_in(Path(name))]
    if args.json:
        lines = [json.dumps(_public(sight)) for sight in sights]
    else:
        lines = page(sights[0]) if len(sights) == 1 else table(sights)
    print("\n".join(lines))
    return 0


def runs_in(folder: Path) -> list[Path]:
    """The folder itself if it is a run's, else the runs in it. Raises UserError when there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the run folder, the one that out= named")
    runs = [folder] if is_run(folder) else sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path))
    if not runs:
        raise UserError(
            f"{folder} is no run folder and has none in it: neither {', '.join(SIGNS[:-1])} nor {SIGNS[-1]}"
        )
    return runs


def page(sight: Sight) -> list[str]:
    """All there is to say of one run."""
    sign = "" if sight.verdict in ENDED else "last sign of life "
    age = "" if sight.age is None else f"; {sign}{_ago(sight.age)}"
    best, val, train = sight.best, sight.val, sight.train
    rows = [
        ("step", _progress(sight)),
        ("rate", _rate(sight)),
        ("training", shown(train)),
        ("validation", f"{shown(val)}{_after(val)}" if shown(val) else ""),
        ("best", f"{_best(best)}{_after(best)}, {Path(sight.folder) / 'best.pt'}" if _best(best) else ""),
        ("checkpoint", _checkpoint(sight)),
        *(("warning", line) for line in sight.warnings),
    ]
    lines = [f"{sight.folder}: {sight.text}{age}", *(f"  {name:<{WIDTH}}{text}" for name, text in rows if text)]
    if sight.command:
        lines.append(f"{'if it stops' if sight.verdict == 'running' else 'next'}: {_call(sight)}")
    return lines


def table(sights: Sequence[Sight]) -> list[str]:
    """One line a run."""
    rows = [COLUMNS, *(_row(sight) for sight in sights)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _row(sight: Sight) -> tuple[str, ...]:
    step = "" if sight.step is None else f"{sight.step}" + (f"/{sight.steps}" if sight.steps else "")
    left = "" if sight.seconds_left is None else duration(sight.seconds_left)
    rate = f"{sight.clips_per_second:.1f}" if sight.clips_per_second else ""
    epoch = "" if sight.epoch is None else f"{sight.epoch:.2f}"
    age = "" if sight.age is None else _ago(sight.age)
    return (sight.folder, sight.verdict, step, epoch, rate, left, _best(sight.best), age)


def _progress(sight: Sight) -> str:
    if sight.step is None:
        return "none yet"
    of = f" of {sight.steps:,} ({100 * sight.step / sight.steps:.0f} %)" if sight.steps else ""
    return f"{sight.step:,}{of}" + ("" if sight.epoch is None else f", epoch {sight.epoch:.2f}")


def _rate(sight: Sight) -> str:
    if not sight.clips_per_second:
        return ""
    left = "" if sight.seconds_left is None else f", {duration(sight.seconds_left)} left"
    return f"{sight.clips_per_second:.1f} clips/s{left}"


def _best(best: dict[str, Any]) -> str:
    name, figure = best.get("name"), best.get("figure")
    return f"{MERITS.get(name, name)} {100 * figure:.2f} %" if isinstance(figure, (int, float)) else ""


def _after(figures: dict[str, Any]) -> str:
    epoch = figures.get("epoch")
    return f" after epoch {epoch:.4g}" if isinstance(epoch, (int, float)) else ""


def _checkpoint(sight: Sight) -> str:
    if not (about := sight.checkpoint):
        return ""
    step = "" if about["step"] is None else f"step {about['step']:,}, "
    age = _ago(max(0.0, time.time() - about["time"]))
    return f"{step}{age}, {size_text(about['bytes'])}, {about['path']}"


def _with_command(sight: Sight) -> Sight:
    """Runs of earlier versions do not say what to call next, those that were moved say it of another folder."""
    folder = Path(sight.folder).resolve() if sight.cwd else Path(sight.folder)
    config = folder / "config.yaml"
    if not sight.command and config.exists():
        what = "test" if sight.verdict == "complete" else "train"
        sight.command = command(what, "--cfg", str(config), f"out={folder}")
    return sight


def _call(sight: Sight) -> str:
    elsewhere = sight.cwd and sight.cwd != os.getcwd()
    return f"cd {shlex.quote(sight.cwd)} && {sight.command}" if elsewhere else sight.command


def _public(sight: Sight) -> dict[str, Any]:
    return json_values(dataclasses.asdict(sight))


def _ago(seconds: float) -> str:
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.0f} days ago"
    return f"{seconds:.0f} s ago" if seconds < 60 else f"{duration(seconds)} ago"
