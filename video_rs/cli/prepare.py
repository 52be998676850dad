"""Makes a dataset fast to read: re-encodes every video once, small, with a keyframe every few frames and no sound.

tools/prepare_dataset.py --cfg k400_rs50.yaml data.root=/data/k400 --out /data/k400_256
tools/prepare_dataset.py --cfg k400_rs50.yaml data.root=/data/k400 --out /data/k400_256 --shards

OUT gets videos/, lists of the splits that the dataset has (train.csv, val.csv, test.csv), class_names.txt in the order
of the labels, failed.csv (which videos could not be re-encoded, and why) and summary.json; with --shards also shards/,
the videos in large tar files, for storage that hates small ones. The source is only read. A
command that was interrupted goes on when it is called again: files that are there are kept.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_rs.cli import prepare_shards
from video_rs.cli.common import SCRIPTS, command, config_parser, counter, positive, size_text
from video_rs.errors import MediaError, UserError
from video_rs.experiment.config import Config, load_config
from video_rs.terminal import duration

if TYPE_CHECKING:
    import argparse

    from video_rs.data.sources.records import Records
    from video_rs.data.tools.encode import Settings

SETTINGS = "settings.json"
SHARD_MB = 1000
_LONGEST_NAME = 240  # bytes; while a file is written, its name is 10 longer
_LEFT_BEHIND = re.compile(r"\..+\.(mp4|csv|json|txt|tar)\.\w{8}")  # by a process that was killed, see files.py
_SAID = {"data.root", "data.train", "data.val", "data.test", "data.class_names"}  # anew, in the next commands
_NOT_IN_A_LINE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\"]")


@dataclass(frozen=True)
class Job:
    """One video: where it lies, where its copy will, relative to OUT, and its path below the root, for the comment."""

    source: str
    target: str
    name: str


@dataclass(frozen=True)
class Done:
    """What became of a job: bytes and seconds of the source and of the copy; or why there is none."""

    job: Job
    bytes: tuple[int, int] = (0, 0)
    seconds: tuple[float, float] = (0.0, 0.0)
    problem: str = ""


def main(argv: list[str]) -> int:
    """Entry point of ``tools/prepare_dataset.py`` and ``video-rs prepare``."""
    args = _parser().parse_intermixed_args(argv)
    if "://" in args.out:
        raise UserError(f"--out {args.out}: give a folder of this machine, and copy what is in it there afterwards")
    if args.shard_mb and not args.shards:
        raise UserError("--shard-mb is of no use without --shards")
    config = load_config(args.cfg, args.overrides)

    from video_rs.data.tools.encode import Settings
    from video_rs.distributed import device as runtime
    from video_rs.experiment.build import require_video_files

    settings = Settings(args.short_side, args.crf, args.gop)
    splits = _splits(config)
    for records in splits.values():
        require_video_files(records, "prepare")
    sources = list(dict.fromkeys(records.path(i) for records in splits.values() for i in range(len(records))))
    base = _base(config.data.root, sources)
    out = Path(args.out)
    _refuse_inside(out, {os.path.realpath(base), *_folders(sources)} if config.data.root else _folders(sources))
    names = splits["train"].class_names
    _require_writable(names, splits)
    jobs = _jobs(sources, base, config.data.root)
    workers = args.workers or max(1, runtime.loader_workers(config.data.workers))
    with _lock(out):
        _begin(out, settings, base)
        encoding = f"short side {settings.short_side}, crf {settings.crf}, a keyframe every {settings.gop} frames"
        print(f"{len(jobs)} videos of {base} into {out}: {encoding}; {workers} processes", flush=True)
        try:
            done = _encode_all(jobs, out, settings, workers, config.data.timeout)
            target = _write_results(out, splits, names, done, settings)
            if args.shards:
                prepare_shards.pack(out, splits, target, args.shard_mb or SHARD_MB)
        except BaseException:
            _clear(out)
            raise
    _tell(args, out, config, done)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = config_parser("prepare", __doc__)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the prepared dataset goes")
    parser.add_argument(
        "--short-side",
        type=positive,
        default=256,
        metavar="N",
        help="pixels (default: 256); smaller videos keep theirs",
    )
    parser.add_argument("--crf", type=int, default=20, metavar="N", help="quality, 0 best to 51 worst (default: 20)")
    parser.add_argument("--gop", type=positive, default=16, metavar="N", help="frames between keyframes (default: 16)")
    parser.add_argument("--shards", action="store_true", help="also pack the copies into tar files, OUT/shards")
    parser.add_argument(
        "--shard-mb", type=positive, metavar="N", help=f"most megabytes of a shard (default: {SHARD_MB})"
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: as data.workers)")
    return parser


def _splits(config: Config) -> dict[str, Records]:
    """Those that the dataset has: no validation split that stands in for a test, and none made of training files.

    But one made by the sources that a list names stays as it is made of that list.
    """
    from video_rs.experiment.build import build_own_records, build_records

    found = build_own_records(config)
    if found["val"].held_out and found["val"].sources is None:
        del found["val"]
        whole = replace(config, data=replace(config.data, val_fraction=0.0))
        found |= build_records(whole, ("train",), indexed=False)
    return found


def _base(root: str, sources: Sequence[str]) -> str:
    """The folder that paths in OUT are relative to."""
    return os.path.abspath(root or os.path.commonpath({os.path.dirname(os.path.abspath(path)) for path in sources}))


def _folders(sources: Sequence[str]) -> set[str]:
    return {os.path.realpath(folder) for folder in {os.path.dirname(path) for path in sources}}


def _refuse_inside(out: Path, folders: set[str]) -> None:
    real = Path(os.path.realpath(out))
    if inside := [folder for folder in folders if real.is_relative_to(folder)]:
        raise UserError(f"--out {out} lies in the source ({inside[0]}), which is never changed: give another folder")


def _require_writable(names: Sequence[str], splits: dict[str, Records]) -> None:
    """Raises UserError for a class name that would not come out of the lists as it went in."""
    from video_rs.data.sources.class_names import read_class_names
    from video_rs.data.sources.lists import read_list
    from video_rs.files import write_csv

    multi_label = any(records.multi_label for records in splits.values())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "list.csv"

        def comes_back(name: str) -> bool:
            try:
                file.write_text(name + "\n", encoding="utf-8")
                as_name = read_class_names(str(file))
                write_csv(file, ("path", "label"), [("videos/a.mp4", name)])
                labels = [entry[1] for entry in read_list(str(file), folder, multi_label)]
            except (UserError, UnicodeEncodeError):
                return False
            return as_name == (name,) and labels == [name] and not (multi_label and ";" in name)

        for name in names:
            if not name.isdecimal() and not comes_back(name):
                raise UserError(f"the class name {name!r} cannot be written into a list: give it another name")


def _jobs(sources: Sequence[str], base: str, root: str) -> list[Job]:
    """One per file; copies have the names of their sources, on which splits go by, in folders that keep them apart."""
    outside = [path for path in map(os.path.abspath, sources) if not _is_below(path, base)]
    common = os.path.commonpath([os.path.dirname(path) for path in outside]) if outside else ""
    jobs, taken = [], set()
    for source in sorted(sources):
        path = os.path.abspath(source)
        relative = os.path.relpath(path, base if _is_below(path, base) else common)
        name = _NOT_IN_A_LINE.sub("_", os.path.splitext(relative)[0]) + ".mp4"
        target, number = f"videos/{name}", 1
        while target in taken:
            number += 1
            target = f"videos_{number}/{name}"
        taken.add(target)
        jobs.append(Job(source, target, relative if _is_below(path, base) else path))
    return jobs


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


def _lock(out: Path) -> ExitStack:
    """Make the folder, and keep other commands out until the result is closed. Raise UserError."""
    from video_rs.files import locked

    held = ExitStack()
    try:
        held.enter_context(locked(out))
    except BlockingIOError:
        raise UserError(f"--out {out} is being written by another command: wait for it, or end it") from None
    except OSError as error:
        raise UserError(f"--out {out} cannot be made or written ({error.strerror}): give another folder") from None
    return held


def _begin(out: Path, settings: Settings, base: str) -> None:
    """Looks at what is there already."""
    from video_rs.files import LOCK, write_json

    wanted, file = {**asdict(settings), "source": base}, out / SETTINGS
    if file.exists():
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            there = {}
        for key, value in wanted.items():
            if there.get(key) != value:
                raise UserError(
                    f"--out {out} was begun with {key} {there.get(key)}, not {value}: use that, or another folder"
                )
    elif not all(_LEFT_BEHIND.fullmatch(entry.name) or entry.name == LOCK for entry in out.iterdir()):
        raise UserError(f"--out {out} is not empty and was not made by this command: give another folder")
    else:
        write_json(file, wanted)
    _clear(out)


def _clear(out: Path) -> None:
    """Of what processes that were killed have left half written."""
    for folder in (out, *out.glob("videos*"), out / prepare_shards.FOLDER):
        for place, folders, names in os.walk(folder):
            if folder == out:
                folders.clear()
            for name in filter(_LEFT_BEHIND.fullmatch, names):
                os.unlink(os.path.join(place, name))


def _encode_all(jobs: Sequence[Job], out: Path, settings: Settings, workers: int, timeout: float) -> list[Done]:
    """In the order of the jobs."""
    from video_rs.data.tools.pool import Lost, watched_calls

    done: dict[Job, Done] = {}
    lost = False
    count, encode = counter(len(jobs), "prepare", "videos"), partial(_encode, str(out), settings)
    with closing(watched_calls(encode, jobs, min(workers, len(jobs)), timeout)) as results:
        for job, result in results:
            done[job] = Done(job, problem=result.reason) if isinstance(result, Lost) else result
            lost |= isinstance(result, Lost)
            count(1)
    if lost:
        _clear(out)
    return [done[job] for job in jobs]


def _encode(out: str, settings: Settings, job: Job, beat: Callable[[], None]) -> Done:
    """Re-encodes one video where there is no copy of it yet; a copy's comment says of which file it is one, for names
    may go to other files once the dataset has grown, and files may change."""
    from video_rs.data.tools.encode import encode_video, header
    from video_rs.data.video.media import require_file

    target = os.path.join(out, job.target)
    if len(os.fsencode(os.path.basename(target))) > _LONGEST_NAME:
        return Done(job, problem="its name is too long: shorten it")
    try:
        require_file(job.source)
        size = os.path.getsize(job.source)
        seconds, comment, wanted = 0.0, None, f"{size} bytes: {job.name}"
        if os.path.exists(target):
            with suppress(MediaError):
                seconds, comment = header(target)
        if comment != wanted:
            encode_video(job.source, target, settings, wanted, beat)
            seconds, _ = header(target)
        return Done(job, (size, os.path.getsize(target)), (header(job.source)[0], seconds))
    except MediaError as error:
        return Done(job, problem=str(error).removeprefix(f"{job.source}: "))


def _write_results(
    out: Path, splits: dict[str, Records], names: Sequence[str], done: Sequence[Done], settings: Settings
) -> dict[str, str]:
    """Returns where the copy of each source is, of those that have one."""
    from video_rs.files import atomic_write, write_csv, write_json

    target = {result.job.source: result.job.target for result in done if not result.problem}
    if not target:
        raise UserError(f"none of the {len(done)} videos could be re-encoded; the first: {_reason(done[0])}")
    for split in ("train", "val", "test"):
        if split not in splits:
            (out / f"{split}.csv").unlink(missing_ok=True)
            continue
        records = splits[split]
        named = records.sources is not None  # by a number, which tells them apart
        rows = []
        for i in range(len(records)):
            if (path := records.path(i)) in target:
                source = [f"{records.sources[i]:016x}"] if named else []
                rows.append((target[path], ";".join(records.label_names(i)), *source))
        write_csv(out / f"{split}.csv", ("path", "label", "source") if named else ("path", "label"), rows)
    with atomic_write(out / "class_names.txt", "w") as handle:
        handle.writelines(f"{name}\n" for name in names)
    failed = ((result.job.source, result.problem) for result in done if result.problem)
    write_csv(out / "failed.csv", ("path", "reason"), failed)
    write_json(out / "summary.json", {**_summary(done), "settings": asdict(settings)})
    return target


def _summary(done: Sequence[Done]) -> dict[str, Any]:
    return {
        "files": sum(not result.problem for result in done),
        "failed": sum(bool(result.problem) for result in done),
        "bytes_before": sum(result.bytes[0] for result in done),
        "bytes_after": sum(result.bytes[1] for result in done),
        "seconds_before": round(sum(result.seconds[0] for result in done), 3),
        "seconds_after": round(sum(result.seconds[1] for result in done), 3),
    }


def _reason(result: Done) -> str:
    return f"{result.job.source}: {result.problem}"


def _tell(args: argparse.Namespace, out: Path, config: Config, done: Sequence[Done]) -> None:
    summary, failed = _summary(done), [result for result in done if result.problem]
    before, after = (size_text(summary[f"bytes_{when}"]) for when in ("before", "after"))
    print(f"{summary['files']} videos, {duration(summary['seconds_after'])}: {before} before, {after} after")
    if failed:
        print(f"{len(failed)} could not be re-encoded, see {out / 'failed.csv'}; the first: {_reason(failed[0])}")
    kept = [each for each in args.overrides if each.partition("=")[0] not in _SAID]
    root = out / prepare_shards.FOLDER if args.shards else out
    overrides = [f"data.root={root}", f"data.class_names={root / 'class_names.txt'}"]
    for key in ("train", "val", "test"):  # what the config itself names would come first
        if getattr(config.data, key):
            file = root / f"{key}.csv"
            overrides.append(f"data.{key}={file if file.exists() else ''}")
    for step in filter(SCRIPTS.__contains__, ("check", "train")):
        print(f"{step}: {command(step, '--cfg', args.cfg, *kept, *overrides)}")
