"""Helpers shared by all commands: arguments, progress, the command to run next, one-line errors and exit codes."""

import argparse
import contextlib
import math
import os
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from video_rs import errors, terminal
from video_rs.data.sources.lookalikes import resolve
from video_rs.files import expand_path
from video_rs.signals import exit_on_signals
from video_rs.terminal import Bar

COMMANDS = {  # name: script in tools/, help
    "train": ("train_net.py", "train a network from a config"),
    "status": ("run_status.py", "show the status of runs, from their folders"),
    "test": ("test_net.py", "score a checkpoint on many views of each video and write a report"),
    "predict": ("predict.py", "classify videos or images"),
    "features": ("extract_features.py", "write the features of a dataset"),
    "probe": ("probe_features.py", "measure how well features separate the classes, and write a probe as a checkpoint"),
    "explain": ("explain.py", "show where and when a network sees a class, as activation maps"),
    "show-clips": ("show_clips.py", "draw the clips that the network sees"),
    "prepare": ("prepare_dataset.py", "re-encode the videos of a dataset for fast training"),
    "check": ("check_dataset.py", "decode all files of a dataset and list broken, short, odd and duplicate ones"),
    "index": ("index_dataset.py", "index the videos of a dataset, which makes clips open faster"),
    "models": ("list_models.py", "list the networks, or print one stage by stage"),
    "inflate": ("inflate_weights.py", "turn 2D weights into a 3D checkpoint"),
    "convert": ("convert_weights.py", "convert timm's or bare weights to a checkpoint, or a checkpoint for timm"),
    "average": ("average_weights.py", "average the weights of checkpoints of one network"),
    "push": ("push_weights.py", "publish a checkpoint and its model card on the Hugging Face hub"),
    "make-motion": ("make_motion.py", "make the embedded dataset"),
}
SCRIPTS = {name: script for name, (script, _) in COMMANDS.items()}
WRITES_FILES = COMMANDS.keys() - {"status", "predict", "models"}
"""Commands whose results are files. They continue when the reader of their output exits."""
FILE_OPTIONS = {"--out", "--segments", "--timeline"}
"""Options that make the results of any command files."""
KEYS = {
    "train": "out data.root data.num_frames data.workers model.name train.init_from train.epochs train.batch_size "
    "train.micro_batch optim.lr",
    "test": "out weights data.root data.workers test.split test.clips test.crops test.batch_size test.save_views "
    "train.device",
    "average": "data.root data.train data.val data.list data.class_names data.workers data.timeout train.precise_bn "
    "train.micro_batch train.device",
    "features": "data.class_names data.decoder data.fold data.frame_folders data.max_missing data.multi_label "
    "data.retries data.timeout data.val_fraction train.threads",
}
"""The keys that ``--help`` of a command lists."""
DATA_KEYS = (
    "out data.root data.train data.val data.test data.list data.class_names data.num_frames data.decoder data.workers"
)
WEIGHTS_SUFFIXES = (".pt", ".pth", ".safetensors")
T = TypeVar("T")


