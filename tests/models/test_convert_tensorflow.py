"""Names and axes of TensorFlow, checked with the opposite conversion. TensorFlow is not needed."""

from __future__ import annotations

import re
import sys

import h5py
import numpy as np
import pytest
import torch

from tests.conftest import same as same_state
from tools.convert_tensorflow import (
    _averages,
    find_checkpoint,
    find_garden,
    find_keras,
    find_tpu,
    read_checkpoint,
    read_h5,
    tensors,
)
from video_rs.errors import UserError
from video_rs.models.architecture import GARDEN_2D, GARDEN_3D, RESNET_RS_2D
from video_rs.models.presets import PRESETS
from video_rs.models.registry import create_model
from video_rs.models.resnet_rs import ResNetRS
from video_rs.models.weights.load import load_exactly
from video_rs.models.weights.source import Source
from video_rs.models.weights.state_dict import blocks_of, sizes_of

VALUE, SLOT = "/.ATTRIBUTES/VARIABLE_VALUE", "/.OPTIMIZER_SLOT/optimizer/"
EMA = "/ExponentialMovingAverage"
STEM = ("conv1", "conv2", "conv3", "pool")
KINDS = {"norm.weight": "gamma", "norm.bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


pytestmark = pytest.mark.usefixtures("one_thread")


def network(name: str, **options):
    """Return a narrow network with random weights and statistics."""
    model = create_model(name, width=0.125, num_classes=5, **options)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return model


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if "num_batches" not in name}


def kind_of(name: str) -> str:
    known = [kind for end, kind in KINDS.items() if name.endswith(end)]
    return known[0] if known else {"weight": "kernel", "bias": "bias"}[name.rpartition(".")[2]]


def array_of(name: str, tensor: torch.Tensor, flat: bool) -> np.ndarray:
    """Return a kernel as [T]HWIO; ``flat``: without T."""
    if tensor.ndim == 5:
        array = tensor.numpy().transpose(2, 3, 4, 1, 0)
        return array[0] if flat else array
    return tensor.numpy().T


def to_garden(model) -> dict[str, np.ndarray]:
    """Return the variables as ``tf.train.Checkpoint(model=model, backbone=model.backbone)`` writes them."""
    architecture, video = model.architecture, model.data_config.num_frames > 1
    names = ("_temporal_conv", "_spatial_conv", "_expand_conv", "_shortcut_conv")
    convs = dict(
        zip(("conv1", "conv2", "conv3", "shortcut"), names if video else ("_conv1", "_conv2", "_conv3", "_shortcut1"))
    )
    norms = {"conv1": "_norm1", "conv2": "_norm2", "conv3": "_norm3", "shortcut": "_norm0"}
    stem = [f"conv{i + 1}" for i in range(len(architecture.stem_kernels))] + ["pool"] * (
        architecture.stem_pool == "conv"
    )
    variables = {}
    for name, tensor in weights(model).items():
        part = name.split(".")
        if part[0] == "head":
            place = "model/layer_with_weights-1"
        elif part[0] == "stem":
            place = f"backbone/layer_with_weights-{2 * stem.index(part[1]) + (part[2] == 'norm')}"
        else:
            index = 2 * len(stem) + sum(model.blocks[: int(part[1])]) + int(part[2])
            if part[3] == "se":
                attribute = f"_squeeze_excitation/_se_{part[4]}"
            elif part[3] == "gating":
                attribute = "_self_gating/_transformer_w"
            else:
                attribute = (convs if part[4] == "conv" else norms)[part[3]]
            place = f"backbone/layer_with_weights-{index}/{attribute}"
        variables[f"{place}/{kind_of(name)}{VALUE}"] = array_of(name, tensor, flat=not video or ".se." in name)
    return variables


def to_tpu(model) -> dict[str, np.ndarray]:
    """Return the averages, with TF1's numbers of the layers."""
    order = [f"stem.{layer}" for layer in STEM]
    for stage, count in enumerate(model.blocks):
        for block in range(count):
            layers = ["shortcut"] * (block == 0) + ["conv1", "conv2", "conv3", "se.reduce", "se.expand"]
            order += [f"stages.{stage}.{block}.{layer}" for layer in layers]
    norms = [layer for layer in order if ".se." not in layer]
    variables = {}
    for name, tensor in weights(model).items():
        layer = re.sub(r"\.(conv\.|norm\.)?\w+$", "", name)
        number, kind = (norms.index(layer), "batch_normalization") if ".norm." in name else (0, "dense")
        if kind == "dense" and layer != "head":
            number, kind = order.index(layer), "conv2d"
        place = f"{kind}_{number}" if number else kind
        variables[f"{place}/{kind_of(name)}{EMA}"] = array_of(name, tensor, flat=True)
    return variables


