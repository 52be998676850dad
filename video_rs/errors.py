"""The errors a person can mend, and the exit codes that go with them.

Raise one of these for whatever a user, a file or a machine can get wrong. The message is one line that names the thing
and says what to do. Anything else that is raised is a bug in this package and keeps its traceback.
"""

import errno
import re
from collections.abc import Sequence

PATH_ERRNOS = frozenset(
    {errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
    | {errno.ENOENT, errno.ENOTDIR, errno.EPERM}
)
"""Error numbers of the system for a wrong path: the person can mend it."""
STORAGE_ERRNOS = frozenset(
    {errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT}
)
"""Error numbers of a disk that is full or fails, or of storage that does not answer."""
LIMIT_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Error numbers of too many open files and too little memory."""


_OUT_OF_MEMORY = re.compile(  # torch's, then those of cuBLAS and cuDNN, XLA, and oneDNN
    "can't allocate memory|out of memory|bad_alloc|_STATUS_ALLOC_FAILED|RESOURCE_EXHAUSTED|"
    "attempting to (reserve|allocate)|could not create a primitive$",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error of Python or torch reports that the host or the device is out of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def first_line(error: BaseException, limit: int = 200, *, prefix: str = "") -> str:
    """Return the first line of an error's message, or the name of its class where there is none.

    Args:
        error: of any library; of an ``OSError`` it is the system's reason, without number and file.
        limit: most characters.
        prefix: left out at the beginning, such as the name of the file.
    """
    text = str(getattr(error, "strerror", None) or error).removeprefix(prefix).strip()
    return (text or type(error).__name__).splitlines()[0].rstrip(". ")[:limit]


def truncate(names: Sequence[str], limit: int = 4) -> str:
    """Return the first names of a list, separated by commas, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


class VideoRSError(Exception):
    """Base of the errors that end a command with one line instead of a traceback.

    Attributes:
        is_shared: whether all processes of the run know of it.
    """

    exit_code = 2
    is_shared = False


class UserError(VideoRSError):
    """Something the person can mend: a key, a path, a file, a label, a checkpoint, a device."""


class ConfigError(UserError):
    """A config file or an override that does not fit the schema."""


class MediaError(UserError):
    """One video or image that cannot be read. ``str(error)`` names the file and the reason."""


class MachineError(VideoRSError):
    """The environment is at fault: a full disk, a broken driver, too little memory."""

    exit_code = 3


class PeersLost(MachineError):
    """Other processes of the run are gone, or silent for too long: there is nobody left to agree with."""


class Preempted(VideoRSError):
    """The run was asked to leave (SIGTERM) and has saved its state: please requeue it."""

    exit_code = 75


class StuckWorker(VideoRSError):
    """A loader worker hangs in a file, or all workers stand still: start again, without the file if there is one.

    Attributes:
        index, path: of the record; -1 and "" where no worker is in a file.
        seconds: since it was opened.
        timeout: that is data.timeout.
    """

    exit_code = 75

    def __init__(self, index: int, path: str, seconds: float, timeout: float) -> None:
        what = f"{path} has kept a loader worker busy" if path else "the loader workers have stood still"
        super().__init__(
            f"{what} for {seconds:.0f} s, more than data.timeout={timeout:g}: start again, or raise data.timeout if "
            "the storage is that slow"
        )
        self.index, self.path, self.seconds, self.timeout = index, path, seconds, timeout


class PeerFailed(VideoRSError):
    """Another process of the run failed, and says why; this one has nothing to add.

    Attributes:
        rank: of the other process.
    """

    def __init__(self, rank: int, message: str, exit_code: int) -> None:
        super().__init__(f"rank {rank}: {message}")
        self.rank, self.exit_code = rank, exit_code
