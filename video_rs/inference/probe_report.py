"""Write the result of a probe: the files of a test, with a table of both methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from video_rs.evaluation.metrics import metric_names
from video_rs.evaluation.report import Table, percent, write_report
from video_rs.inference.features_file import Features
from video_rs.inference.probe import ProbeResult


def write_probe(
    folder: str | Path, result: ProbeResult, features: Features, *, title: str, about: Mapping[str, str]
) -> Path:
    """Write metrics.json, predictions.csv, confusion.png and report.html. Return the path of the report.

    All of them are of logistic regression; metrics.json and the report also have the metrics of k-NN.

    Args:
        folder: folder to write to, created if needed.
        result: see :func:`video_rs.inference.probe.probe`.
        features: the features that were evaluated, those of the test if there are any.
        title: heading of the report.
        about: text for the header of the report and for metrics.json.
    """
    knn = {name: value for name, value in result.knn.metrics.items() if name not in ("per_class", "confusion")}
    about = {**about, "probe": "logistic regression"}
    if result.notes:
        about["notes"] = "; ".join(result.notes)
    segments = None
    if features.start is not None:
        segments = np.nan_to_num(np.stack([features.start, features.end], axis=1))[result.rows]
    return write_report(
        folder,
        [features.paths[row] for row in result.rows],
        result.logistic.scores,
        features.class_names,
        {**result.logistic.metrics, "knn": knn},
        title=title,
        about=about,
        segments=segments,
        tables=[methods_table(result)],
        warn=lambda text: None,  # the report lists thumbnails that are not drawn: the videos may be elsewhere
    )


def methods_table(result: ProbeResult) -> Table:
    """Return the metrics of both methods, with the 95 % confidence interval of the first one."""
    names = metric_names(result.logistic.metrics)
    first, *others = names
    rows = []
    for method, letter, metrics in (
        ("k-NN", "k", result.knn.metrics),
        ("logistic regression", "C", result.logistic.metrics),
    ):
        interval = " to ".join(map(percent, metrics["interval"]))
        chosen = ", ".join(f"{value:g}" for value in sorted(set(metrics["chosen"])))
        values = [percent(metrics[name]) for name in others]
        rows.append([method, percent(metrics[first]), interval, *values, f"{letter} = {chosen}"])
    return Table("Probes", ("method", names[first], "95 % interval", *(names[n] for n in others), "chosen"), rows)
