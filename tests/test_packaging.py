"""The package: its versions are pinned, and its wheel does the main job away from the checkout."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("video_rs", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def requirements(section):
    """The names that a list of pyproject.toml requires (tomllib came with Python 3.11 only)."""
    text = re.search(rf"^{section} = \[(.*?)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)[1]
    return {re.match(r"[\w-]+", name)[0] for name in re.findall(r'"([^"]+)"', text)}


def test_constraints_pin_what_is_required():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {line.partition("==")[0] for line in lines}
    required = requirements("dependencies") | requirements("dev")
    assert required >= {"torch", "torchvision", "decord", "av", "pytest"}
    assert not required - pinned
    assert all("==" in line for line in lines)


def test_version_is_one():
    import video_rs

    assert f'version = "{video_rs.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_import_is_light():
    """Help and config errors must not wait for torch."""
    code = "import sys, video_rs, video_rs.cli.main, video_rs.experiment.config; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.stem)
def test_every_tool_runs_from_any_folder(tool, tmp_path):
    """A process of its own shows help under the name as called, and does not wait for torch."""
    assert os.access(tool, os.X_OK)
    command = [sys.executable, "-X", "importtime", tool, "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith(f"usage: {tool.name} "), result.stderr
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    if tool.name != "convert_tensorflow.py":  # no command, and run once by few
        assert "video_rs.cli.main" in imported and "torch" not in imported


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the tree, which stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    command = [sys.executable, "-m", "pip", "wheel", ".", "-q", "--no-deps", "--no-build-isolation", "-w", "dist"]
    subprocess.run(command, cwd=folder, check=True)
    return next((folder / "dist").glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_configs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(path.relative_to(ROOT)) for kind in ("*.py", "*.csv", "*.j2") for path in (ROOT / "video_rs").rglob(kind)
    }
    assert {"video_rs/models/published.csv", "video_rs/evaluation/report.html.j2"} <= modules
    configs = {f"video_rs/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert names >= modules | configs | {"video_rs/py.typed"}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"video_rs"}  # no tests, no top-level configs


@pytest.mark.slow
def test_installed_wheel_trains_away_from_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel]
    subprocess.run(pip, check=True)

    def python(*arguments):
        environment = os.environ | {"PYTHONPATH": str(site)}
        command = [sys.executable, *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert python("-c", "import video_rs; print(video_rs.__file__)").startswith(str(site))
    script = site / "bin" / "video-rs"
    python(script, "make-motion", "--train=16", "--val=8", "--test=8")
    python(script, "train", "--cfg", "motion_rs.yaml", "train.max_steps=2", "train.batch_size=4", "data.workers=0")
    small = ["test.clips=1", "test.crops=1", "test.batch_size=8", "data.workers=0"]
    assert "report: " in python(script, "test", "--cfg", "runs/motion_rs/config.yaml", *small)
    video = next((tmp_path / "data" / "motion" / "test").rglob("*.mp4"))
    assert python(script, "predict", "--weights", "runs/motion_rs/best.pt", video).startswith(str(video))
    assert "complete" in python(script, "status", "runs/motion_rs")
