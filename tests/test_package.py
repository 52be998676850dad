"""``import video_rs`` is cheap and complete."""

from __future__ import annotations

import subprocess
import sys

import pytest

import video_rs


def test_importing_and_listing_leaves_torch_alone():
    code = (
        "import sys, video_rs; names = video_rs.list_models(); "
        "import video_rs.models.architecture, video_rs.cli.inflate; "
        "assert 'resnet3d_rs_50' in names and video_rs.__version__; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names():
    public = {"VideoDataset", "__version__", "create_model", "create_transform", "fit", "list_models", "load"}
    assert set(dir(video_rs)) == public and all(hasattr(video_rs, name) for name in public)
    assert video_rs.create_model("resnet_rs_26", width=0.125, num_classes=3).num_classes == 3
    assert len(video_rs.list_models()) == 51
    with pytest.raises(AttributeError, match="no attribute 'make_model'"):
        video_rs.make_model  # noqa: B018
