"""Features and logits of two small networks of the TF Model Garden, computed by its own code with random weights."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from video_rs.models.layout import GARDEN_2D, GARDEN_3D, Layout
from video_rs.models.resnet_rs import ResNetRS

# Times a width of 1/8: these networks are narrow in the stages alone.
NARROW_3D = dataclasses.replace(GARDEN_3D, stem_width=512)
NARROW_2D = dataclasses.replace(GARDEN_2D, stem_width=512, activation="relu")

SUFFIX = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
BLOCK = {
    "_shortcut_conv": "shortcut.conv",
    "_shortcut1": "shortcut.conv",
    "_norm0": "shortcut.norm",
    "_temporal_conv": "conv1.conv",
    "_conv1": "conv1.conv",
    "_norm1": "conv1.norm",
    "_spatial_conv": "conv2.conv",
    "_conv2": "conv2.conv",
    "_norm2": "conv2.norm",
    "_expand_conv": "conv3.conv",
    "_conv3": "conv3.conv",
    "_norm3": "conv3.norm",
    "_squeeze_excitation/_se_reduce": "se.reduce",
    "_squeeze_excitation/_se_expand": "se.expand",
    "_self_gating/_transformer_w": "gating",
}


def our_name(name: str, stem_layers: int, blocks: int) -> str:
    place, *attribute, kind = name.split("/")[1:]
    suffix = SUFFIX.get(kind, kind)
    index = int(place.rsplit("-", 1)[1])
    if name.startswith("model/"):
        return f"head.{suffix}"
    if index < stem_layers:
        layer = "pool" if index // 2 == 3 else f"conv{index // 2 + 1}"
        return f"stem.{layer}.{'norm' if index % 2 else 'conv'}.{suffix}"
    stage, block = divmod(index - stem_layers, blocks)
    return f"stages.{stage}.{block}.{BLOCK['/'.join(attribute)]}.{suffix}"


def our_tensor(array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    if array.ndim == 5:  # DHWIO
        return tensor.permute(4, 3, 0, 1, 2)
    if array.ndim == 4:  # HWIO
        return tensor.permute(3, 2, 0, 1).unsqueeze(2)
    return tensor.T if array.ndim == 2 else tensor


def garden(file: str, layout: Layout, stem_layers: int) -> tuple[ResNetRS, dict[str, np.ndarray]]:
    folder = os.environ.get("VIDEO_RS_TEST_ASSETS")
    if not folder:
        pytest.skip("VIDEO_RS_TEST_ASSETS is not set")
    with np.load(Path(folder, "fixtures", file)) as arrays:
        arrays = dict(arrays)
    model = ResNetRS(layout, (2, 2, 2, 2), 10, width=0.125)
    names = {name[2:]: our_name(name[2:], stem_layers, 2) for name in arrays if name.startswith("w:")}
    state = {ours: our_tensor(arrays[f"w:{theirs}"]) for theirs, ours in names.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    return model.eval(), arrays


def largest_relative_error(model: ResNetRS, arrays: dict[str, np.ndarray]) -> float:
    endpoints: list[torch.Tensor] = []
    for stage in model.stages:
        stage[-1].register_forward_hook(lambda module, args, output: endpoints.append(output))
    errors = []
    for i in range(2):
        endpoints.clear()
        x = torch.from_numpy(arrays[f"in{i}"]).movedim(-1, 1)
        with torch.inference_mode():
            outputs = {"logits": model(x)} | {f"endpoint{j + 2}": e for j, e in enumerate(endpoints)}
        for name, output in outputs.items():
            expected = torch.from_numpy(arrays[f"out{i}:{name}"])
            output = output.movedim(1, -1) if output.ndim > 2 else output
            output = output.squeeze(1) if output.ndim > expected.ndim else output
            errors.append((output - expected).abs().max().item() / expected.abs().max().item())
    return max(errors)


CASES = {
    "3D": ("garden3d_rs_v1stem_pool1.npz", NARROW_3D, 6),
    "2D": ("garden2d_rs_relu.npz", NARROW_2D, 8),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_model_garden(case):
    assert largest_relative_error(*garden(*case)) < 5e-6


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("3D", {"padding": "symmetric"}),
        ("2D", {"padding": "symmetric"}),
        ("2D", {"shortcut_pool_in_stage1": False}),
        ("2D", {"activation": "swish"}),
        ("3D", {"temporal_padding": "replicate"}),
    ],
)
def test_another_layout_does_not(case, change):
    file, layout, stem_layers = CASES[case]
    assert largest_relative_error(*garden(file, dataclasses.replace(layout, **change), stem_layers)) > 1e-2


def test_gating_after_squeeze_and_excitation_does_not():
    model, arrays = garden(*CASES["3D"])
    for stage in model.stages:
        stage[-1].gating, stage[-1].se = stage[-1].se, stage[-1].gating
    assert largest_relative_error(model, arrays) > 1e-2
