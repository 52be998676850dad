"""Write predictions to ``.csv``, ``.json`` or ``.parquet``. docs/inference.md describes these files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from video_rs.files import atomic_write, write_csv
from video_rs.inference.features_file import import_pyarrow, valid_text
from video_rs.inference.predict import Classifier
from video_rs.inference.rows import FileRows

VERSION = 1
SUFFIXES = (".csv", ".json", ".parquet")
COLUMNS = ("path", "start", "end", "rank", "label", "index", "score", "reason")
NUMBERS = {"start": "float64", "end": "float64", "rank": "int64", "index": "int64", "score": "float32"}  # in parquet
BATCH = 10_000  # rows written to parquet at once


def results_of(classifier: Classifier, path: str, rows: FileRows, top_k: int) -> Iterator[dict[str, Any]]:
    """Yield the result of a file, or of each of its windows, as plain values.

    A result has the ``path``; ``start`` and ``end`` of a window; ``predictions``, a list of ``label``, ``index`` and
    ``score``; and the ``reason`` why there are none, or "". Times are rounded to 1 ms, scores to 6 digits.
    """
    if rows.reason:
        yield {"path": path, "predictions": [], "reason": rows.reason}
    for number, probs in enumerate(rows.values):
        times = [] if rows.times is None else rows.times[number].round(3).tolist()
        top = [each._replace(score=round(each.score, 6))._asdict() for each in classifier.top(probs, top_k)]
        yield {"path": path, **dict(zip(("start", "end"), times)), "predictions": top, "reason": ""}


def rows_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a result: one for each class, or one with the reason. Empty columns are left out."""
    common = {name: value for name, value in result.items() if name != "predictions"}
    classes = [{"rank": rank, **each} for rank, each in enumerate(result["predictions"], 1)]
    return [{**common, **each} for each in classes or [{}]]


def columns_of(every: float) -> list[str]:
    """Return the names of the columns of csv and parquet files: ``start`` and ``end`` only for windows."""
    return [name for name in COLUMNS if every or name not in ("start", "end")]


def write_results(path: str | Path, results: Iterable[dict[str, Any]], about: Mapping[str, Any]) -> None:
    """Write results to ``.csv``, ``.json`` or ``.parquet``, atomically."""
    suffix, columns = Path(path).suffix, columns_of(about["every"])
    rows = itertools.chain.from_iterable(map(rows_of, results))
    if suffix == ".json":
        lines = ",\n".join(map(json.dumps, results))
        head = f'"version": {VERSION}, "about": {json.dumps(dict(about))}'
        with atomic_write(path, "w") as handle:
            handle.write(f'{{{head}, "predictions": [\n{lines}\n]}}\n')
    elif suffix == ".parquet":
        _write_parquet(path, rows, columns, about)
    else:
        write_csv(path, columns, ([row.get(name, "") for name in columns] for row in rows))


def _write_parquet(
    path: str | Path, rows: Iterator[dict[str, Any]], columns: Sequence[str], about: Mapping[str, Any]
) -> None:
    parquet = import_pyarrow()
    import pyarrow as pa

    fields = [pa.field(name, NUMBERS.get(name, "string")) for name in columns]
    schema = pa.schema(fields, {"version": str(VERSION), "about": json.dumps(dict(about))})
    valid = (row | {name: valid_text(row[name]) for name in ("path", "reason")} for row in rows)
    with atomic_write(path) as handle, parquet.ParquetWriter(handle, schema) as writer:
        while batch := list(itertools.islice(valid, BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema))
