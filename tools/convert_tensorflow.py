#!/usr/bin/env python3
"""Convert the weights of TensorFlow's ResNet-RS to a checkpoint of this package.

tools/convert_tensorflow.py --from garden resnet-rs-50-i160/ --out garden_rs50.safetensors
tools/convert_tensorflow.py --from keras resnet-rs-50-i160.h5 --out rs50.pt
tools/convert_tensorflow.py --from tpu resnet-rs-50-i160/model.ckpt --out rs50.pt

Needs TensorFlow, or h5py for Keras: pip install 'video-rs[tf]'. Three implementations of
the network are supported, each with its own names of the weights:

* garden: the TF Model Garden, tensorflow/models official/vision/modeling/backbones/resnet.py (images) and resnet_3d.py
  (videos). Object-based checkpoints with numbered layers.
* tpu: the TPU repository, tensorflow/tpu models/official/resnet/resnet_model.py, the paper's own code. TF1 names,
  numbered in the order of creation.
* keras: keras-team/tf-keras tf_keras/applications/resnet_rs.py. Layer names in an h5 file.

The first two train with a batch norm momentum of 0, so only the moving averages of the weights predict well.
"""

import itertools
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from video_rs.cli.common import Parser, input_path, run
from video_rs.cli.convert import add_out, write
from video_rs.errors import UserError, one_line, truncate
from video_rs.file_limits import check_size
from video_rs.hub import fetched, is_address, redact_url
from video_rs.models.presets import BLOCKS
from video_rs.models.weights.identify import identify_preset
from video_rs.models.weights.load import Loaded, of_preset
from video_rs.models.weights.source import Source, named

# Patterns of the presets that match the code of each source. Other presets may have weights of the same shapes.
LIKE = {"garden": "garden_*", "tpu": "resnet_rs_*", "keras": "resnet_rs_*"}

# Names of the Model Garden's exports in which the averages and the trained variables are swapped.
SWAPPED = ("best_ckpt-", "average_weights-")

Variables = Mapping[str, np.ndarray]

_AVERAGED = re.compile(r"/(?:average|ExponentialMovingAverage)\b")
# TensorFlow's name of each parameter or statistic of a layer -> the name in this package.
_NORM_KINDS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_KINDS = {"kernel": "weight", "bias": "bias", **_NORM_KINDS}


def main(argv: list[str]) -> int:
    """Parse the arguments, convert, report what was matched and ignored, and write the file."""
    parser = Parser(__doc__)
    parser.add_argument("--from", dest="source", required=True, choices=LIKE, help="origin of the weights")
    parser.add_argument("--model", metavar="NAME", help="the network (default: found from the weights)")
    parser.add_argument(
        "--no-averages",
        action="store_true",
        help="garden: take the variables even if the optimizer keeps averages of them. Right for exports that hold the "
        "averages as variables; the default for files that are named best_ckpt-* or average_weights-*",
    )
    help = "a checkpoint: its prefix, folder or .index file; or an h5 file"
    parser.add_argument("file", type=input_path, metavar="FILE", help=help)
    add_out(parser)
    args = parser.parse_intermixed_args(argv)
    if args.no_averages and args.source != "garden":
        parser.error("--no-averages is for --from garden")
    write(read(args.file, args.source, args.model, averages=not args.no_averages), redact_url(args.file), args.out)
    return 0


