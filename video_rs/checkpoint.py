"""Read and write checkpoints. Writing is atomic, and reading never executes code from a file.

A training checkpoint is a dict of tensors and plain values::

    format       2
    config       the full config, ``Config.to_dict()``
    model_args   the arguments of ``create_model``
    data_config  the data config with the class names, ``DataConfig.to_dict()``
    model        state dict of the network
    ema          state dict of its EMA, or None
    step         number of optimizer steps
    weights_from origin of the initial weights, ``{"source": ..., "licence": ...}``; None for random weights
    ...          the rest of the trainer's state (``Trainer.state_dict``)

One file is enough to resume training, to test and to predict.

A ``.safetensors`` file holds the weights for prediction, and the plain entries ``TRAVELS`` as JSON in its metadata. Any
program can read it. It does not contain the state of the optimizer.
"""

import argparse
import errno
import hashlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.utils._pytree import tree_map_only

from video_rs.data_config import DataConfig
from video_rs.errors import (
    LIMIT_ERRNOS,
    STORAGE_ERRNOS,
    MachineError,
    UserError,
    file_error,
    first_line,
    is_out_of_memory,
    printable,
    truncate,
)
from video_rs.file_limits import MAX_RATIO, check_values, check_zip
from video_rs.files import atomic_write, json_values, parse_json
from video_rs.hub import fetched, redact_url

FORMAT = 2
_MAX_HEADER = 8 << 20  # bytes of the header of a safetensors file
_ALLOCATED = re.compile(r"allocate (\d+) bytes")
_FORMAT_1 = {"contract": "data_config", "figures": "metrics"}
RUN = {"format": int, "config": dict, "model_args": dict, "data_config": dict, "model": dict}
"""Entries of every checkpoint of this package, with their types."""
RECORD = {"step": (int, float), "metrics": dict, "fingerprint": dict, "versions": dict, "weights_from": dict}
"""Optional entries that describe the run."""
TRAVELS = ("format", "config", "model_args", "data_config", *RECORD)
"""Entries in the metadata of a safetensors file."""


class NumPyValue:
    """Placeholder for a NumPy value in a file of another trainer, such as a best accuracy, which is not read."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_NUMPY = [(NumPyValue, f"numpy.{name}") for name in ("dtype", "ndarray")] + [
    (NumPyValue, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name in ("scalar", "_reconstruct")
]


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint or bare weights atomically, with safetensors or ``torch.save`` depending on the suffix.

    Raises:
        UserError: ``state`` is neither a checkpoint nor a dict of tensors, and safetensors cannot hold it.
        MachineError: the disk is full or fails.
    """
    data = _to_safetensors(state, path) if Path(path).suffix == ".safetensors" else None
    with atomic_write(path) as handle:
        if data is not None:
            handle.write(data)
            return
        try:
            torch.save(dict(state), handle)
        except RuntimeError as error:  # torch's zip writer hides the write error of the file below it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def from_weights(
    model_args: Mapping[str, Any], data_config: DataConfig, weights: Mapping[str, torch.Tensor], **record: Any
) -> dict[str, Any]:
    """Return a checkpoint made from weights without a training run.

    Args:
        model_args: arguments of ``create_model``.
        data_config: the data config of the weights.
        weights: state dict of the network.
        record: entries on the run that made the weights, if known: ``config`` and the keys in ``RECORD``.
    """
    own = {"format": FORMAT, "model_args": dict(model_args), "data_config": data_config.to_dict()}
    return {"config": {}, "step": 0, **record, **own, "model": dict(weights), "ema": None}


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, or any dict of tensors and plain values written by ``torch.save``; tensors are on the CPU.

    For a safetensors file without this package's metadata, return its tensors by name.

    Args:
        path: a file, a run folder (its ``best.pt``) or a URL, see ``video_rs.hub``. An unreadable file is removed
            from the cache.

    Raises:
        UserError: the file is missing, truncated, not a checkpoint, or contains code, which is never executed.
        MachineError: the download failed, the disk failed, or there is not enough memory.
    """
    with fetched(resolve(path)) as file:
        return _load(file)


def resolve(path: str | Path) -> str | Path:
    """Return the path of ``best.pt`` for a run folder. Any other path or URL is returned unchanged."""
    return Path(path, "best.pt") if os.path.isfile(os.path.join(path, "best.pt")) else path


def load_run(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this package as :func:`load` does; raise UserError for any other file."""
    state, name = load(path), redact_url(path)
    if not is_run(state):
        if not any(isinstance(value, (torch.Tensor, Mapping)) for value in state.values()):
            raise no_weights(state, name)
        raise UserError(
            f"{name} holds bare weights, not a run; start from them with train.init_from={name}, or make a checkpoint "
            "of them with video-rs convert"
        )
    check_format(state, name)
    return state


