"""Damaged lists, class names and configs in many dialects."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Sequence

SPECIAL = (
    *("\0", "\r", "\x1b[31m", "\x85", "\u2028", "\u200b", "\ufeff", "\xa0", "e\u0301", "é", "🏃", "\ud800", "ﬁ", "İ"),
    *('"', '""', "'", "\\", "\\n", ",", ";", "\t", " ", "  ", "#", "%", "=", "|", "..", "/", "//"),
    *("~", "$HOME", "{}", "[]"),
    *("-1", "0", "1e9", "9" * 20, "9" * 5000, "nan", "inf", "1.5", "None", "true", "²", "٣", "a" * 5000, "\n", "\n\n"),
)  # fmt: skip
COLUMNS = (
    *("path", "label", "Path", " label", "file", "file_name", "video_path", "class", "labels", "start", "end", "split"),
    *("source", "group", "num_frames", "frames", "fps", "id", "", "path", "time_start", "youtube_id", "start_time"),
)
ENCODINGS = (*["utf-8"] * 16, "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252")
ENDS = (*["\n"] * 12, "\r\n", "\r\n", "\r", "\n\n", "\x85", "\u2028", "\x0c")


def table(rng: random.Random, paths: Sequence[str], labels: Sequence[str]) -> list[list[str]]:
    """Return rows of a list: path and label, and sometimes a header with more columns, in any order."""
    chosen = rng.choices(range(len(paths)), k=rng.choice((0, 2, 8, 8, 8, 30)))
    rows = [[paths[at], labels[at % len(labels)]] for at in chosen]
    if rng.random() < 0.3:
        return rows
    names = ["path", "label"] + rng.sample(COLUMNS, rng.choice((0, 0, 1, 2, 4)))
    values = ("", "0", "1", "1.5", "0.2", "9", "train", "val", "test", "x", "-3", "1e400", "nan", "12:30")
    plain = {"start": "0", "end": "0.3", "split": "train", "num_frames": "4", "frames": "4", "total_frames": "4"}
    is_plain = rng.random() < 0.7
    rows = [row + [plain.get(name, "1") if is_plain else rng.choice(values) for name in names[2:]] for row in rows]
    order = rng.sample(range(len(names)), len(names)) if rng.random() < 0.5 else list(range(len(names)))
    if rng.random() < 0.1:
        names = rng.sample(COLUMNS, len(names))
    return [[row[at] for at in order] for row in [names, *rows]]


def damage_cells(rng: random.Random, rows: list[list[str]]) -> None:
    """Change some rows: special characters in cells; extra, missing and swapped cells."""
    for _ in range(rng.choice((0, 0, 1, 1, 2, 5))):
        if not rows or not (row := rng.choice(rows)):
            continue
        at = rng.randrange(len(row))
        kind = rng.randrange(6)
        if kind <= 1:
            place = rng.randint(0, len(row[at]))
            row[at] = row[at][:place] + rng.choice(SPECIAL) + row[at][place:]
        elif kind == 2:
            row[at] = rng.choice((*SPECIAL, ""))
        elif kind == 3:
            row.insert(at, rng.choice(SPECIAL))
        elif kind == 4:
            del row[at]
        else:
            other = rng.randrange(len(row))
            row[at], row[other] = row[other], row[at]


def list_file(rng: random.Random, paths: Sequence[str], labels: Sequence[str]) -> tuple[str, bytes]:
    """Return the suffix and the bytes of a list."""
    rows = table(rng, paths, labels)
    damage_cells(rng, rows)
    kind = rng.choice(("csv", "csv", "csv", "join", "join", "jsonl"))
    if kind == "csv":
        out = io.StringIO()
        quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC))
        dialect = {"delimiter": rng.choice(",,,,\t\t;| "), "quoting": quoting, "quotechar": rng.choice('"""\'')}
        csv.writer(out, lineterminator=rng.choice(ENDS), **dialect).writerows(rows)
        text = out.getvalue()
    elif kind == "join":
        text = rng.choice(ENDS).join(rng.choice((" ", ",", "\t", "  ", ", ")).join(row) for row in rows)
    else:
        keys = rows[0] if rows else []
        found = [dict(zip(keys, map(rng.choice((str, str, _value)), row), strict=False)) for row in rows[1:]]
        text = "\n".join(map(json.dumps, found))
    suffix = ".txt" if kind == "join" else f".{kind}"
    if rng.random() < 0.1:
        suffix = rng.choice((".csv", ".txt", ".tsv", ".jsonl", ".json"))
    return suffix, damage_bytes(rng, encoded(rng, text))


