"""Re-encode the videos of a dataset for fast training.

The prepared dataset is a folder with the copies (``videos/``), a list per split (``train.csv``, ...),
``class_names.txt``, ``failed.csv`` and ``summary.json``. The source is never changed. An interrupted job resumes:
existing copies are kept.
"""

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from video_rs.data.sources.dataset_index import file_version
from video_rs.data.sources.lists import read_list
from video_rs.data.sources.lookalikes import folded
from video_rs.data.sources.names_file import names_text, read_class_names
from video_rs.data.sources.records import Records
from video_rs.data.storage import file_size
from video_rs.data.tools.encode import Settings, encode_video, read_header
from video_rs.data.tools.pool import Beat, Lost, Progress, no_progress, watched_calls
from video_rs.data.video.media import require_file
from video_rs.errors import MediaError, StorageError, UserError
from video_rs.files import LOCK, atomic_write, locked, read_settings, refuse_links, write_csv, write_json

SETTINGS = "settings.json"
_LONGEST_NAME = 240  # bytes; the name of the temporary file is 10 bytes longer
_TEMPORARY = re.compile(r"\..+\.(mp4|csv|json|txt|tar)\.\w{8}")  # see files.atomic_write
_NOT_IN_A_LINE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\"]")


@dataclass(frozen=True)
class Job:
    """One video to re-encode.

    Attributes:
        source: path of the video.
        target: path of the copy, relative to the prepared dataset.
        name: path of the source relative to the dataset, which is written to the comment of the copy.
    """

    source: str
    target: str
    name: str


@dataclass(frozen=True)
class Prepared:
    """The result of a job.

    Attributes:
        bytes_before, seconds_before: size and duration of the source.
        bytes_after, seconds_after: size and duration of the copy.
        problem: the reason why there is no copy, or "".
    """

    job: Job
    bytes_before: int = 0
    bytes_after: int = 0
    seconds_before: float = 0.0
    seconds_after: float = 0.0
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.job.source}: {self.problem or self.job.target}"


def prepare_dataset(
    splits: Mapping[str, Records],
    out: str | Path,
    settings: Settings | None = None,
    *,
    root: str = "",
    workers: int = 1,
    timeout: float = 0.0,
    pack: Callable[[Mapping[str, str]], None] | None = None,
    progress: Progress = no_progress,
) -> list[Prepared]:
    """Re-encode all videos of a dataset.

    Args:
        splits: records of video files, by name of the split; "train" is required.
        out: folder to write to.
        settings: settings of the encoder (default: ``Settings()``).
        root: folder of the dataset that names of copies are relative to (default: the common folder of all files).
        workers: number of processes.
        timeout: seconds without progress after which a file is skipped; 0 for no limit.
        pack: called after the lists are written, with the path of each copy relative to `out`, by source.
        progress: called with the results and their number; returns an iterator that displays the progress.

    Returns:
        One result per file. Unreadable files are also listed in ``failed.csv``.

    Raises:
        UserError: `out` contains other files, is inside the source or is in use; or no file could be re-encoded.
        MachineError: the disk is full, or the storage fails.
    """
    out, settings = Path(out), settings or Settings()
    sources = list(dict.fromkeys(records.path(i) for records in splits.values() for i in range(len(records))))
    folders = {os.path.realpath(folder) for folder in {os.path.dirname(path) for path in sources}}
    base = os.path.abspath(root or os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in sources]))
    folders |= {os.path.realpath(root)} if root else set()
    if inside := next(filter(Path(os.path.realpath(out)).is_relative_to, folders), ""):
        raise UserError(f"--out {out} lies in the source ({inside}), which is never changed; give another folder")
    _check_class_names(splits)
    jobs = _plan_jobs(sources, base)
    refuse_links(out, out / "shards", *{(out / job.target).parent for job in jobs})
    with ExitStack() as stack:
        _reserve(stack, out, {**asdict(settings), "source": base})
        made: dict[Job, Prepared] = {}
        encode = partial(_encode, str(out), settings)
        with closing(watched_calls(encode, jobs, min(workers, len(jobs)), timeout)) as calls:
            for job, result in progress(calls, len(jobs)):
                if isinstance(result, MediaError | StorageError):
                    result = Prepared(job, problem=_fault(result, job, splits))
                made[job] = Prepared(job, problem=result.reason) if isinstance(result, Lost) else result
        if not (out / SETTINGS).exists():
            raise UserError(f"--out {out} was deleted while the videos were written; run the command again")
        results = [made[job] for job in jobs]
        copies = {result.job.source: result.job.target for result in results if not result.problem}
        if not copies:
            raise UserError(f"none of the {len(results)} videos could be re-encoded; the first: {results[0]}")
        _write_lists(out, splits, copies)
        failed = ((result.job.source, result.problem) for result in results if result.problem)
        write_csv(out / "failed.csv", ("path", "reason"), failed)
        write_json(out / "summary.json", {**summarize(results), "settings": asdict(settings)})
        if pack:
            pack(copies)
    return results


def summarize(results: Sequence[Prepared]) -> dict[str, Any]:
    """Return the numbers of files, bytes and seconds before and after, as in ``summary.json``."""
    failed = sum(bool(result.problem) for result in results)
    names = ("bytes_before", "bytes_after", "seconds_before", "seconds_after")
    totals = {name: round(sum(getattr(result, name) for result in results), 3) for name in names}
    return {"files": len(results) - failed, "failed": failed, **totals}


