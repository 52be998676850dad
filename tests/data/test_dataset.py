import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from video_rs.contract import FILTERS
from video_rs.data.clips import view_indices
from video_rs.data.dataset import ClipDataset, ViewDataset
from video_rs.data.decode import read_frames
from video_rs.data.loader import clip_loader, view_loader
from video_rs.data.records import Records
from video_rs.data.sampler import BatchStream, SampleKey
from video_rs.data.transforms import TrainTransform, ViewTransform, resize
from video_rs.errors import MediaError, UserError


def whole(clip, rng):
    """A transform that changes nothing."""
    return clip


@pytest.fixture(scope="module")
def records(make_video, tmp_path_factory):
    """Six videos of two classes; video i shows numbers from 100 * i."""
    root = tmp_path_factory.mktemp("videos")
    paths = [make_video(root / f"{i}.mp4", 20 + i, 32, 64, first_number=100 * i) for i in range(6)]
    return Records(map(str, paths), [0, 0, 0, 1, 1, 1], ["a", "b"])


def clips(records, transform=None, **options):
    options = {"num_frames": 6, "stride": 2, "seed": 3} | options
    return ClipDataset(records, transform=transform or TrainTransform(24), **options)


def test_a_clip_is_the_right_file_and_frames(records, frame_numbers):
    dataset = clips(records, whole)
    sample = dataset[SampleKey(0, 4)]
    numbers = frame_numbers(sample["clip"])
    assert np.all(np.diff(numbers) == 2) and 400 <= numbers[0] <= 413
    assert (sample["label"], sample["index"], sample["broken"]) == (1, 4, [])


def test_a_sample_depends_on_its_key_and_the_seed_alone(records):
    key = SampleKey(2, 3, 1)
    reference = clips(records)[key]["clip"]
    dataset = clips(records)
    dataset[SampleKey(0, 0)]
    assert torch.equal(dataset[key]["clip"], reference)
    for other in (SampleKey(3, 3, 1), SampleKey(2, 3, 0)):
        assert not torch.equal(dataset[other]["clip"], reference)
    assert not torch.equal(clips(records, seed=4)[key]["clip"], reference)


def batches(records, workers, **options):
    options = {"batch_size": 4, "num_steps": 3, "seed": 3, "micro_batch": 2} | options
    return list(clip_loader(clips(records), BatchStream(len(records), **options), workers=workers))


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x[k], y[k]) for x, y in zip(a, b) for k in ("clip", "label", "index"))


def test_batches_do_not_depend_on_workers_interruption_or_world_size(records):
    reference = batches(records, 0)
    assert reference[0]["clip"].shape == (2, 6, 24, 24, 3) and reference[0]["clip"].dtype == torch.uint8
    assert reference[0]["label"].dtype == torch.int64
    assert same(batches(records, 2), reference)
    assert same(batches(records, 1, start_step=1), reference[2:])
    ranks = [batches(records, 0, rank=rank, world_size=2) for rank in range(2)]
    assert same([batch for pair in zip(*ranks) for batch in pair], reference)


@pytest.fixture
def some_broken(records, tmp_path):
    """Video 1 empty, video 3 cut off, video 5 no video."""
    paths = [records.path(i) for i in range(6)]
    for i, content in ((1, b""), (3, Path(paths[3]).read_bytes()[:900]), (5, b"text" * 300)):
        paths[i] = str(tmp_path / f"{i}.mp4")
        Path(paths[i]).write_bytes(content)
    return Records(paths, records.labels, records.class_names)


def test_broken_files_are_replaced_within_their_class(some_broken, records, frame_numbers):
    for epoch in range(5):
        for index in range(6):
            sample = clips(some_broken, whole)[SampleKey(epoch, index)]
            assert sample["label"] == some_broken.label(index)
            assert sample["index"] in (0, 2, 4) and frame_numbers(sample["clip"])[0] // 100 == sample["index"]
            assert bool(sample["broken"]) == (index in (1, 3, 5))
            for path, reason in sample["broken"]:
                assert path in [some_broken.path(i) for i in (1, 3, 5)] and reason and path not in reason
    assert torch.equal(clips(some_broken)[SampleKey(0, 2)]["clip"], clips(records)[SampleKey(0, 2)]["clip"])


