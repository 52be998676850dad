"""Read a config from YAML and ``key=value`` overrides, and check it.

The keys are defined in schema.py. Only ``video_rs.cli`` and ``video_rs.experiment`` use a ``Config``; all other modules
take plain arguments. This module does not import torch, to make ``--help`` and config errors fast.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import functools
import io
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from video_rs.data.sources.lookalikes import resolve
from video_rs.errors import ConfigError, UserError, did_you_mean, file_error, first_line, format_value, truncate
from video_rs.experiment.checks import check_config
from video_rs.experiment.plugins import load_plugins
from video_rs.experiment.schema import Config, DataSection, ModelSection, plain
from video_rs.experiment.strict_yaml import MAX_CHARACTERS, read_yaml
from video_rs.files import expand_path
from video_rs.hub import redact_url
from video_rs.training.values import checked, type_name


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a config as ``{"optim.lr": 0.8, ...}``, in the order of the schema."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        flat |= flatten(value, f"{prefix}{f.name}.") if dataclasses.is_dataclass(value) else {prefix + f.name: value}
    return flat


def differences(old: Mapping[str, Any], new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the changed keys that must not change when a run is resumed: ``{key: (saved, new)}``.

    Args:
        old: the nested dict of a checkpoint, see :meth:`Config.to_dict`. Missing keys have their defaults.
        new: the current config.
    """
    if "fit" in old:
        raise UserError(f"{new.out} was started by video_rs.fit: use another out=, or the same call to resume it")
    before, now = flatten(from_dict(old)), flatten(new)
    strict = {key for key, f in _schema().items() if not f.metadata["free"]}
    return {key: (before[key], now[key]) for key in now if key in strict and before[key] != now[key]}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a config.

    Args:
        path: a YAML file, the name of one in ``configs/`` (with or without ``.yaml``), or a run folder. A file with
            ``_BASE_: other.yaml`` inherits from that one, which is beside it or in ``configs/``.
        overrides: ``key=value`` with dots (``optim.lr=0.1``). Values are YAML: ``4e-5``, ``[1, 2]``, ``null``.

    Raises:
        ConfigError: a key is unknown, a value is invalid, or keys do not fit together; names the file and the key.
        UserError: a plugin cannot be imported.
    """
    file = find_config(path)
    nested = dict(_CheckedYaml.load_yaml_with_base(str(file)) or {})
    if file.name == "config.yaml" and not Path(path).is_file():
        nested["out"] = str(file.parent)  # the run may have been moved
    return _complete(nested, overrides, str(file), file.stem)


def config_of_checkpoint(state: Mapping[str, Any], name: str, out: str, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a checkpoint, with its run folder and overrides. Its plugins are not imported.

    Args:
        state: see :func:`video_rs.checkpoint.load_run`. If it has no config, as from ``fit``, its network and
            data config are used.
        name: name of the checkpoint, for messages.
        out: the run folder.
        overrides: see :func:`load_config`.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    nested = copy.deepcopy(dict(state["config"]))
    if "model" not in nested:
        sections = ("model", ModelSection, state["model_args"]), ("data", DataSection, state["data_config"])
        nested = {
            section: {key: value for key, value in values.items() if key in fields.__dataclass_fields__}
            for section, fields, values in sections
        }
        nested["data"].pop("class_names", None)  # names in a checkpoint, a file in a config
    nested |= {"out": out, "plugins": []}
    from_dict(nested, name)
    return _complete(nested, overrides, name, Path(out).name)


def config_of_model(name: str, overrides: Sequence[str] = ()) -> Config:
    """Return the default config of a network, with overrides. Raise ConfigError for an invalid override."""
    return _complete({"model": {"name": name}}, overrides, "the defaults", "features")


def _complete(nested: dict[str, Any], overrides: Sequence[str], source: str, name: str) -> Config:
    """Return the config of nested plain values and overrides, checked, and import its plugins."""
    for number, override in enumerate(overrides):
        key, equals, text = override.partition("=")
        if not equals:
            setting = as_setting(overrides[number:])
            hint = f"; write {setting}" if setting and setting.partition("=")[0] in override else ""
            raise ConfigError(f"override {format_value(override)} is not key=value{hint}")
        _set(nested, key.strip(), text)
    config = _build(Config, nested, source)
    if not config.out:
        config = dataclasses.replace(config, out=str(Path("runs") / name))
    check_config(config)
    config = _resolve(config)
    load_plugins(config.plugins)
    return config


def _resolve(config: Config) -> Config:
    """Replace input paths that do not exist by existing ones that look the same, see ``lookalikes.resolve``."""
    data, names = config.data, ("root", "train", "val", "test", "list", "class_names")
    root = resolve(data.root, "data.root")
    found = {name: resolve(getattr(data, name), f"data.{name}", root) for name in names[1:]}
    train = dataclasses.replace(config.train, init_from=resolve(config.train.init_from, "train.init_from"))
    weights = resolve(config.weights, "weights")
    return dataclasses.replace(config, data=dataclasses.replace(data, root=root, **found), train=train, weights=weights)


def from_dict(values: Mapping[str, Any], source: str = "checkpoint") -> Config:
    """Create a config from :meth:`Config.to_dict`. Raise ConfigError, with ``source`` in the message."""
    return _build(Config, values, source)


def config_folder() -> Path:
    """Return the folder of the included configs: inside the package in a wheel, next to it in a checkout."""
    package = Path(__file__).parent.parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def find_config(path: str | Path) -> Path:
    """Return the config file for a path, a name in ``configs/``, or a run folder. Raise ConfigError if none."""
    path = expand_path(str(path), "--cfg")
    names = [Path(path), Path(path, "config.yaml"), Path(f"{path}.yaml")]
    for candidate in [*names, *(config_folder() / n for n in names)]:
        with contextlib.suppress(OSError):  # such as a name that is too long
            if candidate.is_file():
                return candidate
    if (similar := Path(resolve(path, "--cfg"))) != Path(path):
        return find_config(similar)
    if os.path.isdir(path):
        raise ConfigError(f"--cfg {format_value(path)[1:-1]}: a folder without config.yaml; give a file or run folder")
    known = sorted(p.stem for p in config_folder().glob("*.yaml"))
    hint = did_you_mean(Path(path).stem[:100], known, f"; configs: {truncate(known)}")
    raise ConfigError(f"config {format_value(path)[1:-1]} is not a file, a run folder or a name in configs/{hint}")


def describe(keys: Sequence[str] = ()) -> str:
    """Return the ``--help`` lines of some keys, or of all, with type, default and meaning."""
    defaults, lines = flatten(Config()), []
    for key in keys or _schema():
        f = _schema()[key]
        default = yaml.safe_dump(plain(defaults[key]), default_flow_style=True).splitlines()[0]
        allowed = f" ({' | '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
        lines.append(f"  {key:<28} {type_name(f.type_):<9} {default:<14} {f.metadata['help']}{allowed}")
    return "\n".join(lines)


class _CheckedYaml(CfgNode):
    """fvcore's ``_BASE_`` inheritance. Each file is checked separately, so errors name the right file."""

    _open_files: typing.ClassVar[list[str]] = []  # a file, its base, the base of that, ...

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        provided = config_folder() / Path(filename).name  # a base that is not beside its file
        if not Path(filename).exists() and provided.is_file():
            filename = str(provided)
        if os.path.realpath(filename) in cls._open_files:
            raise ConfigError(f"{filename}: circular _BASE_")
        cls._open_files.append(os.path.realpath(filename))
        try:
            return super().load_yaml_with_base(filename, allow_unsafe)
        except AssertionError as error:
            raise ConfigError(f"{filename}: {error}") from None
        finally:
            cls._open_files.pop()

    @classmethod
    def _open_cfg(cls, filename: str) -> io.StringIO:
        try:
            with open(filename, encoding="utf-8-sig") as file:
                values = read_yaml(file.read(MAX_CHARACTERS + 1), filename)
        except (OSError, UnicodeDecodeError) as error:
            binary = "not a text file in UTF-8; for a checkpoint, name its run folder"
            reason = first_line(error) if isinstance(error, OSError) else binary
            raise file_error(f"config {filename} cannot be read: {reason}", error, ConfigError) from None
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise ConfigError(f"{filename}: expected keys with values, found {type(values).__name__}")
        _build(Config, {k: v for k, v in values.items() if k != "_BASE_"}, filename)
        if "_BASE_" in values:
            bases = values["_BASE_"] if isinstance(values["_BASE_"], list) else [values["_BASE_"]]
            if not all(isinstance(base, str) and base for base in bases):
                raise ConfigError(f"{filename}: _BASE_ must be a file or a list of files; found {format_value(bases)}")
            values["_BASE_"] = [expand_path(base, f"{filename}: _BASE_") for base in bases]
        return io.StringIO(yaml.safe_dump(values, sort_keys=False))


