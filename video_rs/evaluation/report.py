"""The files of one evaluation: predictions.csv, metrics.json, confusion.png, curves.png, views.npz and report.html.

Where a video may be of several classes there is no confusion matrix.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from video_rs.data.labels import SEPARATOR
from video_rs.errors import MediaError
from video_rs.evaluation import html_page
from video_rs.evaluation.figures import confusion_png, curves_png, read_log
from video_rs.evaluation.metrics import TOP_K, ranking
from video_rs.evaluation.multiview import Scores
from video_rs.files import atomic_write, json_values

WORST_MISTAKES = 12
THUMBNAIL_FRAMES, THUMBNAIL_SIDE = 3, 112


def write_report(
    folder: str | Path,
    paths: Sequence[str],
    scores: Scores,
    class_names: Sequence[str],
    metrics: Mapping[str, Any],
    *,
    run_dir: str | Path | None = None,
    title: str = "Evaluation",
    about: Mapping[str, str] | None = None,
    decoder: str = "pyav",
) -> Path:
    """Write everything an evaluation has to say; each file appears whole or not at all.

    Args:
        folder: made if needed; files of an earlier report in it are replaced.
        paths: of the N videos or images, in the order of the scores.
        scores: from ``multiview.score``; ``views.npz`` is written when it holds the views.
        metrics: from ``metrics.summarize``, or ``summarize_multi_label`` where the labels are sets.
        run_dir: a run folder, whose ``metrics.jsonl`` (if there is one) becomes the training curves.
        about: what to say of the run in the report's header: weights, views, device, ...
        decoder: backend that the thumbnails are decoded with.

    Returns:
        The path of report.html, which stands alone: pictures are inside it.
    """
    folder = Path(folder)
    log = Path(run_dir) / "metrics.jsonl" if run_dir is not None else None
    curves = curves_png(read_log(log)) if log is not None and log.is_file() else None
    confusion = confusion_png(metrics["confusion"], class_names) if "confusion" in metrics else None
    page = html_page.render(
        title=title,
        about=about or {},
        metrics=metrics,
        confusion=confusion,
        curves=curves,
        mistakes=worst_mistakes(paths, scores, class_names, decoder=decoder),
        unscored=[(paths[index], reason) for index, reason in scores.errors],
    )
    files = {
        "predictions.csv": _encode(predictions_csv(paths, scores, class_names)),
        "metrics.json": _encode(metrics_json(metrics)),
        "confusion.png": confusion,
        "curves.png": curves,
        "views.npz": _views_npz(paths, scores),
        "report.html": _encode(page),
    }
    for name, content in files.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)  # of an earlier report, it would contradict this one
            continue
        with atomic_write(folder / name) as handle:
            handle.write(content)
    return folder / "report.html"


def predictions_csv(paths: Sequence[str], scores: Scores, class_names: Sequence[str]) -> str:
    """One row per video: path, label, predicted, correct, scored, the top classes with their probabilities, error.

    Several labels are joined by ";", and correct tells whether the predicted class is one of them.
    """
    order = ranking(scores.probs)[:, :TOP_K]
    reasons = dict(scores.errors)
    top = [f"{what}_{k}" for k in range(1, order.shape[1] + 1) for what in ("class", "prob")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "predicted", "correct", "scored", *top, "error"])
    for i, path in enumerate(paths):
        true = _classes(scores, i)
        start = [path, SEPARATOR.join(class_names[c] for c in true)]
        if scores.scored[i]:
            ranked = [v for c in order[i] for v in (class_names[c], f"{scores.probs[i, c]:.6f}")]
            row = [class_names[order[i, 0]], int(order[i, 0] in true), 1, *ranked, ""]
        else:
            row = ["", 0, 0, *[""] * len(top), reasons.get(i, "")]
        writer.writerow([*start, *row])
    return text.getvalue()


def metrics_json(metrics: Mapping[str, Any]) -> str:
    """The metrics as JSON, NaN as null, one row of the confusion matrix a line."""
    if "confusion" not in metrics:
        return json.dumps(json_values(metrics), indent=2) + "\n"
    confusion = ",\n".join("    " + json.dumps(row) for row in metrics["confusion"].tolist())
    rest = json_values({key: value for key, value in metrics.items() if key != "confusion"})
    return json.dumps(rest, indent=2)[:-2] + f',\n  "confusion": [\n{confusion}\n  ]\n}}\n'


def worst_mistakes(
    paths: Sequence[str], scores: Scores, class_names: Sequence[str], *, decoder: str = "pyav"
) -> list[html_page.Mistake]:
    """The wrong answers that the network was most sure of, most sure first, with frames to look at.

    Of a video of several classes, the most probable class is wrong where it is none of them.
    """
    predicted = ranking(scores.probs)[:, 0]
    several = scores.labels.ndim == 2
    right = scores.labels[np.arange(len(predicted)), predicted] if several else predicted == scores.labels
    wrong = np.flatnonzero(scores.scored & ~right)
    confidence = scores.probs[wrong, predicted[wrong]]
    worst = wrong[np.argsort(-confidence, kind="stable")][:WORST_MISTAKES]
    return [
        html_page.Mistake(
            path=paths[i],
            labels=[(class_names[c], float(scores.probs[i, c])) for c in _classes(scores, i)],
            predicted=class_names[predicted[i]],
            predicted_prob=float(scores.probs[i, predicted[i]]),
            jpeg=thumbnail(paths[i], decoder),
        )
        for i in worst
    ]


def _classes(scores: Scores, index: int) -> list[int]:
    """The label of a video, or all of them."""
    label = scores.labels[index]
    return np.flatnonzero(label).tolist() if scores.labels.ndim == 2 else [int(label)]


def thumbnail(path: str, decoder: str = "pyav") -> bytes | None:
    """A JPEG strip of frames at 1/4, 1/2 and 3/4 of a video, or of the one image; None if it can no longer be read."""
    from PIL import Image

    from video_rs.data.decode import open_video

    try:
        with open_video(path, decoder) as video:
            steps = np.arange(1, THUMBNAIL_FRAMES + 1)
            indices = np.unique(steps * video.num_frames // (THUMBNAIL_FRAMES + 1))
            frames = video.read(indices, short_side=THUMBNAIL_SIDE, filter="bilinear-antialias")
    except MediaError:
        return None
    spaced = np.pad(frames.numpy(), ((0, 0), (0, 0), (0, 2), (0, 0)))
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(spaced), axis=1)[:, :-2]).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _encode(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # a file name need not be UTF-8


def _views_npz(paths: Sequence[str], scores: Scores) -> bytes | None:
    if scores.views is None:
        return None
    buffer = io.BytesIO()
    np.savez_compressed(buffer, views=scores.views, labels=scores.labels, paths=list(paths))
    return buffer.getvalue()
