#!/usr/bin/env python3
"""Weights of TensorFlow's ResNet-RS as a checkpoint of this package.

tools/convert_tensorflow.py --from garden resnet-rs-50-i160/ --out garden_rs50.safetensors
tools/convert_tensorflow.py --from keras resnet-rs-50-i160.h5 --out rs50.pt
tools/convert_tensorflow.py --from tpu resnet-rs-50-i160/model.ckpt --out rs50.pt

Needs TensorFlow, or h5py for Keras: pip install 'video-rs[tf]'. There are three implementations, each with names of its
own for one and the same network:

* garden: the TF Model Garden, tensorflow/models official/vision/modeling/backbones/resnet.py (images) and resnet_3d.py
  (videos): object-based checkpoints, a number for each layer;
* tpu: the TPU repository, tensorflow/tpu models/official/resnet/resnet_model.py, the paper's own code: TF1 names,
  numbered as they were created;
* keras: keras-team/tf-keras tf_keras/applications/resnet_rs.py: layer names in an h5 file.

The first two train with a batch-normalisation momentum of 0: what predicts well is the moving average alone.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from video_rs.cli.common import Parser, run
from video_rs.cli.convert import add_out, write
from video_rs.errors import UserError, first_line, truncate
from video_rs.hub import fetched, is_address, redact_url
from video_rs.models.architecture import Architecture
from video_rs.models.resnet_rs import ResNetRS
from video_rs.models.weights.identify import identify_preset
from video_rs.models.weights.load import Loaded, load_exactly, of_preset
from video_rs.models.weights.source import Source, named
from video_rs.models.weights.state_dict import blocks_of, describe_blocks, sizes_of

LIKE = {"garden": "garden_*", "tpu": "resnet_rs_*", "keras": "resnet_rs_*"}
"""The presets that compute what the code of a source does; others may agree in shapes."""

SWAPPED = ("best_ckpt-", "average_weights-")
"""How the Model Garden's trainer names exports in which averages and variables have changed places."""

Variables = Mapping[str, np.ndarray]

_NORM_KINDS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_KINDS = {"kernel": "weight", "bias": "bias", **_NORM_KINDS}
"""The kinds of variables, in TensorFlow and here."""


def main(argv: list[str]) -> int:
    """Parse the arguments, convert, report what was matched and ignored, and write the file."""
    parser = Parser(__doc__)
    parser.add_argument("--from", dest="source", required=True, choices=LIKE, help="whose weights")
    parser.add_argument("--model", metavar="NAME", help="the network (default: as the weights tell)")
    parser.add_argument(
        "--no-averages",
        action="store_true",
        help="garden: take the variables even where the optimizer keeps averages of them. Right for exports in which "
        "the two have changed places, and done for those that are named best_ckpt-* or average_weights-*",
    )
    parser.add_argument("file", metavar="FILE", help="a checkpoint: its prefix, folder or .index file; or an h5 file")
    add_out(parser)
    args = parser.parse_intermixed_args(argv)
    if args.no_averages and args.source != "garden":
        parser.error("--no-averages is for --from garden")
    write(read(args.file, args.source, args.model, averages=not args.no_averages), redact_url(args.file), args.out)
    return 0


