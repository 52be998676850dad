"""Show the status of runs from their folders. Works on any machine, during training and afterwards.

video-rs status runs/k400_rs50            one run
video-rs status runs                      all runs in a folder, one line each
video-rs status runs/k400_rs50 --json     for programs

A run is running, silent (probably stopped), complete, interrupted, preempted, or failed (with the reason). The last
line is the command to resume it, or the next step of a complete run.
"""

import json
import time
from pathlib import Path
from typing import Any

from video_rs.cli.common import Parser, command, input_path, program, size_text
from video_rs.errors import UserError
from video_rs.terminal import duration, table
from video_rs.training.run_status import NAMES, SIGNS, look, metrics_text


def main(argv: list[str]) -> int:
    """Entry point of ``tools/run_status.py`` and ``video-rs status``."""
    parser = Parser(__doc__, prog=program("status"))
    parser.add_argument(
        "runs", nargs="+", type=input_path, metavar="RUN", help="a run folder, or a folder of run folders"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per run")
    args = parser.parse_intermixed_args(argv)
    runs = [look(folder) for name in args.runs for folder in runs_in(Path(name))]
    for run in runs:
        if not run["command"]:  # unknown, or for another folder
            what = "test" if run["verdict"] == "complete" else "train"
            run["command"] = command(what, "--cfg", run["folder"])
    if args.json:
        lines = [json.dumps(run) for run in runs]
    else:
        rows = [cells(run) for run in runs]
        lines = page(runs[0]) if len(runs) == 1 else table([list(row.values()) for row in rows], list(rows[0]))
    print("\n".join(lines))
    return 0


def runs_in(folder: Path) -> list[Path]:
    """Return the folder if it is a run folder, otherwise the run folders in it. Raise UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the run folder, as in out=")
    for runs in ([folder], sorted(folder.iterdir())):
        if found := [path for path in runs if any((path / name).is_file() for name in SIGNS)]:
            return found
    raise UserError(f"{folder} is not a run folder and contains none: no {', '.join(SIGNS[:-1])} or {SIGNS[-1]}")


def cells(run: dict[str, Any]) -> dict[str, str]:
    """Return the columns of a run in a table of runs."""
    best, rate, left = run["best"], run["train"].get("clips_per_second"), run["seconds_left"]
    of = f"/{run['steps']} ({100 * run['step'] / run['steps']:.0f} %)" if run["steps"] else ""
    return {
        "run": run["folder"],
        "state": run["verdict"],
        "step": f"{run['step']}{of}",
        "epoch": "" if run["epoch"] is None else f"{run['epoch']:.2f}",
        "clips/s": f"{rate:.1f}" if rate else "",
        "left": "" if left is None else duration(left),
        "best": f"{NAMES[best['name']]} {100 * best['value']:.2f} %{_after(best)}" if best else "",
        "last sign": _ago(run["age"]),
    }


def page(run: dict[str, Any]) -> list[str]:
    """Return the lines that describe one run."""
    checkpoint, columns = run["checkpoint"], cells(run)
    rows = [
        *((name, text) for name, text in columns.items() if name not in ("run", "state", "last sign")),
        ("training", metrics_text(run["train"])),
        ("validation", metrics_text(run["val"]) + _after(run["val"])),
        ("checkpoint", _checkpoint(checkpoint) if checkpoint else ""),
        *(("warning", line) for line in run["warnings"]),
    ]
    return [
        f"{run['folder']}: {run['text']}; last update {columns['last sign']}",
        *(f"  {name:<12}{text}" for name, text in rows if text),
        f"{'if it stops' if run['verdict'] == 'running' else 'next'}: {run['command']}",
    ]


def _after(metrics: dict[str, Any]) -> str:
    return f" after epoch {metrics['epoch']:.4g}" if metrics.get("epoch") is not None else ""


def _checkpoint(checkpoint: dict[str, Any]) -> str:
    step = "" if checkpoint["step"] is None else f"step {checkpoint['step']:,}, "
    age = _ago(max(0.0, time.time() - checkpoint["time"]))
    empty = "" if checkpoint["bytes"] else " (empty: the previous one will be used)"
    return f"{step}{age}, {size_text(checkpoint['bytes'])}, {checkpoint['path']}{empty}"


def _ago(seconds: float) -> str:
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.0f} days ago"
    return f"{seconds:.0f} s ago" if seconds < 60 else f"{duration(seconds)} ago"
