"""Checkpoints: written whole or not at all, read without running any code.

A training checkpoint is a dict of tensors and plain values::

    format       1
    config       the full config, ``Config.to_dict()``
    model_args   the arguments of ``create_model``
    data_config  the data config, ``DataConfig.to_dict()``, class names included
    model        state dict of the network
    ema          state dict of its moving average, or None
    step         optimizer steps done
    weights_from where the first weights came from, ``{"source": ..., "licence": ...}``, or None for random ones
    ...          the rest of the trainer's state (``Trainer.state_dict``)

so that one file is enough to go on training, to test and to predict.

A ``.safetensors`` file travels further: any program can read it, and nothing in it can be run. It holds the weights to
predict with as tensors, and the plain entries (``TRAVELS``) as JSON in its metadata, which holds strings alone. The
state of an optimizer stays behind.
"""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from video_rs import hub as download
from video_rs.data_config import DataConfig
from video_rs.errors import LIMIT_ERRNOS, STORAGE_ERRNOS, MachineError, UserError, first_line, is_out_of_memory
from video_rs.files import atomic_write, json_values

FORMAT = 2
_FORMAT_1 = {"contract": "data_config", "figures": "metrics"}  # entries that were renamed
RUN = {"format": int, "config": dict, "model_args": dict, "data_config": dict, "model": dict}
"""What a checkpoint of this package has at least, whatever wrote it."""
RECORD = {"step": (int, float), "metrics": dict, "fingerprint": dict, "versions": dict, "weights_from": dict}
"""What it may say of the run besides."""
TRAVELS = ("format", "config", "model_args", "data_config", *RECORD)
"""The entries that go into the metadata of a safetensors file."""


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint, or bare weights, atomically: as safetensors under that suffix, else as ``torch.save`` does.

    Raises:
        UserError: safetensors cannot hold it: it is neither a checkpoint nor a dict of tensors.
        MachineError: when the disk refuses.
    """
    if Path(path).suffix == ".safetensors":
        data = _to_safetensors(state, path)
        with atomic_write(path) as handle:
            handle.write(data)
        return
    with atomic_write(path) as handle:
        try:
            torch.save(dict(state), handle)
        except RuntimeError as error:  # torch's zip writer hides the write error of the file below it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def from_weights(
    model_args: Mapping[str, Any], data_config: DataConfig, weights: Mapping[str, torch.Tensor], **record: Any
) -> dict[str, Any]:
    """A checkpoint that no trainer wrote.

    Args:
        model_args: of ``create_model``.
        data_config: what the weights expect to see.
        weights: state dict of the network.
        record: what is known of the run that they come from: ``config`` and the entries of ``RECORD``.
    """
    own = {"format": FORMAT, "model_args": dict(model_args), "data_config": data_config.to_dict()}
    return {"config": {}, "step": 0, **record, **own, "model": dict(weights), "ema": None}


def load(path: str | Path) -> dict[str, Any]:
    """Reads what :func:`save`, or anybody's ``torch.save`` of tensors and plain values, wrote; tensors on the CPU.

    Of a safetensors file without this package's metadata the result is its tensors by name.

    Args:
        path: of a file, or its address, see ``video_rs.hub``. What was fetched and cannot be read isn't kept.

    Raises:
        UserError: when the file is missing, truncated, no checkpoint, or holds code (which is never run).
        MachineError: it could not be fetched, or a disk or the memory fails as it is read.
    """
    with download.fetched(path) as file:
        return _load(file)


def _load(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as handle:
            head = handle.read(9)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except IsADirectoryError:
        inside = f", it has a {path / 'best.pt'}" if (path / "best.pt").exists() else ""
        raise UserError(f"checkpoint {path} is a folder{inside}; name a file") from None
    except (OSError, ValueError) as error:  # the latter for names with a null
        raise UserError(f"checkpoint {path} cannot be read: {getattr(error, 'strerror', '') or error}") from None
    if path.suffix == ".safetensors" or _begins_safetensors(head):
        return _load_safetensors(path, head)
    return _load_torch(path, head)


def _load_torch(path: str | Path, head: bytes) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles: what is wrong with one is said below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds, according to what the bytes happen to look like
        if is_out_of_memory(error):  # the file may be sound: nobody should be told to delete it
            raise MachineError(f"not enough memory to read checkpoint {path}") from None
        if isinstance(error, OSError) and error.errno in STORAGE_ERRNOS | LIMIT_ERRNOS:
            raise MachineError(f"checkpoint {path} cannot be read: {error.strerror}; see to its disk") from None
        if not head.startswith((b"PK\x03\x04", b"\x80")):  # as torch.save and pickle.dump begin
            raise UserError(f"{path} is not a checkpoint") from None
        if isinstance(error, pickle.UnpicklingError):
            raise UserError(
                f"checkpoint {path} holds Python objects beside tensors; it was refused and nothing in it was run. "
                "Save a plain state dict instead"
            ) from None
        raise UserError(f"checkpoint {path} is truncated or damaged") from None
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds a {type(state).__name__}, not a dict of weights")
    return _renamed(state)


def _renamed(entries: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a checkpoint of format 1 (video_rs 0.1) under their present names."""
    if "format" not in entries:
        return entries
    return {_FORMAT_1.get(name, name): value for name, value in entries.items()}


