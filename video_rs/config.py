"""The config: one typed, frozen tree of dataclasses, read from YAML and ``key=value`` overrides.

It is the only schema: types, ranges, defaults and help texts stand here once, beside each key. Only the functions of
``video_rs.cli`` see a ``Config``; everything below them takes plain arguments. Nothing here imports torch, so that
``--help`` and config errors are instant.

The defaults are the published R3D-RS-50 recipe on Kinetics-400 (TF Model Garden, ``k400_resnet3drs_50_tpu.yaml``).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import io
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from video_rs.contract import FILTERS, SAMPLINGS, DataContract
from video_rs.errors import ConfigError
from video_rs.models.layout import DROP_PATH_RULES, INFLATIONS, TEMPORAL_PADDINGS


def _key(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
    free: bool = False,
) -> Any:
    """A key of the schema: default, meaning, allowed values; ``free`` keys may differ when a run is resumed."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices, "free": free})


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str = _key("resnet3d_rs_50", "a name of video_rs.list_models(), timm/<name> or pytorchvideo/<name>")
    num_classes: int = _key(0, "classes; 0: as many as the data has", low=0)
    width: float = _key(1.0, "multiplier of all channel counts; ResNet-RS only", low=0.05, high=8)
    dropout: float | None = _key(None, "before the head; null: the model's own", low=0, high=0.95)
    drop_path: float | None = _key(None, "rate of the last stage; null: the model's own", low=0, high=0.95)
    drop_path_rule: str = _key("stage", "rate by the paper's stage, or by timm's block", choices=DROP_PATH_RULES)
    bn_momentum: float | None = _key(
        None, "torch's; null: 1.0 with weight EMA, else 0.1; others: theirs", low=1e-4, high=1
    )
    temporal_padding: str | None = _key(
        None, "before the first and after the last frame; null: the layout's", choices=TEMPORAL_PADDINGS
    )


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from and how they become clips."""

    root: str = _key("", "folder of the dataset", free=True)
    train: str = _key("", "list file or folder of class folders; empty: found under root", free=True)
    val: str = _key("", "like train; without one a part of train is set aside", free=True)
    test: str = _key("", "like train; without one val is the test split", free=True)
    class_names: str = _key("", "file with one class name a line; empty: from the data")
    fold: int = _key(1, "which official split of UCF101 or HMDB51", low=1, high=3)
    multi_label: bool = _key(False, "any number of labels a file, joined by ; in lists: sigmoid loss, mAP")
    val_fraction: float = _key(0.1, "part of train set aside where there is no val split", low=0.001, high=0.9)
    max_missing: float = _key(0.05, "part of a list that may be missing on disk", low=0, high=1)
    max_broken: float = _key(
        0.05, "part of the training files that may be unreadable, or the run stops", low=0, high=1, free=True
    )
    decoder: str = _key(
        "auto", "auto: decord where it is right, else PyAV", choices=("auto", "decord", "pyav"), free=True
    )
    workers: int = _key(-1, "loader processes; 0: none, -1: one per CPU core", low=-1, high=256, free=True)
    timeout: float = _key(120.0, "seconds a worker may hang in one file, then left out; 0: for ever", low=0, free=True)
    num_frames: int = _key(32, "frames of a clip; 1 for images", low=1, high=1024)
    stride: int = _key(2, "frames at the rate of fps from one frame of the clip to the next", low=1, high=1024)
    fps: float = _key(0.0, "frame rate that stride counts in; 0: each file's own", low=0, high=1000)
    sampling: str = _key(
        "dense", "dense: frames at the stride; segments: spread over the whole video, as TSN's", choices=SAMPLINGS
    )
    repeats: int = _key(1, "samples drawn from one decode of a file: repeated augmentation", low=1, high=64)
    train_size: int = _key(224, "side of a training crop, pixels", low=16, high=2048)
    short_side: int = _key(256, "short side before a test crop, pixels", low=16, high=4096)
    test_size: int = _key(256, "side of a test crop, pixels", low=16, high=2048)
    area: tuple[float, float] = _key((0.08, 1.0), "scale jitter: area of a training crop", low=1e-3, high=1)
    aspect: tuple[float, float] = _key((0.5, 2.0), "scale jitter: aspect ratio of a training crop", low=0.05, high=20)
    min_covered: float = _key(0.1, "scale jitter: least part of the frame a crop covers", low=0, high=1)
    flip: float = _key(0.5, "probability of a horizontal flip; 0 where direction is the class", low=0, high=1)
    filter: str = _key("bilinear", "resize filter", choices=FILTERS)
    mean: tuple[float, float, float] = _key((0.0, 0.0, 0.0), "per channel, of pixels in [0, 1]", low=0, high=1)
    std: tuple[float, float, float] = _key((1.0, 1.0, 1.0), "per channel, of pixels in [0, 1]", low=1e-3, high=10)
    rand_augment_layers: int = _key(0, "RandAugment operations a sample; 0: off", low=0, high=16)
    rand_augment_magnitude: float = _key(10.0, "RandAugment magnitude", low=0, high=30)
    mixup: float = _key(0.0, "alpha of mixup's Beta distribution; 0: off", low=0, high=100)
    cutmix: float = _key(0.0, "alpha of cutmix's Beta distribution; 0: off", low=0, high=100)


@dataclass(frozen=True)
class OptimConfig:
    """SGD and its schedule."""

    lr: float = _key(0.8, "learning rate for a batch of lr_batch samples", low=0, high=1000)
    lr_batch: int = _key(1024, "batch size that lr is for; it is scaled linearly from there", low=1)
    momentum: float = _key(0.9, "of SGD", low=0, high=0.9999)
    nesterov: bool = _key(True, "Nesterov momentum")
    weight_decay: float = _key(4e-5, "on weights of convolutions and linear layers", low=0, high=1)
    warmup_epochs: float = _key(5.0, "linear warm-up from 0, epochs", low=0)
    schedule: str = _key("cosine", "after the warm-up", choices=("cosine", "constant"))
    clip_grad_norm: float = _key(0.0, "largest gradient norm; 0: off", low=0)


@dataclass(frozen=True)
class TrainConfig:
    """The run."""

    epochs: float = _key(350.0, "passes over the training samples", low=0)
    max_steps: int = _key(0, "optimizer steps instead of epochs; 0: by epochs", low=0)
    batch_size: int = _key(1024, "global batch: samples of one optimizer step", low=1)
    micro_batch: int = _key(0, "most samples on the device at once; batch norm sees them; 0: the whole batch", low=0)
    label_smoothing: float = _key(0.1, "part of the target spread over all classes", low=0, high=0.99)
    ema_decay: float = _key(0.9999, "of the weight average that is validated and kept; 0: off", low=0, high=0.999999)
    class_weights: str = _key("none", "weigh the loss by inverse class frequency", choices=("none", "balanced"))
    balanced_sampling: bool = _key(False, "draw every class equally often")
    seed: int = _key(0, "of everything random", low=0, high=2**32 - 1)
    init_from: str = _key(
        "",
        "a file of weights; pretrained: the network's public ones (of ResNet-RS timm's, exact layouts only); timm: "
        "timm's ResNet-RS of that depth, also into video layouts that differ in more than time",
    )
    inflate: str = _key("center", "how 2D weights become 3D", choices=INFLATIONS)
    device: str = _key("auto", "auto: cuda where there is one", choices=("auto", "cpu", "cuda", "mps"), free=True)
    precision: str = _key(
        "auto",
        "auto: bf16 autocast on CUDA, float32 elsewhere",
        choices=("auto", "float64", "float32", "bf16", "fp16"),
    )
    deterministic: bool = _key(False, "bit-for-bit repeatable on CUDA too, slower")
    threads: int = _key(0, "CPU threads of the training process; 0: torch's choice", low=0, high=1024, free=True)
    val_every: int = _key(1, "epochs between validations; 0: only at the end", low=0)
    log_every: int = _key(20, "steps between log lines", low=1, free=True)
    checkpoint_minutes: float = _key(10.0, "minutes between checkpoints, besides those at epoch ends", low=0, free=True)


@dataclass(frozen=True)
class TestConfig:
    """Multi-view evaluation."""

    __test__ = False  # not a pytest class

    split: str = _key("test", "split to score", choices=("train", "val", "test"), free=True)
    clips: int = _key(10, "clips of a video, evenly spaced", low=1, high=1000, free=True)
    crops: int = _key(3, "crops of a clip: 1 centre, 3 along the longer side", low=1, high=3, free=True)
    batch_size: int = _key(8, "views in one forward pass", low=1, free=True)
    save_views: bool = _key(False, "also keep every view's scores (views.npz)", free=True)


@dataclass(frozen=True)
class Config:
    """Everything a command needs to know."""

    out: str = _key("", "run folder; empty: runs/<name of the config>", free=True)
    weights: str = _key("", "checkpoint to test, a file or an https:// address; empty: <out>/best.pt", free=True)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as a checkpoint or a YAML file holds them."""
        nested: dict[str, Any] = {}
        for key, value in flatten(self).items():
            *sections, leaf = key.split(".")
            place = functools.reduce(lambda d, s: d.setdefault(s, {}), sections, nested)
            place[leaf] = list(value) if isinstance(value, tuple) else value
        return nested

    def to_yaml(self) -> str:
        """The full config as YAML that ``load_config`` reads back to an equal one."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def contract(self, class_names: Sequence[str] = ()) -> DataContract:
        """The data contract that a model trained with this config gets."""
        shared = {f.name for f in dataclasses.fields(DataContract)} & {f.name for f in dataclasses.fields(DataConfig)}
        values = {name: getattr(self.data, name) for name in shared - {"class_names"}}
        return DataContract(**values, class_names=tuple(class_names))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """``{"optim.lr": 0.8, ...}`` of a config, in the schema's order."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value, f"{prefix}{f.name}."))
        else:
            flat[prefix + f.name] = value
    return flat


