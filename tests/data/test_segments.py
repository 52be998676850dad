"""Segments of files: all readers draw clips between start and end."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import video_rs
from video_rs import checkpoint
from video_rs.cli.common import run
from video_rs.cli.test import main
from video_rs.data.clip_datasets import ClipDataset, ViewDataset
from video_rs.data.clips import TemporalSampling, Timeline
from video_rs.data.sampler import SampleKey
from video_rs.data.segments import frame_range
from video_rs.data.sources.records import Records
from video_rs.data.tools.clip_grid import view_rows
from video_rs.data.transforms.crops import TrainTransform, ViewTransform
from video_rs.data.transforms.video_transform import create_transform
from video_rs.data.video.images import ImageReader
from video_rs.errors import MediaError
from video_rs.experiment.config import load_config
from video_rs.models.registry import create_model

FPS = 10


def video_of(times):
    timeline = Timeline(len(times), times)
    return SimpleNamespace(path="a.mp4", num_frames=len(times), times=times, duration=timeline.duration)


gaps = st.lists(st.integers(5, 30000), min_size=2, max_size=60)  # milliseconds


@given(gaps, st.lists(st.integers(1, 200_000), min_size=1, max_size=5, unique=True))
def test_adjacent_segments_partition_the_frames(gaps, borders):
    video = video_of(np.cumsum([0, *gaps]) / 1000)
    borders = sorted(border / 1000 for border in borders if border / 1000 < video.duration - 1e-3)
    taken = []
    for start, end in zip([0.0, *borders], [*borders, 0.0]):
        frames = frame_range(video, start, end)
        inside = np.flatnonzero((video.times >= start) & (video.times < (end or np.inf)))
        if len(inside):
            assert (frames.first, frames.length) == (inside[0], len(inside))
            assert np.allclose(frames.times, video.times[inside] - video.times[inside[0]])
            taken += inside.tolist()
        else:  # within one frame
            assert frames.length == 1 and frames.first == np.flatnonzero(video.times < start)[-1]
    assert taken == list(range(video.num_frames))


def test_segments_outside_a_video_are_errors():
    video = video_of(np.arange(20) / FPS)
    assert frame_range(video, 1.9, 99.0)[:2] == (19, 1) and frame_range(video)[:2] == (0, 20)
    for start, end in ((2.0, 3.0), (5.0, 0.0)):
        with pytest.raises(MediaError, match=f"a.mp4: a segment starts at {start:g} s, but the video ends at 2 s"):
            frame_range(video, start, end)
    images = SimpleNamespace(path="frames", times=None, num_frames=5, duration=0.0)
    assert frame_range(images) == (0, 5, None)
    with pytest.raises(MediaError, match="frames: has no timestamps, which segments require"):
        frame_range(images, 0.0, 1.0)
    assert ImageReader(["a.png"]).times is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_video):
    """Return two videos of 4 seconds; frame i of the second shows the number 100 + i."""
    folder = tmp_path_factory.mktemp("segments")
    make_video(folder / "a.mp4", 4 * FPS, 64, 64, fps=FPS)
    make_video(folder / "b.mp4", 4 * FPS, 64, 64, fps=FPS, first_number=100)
    return folder


SEGMENTS = [("a", 0, 1.0, 2.5), ("a", 1, 2.5, 0), ("b", 1, 0, 0), ("b", 0, 0.3, 0.7)]


@pytest.fixture
def records(folder):
    paths, labels = [str(folder / f"{name}.mp4") for name, *_ in SEGMENTS], [label for _, label, *_ in SEGMENTS]
    records = Records(paths, labels, ["run", "sit"])
    records.segments = np.array([segment[2:] for segment in SEGMENTS], np.float64)
    return records


def first_and_end(index):
    name, _, start, end = SEGMENTS[index]
    return round(start * FPS), round((end or 4) * FPS), 100 * (name == "b")


@pytest.mark.parametrize(
    "sampling", [TemporalSampling(4, 2), TemporalSampling(4, 1, fps=5), TemporalSampling(4, kind="segments")]
)
def test_clips_stay_within_their_segment(records, sampling, frame_numbers):
    whole = TrainTransform(64, area=(1, 1), aspect=(1, 1), flip=0)
    training = ClipDataset(records, sampling=sampling, transform=whole)
    testing = ViewDataset(records, sampling=sampling, clips=3, transform=ViewTransform(64, 64))
    for index in range(len(records)):
        first, end, shift = first_and_end(index)
        samples = [training[SampleKey(epoch, index)] for epoch in range(30)]
        seen = {number for sample in samples for number in sample["frames"].tolist()}
        assert min(seen) >= first and max(seen) < end and len(seen) > min(end - first, 8) / 2
        assert frame_numbers(samples[0]["clip"]) == (samples[0]["frames"] + shift).tolist()
        item = testing[index]
        assert item["frames"].min() >= first and item["frames"].max() < end and item["label"] == SEGMENTS[index][1]
        assert [frame_numbers(view) for view in item["views"]] == (item["frames"] + shift).tolist()


def test_every_reader_of_clips_uses_segments(folder, frame_numbers):
    """A list in a file, as VideoDataset and show_clips read it."""
    (folder / "train.csv").write_text(
        "path,label,start,end\n" + "".join("{}.mp4,{},{},{}\n".format(*segment) for segment in SEGMENTS)
    )
    sizes = {"num_frames": 4, "stride": 2, "train_size": 64, "short_side": 64, "test_size": 64}
    dataset = video_rs.VideoDataset(
        str(folder / "train.csv"), "train", create_transform(**sizes, mean=(0, 0, 0), std=(1, 1, 1))
    )
    for index in range(len(dataset)):
        first, end, shift = first_and_end(index)
        clip, label = dataset[index]
        numbers = np.array(frame_numbers((clip.permute(1, 2, 3, 0) * 255).round().to(torch.uint8))) - shift
        assert numbers.min() >= first and numbers.max() < end and label == SEGMENTS[index][1]
    rows = list(view_rows(dataset.views(2)))
    assert [row.path for row in rows[::2]] == [dataset.records.name(index) for index in range(4)]
    assert rows[0].path.endswith("a.mp4 (1 s to 2.5 s)") and rows[2].path.endswith("a.mp4 (2.5 s to the end)")
    assert rows[4].path.endswith("b.mp4") and min(rows[2].frames) >= 25


def test_a_segment_outside_its_video_is_replaced(folder):
    records = Records([str(folder / "a.mp4")] * 3, [0] * 3, ["run"])
    records.segments = np.array([[0, 1], [9, 10], [2, 3]], np.float64)
    transform = TrainTransform(32)
    sample = ClipDataset(records, sampling=TemporalSampling(4, 2), transform=transform)[SampleKey(0, 1)]
    assert sample["index"] in (0, 2)
    assert sample["broken"] == [(records.path(1), "a segment starts at 9 s, but the video ends at 4 s")]
    views = ViewDataset(records, sampling=TemporalSampling(4, 2), clips=1, transform=ViewTransform(32, 32))
    assert views[1]["error"] == sample["broken"][0][1] and views[2]["error"] is None


def test_results_name_the_segment(folder, tmp_path, capsys):
    config = load_config("k400_rs50", ["model.name=resnet3d_rs_26", "model.width=0.125", "data.num_frames=4"])
    torch.manual_seed(0)
    arguments = {"name": "resnet3d_rs_26", "num_classes": 2, "width": 0.125}
    state = {"format": 1, "config": config.to_dict(), "model_args": arguments, "step": 1, "ema": None}
    state |= {"model": create_model(**arguments).state_dict()}
    state |= {"data_config": config.data_config(("run", "sit")).to_dict()}
    checkpoint.save(tmp_path / "run" / "best.pt", state)
    names = ["run", "sit"]
    lines = [f"{folder}/{name}.mp4,{names[label]},{start},{end}\n" for name, label, start, end in SEGMENTS]
    (tmp_path / "test.csv").write_text("path,label,start,end\n" + "".join(lines) + f"{folder}/b.mp4,sit,4,5\n")
    overrides = ["model.name=resnet3d_rs_26", "model.width=0.125", "data.num_frames=4", "data.workers=0"]
    overrides += [f"data.root={tmp_path}", f"data.test={tmp_path}/test.csv", "test.clips=2", "test.crops=1"]
    overrides += ["train.device=cpu", f"out={tmp_path / 'run'}"]
    assert run(main, ["--cfg", "k400_rs50", *overrides]) == 0
    assert "a segment starts at 4 s, but the video ends at 4 s" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "run" / "test" / "predictions.csv").open()))
    assert list(rows[0])[:4] == ["path", "start", "end", "label"]
    assert [(row["start"], row["end"]) for row in rows] == [
        ("1", "2.5"),
        ("2.5", "0"),
        ("0", "0"),
        ("0.3", "0.7"),
        ("4", "5"),
    ]
    assert [row["scored"] for row in rows] == ["1", "1", "1", "1", "0"]
    assert "b.mp4 (4 s to 5 s)" in (tmp_path / "run" / "test" / "report.html").read_text()