def to_keras(model) -> dict[str, np.ndarray]:
    """Return the weights by their paths in an h5 file."""
    variables = {}
    for name, tensor in weights(model).items():
        part = name.split(".")
        which = "batch_norm" if "norm" in part else "conv"
        if part[0] == "head":
            layer = "predictions"
        elif part[0] == "stem":
            layer = f"stem_1_stem_{which}_{STEM.index(part[1]) + 1}"
        elif part[3] == "se":
            layer = f"BlockGroup{int(part[1]) + 2}__block_{part[2]}__se_se_{part[4]}"
        elif part[3] == "shortcut":
            layer = f"BlockGroup{int(part[1]) + 2}__block_{part[2]}__projection_{which}"
        else:
            bar = "_" if (which, part[3]) == ("batch_norm", "conv1") else "__"
            layer = f"BlockGroup{int(part[1]) + 2}__block_{part[2]}{bar}{which}_{part[3][-1]}"
        variables[f"{layer}/{layer}/{kind_of(name)}:0"] = array_of(name, tensor, flat=True)
    return variables


def whole(state, architecture) -> dict[str, torch.Tensor]:
    """Return the state dict of a network of the architecture with these weights."""
    model = ResNetRS(architecture, blocks_of(state), **sizes_of(state))
    load_exactly(model, Source(state), "the network")
    return model.state_dict()


def from_garden(variables, architecture, averages=True) -> dict[str, torch.Tensor]:
    return whole(tensors(find_garden(variables, averages), variables), architecture)


def from_tpu(variables) -> dict[str, torch.Tensor]:
    return whole(tensors(find_tpu(variables), variables), RESNET_RS_2D)


def from_keras(variables) -> dict[str, torch.Tensor]:
    return whole(tensors(find_keras(variables), variables), RESNET_RS_2D)


def same(state, model) -> bool:
    expected = model.state_dict()
    return list(state) == list(expected) and same_state(state, expected)


GARDENS = [
    *("garden_resnet_rs_50", "garden_resnet_rs_152", "garden_resnet3d_rs_50", "garden_resnet3d_rs_101"),
    *("garden_r3d_50", "garden_r3d_50g", "garden_slowonly_50"),
]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n.endswith("_50") else pytest.mark.slow) for n in GARDENS]
)
def test_garden(name):
    model = network(name)
    variables = to_garden(model)
    assert same(from_garden(variables, model.architecture), model)
    whole = {re.sub("^backbone/", "model/layer_with_weights-0/", key): value for key, value in variables.items()}
    assert same(from_garden(whole, model.architecture), model)
    saved = {key.removeprefix("model/"): value for key, value in whole.items()}
    assert same(from_garden(saved, model.architecture), model)


@pytest.mark.parametrize(
    "name", ["resnet_rs_26", "resnet_rs_50", pytest.param("resnet_rs_270", marks=pytest.mark.slow)]
)
def test_tpu_and_keras(name):
    model = network(name)
    variables = to_tpu(model)
    raw = {key.removesuffix(EMA): value + 1 for key, value in variables.items()}
    momentum = {f"{key}/Momentum": value for key, value in raw.items()}
    assert same(from_tpu({**raw, **variables, **momentum, "global_step": np.array(1)}), model)
    assert same(from_tpu(variables), model)
    variables = to_keras(model)
    assert same(from_keras(variables), model)
    short = {key.partition("/")[2]: value for key, value in variables.items()}
    assert same(from_keras({**short, "optimizer_weights/SGD/iter:0": np.array(1)}), model)
    assert same(from_keras({f"model_weights/{key}": value for key, value in variables.items()}), model)


