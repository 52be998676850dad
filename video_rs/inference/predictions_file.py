"""The file of predictions: ``.csv``, ``.json`` or ``.parquet``. docs/inference.md describes it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from video_rs.files import atomic_write, write_csv
from video_rs.inference.features_file import import_pyarrow, valid_text
from video_rs.inference.predict import Classifier, Prediction
from video_rs.inference.rows import FileRows

VERSION = 1
SUFFIXES = (".csv", ".json", ".parquet")
COLUMNS = ("path", "start", "end", "rank", "label", "index", "score", "reason")
BATCH = 10_000  # rows written to parquet at once


class Result(NamedTuple):
    """The predictions for a file, or for a window of one.

    Attributes:
        path: the file.
        times: start and end of the window in seconds; empty for a whole file.
        predictions: the most probable classes; empty if the file cannot be read.
        reason: why it cannot be read, else "".
    """

    path: str
    times: tuple[float, ...]
    predictions: list[Prediction]
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain values. Times are rounded to 1 ms, scores to 6 digits."""
        window = {name: round(time, 3) for name, time in zip(("start", "end"), self.times)}
        found = [{"label": p.label, "index": p.index, "score": round(p.score, 6)} for p in self.predictions]
        return {"path": self.path, **window, "predictions": found}

    def as_rows(self) -> Iterator[tuple]:
        """Yield ``(path, start, end, rank, label, index, score, reason)`` of each class; None for what there is not."""
        times = self.times or (None, None)
        for rank, p in enumerate(self.predictions, 1):
            yield self.path, *times, rank, p.label, p.index, p.score, ""
        if not self.predictions:
            yield self.path, None, None, None, None, None, None, self.reason


def results_of(classifier: Classifier, path: str, rows: FileRows, top_k: int) -> Iterator[Result]:
    """Yield the result of a file, or of each of its windows."""
    if rows.reason:
        yield Result(path, (), [], rows.reason)
    for number, probs in enumerate(rows.values):
        times = () if rows.times is None else tuple(rows.times[number].tolist())
        yield Result(path, times, classifier.top(probs, top_k), "")


def write_results(path: str | Path, results: Iterable[Result], about: Mapping[str, Any]) -> None:
    """Write results to ``.csv``, ``.json`` or ``.parquet``, atomically."""
    suffix = Path(path).suffix
    if suffix == ".json":
        return _write_json(path, results, about)
    rows = itertools.chain.from_iterable(result.as_rows() for result in results)
    if suffix == ".parquet":
        return _write_parquet(path, rows, about)
    has_times = bool(about["every"])
    write_csv(path, columns_of(has_times), (csv_cells(row, has_times) for row in rows))


def columns_of(has_times: bool) -> list[str]:
    """Return the names of the columns of csv and parquet files: ``start`` and ``end`` only for windows."""
    return [name for name in COLUMNS if has_times or name not in ("start", "end")]


def csv_cells(row: tuple, has_times: bool) -> list[Any]:
    """Return the cells of a row of :meth:`Result.as_rows` in a csv file."""
    path, start, end, rank, label, index, score, reason = row
    times = [f"{time:.3f}" if rank else "" for time in (start, end)] if has_times else []
    return [path, *times, rank, label, index, f"{score:.6f}" if rank else "", reason]


def _write_json(path: str | Path, results: Iterable[Result], about: Mapping[str, Any]) -> None:
    with atomic_write(path, "w") as handle:
        handle.write(f'{{"version": {VERSION}, "about": {json.dumps(dict(about))}, "predictions": [')
        for number, result in enumerate(results):
            handle.write(",\n" if number else "\n")
            handle.write(json.dumps({**result.as_dict(), "reason": result.reason}))
        handle.write("\n]}\n")


def _write_parquet(path: str | Path, rows: Iterator[tuple], about: Mapping[str, Any]) -> None:
    parquet = import_pyarrow()
    import pyarrow as pa

    types = (pa.string(), pa.float64(), pa.float64(), pa.int64(), pa.string(), pa.int64(), pa.float32(), pa.string())
    kept = columns_of(bool(about["every"]))
    fields = [field for field in zip(COLUMNS, types) if field[0] in kept]
    schema = pa.schema(fields, {"version": str(VERSION), "about": json.dumps(dict(about))})
    with atomic_write(path) as handle, parquet.ParquetWriter(handle, schema) as writer:
        while batch := list(itertools.islice(rows, BATCH)):
            columns = dict(zip(COLUMNS, zip(*batch)))
            columns |= {name: [*map(valid_text, columns[name])] for name in ("path", "reason")}
            writer.write_table(pa.table({name: columns[name] for name in kept}, schema))