def read(path: str, source: str, model: str | None = None, *, averages: bool = True) -> Loaded:
    """Read weights with this package's names; every one must find its place.

    Args:
        path: of "keras" an h5 file or its address; of "garden" and "tpu" a checkpoint, see :func:`find_checkpoint`.
        source: "garden", "tpu" or "keras".
        model: the network; None: as the weights tell.
        averages: of "garden": take the moving averages, where there are any, rather than the variables. In exports
            that are named as in ``SWAPPED`` the averages are in the variables' place.

    Raises:
        UserError: the file is missing, damaged or something else; names what is missing, left over or of another shape.
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
        weights.notes.append(f"the weights do not tell the activation: taken as {preset.architecture.activation}")
    if swapped:
        weights.averages = f"all tensors: {prefix.name} holds them in place of the variables"
    elif not averages:
        weights.averages = "not taken, as --no-averages says"
    else:
        weights.averages = _averages(names)
    return weights


def _averages(names: Mapping[str, str]) -> str:
    """Describe how many of the variables are moving averages, and which are not although training changes them."""
    plain = {
        ours: name for ours, name in names.items() if not re.search(r"/(?:average|ExponentialMovingAverage)\b", name)
    }
    if len(plain) == len(names):
        return "none"
    text = f"{len(names) - len(plain)} of {len(names)} tensors"
    if frozen := [name for ours, name in plain.items() if "running_" not in ours]:
        text += f", none of {len(frozen)} that training changes: {truncate(frozen, 2)}"
    if any(_SLOT in name for name in names.values()):
        text += f". If the file was named {SWAPPED[0]}* when it was written, give --no-averages"
    return text


# The weights --------------------------------------------------------------------------------------------------------


def from_garden(variables: Variables, architecture: Architecture, *, averages: bool = True) -> dict[str, Tensor]:
    """Return the state dict of a TF Model Garden checkpoint, of a network of this ``architecture``.

    Args:
        variables: by their names in the checkpoint, whether it was saved as ``model=``, as ``backbone=`` and ``model=``
            or by ``save_weights``. Kernels are ``[H, W, I, O]`` of images and ``[D, H, W, I, O]`` of videos, the head's
            is ``[I, O]``; in the result they are ``[O, I, D, H, W]`` and ``[O, I]``.
        architecture: of a preset, as ``PRESETS["garden_resnet_rs_50"].architecture``.
        averages: see :func:`read`.

    Raises:
        UserError: names what is missing, left over, of another shape, or no number that training arrives at.
    """
    return whole(tensors(find_garden(variables, averages), variables), architecture)


def whole(state: dict[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Return the whole state dict of a network of this architecture. Raise UserError where weights do not fit."""
    network = ResNetRS(architecture, blocks_of(state), **sizes_of(state))
    load_exactly(network, Source(state), f"a network of blocks {describe_blocks(network.blocks)}")
    return network.state_dict()


def tensors(names: Mapping[str, str], variables: Variables) -> dict[str, Tensor]:
    """Return weights with the axes of this package. UserError for numbers that training does not arrive at.

    Args:
        names: this package's name of a weight: the variable's.
        variables: by name.
    """
    state = {ours: to_tensor(variables[theirs]) for ours, theirs in names.items()}
    variances = {ours: tensor for ours, tensor in state.items() if ours.endswith("running_var")}
    _refuse("variables are not finite", [names[ours] for ours, tensor in state.items() if not tensor.isfinite().all()])
    _refuse("variances are below zero", [names[ours] for ours, tensor in variances.items() if (tensor < 0).any()])
    untrained = [names[ours] for ours, tensor in variances.items() if not tensor.any()]
    _refuse("statistics are zero, as before the first step of training", untrained)
    return state


def to_tensor(array: np.ndarray) -> Tensor:
    """Return [D]HWIO kernels as float32 ``[O, I, D, H, W]``, D = 1 where there is none; ``[I, O]`` as ``[O, I]``."""
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, which is an error later
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if tensor.ndim == 4:
        tensor = tensor[None]
    axes = {5: (4, 3, 0, 1, 2), 2: (1, 0)}.get(tensor.ndim, range(tensor.ndim))
    return tensor.permute(*axes).contiguous()


def _refuse(fault: str, names: Sequence[str]) -> None:
    if names:
        raise UserError(f"{len(names)} {fault}: {truncate(names)}")


# Names: the Model Garden --------------------------------------------------------------------------------------------

_VALUE, _SLOT = "/.ATTRIBUTES/VARIABLE_VALUE", "/.OPTIMIZER_SLOT/"
_GARDEN_OTHER = re.compile(r"_CHECKPOINTABLE_OBJECT_GRAPH$|(?:optimizer|save_counter|global_step)\b|keras_api/metrics/")
_GARDEN_HEAD = re.compile(r"(?:model/)?layer_with_weights-1/(kernel|bias)")
_GARDEN_LAYER = re.compile(r"(?:model/)?(?:backbone|layer_with_weights-0)/layer_with_weights-(\d+)/(?:(_.+)/)?(\w+)")
_GARDEN_BLOCK = (  # attributes of a block, and what they are here
    (r"_shortcut(?:1|_conv)?", "shortcut.conv"),  # without ResNet-D: _shortcut
    (r"_norm0", "shortcut.norm"),
    (r"_temporal_conv", "conv1.conv"),
    (r"_spatial_conv", "conv2.conv"),
    (r"_expand_conv", "conv3.conv"),
    (r"_conv([123])", r"conv\1.conv"),
    (r"_norm([123])", r"conv\1.norm"),
    (r"_squeeze_excitation/_se_(reduce|expand)", r"se.\1"),
    (r"_self_gating/_transformer_w", "gating"),
)