def program(name: str) -> str:
    """Return the name of a command as the user called it: ``train_net.py`` or ``video-rs train``."""
    script = os.path.basename(sys.argv[0])
    return script if script in SCRIPTS.values() else f"video-rs {name}"


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors and an unwrapped description.

    Attributes:
        as_setting: ``config.as_setting`` for a command that takes settings.
        WEIGHTS: help of ``--weights``.
    """

    as_setting: Callable[[Sequence[str], Iterable[str]], str] | None = None
    WEIGHTS = "a checkpoint, a run folder, hf-hub:owner/name or https://..."

    def __init__(self, description: str | None, **options: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=layout, allow_abbrev=False, **options)

    def add_weights(self, help: str = WEIGHTS, *, old: str = "", required: bool = True) -> None:
        """Add ``--weights``. `old` is a deprecated name of the option, which ``--help`` does not list."""
        group = self.add_mutually_exclusive_group(required=required) if old else self
        group.add_argument("--weights", type=input_path, metavar="FILE", help=help, required=required and not old)
        if old:
            group.add_argument(old, dest="weights", type=input_path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self.add_plugins()

    def add_plugins(self) -> None:
        """Add ``--plugins``. A plugin is imported when the argument is parsed; none is imported from a checkpoint."""
        help = "a Python file that registers networks; may be repeated"
        self.add_argument("--plugins", action="append", metavar="FILE", type=plugin, help=help)

    def add_device(self) -> None:
        """Add ``--device``."""
        help = "auto (CUDA if there is a GPU), cpu, cuda or cuda:1 (default: %(default)s)"
        self.add_argument("--device", default="auto", help=help)

    def add_forward(self) -> None:
        """Add ``--crops``, ``--batch-size``, ``--workers`` and ``--device``."""
        help = "crops per clip (default: %(default)s)"
        self.add_argument("--crops", type=int, default=1, choices=(1, 3), help=help)
        help = "views in a forward pass; memory depends on it, results do not (default: %(default)s)"
        self.add_argument("--batch-size", type=positive, default=8, metavar="N", help=help)
        help = "processes that decode; -1 for one per core (default: %(default)s)"
        self.add_argument("--workers", type=int, default=-1, metavar="N", help=help)
        self.add_device()

    def parse_intermixed_args(self, args: Sequence[str]) -> argparse.Namespace:
        """Parse arguments in any order. After ``--``, those that begin with "-" are paths."""
        place = args.index("--") if "--" in args else len(args)
        self._check_options(args[:place])
        paths = ("./" + each if each.startswith("-") else each for each in args[place + 1 :])
        return super().parse_intermixed_args([*args[:place], *paths])

    def _check_options(self, args: Sequence[str]) -> None:
        """Raise UserError for an unknown option, with the setting or option of the most similar name."""
        options, as_setting = self._option_string_actions, self.as_setting
        for number, word in enumerate(args):
            name = word.partition("=")[0]
            if re.match(r"--?[^\W\d]", name) and name not in options:
                if as_setting and (setting := as_setting(args[number:], options)):
                    self.error(f"{name[:100]}: settings are key=value, without dashes; write {setting}")
                hint = errors.did_you_mean(name[:100], options, f"; see {self.prog} --help")
                raise errors.UserError(f"{name[:100]}: no such option{hint}")

    def error(self, message: str) -> NoReturn:
        raise errors.UserError(f"{message}; see {self.prog} --help")


def plugin(name: str) -> str:
    """Import a plugin and return its name (an argparse type)."""
    from video_rs.experiment.plugins import load_plugins

    name = input_path(name)
    load_plugins([name])
    return name


output_path = expand_path
"""An argparse type."""


def input_path(text: str) -> str:
    """Expand the path of an input. If it does not exist, return one that looks the same (an argparse type)."""
    if not text:
        raise argparse.ArgumentTypeError("a path is empty")
    return resolve(expand_path(text), "the path")


def checkpoint_path(name: str) -> str:
    """Return the path of a checkpoint to write (an argparse type)."""
    if os.path.splitext(name)[1] not in WEIGHTS_SUFFIXES:
        raise argparse.ArgumentTypeError(f"it must end in .pt, .pth or .safetensors: {name}")
    return output_path(name)


def positive(text: str) -> int:
    """Parse a positive integer (an argparse type)."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def seconds(text: str) -> float:
    """Parse ``"1s"``, ``"0.5"`` or ``"500ms"`` as seconds (an argparse type)."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s|)", text.strip())
    value = float(match[1]) * (0.001 if match[2] == "ms" else 1) if match else 0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0 such as 1s, 0.5s or 500ms")
    return value


def config_parser(name: str, description: str, *, needs_config: bool | None = True) -> Parser:
    """Return a parser with ``--cfg`` and ``key=value``. ``--help`` lists ten keys, ``--help-all`` every key.

    Args:
        needs_config: True to require ``--cfg``; None for a command without it.
    """
    from video_rs.experiment import config

    keys = config.describe(KEYS.get(name, DATA_KEYS).split())
    epilog = f"ten keys (type, default, meaning); --help-all lists every key:\n{keys}"
    parser = Parser(description, prog=program(name), epilog=epilog)
    parser.add_argument("--help-all", action="store_true", help="show this help with every key, and exit")
    parser.as_setting = config.as_setting
    if needs_config is not None:
        help = "a YAML file, a name in configs/, or a run folder"
        parser.add_argument("--cfg", required=needs_config, metavar="FILE", help=help)
    help = "settings, see below" if needs_config is None else "e.g. optim.lr=0.1 data.root=/data"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=help)
    return parser


def parse_config(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, Any]:
    """Parse the arguments of a :func:`config_parser`, and load their config."""
    from video_rs.experiment.config import load_config

    args = parse_settings(parser, argv)
    return args, load_config(args.cfg, args.overrides)


def parse_settings(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a :func:`config_parser`."""
    from video_rs.experiment import config

    if "--help-all" in argv:
        parser.epilog = f"all keys (type, default, meaning):\n{config.describe()}"
        argv = ["--help"]
    return parser.parse_intermixed_args(argv)


