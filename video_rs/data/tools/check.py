"""Check a dataset: decode every file, find problems, write tables, a summary and plots."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from video_rs.data.clips import TemporalSampling
from video_rs.data.shards import Member
from video_rs.data.sources.records import Records
from video_rs.data.tools.check_file import Facts, check_file
from video_rs.data.tools.check_problems import Entries, Problem, find_problems, similar_names
from video_rs.data.tools.lengths import describe_short
from video_rs.data.tools.pool import Lost, Progress, no_progress, watched_calls
from video_rs.errors import StorageError
from video_rs.files import atomic_write, write_csv, write_json

FIELDS = (
    ("split", "path", "label", "frames", "fps", "seconds", "height", "width")
    + ("rotation", "codec", "decoder", "sha1", "problems")
)  # fmt: skip
FILES = ("problems.csv", "files.csv", "summary.json", "check.png")
COLORS = ("#2563eb", "#ea580c", "#16a34a")
MAX_NAMED = 40  # maximum number of classes with names on the axis


@dataclass(frozen=True)
class DatasetCheck:
    """The result of :func:`check_dataset`.

    Attributes:
        splits: records by name of the split.
        entries: the files of all splits, numbered consecutively.
        facts: properties of each file.
        problems: the problems, see ``check_problems``.
        sampling: the temporal sampling of clips.
    """

    splits: Mapping[str, Records]
    entries: Entries
    facts: list[Facts]
    problems: list[Problem]
    sampling: TemporalSampling

    def summary(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        counts, names, facts = self.entries.class_counts(), self.entries.class_names, self.facts
        good = [each for each in facts if not each.problem]
        untrained = np.flatnonzero(counts["train"] == 0) if "train" in counts else ()
        return {
            "files": {name: len(records) for name, records in self.splits.items()},
            "made": [name for name, records in self.splits.items() if records.held_out],
            "missing": {name: records.num_missing for name, records in self.splits.items()},
            "bytes": sum(each.bytes for each in facts),
            "seconds": round(sum(each.seconds for each in good), 3),
            **{key: _spread([getattr(each, key) for each in good]) for key in ("frames", "height", "width")},
            "fps": _spread([each.fps for each in good if each.fps]),
            "codecs": Counter(each.codec for each in facts),
            "decoders": Counter(each.decoder for each in facts),
            "problems": Counter(problem.kind for problem in self.problems),
            "similar_class_names": similar_names(names),
            "classes_without_training_files": [names[i] for i in untrained],
            "empty_class_folders": {
                name: list(records.empty_folders) for name, records in self.splits.items() if records.empty_folders
            },
            "classes": {
                name: {split: int(count[i]) for split, count in counts.items()} for i, name in enumerate(names)
            },
        }

    def short_videos(self) -> str:
        """Describe how many of the readable videos are shorter than a clip, and a setting that fits; "" for none."""
        broken = {problem.entry for problem in self.problems if problem.kind == "broken"}
        good = (entry for entry in range(len(self.entries)) if entry not in broken)
        return describe_short((self.entries.length(entry, self.facts) for entry in good), self.sampling)

    def leaks(self) -> list[str]:
        """Return a phrase for each leak, with its two entries and their splits."""
        pairs = ((problem.entry, problem.other) for problem in self.problems if problem.kind == "leak")
        return [" and ".join(map(self._place, pair)) for pair in pairs]

    def _place(self, entry: int) -> str:
        path = self.entries.path(entry)
        return f"{path if len(path) <= 100 else '...' + path[-97:]} in {self.entries.names[self.entries.split[entry]]}"

    def write(self, folder: Path) -> None:
        """Write :data:`FILES` into a folder."""
        problems = ((self.entries.path(problem.entry), problem.kind, problem.detail) for problem in self.problems)
        write_csv(folder / "problems.csv", ("path", "kind", "detail"), problems)
        write_csv(folder / "files.csv", FIELDS, self._rows())
        write_json(folder / "summary.json", self.summary())
        with atomic_write(folder / "check.png") as file:
            self._plot(file)

    def _rows(self) -> Iterator[list[Any]]:
        """Yield the values of ``FIELDS`` for each entry."""
        entries, kinds = self.entries, defaultdict(dict)  # the kinds of problems of each entry, in the order of KINDS
        for problem in self.problems:
            kinds[problem.entry][problem.kind] = None
        for entry, file in enumerate(entries.file):
            facts = self.facts[file]
            yield (
                [entries.names[entries.split[entry]], entries.path(entry), entries.label_text(entry), facts.frames]
                + [f"{facts.fps:.6g}", f"{facts.seconds:.6g}", facts.height, facts.width, facts.rotation]
                + [facts.codec, facts.decoder, facts.sha1.hex(), ";".join(kinds[entry])]
            )

    def _plot(self, file: IO[bytes]) -> None:
        """Plot the lengths and sizes of the files that can be read, and the files of each class, the largest first."""
        from matplotlib.figure import Figure  # not at the top: worker processes import this module

        good = [each for each in self.facts if not each.problem]
        seconds = [each.seconds for each in good if each.fps]
        counts, names = self.entries.class_counts(), self.entries.class_names
        order = np.argsort(-next(iter(counts.values())), kind="stable")
        figure = Figure(figsize=(15, 4.5), layout="constrained")
        length, size, classes = axes = figure.subplots(1, 3)
        length.set(title="Lengths", xlabel="seconds" if seconds else "frames", ylabel="files")
        size.set(title="Sizes", xlabel="width, pixels", ylabel="height, pixels")
        classes.set(title="Classes, the largest first", ylabel="files")
        for ax in axes:
            ax.grid(alpha=0.3)
        if good:
            lengths = seconds or [each.frames for each in good]
            length.hist(np.minimum(lengths, np.quantile(lengths, 0.995)), bins=40, color=COLORS[0])  # cut outliers
            sizes = Counter((each.width, each.height) for each in good)
            areas = 20 + 300 * np.array([*sizes.values()]) / max(sizes.values())
            size.scatter(*zip(*sizes), s=areas, color=COLORS[0], alpha=0.5)
            size.set(xlim=(0, None), ylim=(0, None))
        for (split, of_class), color in zip(counts.items(), COLORS, strict=False):
            classes.plot(of_class[order], ".-", color=color, label=split)
        classes.set_ylim(bottom=0)
        classes.legend(frameon=False)
        if len(order) <= MAX_NAMED:
            ticks = [" ".join(names[i].encode(errors="replace").decode().split())[:24] for i in order]
            classes.set_xticks(range(len(ticks)), ticks, rotation=90, fontsize=7, parse_math=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the font has no emoji
            figure.savefig(file, format="png", dpi=110)


def check_dataset(
    splits: Mapping[str, Records],
    sampling: TemporalSampling,
    *,
    workers: int = 1,
    timeout: float = 0.0,
    progress: Progress = no_progress,
) -> DatasetCheck:
    """Decode all files of a dataset and find its problems.

    Args:
        splits: records by name of the split.
        sampling: sampling of clips, which defines the minimum length of a video.
        workers: number of processes.
        timeout: seconds without progress after which a file is reported as broken; 0 for no limit.
        progress: called with the results and their number; returns an iterator that displays the progress.

    Raises:
        UserError: access to the storage of shards is denied.
        MachineError: the storage fails.
    """
    entries = Entries(splits)
    facts = [Facts()] * len(entries.first)
    files = (records.file(index) for records, index in map(entries.at, entries.first))
    calls = watched_calls(_check, enumerate(files), min(workers, len(facts)), timeout, lambda item: item[1])
    with closing(calls) as results:
        for (number, _), result in progress(results, len(facts)):
            if isinstance(result, StorageError):
                records, index = entries.at(entries.first[number])
                result = Facts(problem=records.fault(result, index))
            facts[number] = Facts(problem=result.reason) if isinstance(result, Lost) else result
    return DatasetCheck(splits, entries, facts, find_problems(entries, facts, sampling), sampling)


def _check(item: tuple[int, str | Member], beat: Callable[[], None]) -> Facts:
    return check_file(item[1], beat)


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return minimum, median and maximum; None if there are no values."""
    if not values:
        return None
    return {name: round(float(getattr(np, name)(values)), 4) for name in ("min", "median", "max")}
