"""The commands of README.md and docs/models.md and the README's Python, in order, on small videos and networks."""

import os
import re
import shlex
import shutil

import h5py
import pytest

from tests import commands
from tests.models.test_convert_tensorflow import to_keras
from video_rs import checkpoint
from video_rs.data_config import DataConfig
from video_rs.models.registry import create_model

from .conftest import REPOSITORY, TINY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MODELS = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def command_lines():
    """The commands of the README, then those of docs/models.md that need no download, full size or several runs."""
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    weights = [shlex.split(line, comments=True) for block in blocks("sh", MODELS) for line in block.splitlines()]
    left_out = ("--from timm", "--to timm", "runs/a runs/b", "runs/mine/checkpoints/*.pt --out")
    lines += [words for words in weights if " ".join(words[1:3]) not in left_out]
    return [words for words in lines if words]


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_videos):
    """A working folder with what the README's commands name."""
    home = tmp_path_factory.mktemp("home")
    videos = sorted(tiny_videos.glob("test/*/*.mp4"))
    shutil.copy(videos[0], home / "new.mp4")
    (home / "more_videos").mkdir()
    shutil.copy(videos[1], home / "more_videos" / "a.mp4")
    image_net = {"name": "resnet_rs_26", "num_classes": 5, "width": TINY["model"]["width"]}
    model = create_model(**image_net)
    state = {
        "format": 1,
        "config": {},
        "model_args": image_net,
        "data_config": model.data_config.to_dict(),
        "ema": None,
    }
    checkpoint.save(home / "image.pt", {**state, "model": model.state_dict()})
    with h5py.File(home / "image.h5", "w") as file:
        for name, array in to_keras(model).items():
            file[name] = array
    return home


def shrink(words, tiny_videos):
    """The command on the small dataset and network; weights that must be downloaded become a local file."""
    if "garden" in words:  # the Garden's need TensorFlow, see `make test-tf`; Keras's do not
        return [{"garden": "keras", "resnet-rs-50-i160/": "image.h5"}.get(word, word) for word in words]
    stand_ins = {
        "runs/motion_rs": "runs/finetune_rs50",
        "data/motion": str(tiny_videos),
        "resnet3d_rs_50": TINY["model"]["name"],
        "/data/mine": str(tiny_videos),
        "/data/k400": str(tiny_videos),
        "init_from=timm": "init_from=image.pt",
        "--weights\ttimm": "--weights\timage.pt",
    }
    words = re.sub("|".join(stand_ins), lambda match: stand_ins[match[0]], "\t".join(words)).split("\t")
    if "--cfg" in words:
        sections = {**TINY, "train": {**TINY["train"], "epochs": 1}}
        words += [f"{section}.{key}={value}" for section, keys in sections.items() for key, value in keys.items()]
    return words


@pytest.mark.slow
def test_every_command_and_the_python_run(home, tiny_videos, monkeypatch):
    ran = []
    for words in command_lines():
        if words[0] in ("make", "pip"):
            continue  # `make` targets: the next test
        words = shrink(words, tiny_videos)
        script = REPOSITORY / words[0]
        assert os.access(script, os.X_OK), script
        done = commands.script(script, *words[1:], cwd=home)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        ran.append(script.name)
    shown = {
        "train_net.py",
        "test_net.py",
        "predict.py",
        "extract_features.py",
        "probe_features.py",
        "explain.py",
        "show_clips.py",
        "run_status.py",
        "list_models.py",
        "inflate_weights.py",
        "convert_weights.py",
        "convert_tensorflow.py",
    }
    assert shown <= set(ran)
    run_python(home, tiny_videos, monkeypatch)


def run_python(home, tiny_videos, monkeypatch):
    monkeypatch.chdir(home)
    shutil.copy("new.mp4", "a.mp4")
    shutil.copy("new.mp4", "b.mp4")
    (code,) = blocks("python")
    small = DataConfig(num_frames=4, stride=1, train_size=32, short_side=32, test_size=32)
    stand_ins = {
        '"resnet3d_rs_50", pretrained=False, num_classes=400': '"resnet3d_rs_26", width=0.125, data_config=small',
        "/data/mine": str(tiny_videos),
        "epochs=10": "epochs=1",
    }
    for text, stand_in in stand_ins.items():
        assert text in code
        code = code.replace(text, stand_in)
    names = {"small": small}
    exec(code, names)
    clf = names["clf"]
    assert [len(found) for found in clf.predict(["a.mp4", "b.mp4"])] == [5, 5]
    assert clf.embed(["a.mp4"]).shape == (1, names["model"].num_features)


def test_a_run_folder_holds_what_the_table_lists(tiny_config, run_tool, tmp_path):
    """The test needs nothing but the run's own config."""
    page = (REPOSITORY / "docs" / "configs.md").read_text(encoding="utf-8")
    table = re.search(r"\| file \| \|\n\|---\|---\|\n((?:\|.*\n)+)", page)[1]
    names = {name for row in table.splitlines() for name in re.findall(r"`([\w./]+)`", row)}
    assert run_tool("train_net.py", "--cfg", tiny_config(train__max_steps=2)).returncode == 0
    assert run_tool("test_net.py", "--cfg", tmp_path / "run" / "config.yaml").returncode == 0
    here = {path.name + "/" * path.is_dir() for path in (tmp_path / "run").rglob("*")}
    assert names - here == {"broken_files.csv", "bad_steps.csv"}  # where there were any
    assert {"best.pt", "checkpoints/", "report.html"} <= names


def test_make_targets_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    for words in command_lines():
        if words[0] == "make":
            assert f"\n{words[1]}: setup" in makefile


def test_folders_named_in_the_readme_exist():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target
