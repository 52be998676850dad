"""What is wrong with the files of a dataset, found by decoding all of them.

:func:`check_file` decodes one file. :class:`Entries` numbers the files of all splits, :class:`FileTable` packs what was
found in them, some hundred bytes a file, and :func:`find_problems` compares.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from video_rs.data.clips import TemporalSampling
from video_rs.data.decode import is_image, read_image, scan_video
from video_rs.data.packets import best_stream, open_container
from video_rs.data.records import Records
from video_rs.data.split import source_key, source_of

KINDS = ("broken", "short", "odd", "duplicate", "leak", "label conflict")
RATE_FACTOR = ASPECT_FACTOR = 2.0  # a file is odd beyond this many times, or below this part of, the median
SIZE_FACTOR = 3.0  # 360 to 1080 lines is common in collections from the web
ANNOUNCED_PART = 0.9  # of the time that a header announces; headers of AVI and Matroska are a little off in good files
_CHUNK = 2**20  # bytes

ROW = np.dtype(
    [
        ("checked", "?"),
        ("broken", "?"),
        ("frames", "<u4"),
        ("fps", "<f8"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("rotation", "<i2"),
        ("codec", "<u2"),  # these two into `words`
        ("decoder", "<u2"),
        ("bytes", "<u8"),
        ("sha1", "u1", (20,)),
        ("pixels", "<u8"),
    ]
)


@dataclass(frozen=True)
class Facts:
    """What one file holds.

    Attributes:
        frames: that were decoded, all of them unless there is a `problem`.
        fps: mean frames per second; 0 for an image, and where nothing tells.
        height, width: upright, of the first frame, in pixels.
        rotation: degrees counter-clockwise that make the stored frames upright.
        codec: its name; of an image the extension.
        decoder: that ``data.decoder=auto`` takes: "decord", "pyav" or "pil".
        bytes, sha1: of the file; 20 bytes, or none where it cannot be read.
        pixels: 8 bytes of a digest of all decoded frames: equal for equal frames in another container.
        problem: why the file is broken; "" where it is not.
    """

    frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    rotation: int = 0
    codec: str = ""
    decoder: str = ""
    bytes: int = 0
    sha1: bytes = b""
    pixels: int = 0
    problem: str = ""


def check_file(path: str, beat: Callable[[], None] = lambda: None) -> Facts:
    """Decode every frame of a video or an image, in one thread.

    A file is broken where it cannot be opened, where FFmpeg reports damage in a frame, or where fewer frames come than
    the packets or the header announce. Nothing is raised for that.

    Args:
        path: of the file.
        beat: called after each frame and each mebibyte.
    """
    found: dict[str, object] = {}
    pixels = hashlib.sha1()
    try:
        found["bytes"], found["sha1"] = _file_digest(path, beat)
        if is_image(path):
            _decode_image(path, pixels, found)
        else:
            _decode_video(path, pixels, found, beat)
    except Exception as error:  # decoders raise anything on damaged files, and one file must not end the check
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        found["problem"] = " ".join(text.removeprefix(f"{path}: ").split())
    return Facts(**found, pixels=int.from_bytes(pixels.digest()[:8], "little"))


def _file_digest(path: str, beat: Callable[[], None]) -> tuple[int, bytes]:
    if not os.path.isfile(path):  # a pipe would keep the reader for ever
        raise OSError("not a file" if os.path.exists(path) else "no such file")
    digest, size = hashlib.sha1(), 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            beat()
    return size, digest.digest()


def _decode_image(path: str, pixels: hashlib._Hash, found: dict[str, object]) -> None:
    found |= {"codec": os.path.splitext(path)[1][1:].lower(), "decoder": "pil"}
    frame = read_image(path).numpy()
    found |= {"frames": 1, "height": frame.shape[1], "width": frame.shape[2]}
    pixels.update(repr(frame.shape).encode() + frame.tobytes())


def _decode_video(path: str, pixels: hashlib._Hash, found: dict[str, object], beat: Callable[[], None]) -> None:
    packets = scan_video(path)
    beat()
    found |= {"codec": packets.codec, "fps": packets.fps}
    found["decoder"] = "pyav" if packets.decord_problem or not _has_decord() else "decord"
    count, damaged, end = 0, 0, 0.0
    with open_container(path) as container:
        stream = best_stream(container, path)
        announced = _announced_end(container, stream)
        for frame in container.decode(stream):
            if not count:
                found |= _shape(frame)
            _update(pixels, frame)
            damaged += frame.is_corrupt
            end = max(end, frame.time or 0.0)
            count += 1
            found["frames"] = count
            beat()
    if not count:
        found["problem"] = "no frame can be decoded"
    elif count < packets.num_frames:
        found["problem"] = f"{count} of {packets.num_frames} frames can be decoded"
    elif damaged:
        found["problem"] = f"FFmpeg reports damage in {damaged} of {count} frames"
    elif packets.fps and end + 2 / packets.fps < ANNOUNCED_PART * announced:
        found["problem"] = f"it ends at {end:.2f} s, its header announces {announced:.2f} s"


@cache
def _has_decord() -> bool:
    return find_spec("decord") is not None


def _announced_end(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Seconds, in the header of a file whose packets cannot tell that it was cut off; 0 elsewhere."""
    if container.format.name == "avi" and stream.duration:
        return float(stream.duration * stream.time_base)
    if "matroska" not in container.format.name:
        return 0.0
    hours, minutes, seconds = (stream.metadata.get("DURATION", "") + "::").split(":")[:3]
    try:
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0


