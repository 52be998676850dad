"""The two configs that people start from, k400_rs50.yaml and finetune_rs50.yaml, at full width on recorded videos."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch

from video_rs import checkpoint
from video_rs.data.video.decode import read_frames
from video_rs.experiment import run
from video_rs.models.registry import create_model
from video_rs.models.weights.state_dict import to_timm

CLASSES = ("arm wrestling", "flipping pancake")
TRAIN = {  # file names as in Kinetics: <id>_<start>_<end>, ids of 11 characters that may begin with a dash
    "arm_wrestling.mp4": ("4Sbu5d3XMlo_000015_000025.mp4", 0),
    "k400_sample.mp4": ("abc_efghij0_000002_000012.mp4", 0),
    "flipping_pancake.mkv": ("0wR5jVB-WPk_000417_000427.mkv", 1),
    "two_video_streams.mp4": ("-Yg3nXtP7Ra_000101_000111.mp4", 1),
}
SMALL = ["model.width=0.125", "data.num_frames=4", "data.train_size=64", "data.test_size=64", "data.short_side=72"]
SMALL += ["data.workers=0"]
VAL = {
    "arm_wrestling.mp4": ("u7Qh2LkZ9_w_000040_000050.mp4", 0),
    "flipping_pancake.mkv": ("Kc0d-5TfEbM_000003_000013.mkv", 1),
}


@pytest.fixture
def home(tmp_path, assets):
    """A working folder with a small Kinetics in data/k400, where the config looks for it. Deleted after the test: the
    checkpoints of the full network are large."""
    for split, files in (("train", TRAIN), ("val", VAL)):
        for source, (name, label) in files.items():
            folder = tmp_path / "data" / "k400" / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(assets / "videos" / source)
    yield tmp_path
    shutil.rmtree(tmp_path)


def assert_trained(done, folder, steps):
    """The run ended well and left finite losses at every step, and both checkpoints."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert "files could not be read" not in done.stdout
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, steps + 1))
    assert [line["step"] for line in lines if line["kind"] == "val"][-1] == steps
    assert all(math.isfinite(line["loss"]) and line["loss"] > 0 for line in lines)
    last, best = (checkpoint.load(folder / name) for name in ("last.pt", "best.pt"))
    assert last["step"] == steps
    assert all(weight.isfinite().all() for state in (last["model"], best["model"]) for weight in state.values())
    assert best["data_config"]["class_names"] == list(CLASSES)


def assert_full_size(done, batch="2"):
    assert "resnet3d_rs_50, 41,776,930 parameters, 2 classes" in done.stdout  # 42,592,432 with 400 classes
    assert f"clips          32 frames x stride 2, 224 px\nbatch          {batch}\n" in done.stdout
    assert "learning rate up to 0.001563 = 0.8 x 2 / 1024" in " ".join(done.stdout.split())


# Kinetics -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_k400_on_class_folders(home, run_tool):
    """The literal command from another folder, in which data/k400 and runs/k400_rs50 are the config's defaults."""
    small = ["train.batch_size=2", "train.max_steps=2", "train.log_every=1"]
    done = run_tool("train_net.py", "--cfg", "k400_rs50.yaml", *small, cwd=home)
    assert_trained(done, home / "runs" / "k400_rs50", steps=2)
    assert_full_size(done)
    assert "train          4 files, 2 classes" in done.stdout
    assert "val            2 files, 2 classes" in done.stdout


def test_k400_on_lists(home, run_tool):
    """Lists "path label" outside the data folder; paths with spaces, and names that begin with a dash. As below."""
    for split, files in (("train", TRAIN), ("val", VAL)):
        lines = [f"{split}/{CLASSES[label]}/{name} {CLASSES[label]}\n" for name, label in files.values()]
        (home / f"my_{split}.csv").write_text("".join(lines))
    small = [*SMALL, "train.batch_size=2", "train.max_steps=1"]
    data = ["data.root=data/k400", "data.train=my_train.csv", "data.val=my_val.csv"]
    done = run_tool("train_net.py", "--cfg", "k400_rs50.yaml", *data, *small, "out=mine", cwd=home)
    assert_trained(done, home / "mine", steps=1)
    assert "train          4 files, 2 classes" in done.stdout


