"""Find the problems of a dataset after all files were decoded (see check_file.py).

:class:`Entries` numbers the files of all splits, and :func:`find_problems` compares their properties.
"""

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from statistics import mode
from typing import NamedTuple

import numpy as np

from video_rs.data.clips import TemporalSampling
from video_rs.data.segments import segment_problem
from video_rs.data.sources.holdout import named_source, source_key
from video_rs.data.sources.lookalikes import folded
from video_rs.data.sources.records import Records
from video_rs.data.tools.check_file import Facts
from video_rs.data.tools.lengths import Length

KINDS = ("broken", "short", "odd", "duplicate", "leak", "label conflict")
ODD: Sequence[tuple[Callable[[Facts], float], float, str]] = (
    (lambda facts: facts.fps, 2.0, "{:.4g} frames per second, usual {:.4g}"),
    (lambda facts: min(facts.height, facts.width), 3.0, "short side {} pixels, usual {:g}"),  # 360 to 1080 are common
    (lambda facts: facts.width / facts.height, 2.0, "width / height {:.2f}, usual {:.2f}"),
)
"""A file is odd where a value of it is above the median times a factor, or below the median by this factor."""
_SEPARATOR = re.compile(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])")  # between letters


class Entries:
    """The entries of all splits, numbered consecutively in the order of the splits.

    Args:
        splits: records by name of the split.

    Attributes:
        names: names of the splits.
        class_names: names of the classes.
        split: index into `names` for each entry, int8 ``[N]``.
        file: index of the file of each entry, int64 ``[N]``. Entries with the same path share a file.
        first: the first entry of each file, int64 ``[F]``, ascending.
    """

    def __init__(self, splits: Mapping[str, Records]) -> None:
        self.names, self._records = list(splits), list(splits.values())
        self.class_names = self._records[0].class_names
        self._ends = list(accumulate(len(records) for records in self._records))
        self.split = np.repeat(np.arange(len(self.names), dtype=np.int8), [len(each) for each in self._records])
        keys = (source_key(os.path.abspath(records.path(i))) for records in self._records for i in range(len(records)))
        _, first, file = np.unique(np.fromiter(keys, np.uint64, len(self)), return_index=True, return_inverse=True)
        order = np.argsort(first)  # keeps the files of a folder or shard together
        self.first, self.file = first[order], np.argsort(order)[file]

    def __len__(self) -> int:
        return len(self.split)

    def at(self, entry: int) -> tuple[Records, int]:
        """Return the records that contain an entry, and its index in them."""
        split = self.split[entry]
        return self._records[split], int(entry) - (self._ends[split - 1] if split else 0)

    def path(self, entry: int) -> str:
        records, index = self.at(entry)
        return records.path(index)

    def segment(self, entry: int) -> tuple[float, float]:
        """Return start and end of an entry in seconds; the end is infinite for the end of the file."""
        records, index = self.at(entry)
        if records.segments is None:
            return 0.0, math.inf
        start, end = records.segments[index].tolist()
        return start, end if end > 0 else math.inf

    def length(self, entry: int, facts: Sequence[Facts]) -> Length:
        """Return the length of an entry. The length of a segment is approximate if the frame rate varies."""
        records, index = self.at(entry)
        found = facts[self.file[entry]]
        rate = found.frames / found.seconds if found.seconds else 0.0  # as in a timeline, see clips.py
        return Length(found.frames, rate).part(*records.segment(index))

    def source(self, entry: int) -> int | None:
        """Return the :func:`source_key` of the video that a file was cut from; None if unknown."""
        records, index = self.at(entry)
        if records.sources is not None:
            return int(records.sources[index])
        source = named_source(records.path(index))
        return source_key(source) if source else None

    def label_text(self, entry: int) -> str:
        """Return the names of the labels of an entry as in lists, joined by ";", in the order of the classes."""
        records, index = self.at(entry)
        return ";".join(self.class_names[label] for label in sorted(set(records.label_set(index).tolist())))

    def class_counts(self) -> dict[str, np.ndarray]:
        """Return the number of files of each class, int64 ``[C]``, by split."""
        values = [each.label_sets.values if each.multi_label else each.labels for each in self._records]
        return {name: np.bincount(v, minlength=len(self.class_names)) for name, v in zip(self.names, values)}


class Problem(NamedTuple):
    """A problem of an entry.

    Attributes:
        entry, kind, detail: the entry, one of :data:`KINDS`, and a description.
        grave: True if training would fail or be incorrect.
        other: for a leak, the entry in another split; else None.
    """

    entry: int
    kind: str
    detail: str
    grave: bool = False
    other: int | None = None


