"""Add activation maps to the report of a test, next to its most confident mistakes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from video_rs.data.sources.records import SEPARATOR, Records
from video_rs.errors import MediaError, StorageError, UserError
from video_rs.evaluation.report import add_pictures, listed_mistakes
from video_rs.files import safe_cell
from video_rs.inference.explain import explain
from video_rs.inference.overlay import draw, even_frames, webp
from video_rs.inference.predict import Classifier

FPS = 4  # of a picture, which has 8 evenly spaced frames: about 100 kB in the report
MAX_CLASSES = 3  # side by side


def explain_mistakes(
    classifier: Classifier, folder: str | Path, count: int, *, layer: str = "", warn: Callable[[str], Any] = print
) -> int:
    """Show the activation maps of the predicted class and of the true ones in report.html.

    Args:
        classifier: the network that was tested.
        folder: the folder of the test.
        count: number of mistakes, the most confident first; at most those in the report. Maps of an earlier call are
            removed.
        layer: see :func:`video_rs.inference.explain.explain`.
        warn: called with one line for each file that cannot be read.

    Returns:
        The number of mistakes whose maps were added.

    Raises:
        UserError: the report is of an earlier version, or the names of the classes are not those of the network.
    """
    with open(Path(folder) / "predictions.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    listed = listed_mistakes(folder)
    if not listed and any(row["scored"] == "1" and row["correct"] == "0" for row in rows):
        raise UserError(f"{folder}: an earlier version wrote this report; run the test again")
    records = Records([_path(row["path"]) for row in rows], [-1] * len(rows), ())
    names, pictures = {safe_cell(name): name for name in classifier.class_names}, {}
    for index in listed[:count]:
        row, path = rows[index], records.path(index)
        labels = row["label"].split(SEPARATOR) if classifier.data_config.multi_label else [row["label"]]
        classes = [names.get(name, name) for name in (row["predicted"], *labels) if name]
        segment = float(row.get("start", 0)), float(row.get("end", 0))
        try:
            found = explain(classifier, path, classes[:MAX_CLASSES], layer=layer, segment=segment)
        except (MediaError, StorageError) as error:
            warn(f"{path}: {records.fault(error, index)}")
            continue
        panels = draw(found)
        pictures[index] = webp(panels[:, even_frames(panels.shape[1])], FPS)
    add_pictures(folder, pictures)
    return len(pictures)


def _path(cell: str) -> str:
    """Undo :func:`video_rs.files.safe_cell` for a path."""
    return cell[1:] if cell.startswith("'") and safe_cell(cell[1:]) == cell else cell
