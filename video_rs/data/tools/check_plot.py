"""The picture of a checked dataset: lengths, sizes and classes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#2563eb", "#ea580c", "#16a34a")
MAX_NAMED = 40  # classes up to which the axis is named


def dataset_png(
    lengths: np.ndarray,
    sizes: np.ndarray,
    counts: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    *,
    unit: str = "seconds",
) -> bytes:
    """A PNG of three plots.

    Args:
        lengths: of the readable files, ``[F]``, in `unit`.
        sizes: their height and width in pixels, ``[F, 2]``.
        counts: files of each class, ``[C]``, by split.
        class_names: C of them.
        unit: of the lengths, for the axis.
    """
    fig = Figure(figsize=(15, 4.5), layout="constrained")
    plots = fig.subplots(1, 3)
    titles = (("Lengths", unit, "files"), ("Sizes", "width, pixels", "height, pixels"), ("Classes", "", "files"))
    for ax, (title, xlabel, ylabel) in zip(plots, titles, strict=True):
        ax.set_title(title, loc="left", fontweight="bold")
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    length, size, classes = plots
    _lengths(length, lengths)
    _sizes(size, sizes)
    _classes(classes, counts, class_names)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _lengths(ax: Axes, lengths: np.ndarray) -> None:
    if len(lengths):
        ax.hist(np.minimum(lengths, np.quantile(lengths, 0.995)), bins=40, color=COLORS[0])  # a few long ones hide all


def _sizes(ax: Axes, sizes: np.ndarray) -> None:
    if len(sizes):
        unique, counts = np.unique(sizes, axis=0, return_counts=True)
        ax.scatter(unique[:, 1], unique[:, 0], s=20 + 300 * counts / counts.max(), color=COLORS[0], alpha=0.5)
        ax.set_xlim(0, 1.1 * unique[:, 1].max())
        ax.set_ylim(0, 1.1 * unique[:, 0].max())


def _classes(ax: Axes, counts: Mapping[str, np.ndarray], class_names: Sequence[str]) -> None:
    order = np.argsort(-next(iter(counts.values())), kind="stable")
    for (split, of_class), color in zip(counts.items(), COLORS, strict=False):
        ax.plot(of_class[order], ".-", color=color, label=split)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    if len(class_names) <= MAX_NAMED:
        names = [class_names[i].replace("$", r"\$") for i in order]
        ax.set_xticks(range(len(names)), [name[:24] for name in names], rotation=90, fontsize=7)
    else:
        ax.set_xlabel("class, the largest first")
