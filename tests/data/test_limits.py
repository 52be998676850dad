"""Limits for reading files."""

import subprocess
import sys

import pytest

from video_rs.data import limits
from video_rs.errors import UserError
from video_rs.experiment import build, config


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in limits._NAMES.values():
        monkeypatch.setenv(name, "1")  # restored after the test
        monkeypatch.delenv(name)


def test_limits_are_inherited_by_child_processes():
    assert (limits.retries(), limits.max_pixels()) == (3, 8192 * 8192)
    limits.set_limits(retries=7)
    limits.set_limits(max_pixels=100)
    code = "from video_rs.data import limits; print(limits.retries(), limits.max_pixels())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["7", "100"]


def test_config_keys_set_the_limits(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"data: {{root: {tmp_path}/none}}\n")
    with pytest.raises(UserError, match="none"):
        build.build_records(config.load_config(path, ["data.retries=0", "data.max_pixels=4096"]))
    assert (limits.retries(), limits.max_pixels()) == (0, 4096)


@pytest.mark.parametrize("text", ["-1", "many", "1.5", ""])
def test_invalid_limits_are_errors(text, monkeypatch):
    monkeypatch.setenv("VIDEO_RS_RETRIES", text)
    with pytest.raises(UserError, match="^VIDEO_RS_RETRIES=.*must be a whole number"):
        limits.retries()
