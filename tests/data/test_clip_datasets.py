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
from torch.utils.data import DataLoader

from video_rs.data import clip_datasets
from video_rs.data.clip_datasets import SAME_CLASS, ClipDataset, ViewDataset
from video_rs.data.clips import TemporalSampling
from video_rs.data.loader import ViewLoader, clip_loader
from video_rs.data.sampler import BatchStream, SampleKey
from video_rs.data.sources.records import Records
from video_rs.data.transforms.crops import TrainTransform, ViewTransform, resize
from video_rs.data.transforms.rand_augment import RandAugment
from video_rs.data.video.decode import Video, read_frames
from video_rs.data_config import FILTERS
from video_rs.errors import MediaError, UserError
from video_rs.rng import keyed_rng


class Whole:
    """A transform that keeps whole frames: the numbers on them stay readable."""

    size, filter = 32, "bilinear"

    def box(self, height, width, rng):
        return 0, 0, height, width

    def finish(self, clip, rng):
        return clip


whole = Whole()


@pytest.fixture(scope="module")
def records(make_video, tmp_path_factory):
    """Six videos of two classes; video i shows the numbers from 100 * i on."""
    root = tmp_path_factory.mktemp("videos")
    paths = [make_video(root / f"{i}.mp4", 20 + i, 32, 64, first_number=100 * i) for i in range(6)]
    return Records(map(str, paths), [0, 0, 0, 1, 1, 1], ["a", "b"])


STRIDED = TemporalSampling(6, 2)


def clips(records, transform=None, sampling=STRIDED, **options):
    return ClipDataset(records, sampling=sampling, transform=transform or TrainTransform(24), **{"seed": 3} | options)


def views(records, sampling, clips=1, transform=None, **options):
    return ViewDataset(records, sampling=sampling, clips=clips, transform=transform or ViewTransform(32, 24), **options)


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
    """Video 1 is empty, video 3 is cut off, video 5 is no video."""
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


def test_a_broken_file_that_is_listed_many_times(records, tmp_path):
    only = Records([str(tmp_path / "gone.mp4")] * 200 + [records.path(0)], [0] * 201, ["a"])
    for index in range(5):
        sample = clips(only)[SampleKey(0, index)]
        assert sample["index"] == 200 and len(sample["broken"]) == 1


def emptied(tmp_path, readable, *, of_class=0, others=0):
    """Return records of class 0 and other classes. All files are empty, except the videos of `readable`."""
    for i in range(of_class + others):
        (tmp_path / f"{i}.mp4").touch()
    paths = [str(tmp_path / f"{i}.mp4") for i in range(of_class + others)] + readable
    labels = [0] * of_class + [1 + i % 9 for i in range(others)] + [9] * len(readable)
    return Records(paths, labels, [str(i) for i in range(10)])


@pytest.mark.parametrize(("of_class", "others"), [(60, 0), (500, 0), (60, 20)])
def test_an_unreadable_class_is_replaced_by_other_classes(records, tmp_path, of_class, others):
    """Independently of its size: a few of its files are tried, then files of other classes, some of them broken."""
    only = emptied(tmp_path, [records.path(i) for i in range(3)], of_class=of_class, others=others)
    dataset = clips(only)
    for index in range(of_class):
        sample = dataset[SampleKey(0, index)]
        tried = [only.labels[int(Path(path).stem)] for path, _ in sample["broken"]]
        assert sample["label"] == 9 and len(tried) == len(set(sample["broken"]))
        assert tried[: SAME_CLASS + 1] == [0] * (SAME_CLASS + 1) and 0 not in tried[SAME_CLASS + 1 :]
        if index % 17 == 0:  # the same sample without results of others
            assert torch.equal(clips(only)[SampleKey(0, index)]["clip"], sample["clip"])