def read(path: str, source: str, model: str | None = None, *, averages: bool = True) -> Loaded:
    """Read weights and rename them to this package's names. Every weight must match.

    Args:
        path: an h5 file or its URL for "keras"; otherwise a checkpoint, see :func:`find_checkpoint`.
        source: "garden", "tpu" or "keras".
        model: name of the network; None: find it from the weights.
        averages: for "garden", load the moving average of a variable where there is one. Exports with the names in
            ``SWAPPED`` hold the averages as variables.

    Raises:
        UserError: the file is missing, damaged or of another format; weights are missing, unexpected or of the wrong
            shape.
    """
    if source == "keras":
        with fetched(path) as file:
            variables, prefix = read_h5(file), Path(redact_url(path))
    else:
        prefix = find_checkpoint(path)
        variables = read_checkpoint(prefix)
    swapped = source == "garden" and prefix.name.startswith(SWAPPED)
    with named(str(prefix)):
        names = _FIND[source](variables, averages and not swapped)
        stem = variables.get(names.get("stem.conv1.conv.weight"), np.empty(0))
        frames = len(stem) if stem.ndim == 5 else 0
        preset, notes = identify_preset(names, LIKE[source], prefix, model, frames)
        ignored = [name for name in variables if name not in set(names.values())]
        weights = of_preset(preset, Source(tensors(names, variables), str(prefix), ignored=ignored), notes=notes)
    if source == "garden" and not frames:
        weights.notes.append(f"the weights do not determine the activation: assumed {preset.architecture.activation}")
    weights.averages = _averages(names) if averages else "not taken, as --no-averages says"
    if swapped:
        weights.averages = f"all tensors: {prefix.name} holds them in place of the variables"
    return weights


def _averages(names: Mapping[str, str]) -> str:
    """Return a phrase on how many weights are moving averages, and which trained weights are not."""
    plain = {ours: name for ours, name in names.items() if not _AVERAGED.search(name)}
    if len(plain) == len(names):
        return "none"
    text = f"{len(names) - len(plain)} of {len(names)} tensors"
    if frozen := [name for ours, name in plain.items() if "running_" not in ours]:
        text += f", none of {len(frozen)} that training changes: {truncate(frozen, 2)}"
    if any(_SLOT in name for name in names.values()):
        text += f". If the file was named {SWAPPED[0]}* when it was written, give --no-averages"
    return text


# The weights --------------------------------------------------------------------------------------------------------


def tensors(names: Mapping[str, str], variables: Variables) -> dict[str, Tensor]:
    """Return weights with the axes of this package.

    Args:
        names: this package's name of a weight -> TensorFlow's name of its variable.
        variables: the arrays of the checkpoint, by name.

    Raises:
        UserError: a number is not finite, a variance is negative, or statistics are all zero.
    """
    state = {ours: to_tensor(variables[theirs]) for ours, theirs in names.items()}
    variances = {ours: tensor for ours, tensor in state.items() if ours.endswith("running_var")}
    _refuse("variables are not finite", [names[ours] for ours, tensor in state.items() if not tensor.isfinite().all()])
    _refuse("variances are negative", [names[ours] for ours, tensor in variances.items() if (tensor < 0).any()])
    untrained = [names[ours] for ours, tensor in variances.items() if not tensor.any()]
    _refuse("statistics are all zero: the network was not trained", untrained)
    return state


def to_tensor(array: np.ndarray) -> Tensor:
    """Return [D]HWIO kernels as float32 ``[O, I, D, H, W]`` (D = 1 if missing), and ``[I, O]`` as ``[O, I]``."""
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite: an error later
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if tensor.ndim == 4:
        tensor = tensor[None]
    axes = {5: (4, 3, 0, 1, 2), 2: (1, 0)}.get(tensor.ndim, range(tensor.ndim))
    return tensor.permute(*axes).contiguous()


def _refuse(fault: str, names: Sequence[str]) -> None:
    """Raise UserError if any variables have a fault."""
    if names:
        raise UserError(f"{len(names)} {fault}: {truncate(names)}")


# Names: the Model Garden --------------------------------------------------------------------------------------------