def no_weights(state: Mapping[Any, Any], name: str) -> UserError:
    """Return the error for a file without tensors, which names its entries."""
    entries = truncate([printable(f"{str(key)[:40]} ({type(value).__name__})") for key, value in state.items()])
    has = f"; its entries are {entries}" if entries else "; it is empty"
    return UserError(f"{name} holds no weights: neither a checkpoint nor a state dict{has}")


def is_run(state: Mapping[str, Any]) -> bool:
    """Return True for a checkpoint of this package, False for bare weights."""
    return RUN.keys() <= state.keys()


def check_format(state: Mapping[str, Any], path: str | Path) -> None:
    """Raise UserError if a checkpoint of this package has a newer format or an entry of a wrong type."""
    if isinstance(state.get("format"), int) and state["format"] > FORMAT:
        raise UserError(f"{path} has checkpoint format {state['format']}, this version reads {FORMAT}: upgrade")
    wrong = [key for key, kind in RUN.items() if not isinstance(state.get(key), kind)]
    wrong += [key for key, kind in RECORD.items() if not isinstance(state.get(key), (kind, type(None)))]
    if not wrong and not isinstance(state["model_args"].get("name"), str):
        wrong = ["model_args"]
    if not wrong and not are_weights(weights(state)):
        wrong = ["model" if state.get("ema") is None else "ema"]
    if wrong:
        raise UserError(f"checkpoint {path} is damaged: its entry {wrong[0]} is invalid")


def weights(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights for prediction: the EMA if there is one."""
    return state["ema"] if state.get("ema") is not None else state["model"]


def tensors_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the values of all tensors, in order, in hexadecimal."""
    found = hashlib.sha256()
    for tensor in state.values():
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def redact_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config without the credentials and queries of its URLs."""
    return tree_map_only(str, redact_url, config)


def _load(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as handle:
            head = handle.read(9)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        absent = "does not exist; check the path" + ("" if path.suffix else " (create_model makes networks by name)")
        known = {errno.ENOENT: absent, errno.EISDIR: "is a folder without best.pt; name a file"}
        reason = known.get(getattr(error, "errno", 0), f"cannot be read: {first_line(error)}")
        raise file_error(f"checkpoint {path} {reason}", error) from None
    is_safetensors = path.suffix == ".safetensors" or _is_safetensors(head)
    state = _load_safetensors(path, head) if is_safetensors else _upgrade(_load_torch(path, head))
    check_values(path, state)
    return state


def _upgrade(entries: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a checkpoint of format 1 (video_rs 0.1) under their present names."""
    if "format" not in entries:
        return entries
    return {_FORMAT_1.get(name, name): value for name, value in entries.items()}


def _load_torch(path: Path, head: bytes) -> dict[str, Any]:
    check_zip(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace, *_NUMPY]):
            warnings.simplefilter("ignore")  # about unusual pickles; errors are reported below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types, depending on the damage
        asked = _ALLOCATED.search(str(error))
        is_absurd = asked and int(asked[1]) > MAX_RATIO * path.stat().st_size
        if is_out_of_memory(error) and not is_absurd:  # the file may be intact: do not call it damaged
            raise MachineError(f"not enough memory to read checkpoint {path}") from None
        if isinstance(error, OSError) and error.errno in STORAGE_ERRNOS | LIMIT_ERRNOS:
            raise MachineError(f"checkpoint {path} cannot be read: {error.strerror}; check its disk") from None
        if not head.startswith((b"PK\x03\x04", b"\x80")):  # the first bytes from torch.save and pickle.dump
            raise UserError(f"{path} is not a checkpoint") from None
        if isinstance(error, pickle.UnpicklingError):
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            kind = f" ({found[1][:60]})" if found else ""
            raise UserError(
                f"checkpoint {path} holds Python objects other than tensors{kind}, which were not executed; save a "
                "plain state dict instead"
            ) from None
        raise UserError(f"checkpoint {path} is truncated or damaged") from None
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds a {type(state).__name__}, not a dict of weights")
    return state