def trained(variables) -> dict[str, np.ndarray]:
    """Return a checkpoint of a garden trainer with ``variables`` as averages and other numbers as variables."""
    saved = {"_CHECKPOINTABLE_OBJECT_GRAPH": np.array(b""), f"save_counter{VALUE}": np.array(1)}
    saved |= {f"global_step{VALUE}": np.array(1), f"optimizer/ema_base_optimizer/iter{VALUE}": np.array(1)}
    for name, value in variables.items():
        owner = name.removesuffix(VALUE)
        saved |= {name: value + 1, f"{owner}{SLOT}average{VALUE}": value}
        if "moving" not in name:
            saved[f"{owner}{SLOT}ema_base_optimizer/momentum{VALUE}"] = value + 2
    return saved


def test_moving_averages_come_first():
    model = network("garden_resnet3d_rs_50")
    variables = to_garden(model)
    saved = trained(variables)
    assert same(from_garden(saved, GARDEN_3D), model)
    raw = from_garden(saved, GARDEN_3D, averages=False)
    assert all(torch.equal(raw[name], value + 1) for name, value in weights(model).items())
    without = {name: value for name, value in saved.items() if not ("moving_mean" in name and "average" in name)}
    mixed = from_garden(without, GARDEN_3D)
    for name, value in weights(model).items():
        assert torch.equal(mixed[name], value + 1 if name.endswith("running_mean") else value)


def test_frozen_variables_have_no_averages():
    variables = to_garden(network("garden_resnet_rs_50"))
    saved = trained(variables)
    frozen = [name for name in saved if "layer_with_weights-3/" in name and "average" in name]
    said = _averages(find_garden({name: value for name, value in saved.items() if name not in frozen}))
    owners = [name.partition("/.")[0] for name in frozen if "moving" not in name]
    assert all(f"{owner}{VALUE}" in said for owner in owners) and ", none of 2 that training changes" in said
    assert "training changes" not in _averages(find_garden(saved)) and _averages(find_garden(variables)) == "none"
    statistics_alone = {name: value for name, value in saved.items() if not ("moving" in name and "average" in name)}
    assert "training changes" not in _averages(find_garden(statistics_alone))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_all_weights_are_float32(dtype):
    state = from_keras({name: value.astype(dtype) for name, value in to_keras(network("resnet_rs_26")).items()})
    assert {value.dtype for name, value in state.items() if "num_batches" not in name} == {torch.float32}


def test_garden_faults():
    model = network("garden_resnet_rs_50")
    variables = to_garden(model)

    def refused(message: str, **changes) -> None:
        with pytest.raises(UserError, match=message) as error:
            from_garden(
                {name: value for name, value in {**variables, **changes}.items() if value is not None}, GARDEN_2D
            )
        assert "\n" not in str(error.value)

    block, head = "backbone/layer_with_weights-9", "model/layer_with_weights-1"
    zeros = np.zeros(3, np.float32)
    refused(
        r"^2 variables are not those of .*: backbone/layer_with_weights-9/_norm7/beta, x/y$",
        **{f"{block}/_norm7/beta": zeros, "x/y": zeros},
    )
    refused(": it has no stages.0.1.conv2.conv.weight$", **{f"{block}/_conv2/kernel{VALUE}": None})
    refused("weights have other shapes: head.bias$", **{f"{head}/bias{VALUE}": zeros})
    refused(
        ": it has no head.weight, head.bias$",
        **{f"{head}/{kind}{VALUE}": None for kind in ("bias", "kernel")},
    )
    refused("not finite: .*_norm2/gamma", **{f"{block}/_norm2/gamma{VALUE}": np.full(8, np.nan, np.float32)})
    negative = np.full(8, 0.1, np.float32) - np.eye(8, dtype=np.float32)[3]
    refused(
        "^1 variances are negative: .*_norm2/moving_variance", **{f"{block}/_norm2/moving_variance{VALUE}": negative}
    )
    large = np.full(8, 1e39)
    refused("not finite: .*_norm2/gamma", **{f"{block}/_norm2/gamma{VALUE}": large})
    refused("zero.*_norm2/moving_variance", **{f"{block}/_norm2/moving_variance{VALUE}": np.zeros(8, np.float32)})
    twice = {f"{block}/_temporal_conv/kernel{VALUE}": zeros}
    refused("^1 variables are not those of .*_temporal_conv/kernel", **twice)
    refused("variables are not those of the Model Garden", **{name: None for name in variables if "_shortcut1" in name})
    with pytest.raises(UserError, match="weights have other shapes: stem.conv1.conv.weight"):
        from_garden(variables, PRESETS["inflated_garden_resnet_rs_50"].architecture)
    with pytest.raises(UserError, match="weights have other shapes: stem.conv1.conv.weight"):
        from_garden(variables, GARDEN_3D)


