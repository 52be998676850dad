"""Folders of frames read like the videos that they were extracted from."""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from video_rs.data.clips import TemporalSampling
from video_rs.data.sources.records import Records
from video_rs.data.sources.splits import load_splits
from video_rs.data.tools.check_file import check_file
from video_rs.data.tools.check_problems import Entries, find_problems
from video_rs.data.video.decode import open_video, probe, read_frames
from video_rs.data.video.images import frame_names
from video_rs.errors import MediaError, UserError

FRAMES = 23


def extract(video, folder, name="img_{:05d}.png", start=1):
    """Extract the frames of a video into a folder, without loss."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(read_frames(video, range(open_video(video).num_frames)), start):
        Image.fromarray(frame.numpy()).save(folder / name.format(number))
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory, make_video):
    """Return a video and the folder of its frames, numbered without leading zeros."""
    root = tmp_path_factory.mktemp("pair")
    video = make_video(root / "a.mp4", FRAMES, 48, 72)
    return video, extract(video, root / "frames", "img_{}.png", start=0)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=12), st.data())
def test_a_folder_reads_as_the_video_that_it_was_made_of(pair, indices, data):
    top, left = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 30))
    boxes = [(top, left, 17, 23), (0, left, 28, 42)]
    with open_video(pair[0]) as video, open_video(pair[1]) as folder:
        assert folder.num_frames == video.num_frames == FRAMES and folder.backend == "pil" and folder.fps == 0
        for options in ({}, {"crop": boxes[0]}, {"short_side": 30}, {"size": (20, 21), "crop": boxes[1]}):
            assert torch.equal(folder.read(indices, **options), video.read(indices, **options))
        crops = [opened.read_crops(indices, lambda *size: boxes, 16, filter="bicubic") for opened in (folder, video)]
        assert torch.equal(*crops)
        ascending = np.unique(indices)
        streams = [list(opened.stream(ascending, short_side=24)) for opened in (folder, video)]
        assert len(streams[0]) == len(ascending) and all(map(torch.equal, *streams))


def test_what_is_known_of_a_folder(pair, tmp_path):
    info = probe(pair[1])
    assert (info.num_frames, info.fps, info.height, info.width, info.codec) == (FRAMES, 0, 48, 72, "png")
    (tmp_path / "one").mkdir()
    Image.new("L", (20, 10), 7).save(tmp_path / "one" / "x.JPG")
    assert probe(tmp_path / "one").codec == "jpeg" and (read_frames(tmp_path / "one", [0]) == 7).all()


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["img_10.jpg", "img_9.jpg", "img_8.jpg"], ["img_8.jpg", "img_9.jpg", "img_10.jpg"]),
        (["2.png", "1.png", "3.png"], ["1.png", "2.png", "3.png"]),
        (["b.JPEG", "a.png", ".c.png", "notes.txt", "a1.tiff"], ["a.png", "a1.tiff", "b.JPEG"]),
        (["s2_t10.jpg", "s10_t1.jpg", "s2_t9.jpg"], ["s2_t9.jpg", "s2_t10.jpg", "s10_t1.jpg"]),
        (["0.mp4_7.jpg", "0.mp4_8.jpg"], ["0.mp4_7.jpg", "0.mp4_8.jpg"]),
    ],
)
def test_the_order_of_names(names, ordered, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    assert frame_names(tmp_path) == ordered


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "frames: contains no images"),
        (["notes.txt", ".1.png"], "frames: contains no images"),
        (["img_00001.jpg", "img_00003.jpg"], "frames: img_00002.jpg is missing, between img_00001.jpg and img_00003"),
        (["7.png", "8.png", "10.png"], "frames: 9.png is missing"),
        (["img_1.jpg", "img_01.jpg"], "img_01.jpg and img_1.jpg have the same frame number"),
        (["img_1.jpg", "img_1.png", "img_2.jpg"], "img_1.jpg and img_1.png have the same frame number"),
        (["img_1.jpg", "thumb_1.jpg", "img_2.jpg"], "img_1.jpg and thumb_1.jpg are from two series of frames"),
        (
            ["cover.jpg", "img_1.jpg", "img_2.jpg", "img_4.jpg"],
            "cover.jpg has no number, unlike other images in this folder",
        ),
        (["flow_x_1.jpg", "flow_y_1.jpg"], "flow_x_1.jpg and flow_y_1.jpg are from two series of frames"),
    ],
)
def test_folders_that_are_no_video(names, message, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name, "png")
    for refused in (open_video, probe):
        with pytest.raises(MediaError, match=message) as error:
            refused(folder)
        assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)
    assert message.removeprefix("frames: ") in check_file(str(folder)).problem


def test_optical_flow_beside_the_frames_is_left_out(tmp_path):
    for name in ("img_1.png", "img_2.png", "flow_x_1.png", "flow_y_1.png"):
        (tmp_path / name).touch()
    assert frame_names(tmp_path) == ["img_1.png", "img_2.png"]


def test_an_image_that_is_no_frame_of_the_video(pair, tmp_path):
    folder = extract(pair[0], tmp_path / "frames")
    Image.new("RGB", (72, 50)).save(folder / "img_00005.png")
    (folder / "img_00009.png").write_bytes(b"\x89PNG nothing")
    (folder / "img_00011.png").write_bytes(b"")
    assert len(read_frames(folder, [0, 1, 2, 3, 5])) == 5  # no other image is opened
    for numbers, message in [
        ([3, 4], "img_00005.png: has 50x72 pixels, but other frames in the folder have 48x72"),
        ([8], "img_00009.png: cannot be decoded"),
        ([10], "img_00011.png: the file is empty"),
    ]:
        with pytest.raises(MediaError, match=message) as error:
            read_frames(folder, numbers)
        assert str(error.value).startswith(f"{folder}/img_") and "\n" not in str(error.value)
    assert "img_00005.png: has 50x72" in check_file(str(folder)).problem
    with open_video(folder) as video:
        (folder / "img_00001.png").unlink()
        with pytest.raises(MediaError, match="img_00001.png: no such file"):
            video.read([0])


def count_calls(folder):
    """Return how often files were opened and folders listed for one clip. An audit hook stays in its process."""
    seen = []
    open_video(folder).read([0])  # open everything that is imported here

    def hook(event, values):
        if event in ("open", "os.listdir", "os.scandir") and str(values[0]).startswith(str(folder)):
            seen.append(event)

    sys.addaudithook(hook)
    with open_video(folder) as video:
        video.read(TemporalSampling(32, 2).even_clips(video.num_frames, 1)[0])
    return seen.count("open"), len(seen) - seen.count("open")


def test_a_clip_opens_its_frames_and_lists_the_folder_once(tmp_path):
    for number in range(300):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(count_calls, tmp_path).result() == (32, 1)


# Datasets of folders -------------------------------------------------------------------------------------------------


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def contents(records, root):
    return [(records.path(i).removeprefix(f"{root}/"), records.label(i)) for i in range(len(records))]


def failure(match, **options):
    with pytest.raises(UserError, match=match) as error:
        load_splits(**options)
    assert "\n" not in str(error.value)


def test_class_folders_of_folders_of_frames(tmp_path):
    touch(tmp_path, *(f"train/{c}/v{v}/img_{i}.jpg" for c in "ab" for v in (2, 1) for i in (1, 2)))
    touch(tmp_path, "train/a/.hidden/1.jpg", "train/a/notes.txt", "train/c/notes.txt", "val/a/v3/1.jpg")
    splits = load_splits(str(tmp_path), frame_folders=True)
    assert contents(splits["train"], tmp_path / "train") == [("a/v1", 0), ("a/v2", 0), ("b/v1", 1), ("b/v2", 1)]
    assert contents(splits["val"], tmp_path / "val") == [("a/v3", 0)] and splits["train"].empty_folders == ("c",)
    hint = "no class folders with videos or images in it, but there are folders of images: set data.frame_folders=true"
    failure(f"the train split of .* is empty: {hint}", root=str(tmp_path))
    failure(f"no train, .*{hint}", root=str(tmp_path / "train"))
    assert len(load_splits(str(tmp_path / "train"), frame_folders=True, val_fraction=0.5)["val"]) == 2
    touch(tmp_path, "train/b/a.mp4")
    failure(
        "data.frame_folders=true: .*train/b/a.mp4 is not in a folder of its own", root=str(tmp_path), frame_folders=1
    )
    touch(tmp_path, "deep/train/a/v/x/1.jpg", "deep/train/a/w/notes.txt", "deep/train/b/v/x/1.jpg")
    deep = load_splits(str(tmp_path / "deep"), frame_folders=True, splits=["train"])["train"]
    assert contents(deep, tmp_path / "deep/train") == [("a/v/x", 0), ("b/v/x", 1)]
    assert "1 file or folder is left out" in deep.describe() and deep.describe().endswith("deep/train/a/w")


def test_lists_of_folders(tmp_path):
    touch(tmp_path, "x/one/1.jpg", "x/two 2/1.jpg", "x/three.mp4/1.jpg", "x/v1.5/1.jpg")
    (tmp_path / "train.txt").write_text("x/one 0\nx/v1.5/ 1\nx/three.mp4 1\n")
    train = load_splits(str(tmp_path), val="train.txt")["train"]
    assert contents(train, tmp_path) == [("x/one", 0), ("x/v1.5", 1), ("x/three.mp4", 1)]
    assert [train.listed_frames(i) for i in range(3)] == [0, 0, 0] and train.frames is None


@pytest.mark.parametrize("separator", [" ", ", ", "\t"])
@pytest.mark.parametrize("missing", [False, True])
def test_lists_with_a_number_of_frames(tmp_path, separator, missing):
    touch(tmp_path, "x/one/1.jpg", "x/two 2/1.jpg", "x/three.mp4/1.jpg", "x/four/1.jpg")
    rows = [("x/one", 164, 0), ("x/two 2", 20, 1), ("x/three.mp4", 30, 1), ("x/four/", 40, 0)]
    rows = [("x/gone", 7, 0)] * missing + rows
    (tmp_path / "train.txt").write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))
    splits = load_splits(str(tmp_path), splits=["train", "val"], max_missing=0.5, val_fraction=0.4)
    train, found = splits["train"], {}
    for records in splits.values():
        found |= {records.path(i): (records.label(i), records.listed_frames(i)) for i in range(len(records))}
    expected = {f"{tmp_path}/{path.rstrip('/')}": (label, frames) for path, frames, label in rows if "gone" not in path}
    assert found == expected and train.class_names == ("0", "1")
    assert train.missing == [f"{tmp_path}/x/gone"] * missing


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
def test_a_column_of_numbers_of_frames(tmp_path, separator):
    touch(tmp_path, "one/1.jpg", "two/1.jpg", "clip.mp4", "other.mp4")

    def listed(*rows):
        rows = [("path", "num_frames", "label"), *rows]
        (tmp_path / "train.csv").write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))
        return load_splits(str(tmp_path), splits=["train"], val_fraction=0)["train"].frames

    assert listed(("one", 164, 0), ("two", 20, 1)).tolist() == [164, 20]
    assert listed(("clip.mp4", 164, 0), ("other.mp4", 20, 1)) is None  # the length of a video is in the file
    for wrong in ("0", "x", "-3"):
        with pytest.raises(UserError, match=rf"train.csv:3: '{wrong}' is not a valid number of frames$"):
            listed(("one", 164, 0), ("two", wrong, 1))
    (tmp_path / "train.csv").write_text("one 5 0\ntwo 0 1\n")
    failure("train.csv:2: '0' is not a valid number of frames", root=str(tmp_path), splits=["train"])


def test_a_number_at_the_end_of_a_name_is_none_of_frames(tmp_path):
    touch(tmp_path, "clip 12", "clip 13", "14.mp4")
    (tmp_path / "train.txt").write_text("clip 12 0\nclip 13 1\n")
    train = load_splits(str(tmp_path), splits=["train"])["train"]
    assert contents(train, tmp_path) == [("clip 12", 0), ("clip 13", 1)] and train.frames is None
    (tmp_path / "train.txt").write_text("14.mp4 12 0\n14.mp4 13 1\n")
    failure("train.txt:1: several numbers after the path, '12 0'", root=str(tmp_path))


def test_files_and_folders_of_frames_do_not_mix(tmp_path):
    touch(tmp_path, "one/1.jpg", "two.mp4", "three.jpg")
    for other in ("two.mp4", "three.jpg"):
        (tmp_path / "train.txt").write_text(f"one 0\n{other} 1\n")
        failure("folders of frames and files are mixed", root=str(tmp_path), splits=["train"])


def test_a_list_that_names_other_numbers_of_frames(pair, tmp_path):
    with open_video(pair[1], listed=20) as video:
        assert video.num_frames == 20
        with pytest.raises(IndexError):
            video.read([20])
    with pytest.raises(MediaError, match=f"frames: has {FRAMES} images, but 24 frames in its list"):
        open_video(pair[1], listed=24)
    folder = str(pair[1])
    names = [os.path.join(tmp_path, name) for name in "abc"]
    for name in names:
        os.symlink(folder, name)
    records = Records(names, [0, 1, 1], "xy")
    records.frames = np.array([FRAMES, 24, 20], np.int32)
    entries = Entries({"train": records})
    facts = [check_file(entries.path(entry)) for entry in entries.first]
    found = find_problems(entries, facts, TemporalSampling(4, 2))
    assert [(p.entry, p.kind, p.detail) for p in found if p.kind in ("broken", "odd")] == [
        (1, "broken", f"has {FRAMES} images, but 24 frames in its list"),
        (2, "odd", f"{FRAMES} images; only the first 20 are listed"),
    ]


def test_what_a_check_finds_in_a_folder(pair, tmp_path):
    facts = check_file(str(pair[1]))
    assert (facts.frames, facts.fps, facts.height, facts.width) == (FRAMES, 0, 48, 72) and facts.problem == ""
    assert (facts.codec, facts.decoder) == ("png", "pil")
    assert facts.bytes == sum(file.stat().st_size for file in pair[1].iterdir()) and len(facts.sha1) == 20
    same = check_file(str(extract(pair[0], tmp_path / "same", "frame{:03d}.png")))
    tiff = check_file(str(extract(pair[0], tmp_path / "tiff", "frame{:03d}.tiff")))
    assert same == facts and tiff.pixels == facts.pixels and tiff.sha1 != facts.sha1
    os.rename(tmp_path / "same" / "frame001.png", tmp_path / "same" / "frame024.png")
    assert check_file(str(tmp_path / "same")).pixels != facts.pixels