@pytest.mark.slow
def test_k400_on_the_official_csv(home, assets, run_tool):
    """All files in one place, found by the names that the csv implies; small clips and a narrow network."""
    root = home / "official"
    (root / "videos").mkdir(parents=True)
    for split, files in (("train", TRAIN), ("validate", VAL)):
        rows = ["label,youtube_id,time_start,time_end,split"]
        for source, (name, label) in files.items():
            video, start, end = re.fullmatch(r"(.{11})_(\d+)_(\d+)\..*", name).groups()
            rows.append(f"{CLASSES[label]},{video},{int(start)},{int(end)},{split}")
            (root / "videos" / name).symlink_to(assets / "videos" / source)
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
    small = [*SMALL, "train.batch_size=2", "train.max_steps=2", "train.log_every=1", "out=run"]
    done = run_tool("train_net.py", "--cfg", "k400_rs50.yaml", "data.root=official", *small, cwd=home)
    assert_trained(done, home / "run", steps=2)
    assert "train          4 files, 2 classes" in done.stdout
    assert "val            2 files, 2 classes" in done.stdout


def seconds(duration):
    """Of a duration as the tools print it: 4h23m, 1m05s, 12s."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([dhms])", duration))


@pytest.mark.slow
def test_dry_run_of_k400(home, run_tool, monkeypatch):
    monkeypatch.setattr(run, "MEASURED", 1)  # a step takes many seconds
    before = sorted(home.rglob("*"))
    small = ["train.batch_size=2", "train.micro_batch=1"]
    done = run_tool("train_net.py", "--cfg", "k400_rs50.yaml", *small, "--dry-run", cwd=home)
    assert done.returncode == 0, done.stderr
    assert sorted(home.rglob("*")) == before  # nothing is written
    assert_full_size(done, "2 = 2 micro-batches x 1")
    assert "micro-batch: clips [1, 32, 224, 224, 3] torch.uint8, labels [1]" in done.stdout
    loss, memory = map(float, re.search(r"loss (\S+), peak memory (\S+) GiB", done.stdout).groups())
    step = float(re.search(r"one step of 2 micro-batches: (\S+) s ", done.stdout)[1])
    assert 0 < loss < 5
    assert memory > 4 * 41_776_930 * 4 / 2**30  # at least the weights, their gradients, momenta and average
    steps, total = re.search(r"(\d+) steps at that rate: (\S+),", done.stdout).groups()
    assert int(steps) == 350 * len(TRAIN) / 2
    assert seconds(total) == pytest.approx(step * int(steps), rel=0.02, abs=60)


# Fine-tuning ----------------------------------------------------------------------------------------------------------


def cut(source, folder, make_video, count=5, frames=24):
    """Short videos from different moments of a recording, 128 pixels high."""
    clip = read_frames(source, np.arange(count * 50), short_side=128).numpy()
    for i in range(count):
        make_video(folder / f"{i}.mp4", frames=clip[50 * i : 50 * i + frames, :, : clip.shape[2] // 2 * 2])


@pytest.mark.slow
def test_finetune_overfits_two_class_folders(home, assets, make_video, run_tool):
    """8 x 112 clips, full width, the config's own learning rate, eight steps; from an image network with random weights
    and timm's names, inflated. All training videos are then told apart."""
    for name, label in (("arm_wrestling.mp4", 0), ("flipping_pancake.mkv", 1)):
        cut(assets / "videos" / name, home / "videos" / CLASSES[label], make_video)
    torch.manual_seed(0)
    torch.save(to_timm(create_model("resnet_rs_50").state_dict()), home / "image.pth")
    arguments = ["--from", "image.pth", "--num-classes", 2, "--out", "inflated.pt"]
    done = run_tool("inflate_weights.py", *arguments, cwd=home)
    assert done.returncode == 0, done.stderr

    sizes = ["data.num_frames=8", "data.train_size=112", "data.test_size=112", "data.short_side=128"]
    small = [*sizes, "train.batch_size=8", "train.max_steps=8", "train.val_every=0", "train.log_every=1"]
    start = ["--cfg", "finetune_rs50.yaml", "data.root=videos", "train.init_from=inflated.pt", "out=run", *small]
    done = run_tool("train_net.py", *start, cwd=home)
    assert_trained(done, home / "run", steps=8)
    assert "train          8 files, 2 classes" in done.stdout  # two of ten were set aside

    done = run_tool("test_net.py", *start, "test.split=train", "test.clips=1", "test.crops=1", cwd=home)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((home / "run" / "train" / "metrics.json").read_text())
    assert metrics["top1"] == 1
    assert metrics["loss"] < 0.4  # log(2) = 0.69 is chance
