"""Errors caused by users, files and machines, with exit codes.

The message is one line: ``<thing>: <what is wrong>; <what to do>``. Any other exception is a bug in this package and
keeps its traceback.
"""

import contextlib
import difflib
import errno
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

EXIT_USER, EXIT_MACHINE, EXIT_REQUEUE, EXIT_INTERRUPTED = 2, 3, 75, 130
"""Exit codes: correct the input; repair the environment; start again, which can help; Ctrl-C."""
PATH_ERRNOS = frozenset(
    {errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
    | {errno.ENOENT, errno.ENOTDIR, errno.EPERM}
)
"""Error numbers for a wrong path, which the user can correct."""
STORAGE_ERRNOS = frozenset(
    {errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT}
    | {errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET}
    | {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ESHUTDOWN}
)
"""Error numbers for a full or failing disk, or storage that does not respond."""
LIMIT_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Error numbers for too many open files and too little memory."""

OUT_OF_MEMORY = "out of memory: lower data.workers or train.micro_batch (test.batch_size for a test)"
SHARED_MEMORY = "/dev/shm is full: raise its size (docker run --shm-size=8g), or lower data.workers"
_RESOURCES = {  # pattern in errors of torch and the operating system: message; the first match counts
    "too many open files|items of ancillary data": "too many open files: raise `ulimit -n`, or lower data.workers",
    "AF_UNIX path too long": "the path of TMPDIR is too long for a socket: set TMPDIR=/tmp, or data.workers=0",
    "start new thread|resource temporarily unavailable": "no more processes or threads can be started: raise "
    "`ulimit -u` or the limit of the container (docker run --pids-limit), or lower data.workers and train.threads",
    "cannot allocate memory": OUT_OF_MEMORY,
    "(shared memory|unable to open file).*(no such file|not implemented|read-only|denied)": "/dev/shm is missing or "
    "cannot be written: mount it (docker run --shm-size=8g), or set data.workers=0",
    "file too large": "the limit of file sizes is too low for batches: raise `ulimit -f`, or set data.workers=0",
    "shared memory|unable to (mmap|resize|write)|no space left on device": SHARED_MEMORY,
}
RESOURCES = tuple(_RESOURCES.values())
"""All results of :func:`missing_resource`."""

NO_SUCH_FILE = "no such file"
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_OUT_OF_MEMORY = re.compile(  # torch's, then those of cuBLAS and cuDNN, XLA, oneDNN, and the loader of libraries
    "can't allocate memory|out of memory|bad_alloc|_STATUS_ALLOC_FAILED|RESOURCE_EXHAUSTED|"
    "attempting to (reserve|allocate)|could not create a primitive$|failed to map segment",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error of Python or torch means that the host or the device is out of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return True
    return isinstance(error, RuntimeError | ImportError) and bool(_OUT_OF_MEMORY.search(str(error)))


def missing_resource(error: BaseException) -> str:
    """Return a message that names the missing resource of the machine and what to do; "" for other errors.

    A full disk is reported as full shared memory. A restart without changes does not help.
    """
    if isinstance(error, VideoRSError):
        return ""
    text = first_line(error) if isinstance(error, OSError | RuntimeError) else ""
    text = "cannot allocate memory" if is_out_of_memory(error) else text
    return next((found for pattern, found in _RESOURCES.items() if re.search(pattern, text, re.IGNORECASE)), "")


def first_line(error: BaseException, limit: int = 200, *, prefix: str = "") -> str:
    """Return the first line of an error message, or the name of the class if the message is empty.

    Args:
        error: an error of any library. For an ``OSError``, the result is the reason without number and file.
        limit: maximum number of characters.
        prefix: text to remove from the beginning, such as the name of the file.
    """
    text = str(getattr(error, "strerror", None) or error).removeprefix(prefix).strip()
    return (text or type(error).__name__).splitlines()[0].rstrip(". ")[:limit]


_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother, _repr.maxlong = 3, 90, 90, 90


def format_value(value: Any) -> str:
    """Return the repr of a value for a message, on one line and with at most 100 characters."""
    try:
        text = "null" if value is None else _repr.repr(value)
    except ValueError:  # an integer of more than 4300 digits
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= 100 else f"{text[:97]}..."


def printable(text: str) -> str:
    """Return a text on one line, with escapes for control characters, invisible ones, and surrogates.

    Invisible characters are those without width, and those that change the direction of text. Joiners (U+200C, U+200D)
    and wide blanks are unchanged, because they are part of words and emoji.
    """
    return text if text.isprintable() else _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def truncate(names: Sequence[str], limit: int = 4) -> str:
    """Return the first names of a list, separated by commas, and the number of remaining ones."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the end of a message about an unknown name: the nearest known one, or ``otherwise`` if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else otherwise


class VideoRSError(Exception):
    """Base class of errors that end a command with one line instead of a traceback.

    Attributes:
        is_shared: True once all ranks have raised it.
    """

    exit_code = EXIT_USER
    is_shared = False


class UserError(VideoRSError):
    """A mistake that the user can correct: in a key, a path, a file, a label, a checkpoint, a device."""


class ConfigError(UserError):
    """A config file or an override that does not fit the schema."""


class MediaError(UserError):
    """A video or image that cannot be read. The message names the file and the reason."""


class MachineError(VideoRSError):
    """A failure of the environment: a full disk, a broken driver, too little memory."""

    exit_code = EXIT_MACHINE


class StorageError(MachineError):
    """A file cannot be opened or read, even after retries.

    Attributes:
        path: path of the file.
        reason: the reason why it cannot be read.
    """

    advice = "; check the storage"

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}{self.advice}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.path, self.reason)