def _load_safetensors(path: Path, head: bytes) -> dict[str, Any]:
    if _is_safetensors(head) and int.from_bytes(head[:8], "little") > _MAX_HEADER:
        raise UserError(f"checkpoint {path} is damaged: its header is longer than {_MAX_HEADER >> 20} MB")
    try:
        os.fspath(path).encode()  # safetensors requires UTF-8 names
        with safetensors.safe_open(path, framework="pt") as handle:
            metadata = _upgrade(handle.metadata() or {})
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  not a dict
    except UnicodeEncodeError:
        raise UserError(f"checkpoint {path} cannot be read: its name is not UTF-8; rename it") from None
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError):
        if _is_safetensors(head):
            raise UserError(f"checkpoint {path} is truncated or damaged") from None
        raise UserError(f"{path} is not a safetensors file") from None
    if not {"format", "model_args", "data_config"} <= metadata.keys():
        return tensors
    state = {"config": {}, "step": 0}
    for key in TRAVELS:
        if key in metadata:
            try:
                state[key] = parse_json(metadata[key])
            except ValueError:
                raise UserError(f"checkpoint {path} is damaged: {key} in its metadata is not JSON") from None
    return {**state, "model": tensors, "ema": None}


def _to_safetensors(state: Mapping[str, Any], path: str | Path) -> bytes:
    """Serialize weights and metadata; the format requires contiguous tensors that share no memory."""
    tensors = weights(state) if is_run(state) else state
    if other := [key for key, value in tensors.items() if not isinstance(value, torch.Tensor)]:
        raise UserError(f"{path} can hold only tensors, and {other[0]} is not one; use another suffix, such as .pt")
    metadata = _metadata(state, path) if is_run(state) else {"format": "pt"}
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    return safetensors.torch.save(copies, metadata)


def _metadata(state: Mapping[str, Any], path: str | Path) -> dict[str, str]:
    entries = {key: json_values(state[key]) if key == "metrics" else state[key] for key in TRAVELS if key in state}
    entries["config"] = redact_config(entries["config"])
    texts = {}
    for key, value in entries.items():
        try:
            texts[key] = json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            reason = f"{path} cannot hold its {key}: {first_line(error)}"
            raise UserError(f"{reason}; use another suffix, such as .pt") from None
    return texts


def are_weights(state: Any) -> bool:
    """Return True for a dict of plain tensors by name; it may be empty."""
    return isinstance(state, Mapping) and all(isinstance(key, str) and is_plain(value) for key, value in state.items())


def is_plain(value: Any) -> bool:
    """Return True for a tensor that a network can have as a weight: dense, real, and not quantized."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return False
    is_float8 = value.is_floating_point() and value.itemsize == 1
    return not (is_float8 or value.is_complex() or value.is_quantized or value.is_nested or value.is_meta)


def _is_safetensors(head: bytes) -> bool:
    """Return True if a file starts with the length of a header in eight bytes and the opening brace of its JSON."""
    return head[4:] == b"\0\0\0\0{"
