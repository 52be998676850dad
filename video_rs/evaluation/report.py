"""Write the files of one evaluation: predictions.csv, metrics.json, confusion.png, curves.png, views.npz, report.html.

Videos with several labels have no confusion matrix.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from video_rs.data.segments import frame_range
from video_rs.data.sources.records import SEPARATOR, segment_name
from video_rs.data.video.decode import open_video
from video_rs.errors import first_line, printable
from video_rs.evaluation.metrics import TOP_K, metric_names, most_confused, ranking
from video_rs.evaluation.multiview import Scores
from video_rs.evaluation.plots import confusion_png, curves_png, read_log
from video_rs.files import atomic_write, json_values, write_csv

VERSION = 1  # version of the machine-readable files, see docs/evaluation.md
MAX_MISTAKES = 12
THUMBNAIL_FRAMES, THUMBNAIL_SIDE = 3, 112
_PICTURE = re.compile(r"<!-- explain:(\d+) -->(?:<img class='cam'[^>]*>)?")  # in the figure of a mistake


@dataclass(frozen=True)
class Mistake:
    """A video whose most probable class is wrong: its row in predictions.csv, and its labels with probabilities."""

    index: int
    path: str
    labels: Sequence[tuple[str, float]]
    predicted: str
    predicted_prob: float
    jpeg: bytes | None


class Table(NamedTuple):
    """A table of text in the report: its title, the headings of the columns, and the rows."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


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
    segments: np.ndarray | None = None,
    tables: Sequence[Table] = (),
    warn: Callable[[str], Any] = warnings.warn,
) -> Path:
    """Write all files of an evaluation atomically, starting with the results.

    A plot or thumbnail that fails is omitted and listed in the report.

    Args:
        folder: folder to write to, created if needed. Files of an earlier report are replaced.
        paths: paths of the N videos or images, in the order of the scores.
        scores: from ``multiview.score``. If they contain views, ``views.npz`` is also written.
        metrics: from ``metrics.summarize``.
        run_dir: a run folder, to plot training curves from its ``metrics.jsonl``.
        about: weights, data, views, ... as text, for the header of the report and for metrics.json.
        decoder: backend for the thumbnails.
        segments: start and end of each video in seconds, see ``Records.segments``.
        tables: further tables for the report.
        warn: called with one line for each image that failed.

    Returns:
        The path of report.html, with all images embedded.
    """
    folder, spans = Path(folder), np.zeros((len(paths), 2)) if segments is None else segments
    titles = [segment_name(path, *span) for path, span in zip(paths, spans.tolist(), strict=True)]
    not_drawn: list[tuple[str, str]] = []

    def draw(name: str, function: Callable[..., bytes], *args: Any) -> bytes | None:
        try:
            return function(*args)
        except Exception as error:  # a failed plot must not prevent the results
            reason = first_line(error, prefix=f"{name}: ")
            not_drawn.append((name, reason))
            warn(f"{name}: not drawn ({reason})")
            return None

    for name in ("report.html", "confusion.png", "curves.png", "views.npz"):  # from an earlier report
        (folder / name).unlink(missing_ok=True)
    write_csv(folder / "predictions.csv", *predictions_table(paths, scores, class_names, segments))
    _write(folder / "metrics.json", metrics_json({"about": dict(about or {}), **metrics}))
    if scores.views is not None:
        with atomic_write(folder / "views.npz") as handle:
            times = {} if segments is None else {"segments": segments}
            np.savez_compressed(handle, views=scores.views, labels=scores.labels, paths=list(paths), **times)

    confused, plots = [], {}
    if "confusion" in metrics:
        names = [c["name"] for c in metrics["per_class"]]
        confused = [(names[true], names[predicted], n) for true, predicted, n in most_confused(metrics["confusion"])]
        plots["confusion.png"] = draw("confusion.png", confusion_png, metrics["confusion"], class_names)
    log = Path(run_dir) / "metrics.jsonl" if run_dir is not None else None
    if log and log.is_file():
        plots["curves.png"] = draw("curves.png", lambda: curves_png(read_log(log)))
    for name, plot in plots.items():
        if plot is not None:
            _write(folder / name, plot)
    page = template(Path(__file__).with_suffix(".html.j2")).render(
        title=title,
        about=about or {},
        metrics=metrics,
        metric_names=metric_names(metrics),
        multi_label="confusion" not in metrics,
        tables=tables,
        confusion=plots.get("confusion.png"),
        confused=confused,
        curves=plots.get("curves.png"),
        mistakes=confident_mistakes(
            titles, scores, class_names, lambda i: draw(titles[i], thumbnail, paths[i], decoder, *spans[i].tolist())
        ),
        unscored=[(titles[index], reason) for index, reason in scores.errors],
        not_drawn=not_drawn,
    )
    _write(folder / "report.html", page)
    return folder / "report.html"


def _write(path: Path, content: bytes | str) -> None:
    if isinstance(content, str):
        content = content.encode()
    with atomic_write(path) as handle:
        handle.write(content)


def percent(value: float) -> str:
    """Format a fraction; NaN is a dash."""
    return "\N{EN DASH}" if math.isnan(value) else f"{100 * value:.2f} %"