def _check_class_names(splits: Mapping[str, Records]) -> None:
    """Raise UserError for a class name that ``class_names.txt`` or a list would not preserve."""
    multi_label = any(records.multi_label for records in splits.values())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "list.csv"
        for name in splits["train"].class_names:
            if name.isdecimal():
                continue
            try:
                file.write_text(name + "\n", encoding="utf-8")
                found = [*read_class_names(str(file), plain=True)]
                write_csv(file, ("path", "label"), [("videos/a.mp4", name)], escape=False)
                found += [entry.label for entry in read_list(str(file), folder, multi_label)]
            except (UserError, UnicodeEncodeError):
                found = []
            if found != [name, name] or (multi_label and ";" in name):
                raise UserError(f"the class name {name!r} cannot be written to a list; rename the class")


def _plan_jobs(sources: Sequence[str], base: str) -> list[Job]:
    """Return one job per file.

    Copies keep the names of the sources. Sources with equal names, if only on some file systems, get copies in
    separate folders.
    """
    outside = [path for path in map(os.path.abspath, sources) if not _is_below(path, base)]
    common = os.path.commonpath([os.path.dirname(path) for path in outside]) if outside else ""
    jobs, taken = [], set()
    for source in sorted(sources):
        path = os.path.abspath(source)
        relative = os.path.relpath(path, base if _is_below(path, base) else common)
        name = _NOT_IN_A_LINE.sub("_", os.path.splitext(relative)[0]) + ".mp4"
        target, number = f"videos/{name}", 1
        while folded(target) in taken:
            number += 1
            target = f"videos_{number}/{name}"
        taken.add(folded(target))
        jobs.append(Job(source, target, relative if _is_below(path, base) else path))
    return jobs


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


def _reserve(stack: ExitStack, out: Path, wanted: Mapping[str, Any]) -> None:
    """Make the folder and hold it for this process until the stack closes, which removes temporary files.

    Raises:
        UserError: the folder cannot be written, is in use, or was made with other settings than those `wanted`.
    """
    try:
        stack.enter_context(locked(out))
    except BlockingIOError:
        raise UserError(f"--out {out} is being written by another command; wait for it or end it") from None
    except OSError as error:
        raise UserError(f"--out {out} cannot be made or written ({error.strerror}); give another folder") from None
    if not read_settings(out / SETTINGS, wanted, lambda name: name == LOCK or bool(_TEMPORARY.fullmatch(name))):
        write_json(out / SETTINGS, wanted)
    stack.callback(_remove_temporary, out)


def _remove_temporary(out: Path) -> None:
    """Remove the temporary files of processes that were killed."""
    for file in out.rglob(".*"):
        if _TEMPORARY.fullmatch(file.name) and file.is_file():
            file.unlink()


def _fault(error: MediaError | StorageError, job: Job, splits: Mapping[str, Records]) -> str:
    """Return the reason why a source cannot be read. Raise ``MachineError`` if the storage has failed."""
    for records in splits.values():
        for index in range(len(records)):
            if records.path(index) == job.source == getattr(error, "path", job.source):
                return records.fault(error, index)
    raise error  # the copy cannot be read


def _encode(out: str, settings: Settings, job: Job, beat: Beat) -> Prepared:
    """Re-encode one video unless its copy exists.

    The comment of a copy identifies its source, because a file can change or be replaced by another file of that name.
    """
    target = os.path.join(out, job.target)
    if len(os.fsencode(os.path.basename(target))) > _LONGEST_NAME:
        raise MediaError("its name is too long; shorten it")
    require_file(job.source)
    size = file_size(job.source)
    seconds, comment, wanted = 0.0, None, f"{size} bytes: {job.name}"
    if os.path.exists(target):
        with suppress(MediaError):
            seconds, comment = read_header(target)
    if comment != wanted:
        version = file_version(job.source)
        encode_video(job.source, target, settings, wanted, beat)
        if file_version(job.source) != version:
            os.unlink(target)
            raise MediaError("it was changed or deleted while it was read; run the command again")
        seconds, _ = read_header(target)
    return Prepared(job, size, os.path.getsize(target), read_header(job.source)[0], seconds)


def _write_lists(out: Path, splits: Mapping[str, Records], copies: Mapping[str, str]) -> None:
    """Write the lists of the splits and the class names. Delete the list of a split that no longer exists."""
    for split in ("train", "val", "test"):
        file, records = out / f"{split}.csv", splits.get(split)
        if records is None:
            file.unlink(missing_ok=True)
            continue
        header = ["path", "label", *(["source"] if records.sources is not None else ())]
        header += ["start", "end"] if records.segments is not None else []
        rows = []
        for i in range(len(records)):
            if (path := records.path(i)) in copies:
                source = () if records.sources is None else (f"{records.sources[i]:016x}",)
                segment = () if records.segments is None else records.segments[i].tolist()
                rows.append((copies[path], ";".join(records.label_names(i)), *source, *segment))
        write_csv(file, header, rows, escape=False)
    with atomic_write(out / "class_names.txt", "w") as handle:
        handle.write(names_text(splits["train"].class_names))
