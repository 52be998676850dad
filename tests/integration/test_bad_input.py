"""Whatever a person can get wrong ends in one clear line and the right exit code. Every test runs the real command."""

import contextlib
import importlib.util
import os
import pickle
import shutil

import pytest
import torch

from tests.commands import full_disk
from video_rs import checkpoint
from video_rs.training.loop import Run


def assert_one_line(done, code, *words):
    assert done.returncode == code, done.stdout + done.stderr
    errors = done.stderr.strip().splitlines()
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    for word in words:
        assert str(word) in errors[0]


def test_training_on_one_class(tiny_config, tiny_videos, run_tool, tmp_path):
    shutil.copytree(tiny_videos / "train" / "zoom_in", tmp_path / "data" / "train" / "only")
    arguments = ["--cfg", tiny_config(), f"data.root={tmp_path / 'data'}"]
    for more in ([], ["model.num_classes=5"], ["--dry-run"]):
        done = run_tool("train_net.py", *arguments, *more)
        assert_one_line(done, 2, "the training data have a single class, 'only'", "at least two")
    assert not (tmp_path / "run").exists()
    assert run_tool("check_dataset.py", "--cfg", *arguments[1:]).returncode == 0


# Keys and values ------------------------------------------------------------------------------------------------------


def test_mistyped_key(tiny_config, run_tool):
    done = run_tool("train_net.py", "--cfg", tiny_config(), "optim.lrr=0.1")
    assert_one_line(done, 2, "unknown key optim.lrr", "did you mean optim.lr?")


def test_mistyped_key_in_a_file(tiny_config, run_tool):
    path = tiny_config(train__epoch=3)
    assert_one_line(run_tool("train_net.py", "--cfg", path), 2, path, "train.epoch", "did you mean train.epochs?")


def test_value_out_of_range(tiny_config, run_tool):
    done = run_tool("train_net.py", "--cfg", tiny_config(), "train.label_smoothing=1.5")
    assert_one_line(done, 2, "train.label_smoothing must be between 0 and 0.99", "1.5")


def test_missing_config(run_tool):
    assert_one_line(run_tool("train_net.py", "--cfg", "k400_rs5.yaml"), 2, "k400_rs5.yaml", "did you mean k400_rs50?")


def test_unknown_model(tiny_config, run_tool):
    done = run_tool("train_net.py", "--cfg", tiny_config(), "model.name=resnet3d_rs_51")
    assert_one_line(done, 2, "resnet3d_rs_51", "resnet3d_rs_50")


@pytest.mark.parametrize(
    ("tool", "arguments", "word"),
    [
        ("train_net.py", [], "--cfg"),
        ("train_net.py", ["--cfg", "k400_rs50", "--optim.lr=1"], "without dashes"),
        ("predict.py", ["--weights", "x.pt", "a.mp4", "--every", "abc"], "--every"),
        ("make_motion.py", ["--train", "many"], "--train"),
    ],
)
def test_bad_arguments(run_tool, tool, arguments, word):
    assert_one_line(run_tool(tool, *arguments), 2, word, "--help")


# Data -----------------------------------------------------------------------------------------------------------------


def test_missing_data_folder(tiny_config, run_tool):
    done = run_tool("train_net.py", "--cfg", tiny_config(), "data.root=/nowhere")
    assert_one_line(done, 2, "data.root=/nowhere", "no such folder")


