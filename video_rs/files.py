"""Atomic writes, folder locks, and conversion to JSON values."""

import csv
import errno
import json
import math
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from video_rs.errors import PATH_ERRNOS, MachineError, UserError, file_error, format_value, printable
from video_rs.terminal import warn_once

LOCK = ".lock"
_UNSUPPORTED = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Error numbers of file systems without locks or fsync."""
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")  # and their full-width forms
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)


def expand_path(path: str | Path, name: str = "") -> str:
    """Return a path with ``~``, ``~user``, ``$NAME`` and ``${NAME}`` expanded, or unchanged if it exists as written.

    Args:
        path: a path or URL, as given.
        name: its option, for messages.

    Raises:
        UserError: there is no such variable or user.
    """
    path = os.fspath(path)
    if not (path.startswith("~") or "$" in path) or os.path.lexists(path):
        return path
    place = f"{name}={path}" if name else path
    for match in _VARIABLE.finditer(path):
        if (match[1] or match[2]) not in os.environ:
            raise UserError(f"{place}: the environment variable {match[1] or match[2]} is not set; set it")
    expanded = _VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], os.path.expanduser(path))
    if expanded.startswith("~"):
        raise UserError(f"{place}: no home folder of {expanded.split('/')[0]}; write the full path, or ./{expanded}")
    return expanded


@contextmanager
def locked(folder: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Create a folder and lock it for this process.

    The system releases the lock when this process exits for any reason, even if forked processes continue. On a file
    system without locks, print a warning and continue.

    Args:
        folder: contains a file ``.lock`` while it is locked.
        wait: wait until another process releases the lock.

    Raises:
        BlockingIOError: another process holds the lock, and ``wait`` is False.
        OSError: the folder cannot be created or written.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / LOCK).is_symlink():
        (folder / LOCK).unlink(missing_ok=True)
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(folder)) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warn_once(f"{folder}: no locks on this file system; start one process at a time")
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # before the release; afterwards the file may belong to another process
                (folder / LOCK).unlink()
        lock.release()


def check_writable(path: str | Path) -> None:
    """Raise UserError or MachineError if no file can be written in the folder of a path. Make the folder."""
    folder = Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise file_error(f"{path} cannot be written: {error.strerror}; give another path", error) from None


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb"):
    """Open a file that replaces ``path`` when the block succeeds: temporary file, fsync, rename.

    Permissions follow the umask of the process.

    Raises:
        UserError: the path is invalid.
        MachineError: the disk is full or read-only. An existing file at ``path`` is unchanged.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode.replace("w", "x"), **text) as handle:
            yield handle
            handle.flush()
            _sync(handle.fileno())
        temporary.replace(path)
        with suppress(PermissionError):  # the folder can be written but not listed
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                _sync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        if error.errno in PATH_ERRNOS:
            raise UserError(f"{path} cannot be written: {error.strerror}; give another path") from None
        raise MachineError(
            f"{path} cannot be written: {error.strerror or error}; an existing file is unchanged. Free some space"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def refuse_links(base: str | Path, *paths: str | Path) -> None:
    """Raise UserError if a folder that a command creates is a link, through which it would write elsewhere.

    Args:
        base: a folder, which can be a link itself.
        paths: folders in `base`. The folders between `base` and these are also checked.
    """
    for path in map(Path, paths):
        for folder in (path, *path.parents):
            if folder == Path(base):
                break
            if folder.is_symlink():
                raise UserError(f"{folder}: is a link, which is not followed; remove it or use another folder")


def open_append(path: Path) -> TextIO:
    """Open a text file to append lines. A link is replaced by a file first, because its target must not change."""
    if path.is_symlink():
        path.unlink()
    elif path.is_file() and path.stat().st_nlink > 1:
        content = path.read_bytes()
        with atomic_write(path) as handle:
            handle.write(content)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    return open(descriptor, "a", encoding="utf-8", errors="backslashreplace", buffering=1)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def stamp(path: str) -> tuple[int, int]:
    """Return size and modification time (ns) of a file, to detect changes; zeros if they are unknown.

    For a folder, the files in it are included. For a path that does not exist, such as a member of a tar, the nearest
    existing parent is used.
    """
    if "://" in path:
        return 0, 0
    try:
        files = list(os.scandir(path)) if os.path.isdir(path) else []
        while not os.path.exists(path) and path != os.path.dirname(path):
            path = os.path.dirname(path)
        infos = [os.stat(path or "."), *(file.stat() for file in files)]
    except OSError:
        return 0, 0
    return sum(info.st_size for info in infos), max(info.st_mtime_ns for info in infos)


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write plain values to a JSON file atomically."""
    with atomic_write(path, "w") as handle:
        handle.write(json.dumps(values, indent=1) + "\n")


def parse_json(text: str, **options: Any) -> Any:
    """Return the value of a JSON text. Raise ValueError if it is damaged, too deep, or has a very long number."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError:
        raise ValueError("a number is too long") from None


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raise ValueError if the file is damaged or holds another value."""
    values = parse_json(Path(path).read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values


def read_settings(
    file: Path,
    wanted: Mapping[str, Any],
    is_known: Callable[[str], bool] = lambda name: False,
    instead: str = "give another folder",
) -> dict[str, Any]:
    """Return the settings with which a command made a folder; empty for a new or an empty folder.

    Args:
        file: file of the settings in the folder.
        wanted: settings that must be the same.
        is_known: returns True for the name of a file that can be in a folder without settings.
        instead: what to do other than to delete a folder with other settings.

    Raises:
        UserError: the folder has other files or was made with other settings, or the file is damaged.
    """
    folder = file.parent
    try:
        found = read_json(file)
    except NotADirectoryError:
        raise UserError(f"{folder} is not a folder; give another one") from None
    except FileNotFoundError:
        if folder.is_dir() and not all(is_known(entry.name) for entry in folder.iterdir()):
            raise UserError(f"{folder} is not empty and was not made by this command; give another folder") from None
        return {}
    except ValueError:
        raise UserError(f"{file} is damaged; delete the folder, or give another one") from None
    for key, value in wanted.items():
        if found.get(key) != value:
            pair = f"{key} {format_value(found.get(key))}, not {format_value(value)}"
            raise UserError(f"{folder} was made with {pair}; delete it, or {instead}")
    return found


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]], *, escape: bool = True) -> None:
    """Write a table to a CSV file atomically.

    Args:
        escape: apply :func:`safe_cell`; False for a file that this package reads.
    """
    with atomic_write(path, "w") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(map(safe_cell, row) if escape else row for row in rows)


def safe_cell(value: Any) -> Any:
    """Return a value for a cell of a table that may be opened in a spreadsheet or on a terminal.

    A text that a spreadsheet would evaluate as a formula is preceded by an apostrophe. Control characters are escaped.
    Numbers are unchanged, also as text.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def read_run_metrics(path: Path, errors: str = "replace") -> Iterator[dict[str, Any]]:
    """Yield the lines of a run's ``metrics.jsonl``: ``kind`` (train or val), ``step`` and others; non-finite ones None.

    Other lines are skipped, such as an unfinished one of a killed process. ``errors``: see :func:`open`.
    """
    for line in path.read_text(encoding="utf-8", errors=errors).splitlines():
        with suppress(ValueError, TypeError, KeyError):
            values = parse_json(line, parse_constant=lambda name: None)
            if values["kind"] in ("train", "val") and isinstance(values["step"], int) and values["step"] < 1e15:
                yield values


def json_values(value: Any) -> Any:
    """Convert to JSON values: tensors and arrays to lists or numbers, and non-finite numbers to None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: json_values(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
