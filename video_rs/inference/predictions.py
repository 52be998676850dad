"""Predict many files, one after the other or into a table, and draw the timelines of long videos."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from video_rs.data.chunk_dataset import ChunkDataset
from video_rs.data.loader import ViewLoader
from video_rs.data.sources.records import Records
from video_rs.files import atomic_write, write_csv
from video_rs.inference.features_file import check_suffix
from video_rs.inference.inputs import output_files
from video_rs.inference.parts import Table
from video_rs.inference.predict import CLIPS, Classifier
from video_rs.inference.predictions_file import SUFFIXES, results_of, write_results
from video_rs.inference.rows import FileRows, compute_rows
from video_rs.inference.table import compute_table
from video_rs.inference.timeline import Segment, find_segments


def clip_dataset(
    classifier: Classifier,
    files: Sequence[str],
    *,
    views: int = CLIPS,
    crops: int = 1,
    every: float = 0.0,
    skip: Mapping[str, str] | None = None,
) -> ChunkDataset:
    """Return a dataset of the clips of files to classify.

    Args:
        classifier: the network.
        files: paths of videos, images or folders of frames.
        views: number of evenly spaced clips of a file.
        crops: crops per clip, 1 or 3.
        every: seconds between the starts of windows, for one row per window; 0 for one row per file. Windows do not use
            `views`.
        skip: reasons of files that must not be opened, by path.

    Raises:
        UserError: the network has no classes.
    """
    classifier.require_classes()
    records = Records(files, [-1] * len(files), ())
    dataset = classifier.chunks(records, views=1 if every else views, crops=crops, every=every)
    dataset.skip = skip or {}
    return dataset


def predict_files(
    classifier: Classifier, clips: ChunkDataset, *, workers: int = 0, timeout: float = 0.0
) -> Iterator[FileRows]:
    """Yield the class probabilities of files in order, as they are computed.

    Without workers, the windows of a file come in several parts, see :attr:`FileRows.is_last`.

    Args:
        classifier: the network. Its forward passes can have views of several files.
        clips: the clips of files, see :func:`clip_dataset`.
        workers, timeout: see :func:`video_rs.data.loader.clip_loader`.

    Raises:
        MachineError: the storage fails.
    """
    loader = ViewLoader(clips, workers=workers, timeout=timeout)
    options = {"batch_size": classifier.views_per_forward, "stream": not workers}
    waiting: dict[int, list[FileRows]] = {}  # workers finish files in another order
    done = 0
    with closing(compute_rows(classifier.forward, loader, **options)) as found:
        for rows in found:
            waiting.setdefault(rows.index, []).append(rows)
            while parts := waiting.pop(done, []):
                yield from parts
                done += parts[-1].is_last


def predict_table(
    classifier: Classifier,
    clips: ChunkDataset,
    out: str | Path,
    *,
    top_k: int = 5,
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> Table | None:
    """Write the predictions of files to ``.csv``, ``.json`` or ``.parquet``. A killed call resumes.

    Args:
        classifier, clips: as for :func:`predict_files`.
        out: the file. Finished rows are kept in ``<out>.parts`` until all are.
        top_k: number of classes of each file or window.
        about: further plain values for the file, such as the name and checksum of the weights. They must identify the
            weights: finished rows are reused if all values are equal.
        options: ``workers``, ``timeout``, ``world``, ``overwrite``, ``progress`` and ``on_rows`` of
            :func:`video_rs.inference.table.compute_table`.

    Returns:
        The probabilities of all files on rank 0; None on other ranks.

    Raises:
        UserError: `out` exists, its parts have other settings, or no file can be read.
        MachineError: the storage fails.
    """
    check_suffix(out, SUFFIXES)
    settings = {"weights": "", "sha256": "", **(about or {})}
    settings |= {"views": clips.views, "crops": clips.transform.crops, "every": clips.every}
    path = clips.records.path

    def write(table: Table) -> None:
        results = (r for rows in table.by_file() for r in results_of(classifier, path(rows.index), rows, top_k))
        write_results(out, results, settings)

    options["batch_size"] = classifier.views_per_forward
    return compute_table(classifier.forward, clips, out, write, settings=settings, **options)


def write_timelines(
    classifier: Classifier,
    clips: ChunkDataset,
    found: Iterable[FileRows],
    *,
    segments: str | Path = "",
    timeline: str | Path = "",
    threshold: float = 0.5,
) -> None:
    """Write the segments of files with windows to a csv file, and draw a timeline of each.

    Args:
        classifier, clips: as for :func:`predict_files`.
        found: the probabilities of the windows, file by file.
        segments: the csv file; "" for none.
        timeline: the png file or folder, see :func:`video_rs.inference.inputs.output_files`; "" for none.
        threshold: see :func:`video_rs.inference.timeline.find_segments`.
    """
    if not (segments or timeline):
        return
    names, multi_label = classifier.class_names, classifier.data_config.multi_label
    paths = [clips.records.path(index) for index in range(len(clips))]
    pictures = output_files(timeline, paths, (".png",), overwrite=True) if timeline else []
    rows: list[tuple] = []
    for index, group in itertools.groupby(found, key=lambda rows: rows.index):
        parts = list(group)
        if parts[-1].reason:
            continue
        times, probs = (np.concatenate([getattr(part, name) for part in parts]) for name in ("times", "values"))
        own = find_segments(times, probs, names, threshold, multi_label=multi_label)
        rows += [
            (paths[index], f"{start:.3f}", f"{end:.3f}", label, number, f"{score:.6f}")
            for start, end, label, number, score in own
        ]
        if pictures:
            from video_rs.evaluation.plots import timeline_png

            png = timeline_png(times, probs, names, own, threshold=threshold, title=Path(paths[index]).name)
            with atomic_write(pictures[index]) as handle:
                handle.write(png)
    if segments:
        write_csv(segments, ("path", *Segment._fields), rows)