def differences(old: Mapping[str, Any], new: Config) -> dict[str, tuple[Any, Any]]:
    """Keys that a resumed run may not change but that differ: ``{key: (saved value, value now)}``.

    Args:
        old: the nested dict of a checkpoint, see :meth:`Config.to_dict`. Keys it lacks count as their defaults.
        new: the config of this start.
    """
    before, now = flatten(from_dict(old)), flatten(new)
    strict = {key for key, f in _schema().items() if not f.metadata["free"]}
    return {key: (before[key], now[key]) for key in now if key in strict and before[key] != now[key]}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config.

    Args:
        path: a YAML file, or the name of one in ``configs/`` (with or without ``.yaml``); ``_BASE_: other.yaml`` in it
            inherits.
        overrides: ``key=value`` with dots (``optim.lr=0.1``). Values are YAML: ``4e-5``, ``[1, 2]``, ``null``.

    Raises:
        ConfigError: naming the file, the key and the nearest right one, or what is wrong with the value.
    """
    file = find_config(path)
    try:
        nested = dict(_CheckedYaml.load_yaml_with_base(str(file)) or {})
    except RecursionError:
        raise ConfigError(f"{file}: _BASE_ leads back to itself") from None
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} is not key=value")
        _set(nested, key.strip(), text)
    config = _build(Config, nested, str(file))
    if not config.out:
        config = dataclasses.replace(config, out=str(Path("runs") / file.stem))
    _check_together(config)
    return config


def from_dict(values: Mapping[str, Any], source: str = "checkpoint") -> Config:
    """The config saved in a checkpoint (:meth:`Config.to_dict`). Raises ConfigError naming ``source``."""
    return _build(Config, values, source)


def config_folder() -> Path:
    """The folder of the configs that come with the package: in a wheel inside it, in a checkout beside it."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def find_config(path: str | Path) -> Path:
    """The file behind ``--cfg``: a path, or a name in ``configs/``. Raises ConfigError when there is none."""
    names = [Path(path), Path(f"{path}.yaml")]
    for candidate in [*names, *(config_folder() / n for n in names)]:
        if candidate.is_file():
            return candidate
    known = sorted(p.stem for p in config_folder().glob("*.yaml"))
    near = difflib.get_close_matches(Path(path).stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"configs that come along: {', '.join(known)}"
    raise ConfigError(f"config {path} is neither a file nor a name in configs/; {hint}")


def describe() -> str:
    """Every key with its type, default and meaning, for ``--help``."""
    defaults, lines = flatten(Config()), []
    for key, f in _schema().items():
        default = yaml.safe_dump(_plain(defaults[key]), default_flow_style=True).splitlines()[0]
        allowed = f" ({' | '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
        lines.append(f"  {key:<28} {_type_name(f.type_):<9} {default:<14} {f.metadata['help']}{allowed}")
    return "\n".join(lines)


class _CheckedYaml(CfgNode):
    """fvcore's ``_BASE_`` inheritance, with each file checked by itself so that an error names the right one."""

    @classmethod
    def _open_cfg(cls, filename: str) -> io.StringIO:
        try:
            text = Path(filename).read_text(encoding="utf-8")
            values = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"config {filename} cannot be read: {error}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f":{mark.line + 1}" if mark else ""
            raise ConfigError(f"{filename}{where}: not YAML: {getattr(error, 'problem', error)}") from None
        if values is None:
            values, text = {}, "{}"
        if not isinstance(values, dict):
            raise ConfigError(f"{filename}: expected keys with values, found {type(values).__name__}")
        _build(Config, {k: v for k, v in values.items() if k != "_BASE_"}, filename)
        return io.StringIO(text)


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
    """A dataclass of the schema from nested plain values, every key and value checked."""
    hints, arguments = typing.get_type_hints(cls), {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in hints:
            raise ConfigError(f"{source}: {_unknown(key)}")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {key} is a section; expected keys below it, found {value!r}")
            arguments[name] = _build(hints[name], value, source, f"{key}.")
        else:
            arguments[name] = _checked(value, key, source)
    return cls(**arguments)


def _unknown(key: str) -> str:
    known = list(_schema())
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:  # a right name in the wrong section
        near = [k for k in known if k.split(".")[-1] == key.split(".")[-1]][:1]
    return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "; --help lists all keys")


def _set(nested: dict[str, Any], key: str, text: str) -> None:
    if key not in _schema():
        raise ConfigError(f"override {key}={text}: {_unknown(key)}")
    if _schema()[key].type_ is str:
        value: Any = text
    else:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"override {key}={text}: the value is not YAML") from None
    value = _checked(value, key, "override")
    *sections, leaf = key.split(".")
    place = functools.reduce(lambda d, s: d.setdefault(s, {}), sections, nested)
    place[leaf] = _plain(value)