def _load_safetensors(path: str | Path, head: bytes) -> dict[str, Any]:
    try:
        os.fspath(path).encode()  # safetensors takes no other names
        with safetensors.safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  it is no dict
    except UnicodeEncodeError:
        raise UserError(f"checkpoint {path} cannot be read: its name is not UTF-8: rename it") from None
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError):
        if _begins_safetensors(head):
            raise UserError(f"checkpoint {path} is truncated or damaged") from None
        raise UserError(f"{path} is not a safetensors file") from None
    metadata = _renamed(metadata)
    if not {"format", "model_args", "data_config"} <= metadata.keys():
        return tensors
    state = {"config": {}, "step": 0}
    for key in TRAVELS:
        if key in metadata:
            try:
                state[key] = json.loads(metadata[key])
            except (ValueError, RecursionError):  # the latter for brackets in brackets in brackets
                raise UserError(f"checkpoint {path} is damaged: {key} in its metadata is not JSON") from None
    return {**state, "model": tensors, "ema": None}


def _to_safetensors(state: Mapping[str, Any], path: str | Path) -> bytes:
    """Weights and metadata as bytes. The copies are contiguous and share nothing, which the format asks for."""
    tensors = weights(state) if is_run(state) else state
    if other := [key for key, value in tensors.items() if not isinstance(value, torch.Tensor)]:
        raise UserError(f"{path} can hold tensors alone, and {other[0]} is none; choose another suffix, such as .pt")
    metadata = _metadata(state, path) if is_run(state) else {"format": "pt"}
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    return safetensors.torch.save(copies, metadata)


def _metadata(state: Mapping[str, Any], path: str | Path) -> dict[str, str]:
    """Return the plain entries as JSON."""
    entries = {key: json_values(state[key]) if key == "metrics" else state[key] for key in TRAVELS if key in state}
    entries["config"] = redact_config(entries["config"])
    texts = {}
    for key, value in entries.items():
        try:
            texts[key] = json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            what = f"{path} cannot hold its {key}: {first_line(error)}"
            raise UserError(f"{what}; choose another suffix, such as .pt") from None
    return texts


def redact_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config without what may be secret in the address that its run was started from."""
    train = config.get("train")
    if not isinstance(train, Mapping) or not train.get("init_from"):
        return config
    return {**config, "train": {**train, "init_from": download.redact_url(train["init_from"])}}


def is_run(state: Mapping[str, Any]) -> bool:
    """Whether a dict is a checkpoint of this package, which a model can be made of; or else, perhaps, bare weights."""
    return RUN.keys() <= state.keys()


def check_format(state: Mapping[str, Any], path: str | Path) -> None:
    """Raises UserError where a checkpoint of this package is of a newer format, or holds what no version of it does."""
    if isinstance(state.get("format"), int) and state["format"] > FORMAT:
        raise UserError(f"{path} has checkpoint format {state['format']}, this version reads {FORMAT}: upgrade")
    wrong = [key for key, kind in RUN.items() if not isinstance(state.get(key), kind)]
    wrong += [key for key, kind in RECORD.items() if not isinstance(state.get(key), (kind, type(None)))]
    if not wrong and not isinstance(state["model_args"].get("name"), str):
        wrong = ["model_args"]
    if not wrong and not _are_weights(weights(state)):
        wrong = ["model" if state.get("ema") is None else "ema"]
    if wrong:
        raise UserError(f"checkpoint {path} is damaged: its {wrong[0]} is not what it should be")


def load_run(path: str | Path) -> dict[str, Any]:
    """Like :func:`load`, for a checkpoint of this package; another file is a UserError that says so."""
    state, name = load(path), download.redact_url(path)
    if not is_run(state) and not any(isinstance(value, (torch.Tensor, Mapping)) for value in state.values()):
        raise UserError(f"{name} holds no weights: neither a checkpoint nor a state dict")
    if not is_run(state):
        raise UserError(
            f"{name} holds bare weights, not a run; start from them with train.init_from={name}, or make a checkpoint "
            "of them with video-rs convert"
        )
    check_format(state, name)
    return state


def weights(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights to predict with: the moving average where there is one."""
    return state["ema"] if state.get("ema") is not None else state["model"]


def _are_weights(state: Any) -> bool:
    tensors = state.items() if isinstance(state, Mapping) else [(None, None)]
    return all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in tensors)


def _begins_safetensors(head: bytes) -> bool:
    """Whether a file begins with the length of a header, eight bytes, and the brace of its JSON."""
    return head[4:] == b"\0\0\0\0{"
