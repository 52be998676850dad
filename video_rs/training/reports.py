"""Find the run folder of a checkpoint, and the reports of its tests."""

from __future__ import annotations

import os
import re
from pathlib import Path

from video_rs import checkpoint
from video_rs.errors import UserError
from video_rs.files import read_json
from video_rs.hub import fetch, is_address, redact_url, sha256
from video_rs.training.run_folder import FOLDER
from video_rs.training.run_status import SIGNS


def report_folder(out: str | Path, split: str, file: Path, name: str) -> Path:
    """Return the folder of the report on a checkpoint.

    Args:
        out: the run folder.
        file, name: the checkpoint, and its path or address for messages.
    """
    if _is_same(file, Path(out) / "best.pt"):
        return Path(out) / split
    return Path(out) / f"{split}-{label(name)}-{sha256(file)[:8]}"


def find_test(weights: str, split: str = "test") -> Path:
    """Return the folder of the last test of a checkpoint on a split. Raise UserError if there is none."""
    file, name = fetch(checkpoint.resolve(weights)), redact_url(weights)
    folder = report_folder(run_folder(weights) or Path("runs") / label(name), split, file, name)
    advice = f"run the command test with --weights {name} first"
    if not all((folder / each).is_file() for each in ("report.html", "predictions.csv", "metrics.json")):
        raise UserError(f"{folder}: no test of {name} on this split; {advice}")
    try:
        tested = read_json(folder / "metrics.json")["about"]["weights"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / 'metrics.json'} is damaged; {advice}") from None
    if not str(tested).endswith(sha256(file)[:8]):
        raise UserError(f"{folder}: the test is of other weights than {name}; {advice}")
    return folder


def label(weights: str) -> str:
    """Return the last two names of a path or URL, without the suffix, as a name for a folder: ``mine-best``."""
    path = weights.partition("#")[0] if is_address(weights) else os.path.abspath(checkpoint.resolve(weights))
    words = re.sub(r"\.(pt|pth|safetensors)$", "", path).replace(":", "/").split("/")[-2:]
    return "-".join(re.sub(r"[^\w.-]+", "-", word, flags=re.ASCII).strip("-.")[:50] for word in words) or "weights"


def run_folder(weights: str) -> Path | None:
    """Return the run folder that a checkpoint is in, or None for an address or a file elsewhere."""
    if is_address(weights):
        return None
    folder = Path(checkpoint.resolve(weights)).parent
    if folder.absolute().name == FOLDER:
        folder = Path(os.path.normpath(folder / ".."))
    return folder if any((folder / name).is_file() for name in ("config.yaml", *SIGNS)) else None


def _is_same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)
