"""Plots as PNG bytes: a confusion matrix, the curves of a training run, and the classes of a long video over time."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from video_rs.errors import printable
from video_rs.files import read_run_metrics

BLUE, ORANGE, GREEN, GREY = "#2563eb", "#ea580c", "#16a34a", "#9ca3af"
MAX_NUMBERED, MAX_NAMED = 20, 60  # maximum number of classes with numbers in the cells, and with names on the axes
MAX_LINES = 10  # classes of a timeline
FALLBACK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Arial Unicode MS", "Noto Sans Arabic")


def confusion_png(confusion: np.ndarray, class_names: Sequence[str]) -> bytes:
    """Plot a confusion matrix ``[C, C]`` (rows = true class): colour is the fraction of the row, numbers are counts."""
    num_classes = len(confusion)
    fractions = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.35 * num_classes, 14)
    with _fonts():
        fig = Figure(figsize=(side, 0.9 * side), layout="constrained")
        ax = fig.add_subplot()
        image = ax.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        fig.colorbar(image, ax=ax, shrink=0.8, format=PercentFormatter(1), label="fraction of the true class")
        ax.set_xlabel("predicted class")
        ax.set_ylabel("true class")
        if num_classes <= MAX_NAMED:
            names = [_label(name) for name in class_names]
            size = 10 if num_classes <= MAX_NUMBERED else 6
            ax.set_xticks(range(num_classes), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
            ax.set_yticks(range(num_classes), names, fontsize=size)
        if num_classes <= MAX_NUMBERED:
            for row, col in zip(*np.nonzero(confusion), strict=True):
                color = "white" if fractions[row, col] > 0.5 else "black"
                ax.text(col, row, str(confusion[row, col]), ha="center", va="center", color=color, fontsize=9)
        return _png(fig)


def read_log(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Read the curves in a run's ``metrics.jsonl``: ``{"train": {"step": [..], "loss": [..], ..}, "val": {..}}``.

    A resumed run repeats the steps after its last checkpoint: the later line counts. A value that a line lacks is NaN.
    """
    lines: dict[str, dict[int, dict]] = {"train": {}, "val": {}}
    for record in read_run_metrics(path, errors="strict"):
        lines[record["kind"]][record["step"]] = record
    return {kind: _columns([by_step[step] for step in sorted(by_step)]) for kind, by_step in lines.items()}


def curves_png(log: dict[str, dict[str, np.ndarray]]) -> bytes:
    """Plot loss, accuracy (or mAP and hit@1), learning rate and throughput of a run, from :func:`read_log`."""
    fig = Figure(figsize=(11, 6.5), layout="constrained")
    (loss, accuracy), (rate, speed) = fig.subplots(2, 2)
    waiting = speed.twinx()
    curves = (
        (loss, "train", "loss", "training", GREY),
        (loss, "val", "loss", "validation", BLUE),
        (accuracy, "train", "accuracy", "training", GREY),
        (accuracy, "val", "top1", "validation top-1", BLUE),
        (accuracy, "val", "top5", "validation top-5", GREEN),
        (accuracy, "train", "hit1", "training hit@1", GREY),
        (accuracy, "val", "map", "validation mAP", BLUE),
        (accuracy, "val", "hit1", "validation hit@1", GREEN),
        (rate, "train", "lr", "learning rate", ORANGE),
        (speed, "train", "clips_per_second", "clips per second", GREEN),
        (waiting, "train", "data_wait", "waiting for data (right)", ORANGE),
    )
    for ax, kind, key, label, color in curves:
        columns = log[kind]
        if key in columns and "epoch" in columns:
            kept = np.isfinite(columns[key])
            marker = "o" if kind == "val" else "." if kept.sum() == 1 else ""  # a single point is not a line
            ax.plot(columns["epoch"][kept], columns[key][kept], color=color, marker=marker, ms=4, lw=1.5, label=label)
    for ax in (accuracy, waiting):
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    accuracy.set_ylim(0, 1.02)
    speed.set_ylim(bottom=0)
    waiting.set_ylim(0, 1)
    second = "mAP and hit@1" if "map" in log["val"] else "Accuracy"
    for ax, title in ((loss, "Loss"), (accuracy, second), (rate, "Learning rate"), (speed, "Throughput")):
        ax.set_title(title, loc="left", fontweight="bold")
        ax.set_xlabel("epoch")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        if handles := [*ax.get_lines(), *(waiting.get_lines() if ax is speed else [])]:
            ax.legend(handles=handles, frameon=False)
    return _png(fig)


