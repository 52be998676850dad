"""Call everything with mutants, and compare what the calls say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.calls import CALLS, MAX_BYTES, MAX_SECONDS, Outcome, call
from tests.fuzz.mutate import Mutant
from video_rs.data.tools.pool import Lost, watched_calls

NATIVE = "exit code -"


@dataclass(frozen=True)
class Found:
    """What the calls said.

    Attributes:
        outcomes: by mutant and call.
        failures: one text each.
    """

    outcomes: Mapping[str, Mapping[str, Outcome | Lost]]
    failures: Sequence[str]

    def summary(self) -> str:
        """Return the number of files that were accepted and refused, and the most time and memory that one used."""
        reads = [file["read"] for file in self.outcomes.values()]
        accepted = sum(isinstance(read, Outcome) and read.value is not None for read in reads)
        good = sum(getattr(file["check"], "value", None) is not None and not file["check"].value[1] for file in self.outcomes.values())
        done = [outcome for file in self.outcomes.values() for outcome in file.values() if isinstance(outcome, Outcome)]
        lost = Counter(name for file in self.outcomes.values() for name, each in file.items() if isinstance(each, Lost))
        seconds, memory = max(each.seconds for each in done), max(each.bytes for each in done)
        total = sum(each.seconds for each in done)
        return (
            f"{len(reads)} mutants: {accepted} read, {len(reads) - accepted} refused, {good} good by check; at most "
            f"{seconds:.1f} s and {memory / 1e6:.0f} MB a call, {total:.0f} s in all; processes lost: {dict(lost)}"
        )


def examine(mutants: Sequence[Mutant], bases: Mapping[str, bytes], folder: Path, workers: int = 2, report: Callable[[str], object] = lambda text: None) -> Found:
    """Write the mutants into a folder and call everything with each."""
    (folder / "good.mp4").write_bytes(bases["h264.mp4"])
    for each in mutants:
        (folder / each.name).write_bytes(each.data)
    outcomes: dict[str, dict] = defaultdict(dict)
    failures, kinds = [], {each.name: each.kinds for each in mutants}
    todo = [(name, str(folder / each.name)) for each in mutants for name in CALLS]
    with closing(watched_calls(call, todo, workers, 2 * MAX_SECONDS)) as results:
        for (name, path), outcome in results:
            file = Path(path).name
            outcomes[file][name] = outcome
            if len(outcomes[file]) == len(CALLS):
                for text in _failures(outcomes[file]):
                    failures.append(f"{file} ({', '.join(kinds[file])}) {text}")
                    report(failures[-1])
    return Found(outcomes, failures)


def _failures(file: Mapping[str, Outcome | Lost]) -> Iterator[str]:
    for name, outcome in file.items():
        if isinstance(outcome, Lost):
            if name != "decord" or NATIVE not in outcome.reason:
                yield f"{name}: {outcome.reason}"
            continue
        if outcome.failed:
            yield f"{name}: {outcome.failed}"
        if outcome.seconds > MAX_SECONDS or outcome.bytes > MAX_BYTES:
            yield f"{name}: {outcome.seconds:.1f} s, {outcome.bytes / 1e6:.0f} MB"
    if any(isinstance(outcome, Lost) or outcome.failed for name, outcome in file.items() if name != "decord"):
        return
    if file["read"][:2] != file["read again"][:2]:
        yield f"read: two reads differ: {file['read']}, {file['read again']}"
    refused = {name: file[name].refused for name in ("probe", "read", "frames", "prepare") if file[name].refused}
    count, problem = file["check"].value
    if file["index"].value:
        refused["index"] = file["index"].value
    if refused and not problem:
        yield f"check: good with {count} frames, but {refused}"
    if not problem and not refused:
        counts = {name: file[name].value[0] for name in ("probe", "read", "frames")} | {"prepare": file["prepare"].value}
        if {count} != {*counts.values()}:
            yield f"check: {count} frames, but {counts}"
        decord = file["decord"]
        if isinstance(decord, Outcome) and decord.value != file["read"].value:
            yield f"decord: good by check, but differs: {decord}"
        if file["frames"].value[1]:
            yield f"frames: alone are others: {file['frames'].value[1]}"
        if file["sample"].value[0]:
            yield f"sample: {file['sample'].value[0]}, but good by check"
