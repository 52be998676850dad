"""Features and logits of two small networks of the TF Model Garden, computed by its own code with random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.test_convert_tensorflow import from_garden
from video_rs.models.architecture import GARDEN_2D, GARDEN_3D, Architecture
from video_rs.models.resnet_rs import ResNetRS

pytestmark = pytest.mark.usefixtures("one_thread")

# Times a width of 1/8: these networks are narrow in the stages alone.
NARROW_3D = dataclasses.replace(GARDEN_3D, stem_width=512)
NARROW_2D = dataclasses.replace(GARDEN_2D, stem_width=512, activation="relu")


def garden(assets: Path, file: str, architecture: Architecture) -> tuple[ResNetRS, dict[str, np.ndarray]]:
    """The network with the fixture's weights, and the arrays of the file."""
    with np.load(assets / "fixtures" / file) as arrays:
        arrays = dict(arrays)
    model = ResNetRS(architecture, (2, 2, 2, 2), 10, width=0.125)
    variables = {name.removeprefix("w:"): array for name, array in arrays.items() if name.startswith("w:")}
    model.load_state_dict(from_garden(variables, architecture))
    return model.eval(), arrays


def relative_errors(model: ResNetRS, arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Compare the logits and every stage's output for two inputs; the second has odd sizes."""
    endpoints: list[torch.Tensor] = []
    for stage in model.stages:
        stage[-1].register_forward_hook(lambda module, args, output: endpoints.append(output))
    errors = {}
    for i in range(2):
        endpoints.clear()
        x = torch.from_numpy(arrays[f"in{i}"]).movedim(-1, 1)
        with torch.inference_mode():
            outputs = {"logits": model(x)} | {f"endpoint{j + 2}": e for j, e in enumerate(endpoints)}
        for name, output in outputs.items():
            expected = torch.from_numpy(arrays[f"out{i}:{name}"])
            output = output.movedim(1, -1) if output.ndim > 2 else output
            output = output.squeeze(1) if output.ndim > expected.ndim else output
            assert output.shape == expected.shape
            errors[f"out{i}:{name}"] = (output - expected).abs().max().item() / expected.abs().max().item()
    assert errors.keys() == {name for name in arrays if name.startswith("out")}
    return errors


CASES = {
    "3D": ("garden3d_rs_v1stem_pool1.npz", NARROW_3D),
    "2D": ("garden2d_rs_relu.npz", NARROW_2D),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_model_garden(assets, case):
    assert max(relative_errors(*garden(assets, *case)).values()) < 5e-6


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
def test_another_architecture_does_not(assets, case, change):
    file, architecture = CASES[case]
    assert max(relative_errors(*garden(assets, file, dataclasses.replace(architecture, **change))).values()) > 1e-2


def test_gating_after_squeeze_and_excitation_does_not(assets):
    model, arrays = garden(assets, *CASES["3D"])
    for stage in model.stages:
        stage[-1].gating, stage[-1].se = stage[-1].se, stage[-1].gating
    assert max(relative_errors(model, arrays).values()) > 1e-2