def _checked(value: Any, key: str, source: str) -> Any:
    """The value as its key's type. Raises ConfigError naming source, key, what was expected and what was found."""
    type_, rules = _schema()[key].type_, _schema()[key].metadata
    try:
        result = _as_type(value, type_)
    except (TypeError, ValueError):
        raise ConfigError(f"{source}: {key} expects {_type_name(type_)}, found {value!r}") from None
    if rules["choices"] and result is not None and result not in rules["choices"]:
        raise ConfigError(f"{source}: {key} is one of {', '.join(rules['choices'])}; found {value!r}")
    for number in result if isinstance(result, tuple) else (result,):
        low, high = rules["low"], rules["high"]
        if low is not None and number is not None and not (low <= number < math.inf and number <= (high or number)):
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise ConfigError(f"{source}: {key} must be {bounds}; found {value!r}")
    return result


def _as_type(value: Any, type_: Any) -> Any:
    if isinstance(type_, types.UnionType):
        if value is None:
            return None
        return _as_type(value, next(t for t in typing.get_args(type_) if t is not types.NoneType))
    if typing.get_origin(type_) is tuple:
        inner = typing.get_args(type_)
        if not isinstance(value, list | tuple) or len(value) != len(inner):
            raise TypeError
        return tuple(_as_type(v, t) for v, t in zip(value, inner, strict=True))
    if type_ is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)  # PyYAML reads 4e-5 as text
    if type_ is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not type_:
        raise TypeError
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _type_name(type_: Any) -> str:
    if isinstance(type_, types.UnionType):
        return "|".join("null" if t is types.NoneType else _type_name(t) for t in typing.get_args(type_))
    if typing.get_origin(type_) is tuple:
        inner = typing.get_args(type_)
        return f"{len(inner)} {_type_name(inner[0])}s"
    return type_.__name__