def test_a_class_that_is_all_broken_borrows_from_another(some_broken):
    only = Records([some_broken.path(i) for i in (1, 0, 5)], [0, 1, 0], ["a", "b"])
    sample = clips(only)[SampleKey(0, 0)]
    assert sample["label"] == 1 and len(sample["broken"]) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_is_all_broken_is_one_clear_error(tmp_path, workers):
    records = Records([str(tmp_path / f"{i}.mp4") for i in range(30)], [0] * 30, ["a"])
    with pytest.raises(UserError, match="11 files in a row cannot be read") as error:
        next(iter(clip_loader(clips(records), BatchStream(30, batch_size=2, num_steps=1, seed=0), workers=workers)))
    assert "\n" not in str(error.value)


def test_views_share_one_decode_and_are_right(records, frame_numbers):
    transform = ViewTransform(32, 32, crops=3)
    dataset = ViewDataset(records, num_frames=6, stride=2, clips=4, transform=transform)
    item = dataset[5]
    assert item["views"].shape == (12, 6, 32, 32, 3) and item["views"].dtype == torch.uint8
    assert (item["label"], item["index"], item["error"]) == (1, 5, None)
    full = ViewDataset(records, num_frames=6, stride=2, clips=4, transform=lambda clip: clip[None])
    full.transform.short_side, full.transform.filter = 32, "bilinear"
    clips_of_it = full[5]["views"]
    for k, indices in enumerate(view_indices(25, 6, 2, 4)):
        assert frame_numbers(clips_of_it[k]) == [500 + i for i in indices]
        assert torch.equal(item["views"][3 * k : 3 * k + 3], transform(clips_of_it[k]))


@pytest.mark.parametrize("filter", FILTERS)
def test_views_are_resized_with_the_filter_of_the_transform(records, filter):
    transform = ViewTransform(20, 16, filter=filter)
    views = ViewDataset(records, num_frames=3, stride=1, clips=1, transform=transform)[0]["views"]
    frames = read_frames(records.path(0), view_indices(20, 3, 1, 1)[0])
    assert torch.equal(views[0], resize(frames, 20, 40, filter)[:, 2:18, 12:28])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_view_loader_keeps_the_order_and_reports_what_is_broken(some_broken, workers):
    dataset = ViewDataset(some_broken, num_frames=4, stride=1, clips=1, transform=ViewTransform(32, 24))
    items = list(view_loader(dataset, workers=workers))
    assert [item["index"] for item in items] == list(range(6))
    assert [item["views"] is None for item in items] == [False, True] * 3
    assert "empty" in items[1]["error"] and items[0]["error"] is None
    with pytest.raises(MediaError):
        dataset.views(some_broken.path(1))


def test_images_are_videos_of_one_frame(tmp_path):
    Image.new("RGB", (40, 30), (10, 20, 30)).save(tmp_path / "a.png")
    records = Records([str(tmp_path / "a.png")], [0], ["a"])
    sample = clips(records, num_frames=1, stride=1)[SampleKey(0, 0)]
    assert sample["clip"].shape == (1, 24, 24, 3) and sample["clip"][0, 0, 0].tolist() == [10, 20, 30]
    assert clips(records)[SampleKey(0, 0)]["clip"].shape == (6, 24, 24, 3)  # a still clip for a 3D network
    views = ViewDataset(records, num_frames=1, stride=1, clips=1, transform=ViewTransform(24, 20))[0]["views"]
    assert views.shape == (1, 1, 20, 20, 3)


def test_ctrl_c_leaves_the_workers_silent(records, tmp_path):
    script = tmp_path / "loop.py"
    script.write_text(
        textwrap.dedent(f"""
        import signal

        from video_rs.data.dataset import ClipDataset
        from video_rs.data.loader import clip_loader
        from video_rs.data.records import Records
        from video_rs.data.sampler import BatchStream
        from video_rs.data.transforms import TrainTransform

        signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background start with it ignored
        records = Records([{records.path(0)!r}], [0], ["a"])
        dataset = ClipDataset(records, num_frames=4, stride=1, transform=TrainTransform(16))
        loader = clip_loader(dataset, BatchStream(1, batch_size=2, num_steps=10**6, seed=0), workers=2)
        try:
            for i, batch in enumerate(loader):
                print("batch", flush=True)
        except KeyboardInterrupt:
            print("stopped", flush=True)
        """)
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "batch\n"
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the whole group gets it
    output, errors = process.communicate(timeout=60)
    assert output.endswith("stopped\n") and "Traceback" not in errors