def _shape(frame: av.VideoFrame) -> dict[str, int]:
    rotation = round(frame.rotation / 90) * 90
    height, width = (frame.width, frame.height) if rotation % 180 else (frame.height, frame.width)
    return {"height": height, "width": width, "rotation": rotation}


def _update(pixels: hashlib._Hash, frame: av.VideoFrame) -> None:
    try:
        values = frame.to_ndarray()
    except (ValueError, AssertionError):  # a format or an odd size that PyAV has no array for
        values = frame.to_ndarray(format="rgb24")
    pixels.update(repr(values.shape).encode())
    pixels.update(np.ascontiguousarray(values))


class Entries:
    """The files of all splits in one numbering: first those of the first split, in its order.

    Args:
        splits: their records.

    Attributes:
        names: of the splits.
        class_names: of the classes.
        split: int8 ``[N]``, which of the names.
        file: int64 ``[N]``: entries of one path are one file.
        first: int64 ``[F]``, the first entry of each file.
    """

    def __init__(self, splits: Mapping[str, Records]) -> None:
        self.names, self._records = list(splits), list(splits.values())
        self.class_names = self._records[0].class_names
        self._ends = list(accumulate(len(records) for records in self._records))
        self.split = np.repeat(np.arange(len(self.names), dtype=np.int8), [len(each) for each in self._records])
        keys = (source_key(os.path.abspath(records.path(i))) for records in self._records for i in range(len(records)))
        _, self.first, self.file = np.unique(
            np.fromiter(keys, np.uint64, len(self)), return_index=True, return_inverse=True
        )

    def __len__(self) -> int:
        return len(self.split)

    def _at(self, entry: int) -> tuple[Records, int]:
        split = self.split[entry]
        return self._records[split], int(entry) - (self._ends[split - 1] if split else 0)

    def path(self, entry: int) -> str:
        records, index = self._at(entry)
        return records.path(index)

    def labels(self, entry: int) -> tuple[int, ...]:
        """Ascending; one, unless the dataset is multi-label."""
        records, index = self._at(entry)
        return tuple(sorted(set(records.label_set(index).tolist())))

    def label_text(self, entry: int) -> str:
        """The names, as lists have them."""
        return ";".join(self.class_names[label] for label in self.labels(entry))

    def class_counts(self) -> dict[str, np.ndarray]:
        """Files of each class, int64 ``[C]``, by split."""
        counts = {name: np.zeros(len(self.class_names), np.int64) for name in self.names}
        for name, records in zip(self.names, self._records, strict=True):
            values = records.label_sets.values if records.multi_label else records.labels
            counts[name] += np.bincount(values, minlength=len(self.class_names))
        return counts