class PathError(StorageError, MediaError):
    """A file does not exist, or access to it is denied.

    Either the path is wrong, or the storage has failed: see ``storage.diagnose``.
    """

    exit_code = EXIT_USER

    @property
    def is_missing(self) -> bool:
        """True if there is no such file, False if access is denied."""
        return self.reason == NO_SUCH_FILE

    @property
    def advice(self) -> str:
        return "" if self.is_missing else "; check the path and its permissions"


class PeersLost(MachineError):
    """Other ranks exited or timed out."""


class Preempted(VideoRSError):
    """The run received SIGTERM and saved a checkpoint. Requeue it."""

    exit_code = EXIT_REQUEUE


class WorkerFailed(VideoRSError):
    """A loader worker hangs or died. Restart without the files, if any are known.

    Attributes:
        files: ``{path: reason}`` of the files that it was reading.
    """

    exit_code = EXIT_REQUEUE
    files: Mapping[str, str]


class StuckWorker(WorkerFailed):
    """A loader worker hangs in a file, or all workers hang.

    Attributes:
        index, path: index and path of the record; -1 and "" if no worker has a file open.
        seconds: seconds since the file was opened.
        timeout: the value of ``data.timeout``.
    """

    def __init__(self, index: int, path: str, seconds: float, timeout: float) -> None:
        what = f"{path} has kept a loader worker busy" if path else "the loader workers have made no progress"
        super().__init__(
            f"{what} for {seconds:.0f} s, more than data.timeout={timeout:g}; restart, or raise data.timeout if "
            "the storage is slow"
        )
        self.index, self.path, self.seconds, self.timeout = index, path, seconds, timeout
        self.files = {path: "hung the decoder"} if path else {}


class DeadWorker(WorkerFailed):
    """Loader workers crashed in native code, for example with a segmentation fault, while reading files.

    Args:
        signals: ``{path: name of the signal}``.
    """

    def __init__(self, signals: Mapping[str, str]) -> None:
        names = ", ".join(sorted(set(signals.values())))
        super().__init__(f"{truncate(list(signals))}: killed a loader worker ({names}); restart to leave it out")
        self.files = {path: f"killed the decoder ({name})" for path, name in signals.items()}


class PeerFailed(VideoRSError):
    """Another rank failed and reported the error.

    Attributes:
        rank: the rank that failed.
    """

    def __init__(self, rank: int, message: str, exit_code: int) -> None:
        super().__init__(f"rank {rank}: {message}")
        self.rank, self.exit_code = rank, exit_code


def file_error(message: str, error: Exception, otherwise: type[VideoRSError] = UserError) -> VideoRSError:
    """Return the error for a file that cannot be read: MachineError if the storage or a limit is the cause."""
    is_machine = isinstance(error, OSError) and error.errno in STORAGE_ERRNOS | LIMIT_ERRNOS
    return (MachineError if is_machine else otherwise)(message)


@contextlib.contextmanager
def one_line(fault: str, kinds: Any = Exception, *, into: type[VideoRSError] = UserError) -> Iterator[None]:
    """Run a block that calls a library, and turn its errors into one line: ``fault`` and the error's first line.

    Errors of this package and those for a lack of memory are raised unchanged.

    Args:
        fault: what is wrong, without a colon at its end.
        kinds: a class of errors, or a tuple of them.
        into: the class to raise.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, VideoRSError) or is_out_of_memory(error):
            raise
        raise into(f"{fault}: {first_line(error)}") from error
