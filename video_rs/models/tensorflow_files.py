"""Reads TensorFlow's files as arrays by name; needs the ``tf`` extra, which is imported where it is used."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from video_rs import download
from video_rs.errors import UserError, first_line

_EXTRA = "pip install 'video-rs[tf]'"
_PART = re.compile(r"\.(?:index|data-\d+-of-\d+)$")


class Checkpoint(Mapping[str, np.ndarray]):
    """The variables of a checkpoint, each read when it is asked for: an optimizer's slots may outweigh the weights.

    Attributes:
        prefix: what the names of its files begin with.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        with _one_line(f"checkpoint {prefix}"):
            self._reader = import_tensorflow().train.load_checkpoint(str(prefix))
            self._shapes = self._reader.get_variable_to_shape_map()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._shapes:
            raise KeyError(name)
        with _one_line(f"checkpoint {self.prefix}"):
            return self._reader.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._shapes))

    def __len__(self) -> int:
        return len(self._shapes)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The variables of a TensorFlow checkpoint, of version 1 or 2, by their names in it.

    Args:
        path: its prefix, as TensorFlow would have it (``folder/ckpt-109200``), one of its files, or the folder, of
            which the newest is taken.

    Raises:
        UserError: it is missing, damaged or something else, or tensorflow is not installed. Addresses are refused.
    """
    if download.is_address(path):
        raise UserError(
            f"{download.shown(path)} is an address, and a TensorFlow checkpoint is several files: fetch them, unpack "
            "what is an archive, and give the folder"
        )
    return Checkpoint(_newest(Path(path)) if os.path.isdir(path) else _prefix(Path(path)))


def read_h5(path: str | Path) -> dict[str, np.ndarray]:
    """The datasets of an h5 file by their paths in it; of a whole Keras model, those of its weights.

    Raises:
        UserError: the file is missing, damaged or something else, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(f"reading {path} needs h5py: {_EXTRA}") from None
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist")
    arrays: dict[str, np.ndarray] = {}

    def keep(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with _one_line(str(path)), h5py.File(path, "r") as file:
        file.get("model_weights", file).visititems(keep)
    if not arrays:
        raise UserError(f"{path} holds no weights")
    return arrays


def import_tensorflow():
    """The module, imported so that torch survives it. UserError where it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it greets with a page on the machine
    with suppress(ImportError):  # torch would load it later, and after TensorFlow that ends the process
        import triton  # noqa: F401
    try:
        import tensorflow
    except ImportError:
        raise UserError(f"reading TensorFlow's checkpoints needs tensorflow: {_EXTRA}") from None
    return tensorflow


def _prefix(path: Path) -> Path:
    if path.suffix in (".gz", ".tgz", ".tar", ".zip"):  # as they are published
        raise UserError(f"{path} is an archive: unpack it and give the folder")
    prefix = path.with_name(_PART.sub("", path.name))
    if not os.path.exists(f"{prefix}.index") and (prefix != path or not path.exists()):
        raise UserError(f"checkpoint {prefix} does not exist: there is no {prefix.name}.index in {prefix.parent}")
    return prefix


def _newest(folder: Path) -> Path:
    """What TensorFlow's own record in the folder names, or else the only checkpoint there."""
    with _one_line(f"the record of checkpoints in {folder}"):
        newest = import_tensorflow().train.latest_checkpoint(str(folder))
    if newest is not None:
        return Path(newest)
    found = sorted(path.with_suffix("") for path in folder.glob("*.index"))
    if len(found) != 1:
        many = f"several checkpoints, name one: {', '.join(path.name for path in found)}"
        raise UserError(f"the folder {folder} holds {many if found else 'no TensorFlow checkpoint (*.index)'}")
    return found[0]


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """TensorFlow and h5py raise a dozen kinds of errors, some of them over several lines."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} is damaged, or something else: {first_line(error)}") from None