def _check_together(config: Config) -> None:
    """What no single key can tell."""
    data, train = config.data, config.train
    for name in ("area", "aspect"):
        low, high = getattr(data, name)
        if low > high:
            raise ConfigError(f"data.{name} is [lowest, highest]; found {[low, high]}")
    if data.test_size > data.short_side:
        raise ConfigError(f"data.test_size={data.test_size} does not fit data.short_side={data.short_side}; raise it")
    if 0 < data.timeout < 1:
        raise ConfigError(f"data.timeout={data.timeout:g} is no time to read a file in; give at least 1 second, or 0")
    if data.fps and data.sampling == "segments":
        raise ConfigError(f"data.fps={data.fps:g} says nothing of segments, which divide the whole video; set it to 0")
    if 0 < train.micro_batch < train.batch_size and train.batch_size % train.micro_batch:
        raise ConfigError(
            f"train.batch_size={train.batch_size} is not a multiple of train.micro_batch={train.micro_batch}"
        )
    if not train.epochs and not train.max_steps:
        raise ConfigError("train.epochs and train.max_steps are both 0; set one of them")
    if train.class_weights != "none" and train.balanced_sampling:
        raise ConfigError("train.class_weights and train.balanced_sampling correct for the same thing; choose one")
    if data.multi_label and (train.class_weights != "none" or train.balanced_sampling):
        key = "balanced_sampling" if train.balanced_sampling else "class_weights"
        raise ConfigError(f"train.{key} is for files of one class, data.multi_label=true allows several; choose one")
    if config.test.crops == 2:
        raise ConfigError("test.crops is 1 (centre) or 3 (along the longer side); found 2")
    if config.optim.nesterov and not config.optim.momentum:
        raise ConfigError("optim.nesterov=true needs optim.momentum above 0")