def template(path: Path) -> jinja2.Template:
    """Read a template that escapes texts for HTML and makes them printable."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["percent"] = percent
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.from_string(path.read_text(encoding="utf-8"))


def predictions_table(
    paths: Sequence[str], scores: Scores, class_names: Sequence[str], segments: np.ndarray | None = None
) -> tuple[list[str], list[list[Any]]]:
    """Return the header and a row per video: path, label, predicted, correct, scored, classes and probabilities, error.

    With segments, their start and end in seconds follow the path. An end of 0 is the end of the file.
    Multiple labels are joined by ";", and ``correct`` is 1 if the predicted class is one of them.
    """
    order = ranking(scores.probs)[:, :TOP_K]
    reasons = dict(scores.errors)
    top = [f"{name}_{k}" for k in range(1, order.shape[1] + 1) for name in ("class", "prob")]
    span = [] if segments is None else ["start", "end"]
    rows = []
    for i, path in enumerate(paths):
        true = scores.classes(i)
        times = [] if segments is None else [f"{time:g}" for time in segments[i]]
        start = [path, *times, SEPARATOR.join(class_names[c] for c in true)]
        if scores.scored[i]:
            ranked = [v for c in order[i] for v in (class_names[c], f"{scores.probs[i, c]:.6f}")]
            row = [class_names[order[i, 0]], int(order[i, 0] in true), 1, *ranked, ""]
        else:
            row = ["", 0, 0, *[""] * len(top), reasons.get(i, "")]
        rows.append([*start, *row])
    return ["path", *span, "label", "predicted", "correct", "scored", *top, "error"], rows


def metrics_json(metrics: Mapping[str, Any]) -> str:
    """Return the metrics as JSON: NaN as null, one line per row of the confusion matrix."""
    metrics = {"version": VERSION, **metrics}
    if "confusion" not in metrics:
        return json.dumps(json_values(metrics), indent=2) + "\n"
    confusion = ",\n".join("    " + json.dumps(row) for row in metrics["confusion"].tolist())
    rest = json_values({key: value for key, value in metrics.items() if key != "confusion"})
    return json.dumps(rest, indent=2)[:-2] + f',\n  "confusion": [\n{confusion}\n  ]\n}}\n'


def confident_mistakes(
    paths: Sequence[str], scores: Scores, class_names: Sequence[str], picture: Callable[[int], bytes | None]
) -> list[Mistake]:
    """Return the mistakes with the highest probabilities in descending order, each with ``picture(index)``.

    A video with several labels is a mistake if the most probable class is none of them.
    """
    predicted = ranking(scores.probs)[:, 0]
    confidence = scores.probs[np.arange(len(paths)), predicted]
    wrong = [i for i in np.flatnonzero(scores.scored) if predicted[i] not in scores.classes(i)]
    return [
        Mistake(
            index=int(i),
            path=paths[i],
            labels=[(class_names[c], float(scores.probs[i, c])) for c in scores.classes(i)],
            predicted=class_names[predicted[i]],
            predicted_prob=float(confidence[i]),
            jpeg=picture(i),
        )
        for i in sorted(wrong, key=lambda i: -confidence[i])[:MAX_MISTAKES]
    ]


def thumbnail(path: str, decoder: str = "pyav", start: float = 0.0, end: float = 0.0) -> bytes:
    """Return a JPEG strip of the frames at 1/4, 1/2 and 3/4 of a video or of a segment of it, or of an image."""
    with open_video(path, decoder) as video:
        first, length, _ = frame_range(video, start, end)
        steps = np.arange(1, THUMBNAIL_FRAMES + 1)
        indices = first + np.unique(steps * length // (THUMBNAIL_FRAMES + 1))
        frames = video.read(indices, short_side=THUMBNAIL_SIDE, filter="bilinear-antialias")
    spaced = np.pad(frames.numpy(), ((0, 0), (0, 0), (0, 2), (0, 0)))
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(spaced), axis=1)[:, :-2]).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def listed_mistakes(folder: str | Path) -> list[int]:
    """Return the rows in predictions.csv of the mistakes in a report, the most confident first."""
    return [int(match[1]) for match in _PICTURE.finditer(_page(folder))]


def add_pictures(folder: str | Path, pictures: Mapping[int, bytes]) -> None:
    """Embed WebP pictures in a report, in the figures of mistakes. Those of an earlier call are removed.

    Args:
        folder: a folder that :func:`write_report` has written.
        pictures: by row in predictions.csv, see :func:`listed_mistakes`.
    """

    def fill(match: re.Match) -> str:
        if int(match[1]) not in pictures:
            return f"<!-- explain:{match[1]} -->"
        data = base64.b64encode(pictures[int(match[1])]).decode()
        return f"<!-- explain:{match[1]} --><img class='cam' alt='activation maps' src='data:image/webp;base64,{data}'>"

    _write(Path(folder) / "report.html", _PICTURE.sub(fill, _page(folder)))


def _page(folder: str | Path) -> str:
    return (Path(folder) / "report.html").read_text(encoding="utf-8")
