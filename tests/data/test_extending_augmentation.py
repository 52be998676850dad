"""An augmentation in a module outside the package, as docs/extending.md shows it."""

import sys

import numpy as np
import pytest
import torch

from video_rs.errors import UserError
from video_rs.experiment.build import transform
from video_rs.experiment.config import load_config

MODULE = """
from video_rs.data.transforms import register_augmentation


@register_augmentation
class Blank:
    def __init__(self, value=0, probability=1.0):
        self.value, self.probability = value, probability

    def __call__(self, clip_THWC, rng):
        return clip_THWC if rng.random() >= self.probability else clip_THWC.new_full(clip_THWC.shape, self.value)
"""


@pytest.fixture(autouse=True)
def forget():
    """Each test imports a file of its own under this name."""
    yield
    sys.modules.pop("blank_augmentation", None)


def spatial(tmp_path, options):
    (tmp_path / "blank_augmentation.py").write_text(MODULE)
    keys = [f"plugins=[{tmp_path}/blank_augmentation.py]", "data.train_size=16", f"data.augment={options}"]
    return transform(load_config("motion_rs", keys), is_training=True).spatial


def test_a_registered_augmentation_is_applied(tmp_path):
    clip = torch.randint(50, 256, (2, 20, 20, 3), dtype=torch.uint8)
    always = spatial(tmp_path, "{Blank: {value: 7}}")
    assert always(clip, np.random.default_rng(0)).unique().tolist() == [7]
    assert spatial(tmp_path, "{Blank: }")(clip, np.random.default_rng(0)).unique().tolist() == [0]
    never = spatial(tmp_path, "{Blank: {probability: 0}}")
    assert never(clip, np.random.default_rng(0)).min() >= 50


@pytest.mark.parametrize("options, message", [("{Blur: }", "'Blur' is registered"), ("{Blank: {size: 3}}", "'size'")])
def test_a_wrong_one_is_one_clear_line(tmp_path, options, message):
    with pytest.raises(UserError, match=f"^data.augment: .*{message}") as error:
        spatial(tmp_path, options)
    assert "\n" not in str(error.value)
