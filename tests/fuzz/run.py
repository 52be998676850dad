"""Run all calls with damaged files, and compare their results."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.fuzz import texts
from tests.fuzz.bases import read_bases, write_index, write_weights
from tests.fuzz.calls import MAX_BYTES, MAX_SECONDS, VIDEOS, Outcome, call
from tests.fuzz.mutate import Mutant, damaged, mutant
from video_rs.data.tools.content import packet_digest
from video_rs.data.tools.pool import Lost, watched_calls
from video_rs.errors import MediaError
from video_rs.experiment.config import Config, flatten

PATHS = ("a.mp4", "b 1.mp4", "c,d.mp4", "é.mp4", "x/y.mp4", "x/y z.mkv", 'q"r.mp4', "s's.mp4")
LABELS = ("a", "b", "yoga mats", "9b", "é", "doing, things")
NATIVE = "exit code -"


@dataclass(frozen=True)
class Found:
    """The results of the calls.

    Attributes:
        outcomes: by file and call.
        failures: one text each.
    """

    outcomes: Mapping[str, Mapping[str, Outcome | Lost]]
    failures: list[str]

    def summary(self) -> str:
        """Return how many files were accepted and refused, and the most time and memory that a call used."""
        files, failed = self.outcomes.values(), len(self.failures)
        accepted = sum(not any(getattr(each, "refused", "") for each in file.values()) for file in files)
        done = [outcome for file in files for outcome in file.values() if isinstance(outcome, Outcome)]
        lost = Counter(name for file in files for name, each in file.items() if isinstance(each, Lost))
        seconds, memory = max(each.seconds for each in done), max(each.bytes for each in done)
        return (
            f"{len(files)} files, {accepted} accepted by all calls, {failed} failures; at most {seconds:.1f} "
            f"s and {memory / 1e6:.0f} MB a call, {sum(each.seconds for each in done):.0f} s in all; died: {dict(lost)}"
        )


class Fuzzer:
    """A folder of mutants.

    Args:
        folder: to write to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._bases = folder, read_bases()
        for name in ("good.mp4", *PATHS):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(self._bases["h264.mp4"])
        rows = [f'"{name}",{LABELS[i % 3]}\n' for i, name in enumerate(PATHS) if '"' not in name]
        (folder / "train.csv").write_text("".join(rows), encoding="utf-8")
        self._intact = set()
        for name, data in self._bases.items():
            (folder / name).write_bytes(data)
            with suppress(MediaError):
                self._intact.add(packet_digest(str(folder / name)))

    def make(self, kind: str, seed: int, number: int) -> Mutant:
        """Return one mutant: a video, or another file of a kind of ``OTHERS``."""
        if kind == "videos":
            return mutant(seed, number, self._bases)
        rng = random.Random(f"{seed}/{kind}/{number}")
        if kind in ("weights", "index file"):
            suffix = ".npz" if kind == "index file" else rng.choice((".pt", ".safetensors"))
            base = self._folder / f"base{suffix}"
            if not base.exists():
                (write_index if kind == "index file" else write_weights)(base)
            kinds, data = damaged(base.read_bytes(), rng)
        elif kind == "list":
            kinds, suffix, data = (), *texts.list_file(rng, PATHS, LABELS)
        elif kind == "names":
            kinds, suffix, data = (), *texts.names_file(rng, LABELS)
        else:
            kinds, suffix, data = (), *texts.config_file(rng, [*flatten(Config()), "x", "data", "model"])
        return Mutant(f"m{number:05d}{suffix}", kinds, data)

    def run(
        self, kind: str, seed: int, numbers: Iterable[int], workers: int = 2, report: Callable = lambda text: None
    ) -> Found:
        """Run all calls with some mutants.

        Args:
            report: called with each failure.
        """
        mutants = {each.name: each for each in (self.make(kind, seed, number) for number in numbers)}
        for each in mutants.values():
            (self._folder / each.name).write_bytes(each.data)
        compare = partial(disagreements, self._intact) if kind == "videos" else lambda file: ()
        names = tuple(VIDEOS) if kind == "videos" else (kind,)
        todo = [(name, str(self._folder / each)) for each in mutants for name in names]
        found = Found(defaultdict(dict), [])
        with closing(watched_calls(call, todo, workers, 2 * MAX_SECONDS)) as results:
            for (name, path), outcome in results:
                file = Path(path).name
                found.outcomes[file][name] = outcome
                if len(found.outcomes[file]) < len(names):
                    continue
                for text in _failures(found.outcomes[file], compare):
                    number = int(file[1:6])
                    found.failures.append(
                        f"{kind} {seed} {number}: {file} ({', '.join(mutants[file].kinds)}) {text}\n"
                        f"  again: python -m tests.fuzz --kind '{kind}' {seed} {number}"
                    )
                    report(found.failures[-1])
        return found


def _failures(file: Mapping[str, Outcome | Lost], compare: Callable) -> Iterator[str]:
    """Yield the failures of one file: exceptions, deaths, calls beyond the limits, and those of `compare`."""
    whole = True
    for name, outcome in file.items():
        if isinstance(outcome, Lost):
            if name != "decord" or NATIVE not in outcome.reason:  # its own library aborts the process
                whole = False
                yield f"{name}: {outcome.reason}"
            continue
        if outcome.failed:
            whole = False
            yield f"{name}: {outcome.failed}"
        if outcome.seconds > MAX_SECONDS or outcome.bytes > MAX_BYTES:
            yield f"{name}: {outcome.seconds:.1f} s, {outcome.bytes / 1e6:.0f} MB"
    if whole:
        yield from compare(file)


def disagreements(intact: Container[int], file: Mapping[str, Outcome | Lost]) -> Iterator[str]:
    """Yield the contradictions between calls with one video.

    Args:
        intact: digests of packets that are not damaged. Decoders can conceal damage differently, without reporting it.
    """
    if file["read"][:2] != file["read again"][:2]:
        yield f"read: two reads differ: {file['read']}, {file['read again']}"
    count, problem, packets = file["check"].value
    refused = {name: file[name].refused for name in ("probe", "read", "frames", "prepare") if file[name].refused}
    if "do not fit an mp4" in file["prepare"].refused:  # times that an mp4 cannot represent are not damage
        return
    if file["index"].value:
        refused["index"] = file["index"].value
    if problem:
        return
    if refused:
        yield f"check: good with {count} frames, but {refused}"
        return
    counts = {name: file[name].value[0] for name in ("probe", "read", "frames")} | {"prepare": file["prepare"].value}
    if {count} != {*counts.values()}:
        yield f"check: {count} frames, but {counts}"
    decord = file["decord"]
    if packets in intact and isinstance(decord, Outcome) and decord.value != file["read"].value:
        yield f"decord: good by check, but differs: {decord}"
    if file["frames"].value[1]:
        yield f"frames: good by check, but differ if read separately: {file['frames'].value[1]}"
    if file["sample"].value[0]:
        yield f"sample: good by check, but {file['sample'].value[0]}"
