"""``show_clips``: each frame carries its own number."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import commands
from video_rs.cli import show_clips
from video_rs.data.sampler import BatchStream
from video_rs.data.tools import clip_grid
from video_rs.data.video.decode import read_frames
from video_rs.experiment.build import build_records, train_dataset, view_dataset
from video_rs.experiment.config import load_config

UNCHANGED = [
    "data.area=[1,1]",
    "data.aspect=[1,1]",
    "data.flip=0",
]  # crops that leave the numbers on the frames readable


@pytest.fixture(scope="module")
def root(tmp_path_factory, make_video):
    """Two classes of square videos, one of them empty."""
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        for number, name in enumerate(["cut", "cut", "pour", "pour"]):
            make_video(root / split / name / f"{number}.mp4", num_frames=30 + number, height=64, width=64)
        (root / split / "cut" / "empty.mp4").touch()
    return root


def config(root, *overrides):
    sizes = ["data.num_frames=5", "data.stride=3", "data.train_size=48", "data.short_side=64", "data.test_size=64"]
    return load_config("k400_rs50", [f"data.root={root}", *sizes, *UNCHANGED, *overrides])


def test_training_clips_carry_their_frame_numbers(root, frame_numbers):
    records = build_records(config(root), ["train"])["train"]
    rows = list(clip_grid.train_rows(train_dataset(config(root), records)))
    assert len(rows) == 5  # the empty file is replaced
    for row in rows:
        assert row.frames == frame_numbers(row.clip_THWC)
        assert row.label == Path(row.path).parent.name
    assert len({row.frames[0] for row in rows}) > 1


def test_balanced_sampling_is_shown_as_it_trains(root):
    balanced = config(root, "train.balanced_sampling=true")
    dataset = train_dataset(balanced, build_records(balanced, ["train"])["train"])
    stream = BatchStream(5, batch_size=5, num_steps=1, seed=dataset.seed, labels=dataset.records.labels)
    samples = [dataset[key] for key in stream.keys(0)]
    rows = list(show_clips.read_rows(balanced, "train"))
    assert all((row.clip_THWC == sample["clip"].numpy()).all() for row, sample in zip(rows, samples, strict=True))
    assert [row.path for row in rows] != [row.path for row in clip_grid.train_rows(dataset)]


def test_repeated_augmentation_is_shown_copy_by_copy(root):
    twice = config(root, "data.repeats=2", "data.area=[0.5,0.8]")
    rows = list(clip_grid.train_rows(train_dataset(twice, build_records(twice, ["train"])["train"])))
    assert len(rows) == 2 * 5
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first.path, first.frames) == (second.path, second.frames)
        assert (first.clip_THWC != second.clip_THWC).any()


def test_views_carry_their_frame_numbers(root, frame_numbers, capsys):
    records = build_records(config(root), ["val"])["val"]
    rows = list(clip_grid.view_rows(view_dataset(config(root), records, clips=2, crops=3)))
    assert len(rows) == 4 * 2 * 3 and "empty.mp4" in capsys.readouterr().err
    assert all(row.frames == frame_numbers(row.clip_THWC) for row in rows)
    assert [row.frames[0] for row in rows[:6]] == [0, 0, 0, 15, 15, 15]


def test_folders_of_frames_carry_their_frame_numbers(root, tmp_path, frame_numbers):
    for video in sorted(root.glob("*/*/[0-9].mp4")):
        folder = tmp_path / video.relative_to(root).with_suffix("")
        folder.mkdir(parents=True)
        for number, frame in enumerate(read_frames(video, range(30))):
            Image.fromarray(frame.numpy()).save(folder / f"{number}.jpg")
    settings = config(tmp_path, "data.frame_folders=true", "data.fps=10")  # of unknown rate, so taken as it is
    records = build_records(settings, ["train", "val"])
    rows = list(clip_grid.train_rows(train_dataset(settings, records["train"])))
    rows += clip_grid.view_rows(view_dataset(settings, records["val"], clips=2, crops=1))
    assert len(rows) == 4 + 4 * 2
    for row in rows:
        assert row.frames == frame_numbers(row.clip_THWC) and set(np.diff(row.frames)) == {3}


def test_command_writes_a_grid_and_gifs(root, tmp_path):
    def run(*arguments):
        command = ["--cfg", "k400_rs50.yaml", f"data.root={root}", *arguments]
        return commands.script("tools/show_clips.py", *command, cwd=tmp_path)

    sizes = ["data.num_frames=4", "data.train_size=48"]
    done = run("--num=3", "--gif", *sizes)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "k400_rs50"
    grid = np.asarray(Image.open(out / "clips_train.png"))
    assert grid.shape == (3 * (48 + clip_grid.HEADER), 320, 3) and grid.std() > 10
    assert [Image.open(out / f"clips_train_{i}.gif").n_frames for i in range(3)] == [4, 4, 4]

    wrong = run("--out=x.jpg", *sizes)
    assert wrong.returncode == 2 and wrong.stderr == "error: --out must end in .png; found x.jpg\n"
    (tmp_path / "file").touch()
    wrong = run("--out=file/x.png", *sizes)
    assert wrong.returncode == 2 and wrong.stderr == "error: file: File exists\n"