def counter(total: int, desc: str, unit: str) -> Callable[[int], None]:
    """Return a function that advances a progress display by a number of items.

    On a terminal it draws a progress bar. Otherwise it prints a line after every 10% of the items.
    """
    bar, done, tenth = Bar(total, desc), 0, max(1, total // 10)

    def update(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        bar.advance(count)
        if not bar.visible and (done // tenth > before // tenth or done == total):
            print(f"{desc}: {done}/{total} {unit}", flush=True)
        if done >= total:
            bar.close()

    return update


def size_text(size: float) -> str:
    """Format a size in bytes, such as ``24.3 kB``."""
    from rich.filesize import decimal

    return decimal(int(size))


def progress(items: Iterable[T], total: int | None = None, *, desc: str, unit: str) -> Iterator[T]:
    """Yield the items and show the progress with :func:`counter`."""
    count = counter(len(items) if total is None else total, desc, unit)
    for item in items:
        yield item
        count(1)


def command(name: str, *arguments: str) -> str:
    """Return the shell command of another step: a script in ``tools/`` or ``video-rs name``, like the current one.

    URLs are redacted.
    """
    from video_rs.hub import redact_url

    called, arguments = sys.argv[0], [redact_url(argument) for argument in arguments]
    if os.path.basename(called) in SCRIPTS.values():
        script = os.path.join(os.path.dirname(called) or ".", SCRIPTS[name])
        if name == "train" and "TORCHELASTIC_RUN_ID" in os.environ:
            return shlex.join(["torchrun", f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}", script, *arguments])
        found = shutil.which("python3") or ""
        # one interpreter in one folder: those of virtual environments can be links to a common one
        same_folder = os.path.dirname(os.path.abspath(found)) == os.path.dirname(os.path.abspath(sys.executable))
        is_found = same_folder and os.path.samefile(found, sys.executable)
        return shlex.join([*([] if is_found else [_short(sys.executable)]), script, *arguments])
    installed = os.path.basename(called) == "video-rs" and shutil.which("video-rs") != os.path.abspath(called)
    return shlex.join([_short(called) if installed else "video-rs", name, *arguments])


def _short(path: str) -> str:
    return min(path, os.path.relpath(path), key=len)


def run(main: Callable[[list[str]], Any], argv: Sequence[str]) -> int:
    """Run a command's ``main`` and return its exit code.

    A ``VideoRSError`` prints one line on stderr and returns its exit code. A full disk or a lack of memory returns 3,
    Ctrl-C 130. Any other exception is a bug and keeps its traceback.
    """
    writes_files = WRITES_FILES & {*argv[:1]} or FILE_OPTIONS & {word.partition("=")[0] for word in argv}
    with terminal.standard_streams(needs_stdout=not writes_files):
        return _run(main, argv)


def _run(main: Callable[[list[str]], Any], argv: Sequence[str]) -> int:
    try:
        with exit_on_signals(), _hide_disk_errors_of_threads(), terminal.closing_bars():
            code = main(list(argv))
        sys.stdout.flush()
        return code or 0
    except errors.VideoRSError as error:
        first = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
        if isinstance(error, errors.PeerFailed) or (isinstance(error, errors.ConfigError) and not first):
            return error.exit_code  # reported by the rank that failed, or by the first rank on this machine
        return _fail(" ".join(str(error).split()), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", errors.EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "video_rs":
            raise
        advice = "use the Python of the environment that has it, or install it with pip"
        missing = f"the package {error.name} is missing" if error.name else errors.first_line(error)
        return _fail(f"{missing} in {sys.executable}; {advice}")
    except BrokenPipeError:  # the reader of the output exited, as in `... | head`
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 0
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        number = getattr(error, "errno", None)
        if number in errors.PATH_ERRNOS | errors.STORAGE_ERRNOS:
            code = errors.EXIT_USER if number in errors.PATH_ERRNOS else errors.EXIT_MACHINE
            return _fail(f"{error.filename or 'a file'}: {error.strerror}", code)
        if missing := errors.missing_resource(error):
            return _fail(missing)
        if "CUDA error" in str(error):
            return _fail("the GPU or its driver failed; see nvidia-smi and the system log, then restart to resume")
        raise


@contextlib.contextmanager
def _hide_disk_errors_of_threads() -> Iterator[None]:
    """Suppress the traceback of a thread, such as TensorBoard's, that cannot write: the main thread reports it."""

    def report(failure: threading.ExceptHookArgs) -> None:
        if getattr(failure.exc_value, "errno", None) not in errors.STORAGE_ERRNOS:
            before(failure)

    before, threading.excepthook = threading.excepthook, report
    try:
        yield
    finally:
        threading.excepthook = before


def _printable_message(message: str) -> str:
    """Escape control characters in a message, and truncate long words and messages."""
    text = re.sub(
        r"[^\s/]{101,}|\S{300,}", lambda word: f"{word[0][:50]}...{word[0][-47:]}", errors.printable(message[:20_000])
    )
    return text if len(text) < 2000 else f"{text[:1000]}..."


def _fail(message: str, code: int = errors.EXIT_MACHINE) -> int:
    with contextlib.suppress(OSError):  # a full disk
        sys.stdout.flush()
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    message = _printable_message(message)
    prefix = "" if rank == "0" or message.startswith(f"rank {rank}") else f"rank {rank}: "
    print(f"error: {prefix}{message}", file=sys.stderr, flush=True)
    return code