def encoded(rng: random.Random, text: str) -> bytes:
    """Encode a text in a common encoding, if possible."""
    encoding = rng.choice(ENCODINGS)
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """Cut, repeat, or change bytes, in a third of the files."""
    if not data or rng.random() < 0.8:
        return data
    at = rng.randrange(len(data))
    return rng.choice(
        (
            data[:at],
            data[:at] + rng.randbytes(1) + data[at:],
            data[:at] + b"\0" * 8 + data[at:],
            data + data[:at],
            data[at:],
        )
    )


def _value(text: str) -> object:
    return [text, {"a": text}, None, 1, 1.5, True, [text], float("nan"), 10**30][len(text) % 9]


def names_file(rng: random.Random, labels: Sequence[str]) -> tuple[str, bytes]:
    """Return the suffix and the bytes of a file of class names."""
    names = list(dict.fromkeys(rng.sample(labels, len(labels))))
    rows = [[name] for name in names]
    kind = rng.choice(("txt", "txt", "csv", "csv", "json", "json", "jsonl"))
    if kind == "csv":
        rows = [[str(i), name][:: rng.choice((1, -1))] for i, name in enumerate(names)]
        rows = rng.choice(([], [["id", "name"]], [["name", "id"]])) + rows
    damage_cells(rng, rows)
    if kind == "json":
        flat = [" ".join(row) for row in rows]
        content = rng.choice(
            (
                flat,
                {name: i for i, name in enumerate(flat)},
                {str(i): name for i, name in enumerate(flat)},
                [flat],
                {"a": flat},
            )
        )
        text = json.dumps(content, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 1)))
    else:
        text = rng.choice(ENDS).join(rng.choice((",", ", ", "\t", ";")).join(row) for row in rows)
    data = encoded(rng, text)
    return f".{rng.choice((kind, kind, 'txt'))}", damage_bytes(rng, data)


def config_file(rng: random.Random, keys: Sequence[str]) -> tuple[str, bytes]:
    """Return the suffix and the bytes of a config: some keys with wrong values, and damage."""
    values = (
        *(
            "1",
            "-1",
            "0.5",
            "1e400",
            ".nan",
            "null",
            "true",
            "'x'",
            "[]",
            "{}",
            "[1, 2]",
            "{a: 1}",
            "!!python/object:os.x {}",
        ),
        *(
            "2026-13-45",
            "2026-02-30",
            "9" * 5000,
            "0x" + "f" * 5000,
            "1:2:3",
            "[" * 2000,
            "[" * 200 + "]" * 200,
            "*a",
            "&a x",
        ),
        *(
            "'" + "a" * 5000 + "'",
            "!!binary x",
            "!!int abc",
            "!!float abc",
            "!!timestamp x",
            "~",
            "~/x",
            "$HOME",
            "? x",
            "|",
            "<<: 1",
        ),
        *(
            "&a [*a]",
            "&a {b: *a}",
            "'\\ud800'",
            '"\\ud800"',
            "1_000",
            "0o9",
            "1e-400",
            "-.inf",
            "@x",
            "`x",
            "%x",
            "!x y",
            "!<x> y",
        ),
    )
    lines, tree = [], {}
    for key in rng.sample(keys, rng.choice((1, 2, 4))):
        section, _, leaf = key.rpartition(".")
        tree.setdefault(section, []).append(f"{leaf}: {rng.choice(values)}")
    for section, leaves in tree.items():
        lines += ([f"{section}:"] + [f"  {leaf}" for leaf in leaves]) if section else leaves
    if rng.random() < 0.3:
        odd = rng.choice((f"_BASE_: {rng.choice(('motion_rs.yaml', *values))}", "---", "x: y: z", "\t"))
        lines.insert(rng.randint(0, len(lines)), odd)
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        at = rng.randrange(len(lines))
        place = rng.randint(0, len(lines[at]))
        lines[at] = lines[at][:place] + rng.choice(SPECIAL) + lines[at][place:]
    text = "\n".join(lines)
    return ".yaml", damage_bytes(rng, encoded(rng, text))
