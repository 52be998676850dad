"""Checkpoints: written whole or not at all, read without running any code.

A training checkpoint is a dict of tensors and plain values::

    format       1
    config       the full config, ``Config.to_dict()``
    model_args   the arguments of ``create_model``
    contract     the data contract, ``DataContract.to_dict()``, class names included
    model        state dict of the network
    ema          state dict of its moving average, or None
    step         optimizer steps done
    ...          the rest of the trainer's state (``Trainer.state_dict``)

so that one file is enough to go on training, to test and to predict.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from video_rs.errors import MachineError, UserError

FORMAT = 1


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb"):
    """A file that appears under ``path`` only when the block ended well: temporary file, fsync, rename.

    Raises:
        MachineError: when the disk refuses (full, read-only); what stood under ``path`` before is intact.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle: IO[Any]
        text = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
        with tempfile.NamedTemporaryFile(
            mode, dir=path.parent, prefix=f".{path.name}.", delete=False, **text
        ) as handle:
            temporary = Path(handle.name)
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o666 & ~_umask())  # temporary files are private, results are not
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise MachineError(
            f"{path} cannot be written: {error.strerror or error}; what was there before is intact. Make room first"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically. Raises MachineError when the disk refuses."""
    with atomic_write(path) as handle:
        try:
            torch.save(dict(state), handle)
        except RuntimeError as error:  # torch's zip writer hides the write error of the file below it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: str | Path) -> dict[str, Any]:
    """Reads what :func:`save`, or anybody's ``torch.save`` of tensors and plain values, wrote; tensors on the CPU.

    Raises:
        UserError: when the file is missing, truncated, no checkpoint, or holds code (which is never run).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles: what is wrong with one is said below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    except Exception as error:  # torch raises a dozen kinds, according to what the bytes happen to look like
        if not _looks_saved(path):
            raise UserError(f"{path} is not a checkpoint") from None
        if isinstance(error, pickle.UnpicklingError):
            raise UserError(
                f"checkpoint {path} holds Python objects beside tensors; it was refused and nothing in it was run. "
                "Save a plain state dict instead"
            ) from None
        raise UserError(f"checkpoint {path} is truncated or damaged") from None
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds a {type(state).__name__}, not a dict of weights")
    return state


def load_run(path: str | Path) -> dict[str, Any]:
    """Like :func:`load`, for a checkpoint of this package; another file is a UserError that says so."""
    state = load(path)
    needed = {"format", "config", "model_args", "contract", "model"}
    if not needed <= state.keys():
        raise UserError(f"{path} holds bare weights, not a run; start from them with train.init_from={path}")
    if state["format"] > FORMAT:
        raise UserError(f"{path} has checkpoint format {state['format']}, this version reads {FORMAT}: upgrade")
    return state


def weights(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights to predict with: the moving average where there is one."""
    return state["ema"] if state.get("ema") is not None else state["model"]


def _looks_saved(path: str | Path) -> bool:
    """Whether a file begins as ``torch.save`` and ``pickle.dump`` write it."""
    with open(path, "rb") as handle:
        return handle.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