def test_a_tpu_checkpoint_needs_its_averages():
    variables = to_tpu(network("resnet_rs_26"))
    raw = {key.removesuffix(EMA): value for key, value in variables.items()}
    with pytest.raises(UserError, match=f"{len(raw)} variables have no moving average"):
        from_tpu(raw)
    some = {**variables, "batch_normalization/moving_mean": raw["batch_normalization/moving_mean"]}
    del some["batch_normalization/moving_mean" + EMA]
    with pytest.raises(UserError, match=r"1 variables have no moving average .*: batch_normalization/moving_mean$"):
        from_tpu(some)


def test_tpu_and_keras_faults():
    model = network("resnet_rs_26")
    variables = to_tpu(model)
    with pytest.raises(UserError, match="1 variables are not those of the TPU .*: conv2d_99/kernel"):
        from_tpu({**variables, "conv2d_99/kernel": np.zeros((1, 1, 2, 2))})
    with pytest.raises(UserError, match="it has no stem.conv1.norm.weight$"):
        from_tpu({name: value for name, value in variables.items() if name != f"batch_normalization/gamma{EMA}"})
    with pytest.raises(UserError, match="not the variables of the TPU"):
        from_tpu(to_garden(network("garden_resnet_rs_50")))
    variables = to_keras(model)
    with pytest.raises(UserError, match="1 variables are not those of Keras's .*: conv5/conv5/kernel:0"):
        from_keras({**variables, "conv5/conv5/kernel:0": np.zeros(1)})
    double = "stem_1_stem_conv_1/stem_1_stem_conv_1/kernel"
    with pytest.raises(UserError, match=f"1 variables .* or are duplicated: {double}$"):
        from_keras({**variables, double: variables[f"{double}:0"] + 1})
    longer = "BlockGroup2__block_0__conv_1-copy/kernel:0"
    with pytest.raises(UserError, match=f"1 variables are not those of Keras's .*: {longer}"):
        from_keras(
            {**variables, longer: variables["BlockGroup2__block_0__conv_1/BlockGroup2__block_0__conv_1/kernel:0"]}
        )
    with pytest.raises(UserError, match="it has no head.weight, head.bias$"):
        from_keras({name: value for name, value in variables.items() if "predictions" not in name})


def test_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "ckpt-1.index").touch()
    for path in (tmp_path, tmp_path / "ckpt-1", tmp_path / "ckpt-1.index"):
        with pytest.raises(ModuleNotFoundError, match="tensorflow"):
            read_checkpoint(find_checkpoint(path))
    with pytest.raises(ModuleNotFoundError, match="h5py"):
        read_h5(tmp_path / "weights.h5")
    with pytest.raises(UserError, match="^https://host/ckpt.tar.gz is a URL or an archive: download and unpack it"):
        find_checkpoint("https://host/ckpt.tar.gz?token=1")
    for name, message in {"ckpt-2": "ckpt-2 does not exist", "a.tar.gz": "unpack it, then give the folder"}.items():
        with pytest.raises(UserError, match=message):
            find_checkpoint(tmp_path / name)


def test_h5_files(tmp_path):
    model = network("resnet_rs_26")
    for name, group in {"weights.h5": "", "model.h5": "model_weights/"}.items():
        with h5py.File(tmp_path / name, "w") as file:
            for path, array in to_keras(model).items():
                file[group + path] = array
            if group:
                file["optimizer_weights/SGD/iter:0"] = 3
        assert same(from_keras(read_h5(tmp_path / name)), model)
    data = (tmp_path / "weights.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: len(data) // 2])
    for name, message in {"cut.h5": "is damaged", "none.h5": "does not exist"}.items():
        with pytest.raises(UserError, match=message) as error:
            read_h5(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
def test_an_h5_file_that_unpacks_to_many_times_its_size(tmp_path, options):
    """Chunks that were never written, and compressed ones."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("w", (1 << 40 if not options else 1 << 24,), "f4", chunks=(1 << 20,), **options)
        data[: 1 << 24] = 0.0
    with pytest.raises(UserError, match=r"a.h5 is not used: its [\d,]+ bytes would unpack to [\d,]+; use another"):
        read_h5(tmp_path / "a.h5")