class FileTable:
    """What is known of F files.

    Attributes:
        rows: ``[F]`` of :data:`ROW`.
        problems: why a file is broken, of those that are.
    """

    def __init__(self, count: int) -> None:
        self.rows = np.zeros(count, ROW)
        self.problems: dict[int, str] = {}
        self._words: list[str] = []

    def put(self, file: int, facts: Facts) -> None:
        """What :func:`check_file` found in a file."""
        row = self.rows[file]
        row["checked"], row["broken"] = True, bool(facts.problem)
        for name in ("frames", "fps", "height", "width", "rotation", "bytes", "pixels"):
            row[name] = getattr(facts, name)
        row["codec"], row["decoder"] = self._word(facts.codec), self._word(facts.decoder)
        if facts.sha1:
            row["sha1"] = np.frombuffer(facts.sha1, np.uint8)
        if facts.problem:
            self.problems[file] = facts.problem

    def _word(self, text: str) -> int:
        if text not in self._words:
            self._words.append(text)
        return self._words.index(text)

    def word(self, file: int, name: str) -> str:
        """The codec or the decoder of a file."""
        return self._words[self.rows[file][name]]

    def sha1(self, file: int) -> str:
        """Hexadecimal; "" where the file cannot be read."""
        digest = self.rows[file]["sha1"]
        return digest.tobytes().hex() if digest.any() else ""

    def contents(self) -> np.ndarray:
        """A number for what each file shows, uint64 ``[F]``; broken ones by their bytes, unreadable ones for itself."""
        rows = self.rows
        content = np.where(rows["broken"], rows["sha1"][:, :8].copy().view("<u8")[:, 0], rows["pixels"])
        alone = ~rows["sha1"].any(axis=1) | (rows["bytes"] == 0)
        content[alone] = np.flatnonzero(alone)
        return content


class Problem(NamedTuple):
    """One problem of one entry; `grave` if training on the dataset is wrong or fails."""

    entry: int
    kind: str
    detail: str
    grave: bool = False


def find_problems(entries: Entries, table: FileTable, sampling: TemporalSampling) -> Iterator[Problem]:
    """All problems, kind by kind (:data:`KINDS`), in the order of the entries or of the files that are the same.

    Args:
        entries, table: the dataset.
        sampling: how clips will be taken, which tells what is short.
    """
    for entry, file in enumerate(entries.file):
        if table.rows[file]["broken"]:
            yield Problem(entry, "broken", table.problems[int(file)], grave=True)
    yield from _short(entries, table.rows, sampling)
    yield from _odd(entries, table.rows)
    leaked = np.zeros(len(entries), bool)
    for problem in _same_content(entries, table):
        leaked[problem.entry] |= problem.kind == "leak"
        yield problem
    yield from _same_source(entries, leaked)


def _short(entries: Entries, rows: np.ndarray, sampling: TemporalSampling) -> Iterator[Problem]:
    """Files whose frames are repeated to fill one clip."""
    for entry, file in enumerate(entries.file):
        row = rows[file]
        if sampling.kind == "segments":
            needed = sampling.num_frames
        else:
            needed = 1 + int(np.floor((sampling.num_frames - 1) * sampling.step(float(row["fps"])) + 1e-6))
        if row["frames"] < needed and not row["broken"]:
            yield Problem(entry, "short", f"{row['frames']} frames, a clip spans {needed}")