_VALUE, _SLOT = "/.ATTRIBUTES/VARIABLE_VALUE", "/.OPTIMIZER_SLOT/"
_GARDEN_OTHER = re.compile(r"_CHECKPOINTABLE_OBJECT_GRAPH$|(?:optimizer|save_counter|global_step)\b|keras_api/metrics/")
_GARDEN_HEAD = re.compile(r"(?:model/)?layer_with_weights-1/(kernel|bias)")
_GARDEN_LAYER = re.compile(r"(?:model/)?(?:backbone|layer_with_weights-0)/layer_with_weights-(\d+)/(?:(_.+)/)?(\w+)")
_GARDEN_BLOCK = (  # patterns of the attributes of a block, and their names here
    (r"_shortcut(?:1|_conv)?", "shortcut.conv"),  # without ResNet-D: _shortcut
    (r"_norm0", "shortcut.norm"),
    (r"_temporal_conv|_conv1", "conv1.conv"),
    (r"_spatial_conv|_conv2", "conv2.conv"),
    (r"_expand_conv|_conv3", "conv3.conv"),
    (r"_norm([123])", r"conv\1.norm"),
    (r"_squeeze_excitation/_se_(reduce|expand)", r"se.\1"),
    (r"_self_gating/_transformer_w", "gating"),
)


def find_garden(variables: Variables, averages: bool = True) -> dict[str, str]:
    """Return the names of the variables of a Model Garden checkpoint, by this package's names of the weights.

    Args:
        variables: saved as ``model=``, as ``backbone=`` and ``model=``, or by ``save_weights``.
        averages: take the moving average of a variable if there is one.

    Raises:
        UserError: there are unexpected variables; the message names them.
    """
    plain, slots = {}, {}
    for name in variables:
        owner, _, slot = name.removesuffix(_VALUE).partition(_SLOT)
        if slot.endswith("/average") and averages:
            slots[owner] = name
        elif not slot and not _GARDEN_OTHER.match(owner):
            plain[owner] = name
    layers = [layer for owner in plain if (layer := _GARDEN_LAYER.fullmatch(owner)) and layer[2]]
    shortcuts = sorted({int(layer[1]) for layer in layers if _renamed(layer[2], _GARDEN_BLOCK) == "shortcut.conv"})
    pairs = [(_garden_name(owner, shortcuts), slots.get(owner, name)) for owner, name in plain.items()]
    pairs += [(None, name) for owner, name in slots.items() if owner not in plain]
    return _collect(pairs, "variables are not those of the Model Garden's ResNet-RS")


