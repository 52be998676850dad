"""The code of docs/extending.md, unchanged: a network, a layout, an augmentation and a loss in files of their own."""

import re
import shlex
import sys

import pytest
import yaml

import video_rs
from tests import commands
from video_rs.data.sources.layouts import base
from video_rs.data.transforms import registry as augmentations
from video_rs.models import registry
from video_rs.training import losses

from .conftest import REPOSITORY, TINY

PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = {match[1]: match[2] for match in re.finditer(r"```python\n# (my_\w+\.py)\n(.*?)```", PAGE, re.DOTALL)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the files of the page. What they register is forgotten again."""
    registries = ((augmentations, "_REGISTERED"), (losses, "_REGISTERED"), (registry, "_FACTORIES"), (base, "_LAYOUTS"))
    for module, name in registries:
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def jester(root, videos):
    """A dataset in the page's layout: folders of frames, of two classes."""
    from PIL import Image

    names = ("Swiping Left", "Doing other things")
    root.mkdir()
    (root / "jester-v1-labels.csv").write_text("".join(f"{name}\n" for name in names))
    for split, numbers in (("train", range(videos)), ("validation", range(videos, videos + 2))):
        (root / f"jester-v1-{split}.csv").write_text("".join(f"{n};{names[n % 2]}\n" for n in numbers))
        for n in numbers:
            (root / "20bn-jester-v1" / str(n)).mkdir(parents=True)
            for frame in range(1, 9):
                Image.new("RGB", (40, 36), (20 * n, 10 * frame, 0)).save(root / f"20bn-jester-v1/{n}/{frame:05d}.jpg")


def test_a_run_with_all_four(folder):
    assert set(FILES) == {"my_net.py", "my_layout.py", "my_augmentation.py", "my_loss.py"}
    jester(folder / "jester", 8)
    configs = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    data = {**TINY["data"], **configs[0]["data"], "root": "jester"}
    train = {**TINY["train"], **configs[1]["train"], "epochs": 1, "batch_size": 4}
    values = {**TINY, "model": {"name": "my_net"}, "data": data, "train": train, "plugins": list(FILES), "out": "run"}
    (folder / "my.yaml").write_text(yaml.safe_dump(values))
    done = commands.script(REPOSITORY / "tools" / "train_net.py", "--cfg", "my.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = commands.script(REPOSITORY / "tools" / "test_net.py", "--cfg", "my.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "--plugins my_net.py" in done.stdout.splitlines()[-1]
    frames = folder / "jester" / "20bn-jester-v1" / "0"
    assert {found.label for found in video_rs.load(folder / "run" / "best.pt").predict(frames)} == {
        "Swiping Left",
        "Doing other things",
    }


@pytest.mark.slow
def test_the_commands_and_configs_of_the_page(folder, tiny_videos):
    jester(folder / "jester", 8)
    roots = {"/data/mine": str(tiny_videos), "/data/jester": "jester"}
    small = [
        f"{section}.{key}={value}" for section in ("data", "optim", "train") for key, value in TINY[section].items()
    ]
    lines = [text.replace("\\\n", " ") for text in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)]
    blocks = re.findall(r"```yaml\n# my.yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(lines) == 2 and len(blocks) == 2
    commands_of_blocks = [f"tools/train_net.py --cfg my{n}.yaml data.root=/data/mine" for n in range(len(blocks))]
    for n, text in enumerate(blocks):
        (folder / f"my{n}.yaml").write_text(text)
    for line in lines + commands_of_blocks:
        for place, root in roots.items():
            line = line.replace(place, root)
        width = [] if "my_net" in line else ["model.width=0.125"]
        script, *arguments = shlex.split(line)
        done = commands.script(REPOSITORY / script, *arguments, *small, *width, "--dry-run", cwd=folder)
        assert done.returncode == 0, done.stderr


def test_names_that_no_file_registers_are_one_line(folder, tiny_videos):
    cases = {
        "train.loss=Focal": "train.loss=Focal: must be ",
        "data.augment={Grayscale: {}}": "data.augment: no augmentation 'Grayscale' is registered",
        "model.name=my_net": "there is no model 'my_net'",
    }
    for setting, line in cases.items():
        arguments = ("--cfg", "motion_rs.yaml", f"data.root={tiny_videos}", setting)
        done = commands.script(REPOSITORY / "tools" / "train_net.py", *arguments, cwd=folder)
        assert done.returncode == 2 and line in done.stderr, done.stderr


def test_wrong_arguments_of_an_augmentation_are_one_line(folder, tiny_videos):
    arguments = ("--cfg", "motion_rs.yaml", f"data.root={tiny_videos}", "plugins=[my_augmentation.py]")
    setting = "data.augment={Grayscale: {strength: 1}}"
    done = commands.script(REPOSITORY / "tools" / "train_net.py", *arguments, setting, cwd=folder)
    assert done.returncode == 2 and "data.augment: Grayscale: " in done.stderr