def test_empty_dataset(tiny_config, run_tool, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run_tool("train_net.py", "--cfg", tiny_config(), f"data.root={tmp_path / 'empty'}")
    assert_one_line(done, 2, tmp_path / "empty")


def test_empty_split(tiny_config, run_tool, tiny_videos, tmp_path):
    root = tmp_path / "videos"
    shutil.copytree(tiny_videos / "train", root / "train")
    (root / "val" / "zoom_in").mkdir(parents=True)
    assert_one_line(run_tool("train_net.py", "--cfg", tiny_config(), f"data.root={root}"), 2, "val split", "empty")


@pytest.fixture
def write_list(tiny_videos, tmp_path):
    """A function that writes a list of the training videos, its lines changed by a function."""
    files = sorted(tiny_videos.glob("train/*/*.mp4"))
    classes = sorted({f.parent.name for f in files})

    def write(change=lambda lines: lines, numbers=False):
        lines = [f"{f} {classes.index(f.parent.name) if numbers else f.parent.name}" for f in files]
        path = tmp_path / "train_list.txt"
        path.write_text("\n".join(change(lines)) + "\n")
        return path

    return write


def test_bad_line_of_a_list(tiny_config, run_tool, write_list):
    path = write_list(lambda lines: [*lines[:4], "nonsense", *lines[4:]])
    assert_one_line(run_tool("train_net.py", "--cfg", tiny_config(), f"data.train={path}"), 2, f"{path}:5")


@pytest.mark.parametrize("command", ["train_net.py", "check_dataset.py", "prepare_dataset.py"])
def test_bad_row_of_a_csv(tiny_config, run_tool, write_list, tmp_path, command):
    path = write_list(lambda lines: ["label,path", *(",".join(line.split()[::-1]) for line in lines[:3]), "zoom_in"])
    out = ["--out", tmp_path / "out"] if command != "train_net.py" else []
    done = run_tool(command, "--cfg", tiny_config(), f"data.train={path}", *out)
    assert_one_line(done, 2, f"{path}:5: expected 'label,path'; found 'zoom_in'")


def test_label_outside_the_class_count(tiny_config, run_tool, write_list):
    path = write_list(lambda lines: [*lines, lines[0].split()[0] + " 11"], numbers=True)
    done = run_tool("train_net.py", "--cfg", tiny_config(), f"data.train={path}", "data.root=", "model.num_classes=8")
    assert_one_line(done, 2, f"{path}:25", "'11'", "0 to 7")


def test_missing_files_are_dropped_and_counted(tiny_config, run_tool, write_list):
    path = write_list(lambda lines: [*lines, "gone.mp4 zoom_in"])
    done = run_tool("train_net.py", "--cfg", tiny_config(), f"data.train={path}", "train.max_steps=1")
    assert done.returncode == 0, done.stderr
    assert "1 listed files are missing, the first: " in done.stdout
    assert "gone.mp4" in done.stdout


def test_too_many_missing_files(tiny_config, run_tool, write_list):
    path = write_list(lambda lines: [*lines, *(f"gone{i}.mp4 zoom_in" for i in range(5))])
    done = run_tool("train_net.py", "--cfg", tiny_config(), f"data.train={path}")
    assert_one_line(done, 2, "5 of 29", "data.max_missing=0.05", "gone0.mp4", "gone1.mp4", "gone2.mp4")
    assert "gone3.mp4" not in done.stderr


def test_images_for_a_video_network(tiny_config, run_tool, tmp_path):
    from PIL import Image

    for i, name in enumerate(["a", "b"] * 3):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(tmp_path / "images" / name / f"{i}.png")
    done = run_tool("train_net.py", "--cfg", tiny_config(), f"data.root={tmp_path / 'images'}")
    assert_one_line(done, 2, "the data are images", "data.num_frames=4", "imagenet_rs*.yaml")


# Videos ---------------------------------------------------------------------------------------------------------------


def damage(folder, make_video):
    """Broken files of every kind in a folder; returns their names."""
    import av
    import numpy as np

    whole = make_video(folder / "whole.mp4", num_frames=20).read_bytes()
    (folder / "whole.mp4").unlink()
    (folder / "a_truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "an_empty.mp4").write_bytes(b"")
    (folder / "no_video.mp4").write_text("these are words")
    with av.open(str(folder / "only_audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return ["a_truncated.mp4", "an_empty.mp4", "no_video.mp4", "only_audio.mp4"]


@pytest.fixture
def damaged_videos(tiny_videos, tmp_path, make_video):
    root = tmp_path / "damaged"
    shutil.copytree(tiny_videos, root)
    names = damage(root / "train" / "zoom_in", make_video)
    damage(root / "test" / "zoom_in", make_video)
    return root, names


@pytest.mark.slow
def test_broken_videos_in_training_testing_and_prediction(tiny_config, run_tool, damaged_videos, tmp_path):
    root, names = damaged_videos
    path = tiny_config(data__root=str(root))
    done = run_tool("train_net.py", "--cfg", path, "train.epochs=1", "data.max_broken=0.2")
    assert done.returncode == 0, done.stderr
    ledger = (tmp_path / "run" / "broken_files.csv").read_text()
    for name in names:
        assert name in done.stdout
        assert name in ledger

    done = run_tool("test_net.py", "--cfg", path)
    assert done.returncode == 0, done.stderr
    predictions = (tmp_path / "run" / "test" / "predictions.csv").read_text()
    assert "8 of 12" in done.stdout
    for name in names:
        assert name in predictions

    folder = root / "test" / "zoom_in"
    done = run_tool("predict.py", "--weights", tmp_path / "run" / "best.pt", folder)
    assert done.returncode == 2
    assert "00000.mp4" in done.stdout
    for name in names:
        assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_can_be_read(tiny_config, run_tool, tiny_videos, tmp_path):
    root = tmp_path / "all_broken"
    shutil.copytree(tiny_videos, root)
    for file in root.glob("train/*/*.mp4"):
        file.write_bytes(b"")
    done = run_tool("train_net.py", "--cfg", tiny_config(), f"data.root={root}", "data.workers=1")
    assert_one_line(done, 2, "consecutive files cannot be read")


# Checkpoints ----------------------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture(scope="module")
def trained(tiny_videos, tmp_path_factory):
    """Weights of a one-step run."""
    import yaml

    from video_rs.cli.train import train
    from video_rs.experiment import config

    from .conftest import TINY

    folder = tmp_path_factory.mktemp("trained")
    values = {**TINY, "out": str(folder), "data": {**TINY["data"], "root": str(tiny_videos)}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    train(config.load_config(folder / "tiny.yaml", ["train.max_steps=1"]))
    return folder / "best.pt"


@pytest.mark.parametrize("tool", ["test_net.py", "predict.py", "train_net.py"])
@pytest.mark.parametrize("kind", ["missing", "truncated", "code", "text"])
def test_bad_checkpoints(tiny_config, run_tool, trained, tmp_path, tiny_videos, tool, kind):
    path, mark = tmp_path / "weights.pt", tmp_path / "was_run"
    if kind == "truncated":
        path.write_bytes(trained.read_bytes()[:5000])
    elif kind == "code":
        path.write_bytes(pickle.dumps({"model": Evil(mark)}))
    elif kind == "text":
        path.write_text("no checkpoint")
    arguments = {
        "test_net.py": ["--cfg", tiny_config(), f"weights={path}"],
        "predict.py": ["--weights", path, next(tiny_videos.glob("test/*/*.mp4"))],
        "train_net.py": ["--cfg", tiny_config(), f"train.init_from={path}"],
    }[tool]
    assert_one_line(run_tool(tool, *arguments), 2, path)
    assert not mark.exists()


def test_checkpoint_of_another_network(tiny_config, run_tool, trained):
    done = run_tool("test_net.py", "--cfg", tiny_config(), f"weights={trained}", "model.width=0.25")
    assert_one_line(done, 2, "0.125", "0.25")
    done = run_tool("train_net.py", "--cfg", tiny_config(), f"train.init_from={trained}", "model.width=0.25")
    assert_one_line(done, 2, trained)


def test_checkpoint_of_another_class_count(tiny_config, run_tool, trained):
    done = run_tool("test_net.py", "--cfg", tiny_config(), f"weights={trained}", "model.num_classes=9")
    assert_one_line(done, 2, "8", "9")


@pytest.fixture
def fewer_classes(tiny_videos, tmp_path):
    """The tiny dataset without one of its eight classes."""
    shutil.copytree(tiny_videos, tmp_path / "fewer", ignore=shutil.ignore_patterns("zoom_in"))
    return tmp_path / "fewer"


def test_a_dataset_of_another_class_count(tiny_config, run_tool, trained, fewer_classes):
    path, there = tiny_config(data__root=str(fewer_classes)), f"out={trained.parent}"
    done = run_tool("test_net.py", "--cfg", path, f"weights={trained}")
    assert_one_line(done, 2, "the number of classes in the data is 7, in the checkpoint 8")
    before = (trained.parent / "last.pt").read_bytes()
    done = run_tool("train_net.py", "--cfg", path, there, "train.max_steps=1")
    assert_one_line(done, 2, "the train data differ from those of the run", trained.parent, "out=")
    assert (trained.parent / "last.pt").read_bytes() == before
    done = run_tool("train_net.py", "--cfg", path, "model.num_classes=6")
    assert_one_line(done, 2, "the data has 7 classes, model.num_classes=6")
    done = run_tool("train_net.py", "--cfg", path, f"train.init_from={trained}", "train.max_steps=1")
    assert done.returncode == 0 and "head.weight (7 of 7 classes by name)" in done.stdout, done.stderr


def test_weights_of_another_trainer(tiny_config, run_tool, trained, tmp_path):
    """A Lightning-like file of a backbone without its head, with a loss and a metric; then files that do not fit."""
    weights, path = checkpoint.load(trained)["model"], tmp_path / "last.ckpt"
    backbone = {f"model.net.{name}": tensor for name, tensor in weights.items() if not name.startswith("head.")}
    beside = {"model.fc.weight": torch.ones(3, 9), "criterion.weight": torch.ones(8), "train_acc.total": torch.ones(1)}
    torch.save({"state_dict": {**backbone, **beside}, "epoch": 3, "loops": {"fit_loop": {}}}, path)
    start = "--cfg", tiny_config(train__max_steps=1), f"train.init_from={path}"
    done = run_tool("train_net.py", *start)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "started from" in line)
    assert "head.weight (new head)" in line and "entry state_dict, names that begin with model.net." in line
    assert "not used: model.fc.weight, criterion.weight, train_acc.total, epoch and 1 more" in line
    start = *start, f"out={tmp_path / 'other'}"
    torch.save({"generator": {"conv.weight": torch.ones(1)}, "epoch": 3}, path)
    assert_one_line(run_tool("train_net.py", *start), 2, path, "entry generator", "epoch", "the first is conv.weight")
    torch.save({"epoch": 3, "best": "a.pt"}, path)
    assert_one_line(run_tool("train_net.py", *start), 2, path, "holds no weights", "epoch (int), best (str)")


def test_weights_that_expect_other_pixels(tiny_config, run_tool, trained):
    done = run_tool("train_net.py", "--cfg", tiny_config(), f"train.init_from={trained}", "data.mean=[0.5, 0.5, 0.5]")
    assert_one_line(done, 2, "data.mean is (0.5, 0.5, 0.5)", "(0.0, 0.0, 0.0)")


# The machine ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_that_is_not_there(tiny_config, run_tool):
    done = run_tool("train_net.py", "--cfg", tiny_config(), "train.device=cuda")
    assert_one_line(done, 2, "device cuda: ", "use cpu or auto")


def test_mps_is_refused(tiny_config, run_tool):
    assert_one_line(run_tool("train_net.py", "--cfg", tiny_config(), "train.device=mps"), 2, "mps: not supported")


@pytest.mark.skipif(importlib.util.find_spec("torch_xla") is not None, reason="there is torch_xla")
def test_xla_that_is_not_installed(tiny_config, run_tool, tmp_path):
    done = run_tool("train_net.py", "--cfg", tiny_config(), "train.device=xla")
    assert_one_line(done, 2, "torch_xla, which is not installed", "pip install torch==2.9.0", "torch_xla[tpu]==2.9.0")
    assert not (tmp_path / "run").exists()


def test_xla_of_another_version(tiny_config, run_tool, tmp_path, monkeypatch):
    information = tmp_path / "packages" / "torch_xla-1.2.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_xla\nVersion: 1.2.0\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    done = run_tool("train_net.py", "--cfg", tiny_config(), "train.device=xla")
    assert_one_line(done, 2, "torch_xla 1.2.0 does not work with torch", "pip install torch==2.9.0")


def test_full_disk_while_writing_a_checkpoint(tiny_config, run_tool, tmp_path, monkeypatch):
    """The second checkpoint cannot be written."""
    save, limit = Run.save, contextlib.ExitStack()

    def limited(self):
        if self.step > 3:
            limit.enter_context(full_disk(200_000))
        save(self)

    monkeypatch.setattr(Run, "save", limited)
    with limit:
        done = run_tool("train_net.py", "--cfg", tiny_config())
    assert_one_line(done, 3, "step-00000006.pt cannot be written", "unchanged")
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 3
    assert not [name for name in os.listdir(tmp_path / "run") if name.startswith(".last")]


def test_wandb_that_is_not_installed(tiny_config, run_tool, tmp_path):
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    done = run_tool("train_net.py", "--cfg", tiny_config(train__wandb="mine"))
    assert_one_line(done, 2, "train.wandb=mine", "pip install 'video-rs[wandb]'")