def _odd(entries: Entries, rows: np.ndarray) -> Iterator[Problem]:
    """Files that are far from the usual: from the median, or for the rotation from the most common value."""
    good = rows[rows["checked"] & ~rows["broken"]]
    if not len(good):
        return
    rates = good["fps"][good["fps"] > 0]
    usual_rate = float(np.median(rates)) if len(rates) else 0.0
    usual_side = float(np.median(np.minimum(good["height"], good["width"])))
    usual_aspect = float(np.median(good["width"] / good["height"]))
    turns, counts = np.unique(good["rotation"], return_counts=True)
    usual_turn = turns[counts.argmax()]
    for entry, file in enumerate(entries.file):
        row = rows[file]
        if row["broken"]:
            continue
        height, width = int(row["height"]), int(row["width"])
        if usual_rate and row["fps"] and _far(row["fps"], usual_rate, RATE_FACTOR):
            yield Problem(entry, "odd", f"{row['fps']:.4g} frames a second, usual {usual_rate:.4g}")
        if _far(min(height, width), usual_side, SIZE_FACTOR):
            yield Problem(entry, "odd", f"short side {min(height, width)} pixels, usual {usual_side:g}")
        if _far(width / height, usual_aspect, ASPECT_FACTOR):
            yield Problem(entry, "odd", f"width / height {width / height:.2f}, usual {usual_aspect:.2f}")
        if row["rotation"] != usual_turn:
            yield Problem(entry, "odd", f"rotated by {row['rotation']} degrees, usual {usual_turn}")


def _far(value: float, usual: float, factor: float) -> bool:
    return not usual / factor <= value <= usual * factor


def _same_content(entries: Entries, table: FileTable) -> Iterator[Problem]:
    for group in _groups(table.contents()[entries.file]):
        first_in: dict[int, int] = {}  # split to entry
        labels = entries.labels(group[0])
        for entry in group:
            split = entries.split[entry]
            if split in first_in:
                other = first_in[split]
                yield Problem(entry, "duplicate", f"{_how(entries, table, entry, other)} {entries.path(other)}")
            if split != entries.split[group[0]]:
                other = group[0]
                where = f"in {entries.names[entries.split[other]]}"
                detail = f"{_how(entries, table, entry, other)} {entries.path(other)} {where}"
                yield Problem(entry, "leak", detail, grave=True)
            first_in.setdefault(split, entry)
            if entries.labels(entry) != labels:
                mine, theirs = entries.label_text(entry), entries.label_text(group[0])
                detail = f"'{mine}', but '{theirs}' for {entries.path(group[0])}, which is the same"
                yield Problem(entry, "label conflict", detail, grave=True)


def _how(entries: Entries, table: FileTable, entry: int, other: int) -> str:
    mine, theirs = entries.file[entry], entries.file[other]
    if mine == theirs:
        return "listed again, as"
    same_bytes = np.array_equal(table.rows[mine]["sha1"], table.rows[theirs]["sha1"])
    return "same bytes as" if same_bytes else "same frames as"


def _same_source(entries: Entries, leaked: np.ndarray) -> Iterator[Problem]:
    """Clips of one source video in two splits, where file names tell the source."""
    sources = np.arange(len(entries), dtype=np.uint64)
    for entry in range(len(entries)):
        path = entries.path(entry)
        if (source := source_of(path)) != "/".join(Path(path).parts[-2:]):  # which it is where the name tells nothing
            sources[entry] = source_key(source)
    for group in _groups(sources):
        first = group[0]
        for entry in group:
            if entries.split[entry] != entries.split[first] and not leaked[entry]:
                where = f"{entries.path(first)} in {entries.names[entries.split[first]]}"
                yield Problem(entry, "leak", f"same source video as {where}")


def _groups(keys: np.ndarray) -> Iterator[list[int]]:
    """The places of each key that is there more than once, ascending; by the first place."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    ends = np.append(starts[1:], len(keys))
    several = np.flatnonzero(ends - starts > 1)
    for group in several[np.argsort(order[starts[several]])]:
        yield order[starts[group] : ends[group]].tolist()