@dataclass(frozen=True)
class _Key:
    type_: Any
    metadata: Mapping[str, Any]


@functools.cache
def _schema() -> dict[str, _Key]:
    def walk(cls: type, prefix: str) -> Iterator[tuple[str, _Key]]:
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if dataclasses.is_dataclass(hints[f.name]):
                yield from walk(hints[f.name], f"{prefix}{f.name}.")
            else:
                yield prefix + f.name, _Key(hints[f.name], f.metadata)

    return dict(walk(Config, ""))


def _build(cls: type, values: Mapping[str, Any], source: str, prefix: str = "") -> Any:
    """Create a dataclass of the schema from nested plain values. Check every key and value."""
    hints, arguments = typing.get_type_hints(cls), {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in hints:
            raise ConfigError(f"{source}: {_unknown(key)}")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {key} is a section; expected keys below it, found {format_value(value)}")
            arguments[name] = _build(hints[name], value, source, f"{key}.")
        else:
            arguments[name] = _checked(value, key, source)
    return cls(**arguments)


def nearest(name: str, options: Iterable[str] = ()) -> str:
    """Return the key of the most similar name, or "" if there is none or it is an option. Sections may be missing."""
    known = {key.split(".")[-1]: key for key in reversed(_schema())} | {key: key for key in _schema()}
    known |= {option.strip("-").replace("-", "_"): "" for option in options}
    name = name[:100].lower().replace("-", "_")
    near = [each for each in (name, name.split(".")[-1]) if each in known] or difflib.get_close_matches(
        name, known, n=1, cutoff=0.7
    )
    return known[near[0]] if near else ""


def as_setting(words: Sequence[str], options: Iterable[str] = ()) -> str:
    """Return ``data.root=X`` for words such as ``--data.root X``, ``data.root = X`` and ``data.root: X``.

    Return "" if no key is similar, or one of a command's options is more similar.
    """
    found = re.match(r"[-–—]*([\w.-]+)\s*[=:]?\s*(?!--|[\w.]+=)(.*)", "\n".join(words[:3]))
    key = nearest(found[1], options) if found else ""
    return f"{key}={redact_url(found[2])[:100] or 'VALUE'}" if key else ""


def _unknown(key: str) -> str:
    near = nearest(key)
    hint = f"did you mean {near}?" if near else "--help-all lists all keys"
    return f"unknown key {format_value(key)[1:-1]}; {hint}"


def _set(nested: dict[str, Any], key: str, text: str) -> None:
    if key not in _schema():
        raise ConfigError(f"override {_unknown(key)}")
    if _schema()[key].type_ is str:
        value: Any = text
    else:
        value = read_yaml(text, f"override {key}={format_value(text)[1:-1]}")
    value = _checked(value, key, "override")
    *sections, leaf = key.split(".")
    place = functools.reduce(lambda d, s: d.setdefault(s, {}), sections, nested)
    place[leaf] = plain(value)


def _checked(value: Any, key: str, source: str) -> Any:
    """Convert a value to the type of its key. Raise ConfigError if its type or range is invalid."""
    try:
        value = checked(key, _current(key, value), _schema()[key].type_, _schema()[key].metadata)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    if not _schema()[key].metadata["path"]:
        return value
    return expand_path(value, key) if isinstance(value, str) else tuple(expand_path(each, key) for each in value)


def _current(key: str, value: Any) -> Any:
    """Convert a value from the config or checkpoint of an older version."""
    return "pyav" if (key, value) == ("data.decoder", "auto") else value