def _garden_name(owner: str, shortcuts: Sequence[int]) -> str | None:
    """Return this package's name of a variable; ``shortcuts`` are the numbers of the first blocks of the stages."""
    if head := _GARDEN_HEAD.fullmatch(owner):
        return f"head.{_KINDS[head[1]]}"
    found = _GARDEN_LAYER.fullmatch(owner)
    if found is None or found[3] not in _KINDS:
        return None
    index, place, kind = int(found[1]), found[2], _KINDS[found[3]]
    if place is None and index < 8:
        layer = ("conv1", "conv2", "conv3", "pool")[index // 2]
        return f"stem.{layer}.{'norm' if index % 2 else 'conv'}.{kind}"
    before = [start for start in shortcuts if start <= index]
    layer = _renamed(place or "", _GARDEN_BLOCK)
    return f"stages.{len(before) - 1}.{index - before[-1]}.{layer}.{kind}" if layer and before else None


# Names: the TPU repository ------------------------------------------------------------------------------------------

_AVERAGE = "/ExponentialMovingAverage"
_TPU_KERNEL = re.compile(rf"conv2d(?:_(\d+))?/kernel(?:{_AVERAGE})?")


def find_tpu(variables: Variables, averages: bool = True) -> dict[str, str]:
    """Return the names of the moving averages in a checkpoint of the TPU repository, by this package's names.

    Raises:
        UserError: variables are unexpected or have no moving average; the message names them.
    """
    names = _tpu_names(_tpu_blocks(variables))
    found = {ours: name + _AVERAGE for ours, name in names.items() if name + _AVERAGE in variables}
    bare = [name for ours, name in names.items() if ours not in found and name in variables]
    _refuse(f"variables have no moving average ({_AVERAGE[1:]}); give a checkpoint that holds the averages", bare)
    known = {"global_step", *names.values()}
    unknown = [name for name in variables if name not in known and name.rpartition("/")[0] not in known]
    _refuse("variables are not those of the TPU repository's ResNet-RS of this depth", unknown)
    return found


def _tpu_names(blocks: Sequence[int]) -> dict[str, str]:
    """Return the names of the variables, numbered in the order of creation of their layers, by this package's names."""
    convs = [f"stem.{layer}.conv" for layer in ("conv1", "conv2", "conv3", "pool")]
    for stage, block in ((i, b) for i, count in enumerate(blocks) for b in range(count)):
        layers = ["conv1.conv", "conv2.conv", "conv3.conv", "se.reduce", "se.expand"]
        layers = layers if block else ["shortcut.conv", *layers]
        convs += [f"stages.{stage}.{block}.{layer}" for layer in layers]
    names = {"head.weight": "dense/kernel", "head.bias": "dense/bias"}
    for i, layer in enumerate(convs):
        theirs = f"conv2d_{i}" if i else "conv2d"
        names[f"{layer}.weight"] = f"{theirs}/kernel"
        if ".se." in layer:
            names[f"{layer}.bias"] = f"{theirs}/bias"
    norms = [layer.removesuffix(".conv") + ".norm" for layer in convs if layer.endswith(".conv")]
    for i, layer in enumerate(norms):
        theirs = f"batch_normalization_{i}" if i else "batch_normalization"
        names |= {f"{layer}.{ours}": f"{theirs}/{kind}" for kind, ours in _NORM_KINDS.items()}
    return names


def _tpu_blocks(variables: Variables) -> Sequence[int]:
    """Return the bottlenecks by stage, from the number of convolutions: 4 in the stem, 4 shortcuts, 5 in each block."""
    numbers = {int(found[1] or 0) for name in variables if (found := _TPU_KERNEL.fullmatch(name))}
    count = next(number for number in itertools.count() if number not in numbers)
    blocks = next((blocks for blocks in BLOCKS.values() if count == 8 + 5 * sum(blocks)), None)
    if blocks is None:
        raise UserError(f"these are not the variables of the TPU repository's ResNet-RS: {truncate(list(variables))}")
    return blocks


# Names: Keras -------------------------------------------------------------------------------------------------------

_KERAS_OTHER = re.compile(r"optimizer_weights/|(?:.*/)?normalization(?:_\d+)?/(?:mean|variance|count)$")
_KERAS_BLOCK = re.compile(r"BlockGroup(\d)__block_(\d+)_+")
_KERAS_LAYER = (
    (r"predictions", "head"),
    (r"stem_1_stem_conv_4", "stem.pool.conv"),
    (r"stem_1_stem_batch_norm_4", "stem.pool.norm"),
    (r"stem_1_stem_conv_([123])", r"stem.conv\1.conv"),
    (r"stem_1_stem_batch_norm_([123])", r"stem.conv\1.norm"),
    (r"(stages\..*)projection_conv", r"\1shortcut.conv"),
    (r"(stages\..*)projection_batch_norm", r"\1shortcut.norm"),
    (r"(stages\..*)conv_([123])", r"\1conv\2.conv"),
    (r"(stages\..*)batch_norm_([123])", r"\1conv\2.norm"),
    (r"(stages\..*)se_se_(reduce|expand)", r"\1se.\2"),
)


def find_keras(variables: Variables, averages: bool = True) -> dict[str, str]:
    """Return the names of the weights in an h5 file of ``tf_keras.applications.resnet_rs``, by this package's names.

    Raises:
        UserError: there are unexpected weights; the message names them.
    """
    paths = {name: name.removesuffix(":0") for name in variables}
    pairs = [(_keras_name(path), name) for name, path in paths.items() if not _KERAS_OTHER.match(path)]
    return _collect(pairs, "variables are not those of Keras's ResNet-RS, or are duplicated")


def _keras_name(path: str) -> str | None:
    folder, _, kind = path.rpartition("/")
    layer = folder.rpartition("/")[2]
    ours = _renamed(_KERAS_BLOCK.sub(lambda at: f"stages.{int(at[1]) - 2}.{at[2]}.", layer), _KERAS_LAYER)
    return f"{ours}.{_KINDS[kind]}" if ours and kind in _KINDS else None


def _collect(pairs: Iterable[tuple[str | None, str]], fault: str) -> dict[str, str]:
    """Return the variables by this package's names. Raise UserError for unknown and for repeated names."""
    found, unknown = {}, []
    for ours, theirs in pairs:
        if ours is None or ours in found:
            unknown.append(theirs)
        else:
            found[ours] = theirs
    _refuse(fault, unknown)
    return found


def _renamed(name: str, patterns: Sequence[tuple[str, str]]) -> str | None:
    """Return this package's name of a layer, by ``(pattern, template)``; None if no pattern matches."""
    matches = ((re.fullmatch(pattern, name), ours) for pattern, ours in patterns)
    return next((found.expand(ours) for found, ours in matches if found), None)


_FIND = {"garden": find_garden, "tpu": find_tpu, "keras": find_keras}

DAMAGED = " is damaged, or something else"

# Files --------------------------------------------------------------------------------------------------------------


def read_checkpoint(prefix: Path) -> dict[str, np.ndarray]:
    """Read the variables of a TensorFlow checkpoint of version 1 or 2, by name.

    Raises:
        UserError: the file is damaged or not a checkpoint.
    """
    tensorflow = import_tensorflow()
    with one_line(f"checkpoint {prefix}{DAMAGED}"):
        reader = tensorflow.train.load_checkpoint(str(prefix))
        return {name: np.asarray(reader.get_tensor(name)) for name in sorted(reader.get_variable_to_shape_map())}


def find_checkpoint(path: str | Path) -> Path:
    """Return the prefix of a checkpoint's files.

    Args:
        path: the prefix (``folder/ckpt-109200``), one of the files, or a folder with a single checkpoint or with
            TensorFlow's ``checkpoint`` file, which names the newest.

    Raises:
        UserError: there is no checkpoint, or the path is a URL or an archive.
    """
    if is_address(path) or str(path).endswith((".gz", ".tgz", ".tar", ".zip")):
        raise UserError(f"{redact_url(path)} is a URL or an archive: download and unpack it, then give the folder")
    path = Path(path)
    if path.is_dir():
        tensorflow = import_tensorflow()
        with one_line(f"the record of checkpoints in {path}{DAMAGED}"):
            newest = tensorflow.train.latest_checkpoint(str(path))
        found = [Path(newest)] if newest else sorted(file.with_suffix("") for file in path.glob("*.index"))
        if len(found) != 1:
            many = f"several checkpoints, name one: {', '.join(file.name for file in found)}"
            raise UserError(f"the folder {path} holds {many if found else 'no TensorFlow checkpoint (*.index)'}")
        return found[0]
    prefix = path.with_name(re.sub(r"\.(?:index|data-\d+-of-\d+)$", "", path.name))
    if not os.path.exists(f"{prefix}.index") and (prefix != path or not path.exists()):
        raise UserError(f"checkpoint {prefix} does not exist: there is no {prefix.name}.index in {prefix.parent}")
    return prefix


def read_h5(path: str | Path) -> dict[str, np.ndarray]:
    """Read the datasets of an h5 file by path. Of a file with a whole Keras model, read only the weights.

    Raises:
        UserError: the file is missing, damaged or not h5.
    """
    import h5py

    if not os.path.exists(path):
        raise UserError(f"{path} does not exist")
    items: list[tuple[str, h5py.HLObject]] = []
    with one_line(f"{path}{DAMAGED}"), h5py.File(path, "r") as file:
        file.get("model_weights", file).visititems(lambda *item: items.append(item))
        datasets = {name: item for name, item in items if isinstance(item, h5py.Dataset)}
        check_size(path, sum(item.nbytes for item in datasets.values()))
        return {name: item[()] for name, item in datasets.items()}


def import_tensorflow():
    """Import TensorFlow into a process that uses torch."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # silence the messages about the machine
    with suppress(ImportError):  # torch imports it later, and would crash after TensorFlow
        import triton  # noqa: F401
    import tensorflow

    return tensorflow


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
