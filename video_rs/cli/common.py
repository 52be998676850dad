"""What all commands share: config arguments, progress on a terminal, errors as one line with an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from video_rs import config
from video_rs.errors import VideoRSError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_PATH = {errno.EACCES, errno.EPERM, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG}
_MEMORY = "lower train.micro_batch (test.batch_size, when testing) or data.workers"
_MACHINE = {  # what torch says when the machine is at fault, and what to do; its own classes would need it imported
    "OutOfMemoryError": f"the device is out of memory; {_MEMORY}",
    "MemoryError": f"out of memory; {_MEMORY}",
    "can't allocate memory": f"out of memory; {_MEMORY}",
    "exited unexpectedly": f"a loader process died, perhaps for want of memory; {_MEMORY}",
    "is killed by signal": f"a loader process was killed, perhaps for want of memory; {_MEMORY}",
    "CUDA error": "the GPU or its driver failed (see nvidia-smi and the system log); start again to go on",
}
T = TypeVar("T")


def config_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with ``--cfg`` and ``key=value`` overrides, whose ``--help`` lists every key of the schema."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"keys (type, default, meaning), given as key=value:\n{config.describe()}",
        allow_abbrev=False,
    )
    parser.add_argument("--cfg", required=True, metavar="FILE", help="a YAML file, or the name of one in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. optim.lr=0.1 data.root=/data")
    return parser


def progress(items: Iterable[T], *, total: int | None = None, desc: str = "", unit: str = "it") -> Iterator[T]:
    """The items, with a progress bar on a terminal and a line at every tenth where output goes to a file."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=desc, unit=unit, dynamic_ncols=True)
        return
    tenth = max(1, (total or 0) // 10)
    for done, item in enumerate(items, 1):
        yield item
        if total and (done % tenth == 0 or done == total):
            print(f"{desc}: {done}/{total} {unit}", flush=True)


def command(name: str, *arguments: str) -> str:
    """The shell command of another step, called as this one was: as a script in ``tools/`` or as ``video-rs name``."""
    scripts = {"train": "train_net.py", "test": "test_net.py", "predict": "predict.py"}
    program = Path(sys.argv[0])
    if program.suffix == ".py":
        return shlex.join([str(program.with_name(scripts[name])), *arguments])
    return shlex.join(["video-rs", name, *arguments])


def run(main: Callable[[list[str]], Any], argv: Sequence[str]) -> int:
    """Runs a command's ``main`` and returns its exit code.

    What a person can mend (VideoRSError) becomes one line on stderr and the error's exit code, a full disk or a device
    out of memory 3, Ctrl-C 130. Anything else is a bug and keeps its traceback.
    """
    try:
        code = main(list(argv))
        sys.stdout.flush()
        return code or 0
    except VideoRSError as error:
        return _fail(" ".join(str(error).split()), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "video_rs":
            raise
        return _fail(f"the package {error.name} is missing in {sys.executable}; install it there with pip", 3)
    except BrokenPipeError:  # the reader of our output has left, as in `... | head`
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 0
    except OSError as error:
        if error.errno not in _DISK | _PATH:
            raise
        return _fail(f"{error.filename or 'a file'}: {error.strerror}", 3 if error.errno in _DISK else 2)
    except (MemoryError, RuntimeError) as error:
        advice = next((advice for sign, advice in _MACHINE.items() if sign in f"{type(error).__name__}: {error}"), "")
        if not advice:
            raise
        return _fail(advice, 3)


def _fail(message: str, code: int) -> int:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code
