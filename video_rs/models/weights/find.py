"""Find the weights of a network in a file of any trainer, by the names of the network's own weights.

Trainers store state dicts in entries ("state_dict", "model", "ema", ...), wrappers add prefixes to the names of weights
("module.", "model.backbone.", ...), and files also contain losses, metrics and other networks. No list of such names is
needed: the state dict and the prefix with the most names and sizes in common with the network are selected. If several
are equal, moving averages of the weights are preferred, as in ``timm.models``, then common names of weights.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from video_rs.errors import printable, truncate

_AVERAGE = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|shadow|teacher)(?![a-z])|EMA|Ema")
_OPTIMIZER = re.compile(
    "optim|(?<![a-z])opt(?![a-z])|grad|exp_avg|momentum"
)  # their tensors can have the names of weights
_USUAL = re.compile("model|state_dict|params|weights|net")
# inserted into names by torch.compile, FSDP and activation checkpointing, at any depth
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)\.")
_COUNTER = "num_batches_tracked"  # of batch norm, which files may lack
_MAX_DEPTH, _MAX_PREFIXES, _MAX_NAME = 4, 8, 150


@dataclass(frozen=True)
class Found:
    """The weights of a network in a file.

    Attributes:
        weights: weights by name, without prefix.
        entry: path of their state dict in the file, such as "ema.shadow"; "" if the file is the state dict.
        prefix: prefix of their names in the file.
        extra: weights with the same prefix that belong to modules that the network does not have.
        ignored: everything else in the file: other entries, and weights with other prefixes by their first part.
    """

    weights: dict[str, Tensor]
    entry: str = ""
    prefix: str = ""
    extra: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def unused(self) -> tuple[str, ...]:
        """Everything in the file that is not part of ``weights``."""
        return (*self.extra, *self.ignored)

    @property
    def context(self) -> str:
        """The place of the weights and the other entries of the file in parentheses, for errors."""
        parts = [str(self), f"not used: {truncate(self.ignored)}" if self.ignored else ""]
        return f" ({'; '.join(filter(None, parts))})" if any(parts) else ""

    def __str__(self) -> str:
        names = f"names that begin with {_short(self.prefix)}" if self.prefix else ""
        return ", ".join(filter(None, [f"entry {_short(self.entry)}" if self.entry else "", names]))


def is_average(name: str) -> bool:
    """Return True if an entry or a prefix is that of an average over training, such as "model_ema"."""
    return bool(_AVERAGE.search(name))


def find_weights(saved: Mapping[Any, Any], wanted: Mapping[str, int]) -> Found:
    """Return the weights of a network in the content of a file; without weights if the file has no tensors.

    Args:
        saved: a state dict, or nested dicts that contain one.
        wanted: number of elements of each weight of the network, by name. May be partial.
    """
    wanted = {name: size for name, size in wanted.items() if not name.endswith(_COUNTER)}
    roots = {_root(name) for name in wanted}
    best, best_score = Found({}, ignored=_entries(saved)), (-1,)
    for path, state in _state_dicts(saved):
        for prefix, count in _prefixes(state, wanted):
            weights = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            own = {name: tensor for name, tensor in weights.items() if _root(name) in roots or not count}
            sizes = sum(t.numel() == wanted.get(name) for name, t in own.items() if t.dtype is not torch.bool)
            surplus = sum(name not in wanted and not name.endswith(_COUNTER) for name in own) if sizes else 0
            place = ".".join((*path, prefix))
            kind = not _OPTIMIZER.search(place), is_average(place), bool(_USUAL.search(place))
            score = count, sizes, -surplus, *kind, len(own)
            if score > best_score:
                outside = [name for name in state if not name.startswith(prefix)]
                ignored = (*_groups(outside), *_entries(saved, path))
                extra = tuple(name for name in weights if name not in own)
                best, best_score = Found(own, ".".join(path), prefix, extra, ignored), score
    return best


def _state_dicts(saved: Mapping[Any, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Yield the tensors of each nested dict by name, without names of wrappers, and its path in the file."""
    tensors = {name: value for name, value in saved.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield path, {_short(_WRAPPERS.sub("", name), _MAX_NAME): tensor for name, tensor in tensors.items()}
    for key, value in saved.items():
        if isinstance(value, Mapping) and len(path) < _MAX_DEPTH:
            yield from _state_dicts(value, (*path, str(key)))


def _prefixes(names: Mapping[str, Any], wanted: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the prefixes with the most wanted names after them, and the numbers of these names."""
    prefixes: Counter[str] = Counter()
    parts = max((name.count(".") for name in wanted), default=0) + 1
    for name in names:
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))][-parts:]
        prefixes.update(name[:start] for start in starts if name[start:] in wanted)
    return prefixes.most_common(_MAX_PREFIXES) or [("", 0)]


def _entries(saved: Mapping[Any, Any], path: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the keys of a file, without tensors and the entry that ``path`` leads through."""
    keys = [str(key) for key, value in saved.items() if not isinstance(value, Tensor) or path]
    return tuple(_short(key) for key in sorted(set(keys) - {*path[:1]}))


def _groups(names: list[str]) -> list[str]:
    """Return the first parts of names, each with the number of names if there are several."""
    counts = Counter(map(_root, names))
    alone = {_root(name): name for name in names}
    return [_short(alone[root]) if n == 1 else f"{_short(root)}.* ({n} weights)" for root, n in counts.items()]


def _root(name: str) -> str:
    return name.partition(".")[0]


def _short(name: str, limit: int = 60) -> str:
    return printable(name if len(name) <= limit else f"{name[: limit - 3]}...")