def find_garden(variables: Variables, averages: bool = True) -> dict[str, str]:
    """Find the weights in a Model Garden checkpoint: variables by this package's names; see :func:`from_garden`."""
    plain, slots = {}, {}
    for name in variables:
        owner, _, slot = name.removesuffix(_VALUE).partition(_SLOT)
        if slot.endswith("/average") and averages:
            slots[owner] = name
        elif not slot and not _GARDEN_OTHER.match(owner):
            plain[owner] = name
    layers = [(int(at[1]), at[2]) for owner in plain if (at := _GARDEN_LAYER.fullmatch(owner))]
    first = min((index for index, place in layers if place), default=len(layers))
    shortcuts = sorted({index for index, place in layers if _renamed(place or "", _GARDEN_BLOCK) == "shortcut.conv"})
    found, unknown = {}, [name for owner, name in slots.items() if owner not in plain]
    for owner, name in plain.items():
        ours = _garden_name(owner, first, shortcuts)
        if ours is None or ours in found:
            unknown.append(name)
        else:
            found[ours] = slots.get(owner, name)
    _refuse("variables are not those of the Model Garden's ResNet-RS", unknown)
    return found


def _garden_name(owner: str, first_block: int, shortcuts: Sequence[int]) -> str | None:
    if head := _GARDEN_HEAD.fullmatch(owner):
        return f"head.{_KINDS[head[1]]}"
    found = _GARDEN_LAYER.fullmatch(owner)
    if found is None or found[3] not in _KINDS:
        return None
    index, place, kind = int(found[1]), found[2], _KINDS[found[3]]
    if place is None and index < first_block:
        layer = ("conv1", "conv2", "conv3", "pool")[min(index // 2, 3)]
        return f"stem.{layer}.{'norm' if index % 2 else 'conv'}.{kind}"
    before = [start for start in shortcuts if start <= index]
    layer = _renamed(place or "", _GARDEN_BLOCK)
    return f"stages.{len(before) - 1}.{index - before[-1]}.{layer}.{kind}" if layer and before else None


# Names: the TPU repository ------------------------------------------------------------------------------------------

_AVERAGE = "/ExponentialMovingAverage"
_TPU_KERNEL = re.compile(rf"conv2d(?:_(\d+))?/kernel(?:{_AVERAGE})?")


def find_tpu(variables: Variables, averages: bool = True) -> dict[str, str]:
    """Find the weights in a checkpoint of the TPU repository: its moving averages, which these networks predict with.

    Raises:
        UserError: names what is left over or has no moving average.
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
    """Return the names of the variables, numbered in the order of the layers' creation, by those of the weights."""
    convs = [f"stem.{layer}" for layer in ("conv1", "conv2", "conv3", "pool")]
    for stage, block in ((i, b) for i, count in enumerate(blocks) for b in range(count)):
        layers = (*["shortcut"] * (block == 0), "conv1", "conv2", "conv3", "se.reduce", "se.expand")
        convs += [f"stages.{stage}.{block}.{layer}" for layer in layers]
    names = {"head.weight": "dense/kernel", "head.bias": "dense/bias"}
    for i, layer in enumerate(convs):
        theirs = f"conv2d_{i}" if i else "conv2d"
        if ".se." in layer:
            names |= {f"{layer}.weight": f"{theirs}/kernel", f"{layer}.bias": f"{theirs}/bias"}
        else:
            names[f"{layer}.conv.weight"] = f"{theirs}/kernel"
    for i, layer in enumerate(layer for layer in convs if ".se." not in layer):
        theirs = f"batch_normalization_{i}" if i else "batch_normalization"
        names |= {f"{layer}.norm.{ours}": f"{theirs}/{kind}" for kind, ours in _NORM_KINDS.items()}
    return names


def _tpu_blocks(variables: Variables) -> list[int]:
    """Return bottlenecks by stage: a block's first kernel has more outputs than inputs where it is a shortcut's."""
    kernels = {int(at[1] or 0): variables[name].shape for name in variables if (at := _TPU_KERNEL.fullmatch(name))}
    blocks, i = [], 4
    while i in kernels:
        inputs, outputs = kernels[i][-2:]
        if outputs > inputs:
            blocks.append(0)
        if not blocks:
            break
        blocks[-1] += 1
        i += 6 if outputs > inputs else 5
    if len(blocks) != 4:
        raise UserError(f"these are not the variables of the TPU repository's ResNet-RS: {truncate(list(variables))}")
    return blocks


# Names: Keras -------------------------------------------------------------------------------------------------------

_KERAS_OTHER = re.compile(r"optimizer_weights/|(?:.*/)?normalization(?:_\d+)?/(?:mean|variance|count)$")
_KERAS_PLACE = re.compile(r"BlockGroup(\d)__block_(\d+)_+(\w+)")
_KERAS_LAYER = (
    (r"predictions", "head"),
    (r"stem_1_stem_conv_4", "stem.pool.conv"),
    (r"stem_1_stem_batch_norm_4", "stem.pool.norm"),
    (r"stem_1_stem_conv_([123])", r"stem.conv\1.conv"),
    (r"stem_1_stem_batch_norm_([123])", r"stem.conv\1.norm"),
)
_KERAS_BLOCK = (
    (r"projection_conv", "shortcut.conv"),
    (r"projection_batch_norm", "shortcut.norm"),
    (r"conv_([123])", r"conv\1.conv"),
    (r"batch_norm_([123])", r"conv\1.norm"),
    (r"se_se_(reduce|expand)", r"se.\1"),
)


def find_keras(variables: Variables, averages: bool = True) -> dict[str, str]:
    """Find the weights in an h5 file of ``tf_keras.applications.resnet_rs``, of weights or of a whole model.

    Raises:
        UserError: names what is left over.
    """
    found, unknown = {}, []
    for name in variables:
        path = name.removesuffix(":0")
        layer, _, kind = path.rpartition("/")
        if _KERAS_OTHER.match(path):
            continue
        place = _keras_place(layer.rpartition("/")[2])
        ours = f"{place}.{_KINDS.get(kind)}"
        if place is None or kind not in _KINDS or ours in found:
            unknown.append(name)
        found[ours] = name
    _refuse("variables are not those of Keras's ResNet-RS, or are there twice", unknown)
    return found


def _keras_place(layer: str) -> str | None:
    if found := _KERAS_PLACE.fullmatch(layer):
        inside = _renamed(found[3], _KERAS_BLOCK)
        return inside and f"stages.{int(found[1]) - 2}.{found[2]}.{inside}"
    return _renamed(layer, _KERAS_LAYER)


def _renamed(name: str, patterns: Sequence[tuple[str, str]]) -> str | None:
    """Return the name of a layer here; ``patterns``: those of its name there, and templates of ours."""
    matches = ((re.fullmatch(pattern, name), ours) for pattern, ours in patterns)
    return next((found.expand(ours) for found, ours in matches if found), None)


_FIND = {"garden": find_garden, "tpu": find_tpu, "keras": find_keras}

# Files --------------------------------------------------------------------------------------------------------------


def read_checkpoint(prefix: Path) -> dict[str, np.ndarray]:
    """Read the variables of a TensorFlow checkpoint, of version 1 or 2, by their names in it.

    Raises:
        UserError: it is damaged or something else.
    """
    tensorflow = import_tensorflow()
    with _one_line(f"checkpoint {prefix}"):
        reader = tensorflow.train.load_checkpoint(str(prefix))
        return {name: np.asarray(reader.get_tensor(name)) for name in sorted(reader.get_variable_to_shape_map())}


def find_checkpoint(path: str | Path) -> Path:
    """Return the prefix of a checkpoint's files.

    Args:
        path: the prefix, as TensorFlow would have it (``folder/ckpt-109200``), one of its files, or the folder, of
            which the newest is taken: as TensorFlow's own record says, or else the only one there.

    Raises:
        UserError: there is none, or the path is an address or an archive.
    """
    if is_address(path) or str(path).endswith((".gz", ".tgz", ".tar", ".zip")):  # as they are published
        raise UserError(f"{redact_url(path)} is an address or an archive: fetch it, unpack it and give the folder")
    path = Path(path)
    if path.is_dir():
        tensorflow = import_tensorflow()
        with _one_line(f"the record of checkpoints in {path}"):
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
    """Read the datasets of an h5 file by their paths in it; of a whole Keras model, those of its weights.

    Raises:
        UserError: the file is missing, damaged or something else.
    """
    import h5py

    if not os.path.exists(path):
        raise UserError(f"{path} does not exist")
    items: list[tuple[str, h5py.HLObject]] = []
    with _one_line(str(path)), h5py.File(path, "r") as file:
        file.get("model_weights", file).visititems(lambda *item: items.append(item))
        return {name: item[()] for name, item in items if isinstance(item, h5py.Dataset)}


def import_tensorflow():
    """Import TensorFlow in a way that torch survives."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it greets with a page on the machine
    with suppress(ImportError):  # torch would load it later, and after TensorFlow that ends the process
        import triton  # noqa: F401
    import tensorflow

    return tensorflow


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn errors of TensorFlow and h5py, a dozen kinds and some over several lines, into a UserError of one line."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{what} is damaged, or something else: {first_line(error)}") from None


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