def similar_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of class names that may be the same class. The first of each group is paired with each other one.

    They differ in case, blanks, Unicode form, invisible characters, or hyphens and underscores between words.
    """
    first: dict[str, str] = {}
    forms = (_SEPARATOR.sub("", folded(name).strip("_ ")) for name in names)
    pairs = [(first.setdefault(form, name), name) for form, name in zip(forms, names)]
    return [(one, other) for one, other in pairs if one != other]


def find_problems(entries: Entries, facts: Sequence[Facts], sampling: TemporalSampling) -> list[Problem]:
    """Return all problems: first those of single files, grouped by kind, then duplicates, leaks and label conflicts.

    Args:
        entries: entries of the dataset.
        facts: properties of each file.
        sampling: sampling of clips, which defines the minimum length of a video.
    """
    good = [each for each in facts if not each.problem]
    medians = [float(np.median([*filter(None, map(measure, good))] or [0])) for measure, _, _ in ODD]
    rotation = mode(each.rotation for each in good) if good else 0
    single: list[Problem] = []
    for entry, file in enumerate(entries.file):
        records, index = entries.at(entry)
        if reason := facts[file].problem or segment_problem(*records.segment(index), facts[file].seconds):
            single.append(Problem(entry, "broken", reason, grave=True))
        else:
            single += _frames(entry, entries.length(entry, facts), facts[file], records.listed_frames(index), sampling)
            single += _odd(entry, facts[file], medians, rotation)
    single.sort(key=lambda problem: KINDS.index(problem.kind))
    equal = list(_same_content(entries, facts))
    leaked = {problem.entry for problem in equal if problem.kind == "leak"}
    return single + equal + list(_same_source(entries, leaked))


def _frames(entry: int, length: Length, facts: Facts, listed: int, sampling: TemporalSampling) -> Iterator[Problem]:
    """Yield the problems with the number of frames. `listed` is that of the file's list, 0 if unknown."""
    frames, needed = facts.frames, sampling.shortest(length.rate)
    if listed > frames:
        yield Problem(entry, "broken", f"has {frames} images, but {listed} frames in its list", grave=True)
    elif 0 < listed < frames:
        yield Problem(entry, "odd", f"{frames} images; only the first {listed} are listed")
    if length.frames < needed:
        yield Problem(entry, "short", f"{length.frames} frames, a clip spans {needed}")


def _odd(entry: int, facts: Facts, medians: Sequence[float], rotation: int) -> Iterator[Problem]:
    """Yield the values of a file that are far from the usual ones."""
    for (measure, factor, text), median in zip(ODD, medians):
        value = measure(facts)
        if value and not median / factor <= value <= median * factor:
            yield Problem(entry, "odd", text.format(value, median))
    if facts.rotation != rotation:
        yield Problem(entry, "odd", f"rotated by {facts.rotation} degrees, usual {rotation}")


def _same_content(entries: Entries, facts: Sequence[Facts]) -> Iterator[Problem]:
    """Yield entries with the same content as an earlier one: duplicates, leaks and label conflicts.

    Any two segments of one video in two splits are a leak. In one split they are a duplicate, and with different labels
    a conflict, if their intersection is at least half of their union.
    """
    contents = _join([each.content.items() for each in facts])
    for group in _groups(contents[file] for file in entries.file):
        first = group[0]
        earlier: dict[int, list[int]] = defaultdict(list)  # entries of each split that do not overlap
        for entry in group:
            split, seconds = entries.split[entry], facts[entries.file[entry]].seconds
            same = {
                other_split: next((other for other in others if _overlap(entries, entry, other, seconds)), None)
                for other_split, others in earlier.items()
            }
            if same.get(split) is None:
                earlier[split].append(entry)
            else:
                yield Problem(entry, "duplicate", _describe(entries, facts, entry, same[split]))
            if split != entries.split[first]:
                detail = f"{_describe(entries, facts, entry, first)} in {entries.names[entries.split[first]]}"
                yield Problem(entry, "leak", detail, True, first)
            other = next((each for each in same.values() if each is not None), entry)
            mine, theirs = entries.label_text(entry), entries.label_text(other)
            if mine != theirs:
                detail = f"'{mine}', but '{theirs}' for {entries.path(other)} with the same content"
                yield Problem(entry, "label conflict", detail, grave=True)


def _overlap(entries: Entries, entry: int, other: int, seconds: float) -> bool:
    """Return True if the intersection of two segments of a video is at least half of their union."""
    starts, ends = zip(*(entries.segment(each) for each in (entry, other)))
    ends = [min(end, seconds or math.inf) for end in ends]
    if starts[0] == starts[1] and ends[0] == ends[1]:
        return True
    return 2 * (min(ends) - max(starts)) >= max(ends) - min(starts)


def _describe(entries: Entries, facts: Sequence[Facts], entry: int, other: int) -> str:
    """Return in which way an entry equals another ("same bytes as"), with the path of the other."""
    mine, theirs = entries.file[entry], entries.file[other]
    if mine == theirs:
        again = entries.segment(entry) == entries.segment(other)
        return f"{'listed again, as' if again else 'another segment of'} {entries.path(other)}"
    shared = facts[mine].content.items() & facts[theirs].content.items()
    how = "bytes" if facts[mine].sha1 == facts[theirs].sha1 else min(dict(shared), default="content")
    return f"same {how} as {entries.path(other)}"


def _join(files: Sequence[Iterable[Hashable]]) -> list[int]:
    """Return the lowest number among the files that are connected to each file by equal digests."""
    lowest, seen = list(range(len(files))), {}

    def find(file: int) -> int:
        while lowest[file] != file:
            lowest[file] = file = lowest[lowest[file]]
        return file

    for file, digests in enumerate(files):
        for digest in digests:
            mine, theirs = sorted((find(file), find(seen.setdefault(digest, file))))
            lowest[theirs] = mine
    return [find(file) for file in range(len(files))]


def _same_source(entries: Entries, leaked: set[int]) -> Iterator[Problem]:
    """Yield clips whose source video has clips in another split."""
    sources = map(entries.source, range(len(entries)))
    for group in _groups(entry if source is None else source for entry, source in enumerate(sources)):
        first = group[0]
        for entry in group:
            if entries.split[entry] != entries.split[first] and entry not in leaked:
                where = f"{entries.path(first)} in {entries.names[entries.split[first]]}"
                yield Problem(entry, "leak", f"same source video as {where}", True, first)


def _groups(keys: Iterable[Hashable]) -> list[list[int]]:
    """Return the ascending positions of each repeated key, in the order of the first position."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        groups[key].append(position)
    return [group for group in groups.values() if len(group) > 1]