def test_unreadable_files_are_opened_once(records, tmp_path, opened):
    dataset = clips(emptied(tmp_path, [records.path(0)], of_class=40))
    for epoch in range(3):
        for index in range(40):
            assert dataset[SampleKey(epoch, index)]["broken"]
    assert len([path for path in opened if path != records.path(0)]) == 40  # each was opened once


def test_first_replacements_match_earlier_versions(records, some_broken):
    """Runs of earlier versions resume with the same samples."""
    taken = [clips(some_broken)[SampleKey(epoch, index)]["index"] for epoch in range(4) for index in (1, 3, 5)]
    assert taken == [0, 4, 4, 0, 4, 4, 2, 4, 4, 2, 4, 4]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_is_all_broken_is_one_clear_error(tmp_path, workers):
    records = Records([str(tmp_path / f"{i}.mp4") for i in range(30)], [0] * 30, ["a"])
    for index in range(30):
        Path(records.path(index)).write_bytes(b"no video")
    with pytest.raises(UserError, match="30 consecutive files cannot be read") as error:
        next(iter(clip_loader(clips(records), BatchStream(30, batch_size=2, num_steps=1, seed=0), workers=workers)))
    assert "\n" not in str(error.value)


def drawn(dataset, keys):
    """Read keys one by one and return what a batch holds."""
    samples = [dataset[key] for key in keys]
    return {
        "clip": torch.stack([sample["clip"] for sample in samples]),
        "label": torch.tensor([sample["label"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
        "broken": [entry for sample in samples for entry in sample["broken"]],
    }


@pytest.fixture
def opened(monkeypatch):
    """The paths that the dataset opens, in order."""
    paths, original = [], clip_datasets.open_video

    def open_video(path, *arguments):
        paths.append(path)
        return original(path, *arguments)

    monkeypatch.setattr(clip_datasets, "open_video", open_video)
    return paths


KEYS = [SampleKey(0, index, copy) for index, copy in ((4, 0), (1, 0), (1, 1), (3, 0), (0, 2), (4, 1))]


@pytest.mark.parametrize("kind", ["dense", "segments"])
@pytest.mark.parametrize("augment", [None, RandAugment(2, 10)])
def test_a_batch_is_its_samples(records, kind, augment):
    transform = TrainTransform(24, rand_augment=augment)
    dataset = clips(records, transform, TemporalSampling(6, 2, kind))
    batch, expected = dataset.__getitems__(KEYS), drawn(dataset, KEYS)
    assert batch["clip"].shape == (6, 6, 24, 24, 3) and batch["clip"].is_contiguous()
    assert batch.keys() == expected.keys() and batch["broken"] == []
    for name in ("clip", "label", "index"):
        assert batch[name].dtype == expected[name].dtype and torch.equal(batch[name], expected[name])


def test_a_sample_is_its_crop_and_flip_of_the_frames_it_names(records):
    """The reference reads whole frames and applies the transform with the generator of the sample."""
    transform = TrainTransform(24)
    for key in KEYS:
        sample = clips(records, transform)[key]
        frames = read_frames(records.path(key.index), sample["frames"])
        assert torch.equal(sample["clip"], transform(frames, keyed_rng(3, "sample", *key[:3], 0)))


@pytest.mark.parametrize("repeats", [2, 3])
def test_copies_share_one_decode_and_are_those_drawn_one_by_one(records, opened, repeats):
    dataset = clips(records, repeats=repeats)
    stream = BatchStream(6, batch_size=6 * repeats, num_steps=1, seed=3, repeats=repeats)
    (keys,) = stream
    batch = dataset.__getitems__(keys)
    assert opened == [records.path(key.index) for key in keys[::repeats]]
    expected = drawn(dataset, keys)
    assert torch.equal(batch["clip"], expected["clip"]) and torch.equal(batch["index"], expected["index"])
    for first in range(0, len(keys), repeats):
        copies = range(first, first + repeats)
        frames = [dataset[keys[copy]]["frames"].tolist() for copy in copies]
        assert frames == [frames[0]] * repeats  # the same frames
        assert len({batch["clip"][copy].numpy().tobytes() for copy in copies}) == repeats  # in different crops
    starts = [{int(dataset[SampleKey(0, i, copy)]["frames"][0]) for copy in (0, repeats)} for i in range(6)]
    assert sum(map(len, starts)) > 9  # another use of a file has other frames, except by chance


def test_copies_in_two_micro_batches_are_the_same(records):
    dataset, options = clips(records, repeats=3), {"batch_size": 8, "num_steps": 3, "seed": 3, "repeats": 3}
    whole_batches = [dataset.__getitems__(keys)["clip"] for keys in BatchStream(6, **options)]
    parts = [dataset.__getitems__(keys)["clip"] for keys in BatchStream(6, **options, micro_batch=2)]
    assert torch.equal(torch.cat(whole_batches), torch.cat(parts))


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_batch_is_its_samples_across_replaced_files(some_broken, repeats):
    dataset = clips(some_broken, repeats=repeats)
    for epoch in range(3):
        keys = [SampleKey(epoch, index, copy) for index in range(6) for copy in range(repeats)]
        batch, expected = dataset.__getitems__(keys), drawn(dataset, keys)
        for name in ("clip", "label", "index"):
            assert torch.equal(batch[name], expected[name])
        uses = [entry for key in keys[::repeats] for entry in dataset[key]["broken"]]
        assert batch["broken"] == uses and {path for path, _ in uses} == {some_broken.path(i) for i in (1, 3, 5)}


def test_which_file_replaces_another_does_not_depend_on_where_it_broke(records, some_broken, tmp_path):
    """One decoder may fail when it opens the file, another while it reads."""
    cut = Path(records.path(1)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(cut[: len(cut) // 2] + bytes(len(cut) // 2))
    paths = [some_broken.path(i) for i in range(6)]
    for path in (str(tmp_path / "cut.mp4"), str(tmp_path / "gone.mp4")):
        paths[1] = path
        other = Records(paths, records.labels, records.class_names)
        for epoch in range(4):
            key = SampleKey(epoch, 1)
            ours, theirs = clips(other)[key], clips(some_broken)[key]
            if ours["broken"]:
                assert ours["index"] == theirs["index"] and torch.equal(ours["clip"], theirs["clip"])


def test_a_batch_is_made_where_it_travels(records):
    """In a worker the batch is written into shared memory and never copied."""

    class Telling(ClipDataset):
        def __getitems__(self, keys):
            batch = super().__getitems__(keys)
            batch["is_shared"] = batch["clip"].is_shared()
            return batch

    def loader(workers):
        dataset = Telling(records, sampling=STRIDED, transform=TrainTransform(24), seed=3)
        stream = BatchStream(6, batch_size=3, num_steps=2, seed=3)
        return DataLoader(dataset, batch_sampler=stream, num_workers=workers, collate_fn=lambda batch: batch)

    inside, outside = (list(loader(workers)) for workers in (1, 0))
    assert [batch["is_shared"] for batch in inside] == [True, True]
    assert [batch["is_shared"] for batch in outside] == [False, False]
    assert same(inside, outside)


def test_files_that_hung_are_left_alone(records, opened):
    skipped = records.path(1)
    for dataset in (
        clips(records, skip={skipped: "hung the decoder"}),
        views(records, STRIDED, skip={skipped: "hung the decoder"}),
    ):
        seen = []
        dataset.heartbeat = seen.append
        if isinstance(dataset, ClipDataset):
            sample = dataset[SampleKey(0, 1)]
            assert sample["broken"] == [(skipped, "hung the decoder")] and sample["index"] in (0, 2)
            assert seen == [sample["index"]] * 2 + [-1]  # to open it, and to augment the clip
        else:
            assert (dataset[1]["views"], dataset[1]["error"], seen) == (None, "hung the decoder", [])
            assert dataset[2]["views"] is not None
    assert skipped not in opened


def test_who_watches_is_told_what_is_open(some_broken, opened):
    dataset, seen = clips(some_broken, repeats=2), []
    dataset.heartbeat = lambda index: seen.append((index, len(opened)))
    batch = dataset.__getitems__([SampleKey(0, index, copy) for index in range(6) for copy in range(2)])
    expected = []
    for number, path in enumerate(opened):  # before each file, and before each copy of a readable one
        can_be_read = path in map(some_broken.path, (0, 2, 4))
        expected += [(path, number)] + [(path, number + 1)] * (2 * can_be_read)
    assert [(some_broken.path(index), before) for index, before in seen[:-1]] == expected and seen[-1] == (
        -1,
        len(opened),
    )
    assert len(opened) == 6 + len(set(batch["broken"]))  # known ones are not opened again
    tested, seen = views(some_broken, TemporalSampling(4, 1)), []
    tested.heartbeat = seen.append
    assert [tested[index]["views"] is None for index in (0, 1)] == [False, True]
    assert seen == [0, -1, 1, -1]


def test_the_frame_rate_of_the_file_counts(make_video, tmp_path, frame_numbers):
    """The same scene at two rates gives clips of the same times."""
    paths = [make_video(tmp_path / f"{fps}.mp4", 4 * fps, 32, 32, fps=fps) for fps in (10, 25)]
    records = Records(map(str, paths), [0, 0], ["a"])
    sampling = TemporalSampling(5, 2, fps=5)
    slow, fast = (clips(records, whole, sampling)[SampleKey(0, index)] for index in (0, 1))
    assert frame_numbers(slow["clip"]) == slow["frames"].tolist() and set(np.diff(slow["frames"])) == {4}
    assert frame_numbers(fast["clip"]) == fast["frames"].tolist() and set(np.diff(fast["frames"])) == {10}
    slow, fast = (views(records, sampling, 3)[index]["frames"] for index in (0, 1))
    assert np.abs((slow + 0.5) / 10 - (fast + 0.5) / 25).max() <= 0.5 / 10 + 0.5 / 25


def test_segments_of_a_file(records, frame_numbers):
    sampling = TemporalSampling(5, kind="segments")
    item = views(records, sampling, 2, ViewTransform(32, 32))[0]
    assert item["frames"].tolist() == [[1, 5, 9, 13, 17], [3, 7, 11, 15, 19]]
    sample = clips(records, whole, sampling)[SampleKey(0, 0)]
    assert frame_numbers(sample["clip"]) == sample["frames"].tolist()
    assert (sample["frames"] // 4).tolist() == [0, 1, 2, 3, 4]


def test_views_of_a_long_video_hold_its_views_alone(make_video, tmp_path, monkeypatch):
    """Only the frames of the views are read, once, at the size of the views."""
    path = make_video(tmp_path / "long.mp4", 900, 64, 96, gop=50)
    dataset, read = views(Records([str(path)], [0], ["a"]), TemporalSampling(4, 2), 3, ViewTransform(24, 16, 3)), []
    original = Video.read

    def tapped(self, indices, **options):
        frames = original(self, indices, **options)
        read.append((list(indices), tuple(frames.shape)))
        return frames

    monkeypatch.setattr(Video, "read", tapped)
    item = dataset[0]
    assert read == [(sorted(item["frames"].flatten().tolist()), (12, 24, 36, 3))]
    assert item["views"].shape == (9, 4, 16, 16, 3) and item["views"].untyped_storage().nbytes() == 9 * 4 * 16 * 16 * 3


class Full(ViewTransform):
    """One view: the whole frames."""

    def cut(self, clip):
        return [clip]


def test_views_share_one_decode_and_are_right(records, frame_numbers):
    transform = ViewTransform(32, 32, crops=3)
    dataset = views(records, STRIDED, 4, transform)
    item = dataset[5]
    assert item["views"].shape == (12, 6, 32, 32, 3) and item["views"].dtype == torch.uint8
    assert (item["label"], item["index"], item["error"]) == (1, 5, None)
    clips_of_it = views(records, STRIDED, 4, Full(32, 32))[5]["views"]
    for k, indices in enumerate(STRIDED.even_clips(25, 4)):
        assert frame_numbers(clips_of_it[k]) == [500 + i for i in indices]
        assert torch.equal(item["views"][3 * k : 3 * k + 3], transform(clips_of_it[k]))


@pytest.mark.parametrize("filter", FILTERS)
def test_views_are_resized_with_the_filter_of_the_transform(records, filter):
    transform = ViewTransform(20, 16, filter=filter)
    sampling = TemporalSampling(3, 1)
    seen = views(records, sampling, transform=transform)[0]["views"]
    frames = read_frames(records.path(0), sampling.even_clips(20, 1)[0])
    assert torch.equal(seen[0], resize(frames, 20, 40, filter)[:, 2:18, 12:28])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_view_loader_keeps_the_order_and_reports_what_is_broken(some_broken, workers):
    dataset = views(some_broken, TemporalSampling(4, 1))
    items = list(ViewLoader(dataset, workers=workers))
    assert [item["index"] for item in items] == list(range(6))
    assert [item["views"] is None for item in items] == [False, True] * 3
    assert "empty" in items[1]["error"] and items[0]["error"] is None
    with pytest.raises(MediaError):
        clip_datasets.open_record(some_broken, 1, "pyav")


def test_images_are_videos_of_one_frame(tmp_path):
    Image.new("RGB", (40, 30), (10, 20, 30)).save(tmp_path / "a.png")
    records = Records([str(tmp_path / "a.png")], [0], ["a"])
    sample = clips(records, sampling=TemporalSampling(1, 1))[SampleKey(0, 0)]
    assert sample["clip"].shape == (1, 24, 24, 3) and sample["clip"][0, 0, 0].tolist() == [10, 20, 30]
    assert clips(records)[SampleKey(0, 0)]["clip"].shape == (6, 24, 24, 3)  # a still clip for a 3D network
    item = views(records, TemporalSampling(1, 1), transform=ViewTransform(24, 20))[0]
    assert item["views"].shape == (1, 1, 20, 20, 3)


@pytest.mark.slow
def test_ctrl_c_leaves_the_workers_silent(records, tmp_path):
    script = tmp_path / "loop.py"
    script.write_text(
        textwrap.dedent(f"""
        import signal

        from video_rs.data.clips import TemporalSampling
        from video_rs.data.clip_datasets import ClipDataset
        from video_rs.data.loader import clip_loader
        from video_rs.data.sources.records import Records
        from video_rs.data.sampler import BatchStream
        from video_rs.data.transforms.crops import TrainTransform

        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with SIGINT ignored
        records = Records([{records.path(0)!r}], [0], ["a"])
        dataset = ClipDataset(records, sampling=TemporalSampling(4, 1), transform=TrainTransform(16))
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
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    output, errors = process.communicate(timeout=60)
    assert output.endswith("stopped\n") and "Traceback" not in errors


def test_a_phase_has_its_own_sizes_and_the_same_draws(records):
    small = (TemporalSampling(3, 2), TrainTransform(16))
    dataset = clips(records, phases=[small, (STRIDED, TrainTransform(24))])
    keys = [SampleKey(1, index, 0, 1) for index in range(4)]
    batch = dataset.__getitems__(keys)
    assert batch["clip"].shape == (4, 3, 16, 16, 3)
    alone = clips(records, small[1], small[0])
    for key, clip in zip(keys, batch["clip"], strict=True):
        assert torch.equal(clip, alone[SampleKey(*key[:3])]["clip"])
        assert torch.equal(clip, dataset[key]["clip"])
        main = SampleKey(*key[:3])
        assert torch.equal(dataset[main]["clip"], dataset[SampleKey(*key[:3], 2)]["clip"])  # of the same sizes
        assert dataset[main]["clip"].shape == (6, 24, 24, 3)
