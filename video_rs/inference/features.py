"""Compute the features of a whole dataset: ``extract_features(clf, records, "features.npz")``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from video_rs.data.sources.holdout import source_keys
from video_rs.data.sources.records import Records
from video_rs.distributed.world import World
from video_rs.errors import UserError
from video_rs.files import json_values
from video_rs.inference.features_file import SUFFIXES, Features, check_suffix, write_features
from video_rs.inference.parts import Table
from video_rs.inference.predict import Classifier, check_clips
from video_rs.inference.rows import check_pool
from video_rs.inference.table import compute_table
from video_rs.models.feature_maps import find_layer


def extract_features(
    classifier: Classifier,
    records: Records,
    out: str | Path,
    *,
    views: int | None = None,
    crops: int = 1,
    per_window: float = 0.0,
    pool: str = "mean",
    layer: str = "",
    decoder: str = "pyav",
    about: Mapping[str, Any] | None = None,
    world: World | None = None,
    **options: Any,
) -> Features | None:
    """Write the features of all files to a ``.npz`` or ``.parquet`` file, see docs/inference.md.

    Args:
        classifier: the network, which needs no classes. Its ``views_per_forward`` is the batch size.
        records: the files. Labels of -1 are unknown.
        out: the file. Finished rows are kept in ``<out>.parts`` until all are.
        views: number of evenly spaced clips of a file whose features are combined. None: 4 for a video network, every
            frame for an image network. 0: all clips, see :func:`video_rs.data.chunk_dataset.select_views`.
        crops: crops per clip, 1 (centre) or 3.
        per_window: seconds between the starts of windows, for one row per window; 0 for one row per file. A window is
            one clip; for an image network, all frames until the next window.
        pool: how the views of a row are combined: "mean"; "mean+std", both side by side; or "max".
        layer: name of a stage such as "stage3", or of a module. The features are the mean of its output over time and
            space. "" for the features before the classification layer.
        decoder: "pyav" or "decord".
        about: further plain values for ``Features.about``, such as the name and checksum of the weights. They must
            identify the weights: finished rows are reused if all values are equal.
        world: the ranks.
        options: ``workers``, ``timeout``, ``overwrite``, ``progress`` and ``on_rows`` of
            :func:`video_rs.inference.table.compute_table`.

    Returns:
        The features on rank 0; None on other ranks.

    Raises:
        UserError: an argument is invalid, `out` exists, its parts have other settings, or no file can be used.
        MachineError: the storage fails.
    """
    check_suffix(out, SUFFIXES)
    check_pool(pool)
    if views:
        check_clips(views)
    if per_window and views is not None:
        raise UserError("views and per_window cannot be combined, as a window has its own frames; give one of them")
    if layer:
        find_layer(classifier.model, layer)
    views = classifier.default_views if views is None else views
    views = min(views, 1) if per_window else views
    settings = {
        "weights": "",
        "sha256": "",
        "model": getattr(classifier.model, "name", ""),
        "model_args": json_values(getattr(classifier.model, "model_args", {})),
        "data_config": classifier.data_config.to_dict(),
        "split": "",
        **(about or {}),
        "views": views,
        "crops": crops,
        "per_window": per_window,
        "pool": pool,
        "layer": layer,
        "fingerprint": records.fingerprint(),
    }
    dataset = classifier.chunks(records, views=views, crops=crops, every=per_window, decoder=decoder)
    compute = partial(classifier.forward, features=True, layer=layer)
    found: list[Features] = []

    def write(table: Table) -> None:
        found.append(_features(records, table, settings))
        write_features(out, found[0])

    options |= {"batch_size": classifier.views_per_forward, "pool": pool, "world": world}
    compute_table(compute, dataset, out, write, settings=settings, **options)
    return found[0] if found else None


def _features(records: Records, table: Table, about: dict[str, Any]) -> Features:
    files, times = table.files, table.times
    if times is None and records.segments is not None:
        times = np.where(records.segments[files] == 0, [0.0, np.nan], records.segments[files])
    if records.multi_label:
        labels = np.zeros((len(records), len(records.class_names)), bool)
        for index, label in enumerate(labels):
            label[records.label_set(index)] = True
    else:
        labels = records.labels.astype(np.int64)
    return Features(
        features=table.values,
        labels=labels[files],
        class_names=records.class_names,
        paths=[records.path(index) for index in files],
        sources=source_keys(records)[files],
        scored=table.scored,
        reason=[table.reasons.get(index, "") for index in files.tolist()],
        about=about,
        start=None if times is None else times[:, 0],
        end=None if times is None else times[:, 1],
    )