def timeline_png(
    times: np.ndarray,
    probs: np.ndarray,
    class_names: Sequence[str],
    segments: Sequence[tuple[float, float, str, int, float]],
    *,
    threshold: float = 0.5,
    title: str = "",
) -> bytes:
    """Plot the probabilities of a video's windows over time, and its segments as bars below.

    The classes are the ten with the longest segments, in order of appearance, or without segments the three most
    probable ones.

    Args:
        times: start and end of the windows in seconds ``[K, 2]``. A line has its points at their centres.
        probs: class probabilities ``[K, C]``.
        class_names: C names.
        segments: ``(start, end, label, index, score)`` each, of :func:`video_rs.inference.timeline.find_segments`.
        threshold: drawn as a dashed line.
        title: drawn above.
    """
    durations = np.zeros(probs.shape[1])
    for start, end, _, index, _ in segments:
        durations[index] += end - start
    longest = np.lexsort((-probs.max(axis=0), -durations))[: min(MAX_LINES, np.count_nonzero(durations) or 3)]
    appearance = dict.fromkeys([segment[3] for segment in segments if segment[3] in longest])
    shown = [*appearance] or longest.tolist()
    with _fonts():
        fig = Figure(figsize=(11, 3.4 + 0.28 * len(shown)), layout="constrained")
        lines, bars = fig.subplots(2, sharex=True, height_ratios=(3, 0.3 + 0.28 * len(shown)))
        for row, index in enumerate(shown):
            color = matplotlib.colormaps["tab10"](row)
            marker = "o" if len(times) < 50 else ""
            lines.plot(times.mean(axis=1), probs[:, index], color=color, marker=marker, ms=3, lw=1.5)
            spans = [(start, end - start) for start, end, _, number, _ in segments if number == index]
            bars.broken_barh(spans, (row - 0.35, 0.7), color=color)
        lines.axhline(threshold, color=GREY, ls="--", lw=1)
        lines.set(ylim=(0, 1.02), ylabel="probability")
        lines.set_title(_label(title, 100), loc="left", fontweight="bold")
        lines.yaxis.set_major_formatter(PercentFormatter(1))
        bars.set_yticks(range(len(shown)), [_label(class_names[index]) for index in shown])
        for row, tick in enumerate(bars.get_yticklabels()):
            tick.set_color(matplotlib.colormaps["tab10"](row))
        bars.set(ylim=(len(shown) - 0.5, -0.5), xlim=(times[:, 0].min(), times[:, 1].max()))
        bars.xaxis.set_major_formatter(lambda seconds, _: "{:.0f}:{:04.1f}".format(*divmod(round(seconds, 1), 60)))
        bars.set_xlabel("time (minutes:seconds)")
        for ax in (lines, bars):
            ax.grid(alpha=0.3)
            ax.spines[["top", "right"]].set_visible(False)
        return _png(fig)


def _columns(records: list[dict]) -> dict[str, np.ndarray]:
    keys = {key for record in records for key, value in record.items() if isinstance(value, (int, float))}
    nan = float("nan")
    return {key: np.array([r[key] if r.get(key) is not None else nan for r in records], float) for key in keys}


def _label(name: str, length: int = 24) -> str:
    name = printable(name)
    short = name if len(name) <= length else name[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return short.replace("$", r"\$")  # otherwise matplotlib renders a formula


@contextlib.contextmanager
def _fonts() -> Iterator[None]:
    """Use system fonts for characters that matplotlib's font lacks. Without a font they are drawn as boxes."""
    installed = set(font_manager.get_font_names())
    fonts = ["sans-serif", *(font for font in FALLBACK_FONTS if font in installed)]
    with matplotlib.rc_context({"font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _png(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.set_dpi(110)
    FigureCanvasAgg(fig).print_png(buffer)  # savefig would lay it out three times
    return buffer.getvalue()
