"""Read and write features files, ``.npz`` or ``.parquet``. docs/inference.md describes their columns."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from video_rs.errors import UserError, file_error
from video_rs.file_limits import check_zip
from video_rs.files import atomic_write

VERSION = 1
SUFFIXES = (".npz", ".parquet")


@dataclass(frozen=True, eq=False)
class Features:
    """The features of N videos, images or windows, in the order of the list. Rows of one file are adjacent.

    Attributes:
        features: float32 ``[N, D]``; zeros where ``scored`` is False.
        labels: int64 ``[N]``, -1 for no label; or bool ``[N, C]`` if a file can have several labels.
        class_names: C names, in the order of the labels; empty if there are no labels.
        paths: path of the file of each row.
        sources: uint64 ``[N]``; rows of the same source video have the same number.
        scored: bool ``[N]``; False if a row has no features, for example because the file cannot be read.
        reason: why a row has no features, else "".
        about: how the features were computed, as plain values, see docs/inference.md.
        start, end: float64 ``[N]`` seconds, of windows or of segments of a list; NaN if unknown. None for whole files.
    """

    features: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    paths: Sequence[str]
    sources: np.ndarray
    scored: np.ndarray
    reason: Sequence[str]
    about: dict[str, Any]
    start: np.ndarray | None = None
    end: np.ndarray | None = None


def write_features(path: str | Path, features: Features) -> None:
    """Write a ``.npz`` or ``.parquet`` file atomically. Raise UserError for another suffix or an invalid path."""
    check_suffix(path, SUFFIXES)
    about = json.dumps(features.about)
    if _is_parquet(path):
        return _write_parquet(path, features, about)
    times = {} if features.start is None else {"start": features.start, "end": features.end}
    with atomic_write(path) as handle:
        np.savez(
            handle,
            version=np.int64(VERSION),
            about=np.array(about),
            features=features.features,
            labels=features.labels,
            class_names=np.array(features.class_names, dtype=np.str_),
            paths=np.array(features.paths, dtype=np.str_),
            sources=features.sources,
            scored=features.scored,
            reason=np.array(features.reason, dtype=np.str_),
            **times,
        )


def read_features(path: str | Path) -> Features:
    """Read a features file. Raise UserError if it is missing, damaged, of another kind or of a later version."""
    check_suffix(path, SUFFIXES)
    try:
        with open(path, "rb") as handle:
            found = _read_parquet(path, handle) if _is_parquet(path) else _read_npz(path, handle)
    except UserError:
        raise
    except OSError as error:
        raise file_error(f"{path} cannot be read: {error.strerror or error}; check the path", error) from None
    except Exception as error:  # zipfile, NumPy, json and pyarrow raise many
        kind = type(error).__name__
        raise UserError(f"{path}: not a features file, or damaged ({kind}); extract the features again") from None
    count = len(found.features)
    columns = (found.labels, found.paths, found.sources, found.scored, found.reason, found.start, found.end)
    if found.features.ndim != 2 or any(len(column) != count for column in columns if column is not None):
        raise UserError(f"{path}: damaged (columns of different lengths); extract the features again")
    if not isinstance(found.about, dict) or found.labels.dtype.kind not in "bi":
        raise UserError(f"{path}: damaged (labels or about of the wrong type); extract the features again")
    return found


def check_suffix(path: str | Path, suffixes: Sequence[str]) -> None:
    """Raise UserError if the suffix of a path is not one of `suffixes`, or if it needs pyarrow, which is missing."""
    if Path(path).suffix not in suffixes:
        names = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise UserError(f"{path}: unknown kind of file; use a name that ends in {names}")
    if _is_parquet(path):
        import_pyarrow()


def import_pyarrow() -> ModuleType:
    """Return ``pyarrow.parquet``. Raise UserError if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("parquet files need pyarrow: pip install 'video-rs[parquet]', or use another format") from None
    return pyarrow.parquet


def _is_parquet(path: str | Path) -> bool:
    return Path(path).suffix == ".parquet"


def _check_version(path: str | Path, version: int) -> None:
    if version > VERSION:
        raise UserError(f"{path}: features file of version {version}; upgrade video_rs, which reads version {VERSION}")


def _read_npz(path: str | Path, handle: BinaryIO) -> Features:
    check_zip(path)
    with np.load(handle, allow_pickle=False) as arrays:
        _check_version(path, int(arrays["version"]))
        return Features(
            features=arrays["features"].astype(np.float32, copy=False),
            labels=arrays["labels"],
            class_names=tuple(arrays["class_names"].tolist()),
            paths=arrays["paths"].tolist(),
            sources=arrays["sources"],
            scored=arrays["scored"],
            reason=arrays["reason"].tolist(),
            about=json.loads(str(arrays["about"])),
            start=arrays.get("start"),
            end=arrays.get("end"),
        )


def _write_parquet(path: str | Path, features: Features, about: str) -> None:
    import pyarrow as pa

    count, width = features.features.shape
    values = pa.array(np.ascontiguousarray(features.features).reshape(-1))
    multi_label = features.labels.ndim == 2
    columns = {
        "features": pa.FixedSizeListArray.from_arrays(values, width),
        "label": pa.array(features.labels.tolist(), pa.list_(pa.bool_()) if multi_label else pa.int64()),
        "path": pa.array(map(valid_text, features.paths), pa.string()),
        "source": pa.array(features.sources),
        "scored": pa.array(features.scored),
        "reason": pa.array(map(valid_text, features.reason), pa.string()),
    }
    if features.start is not None:
        columns |= {"start": pa.array(features.start), "end": pa.array(features.end)}
    names = json.dumps(features.class_names)
    table = pa.table(columns).replace_schema_metadata({"version": str(VERSION), "about": about, "class_names": names})
    with atomic_write(path) as handle:
        import_pyarrow().write_table(table, handle)


def valid_text(text: str) -> str:
    """Return a text as valid Unicode, with the bytes of a path that are not UTF-8 replaced."""
    return os.fsencode(text).decode("utf-8", "replace")


def _read_parquet(path: str | Path, handle: BinaryIO) -> Features:
    import pyarrow as pa

    table = import_pyarrow().read_table(handle)
    _check_version(path, int(table.schema.metadata[b"version"]))

    def column(name: str) -> np.ndarray:
        return table.column(name).to_numpy()

    width = table.schema.field("features").type.list_size
    values = pa.concat_arrays(table.column("features").chunks)
    has_times = "start" in table.column_names
    return Features(
        features=values.flatten().to_numpy().reshape(-1, width),
        labels=np.array(table.column("label").to_pylist()),
        class_names=tuple(json.loads(table.schema.metadata[b"class_names"])),
        paths=table.column("path").to_pylist(),
        sources=column("source"),
        scored=column("scored"),
        reason=table.column("reason").to_pylist(),
        about=json.loads(table.schema.metadata[b"about"]),
        start=column("start") if has_times else None,
        end=column("end") if has_times else None,
    )
