"""Shards: writing, reading, and errors for damaged or mixed ones."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import write_video
from tests.data.videos import KINDS
from tests.data.videos import write as video_kind
from tests.data.writers import encode
from video_rs.data import storage
from video_rs.data.loader import check_timeout
from video_rs.data.shards import Members, expand, in_memory, index_path, parse_index, read_index, split_member
from video_rs.data.sources.holdout import source_key
from video_rs.data.sources.records import Records
from video_rs.data.sources.splits import load_splits
from video_rs.data.tools import shard_writer
from video_rs.data.tools.check_file import check_file
from video_rs.data.tools.shard_writer import Sample, member_names, plan, remove_others, write
from video_rs.data.video.decode import BACKENDS, open_video, probe
from video_rs.data.video.images import read_image
from video_rs.errors import MachineError, MediaError, UserError

ROOT = Path(__file__).resolve().parents[2]


def pack(folder, files, shard_bytes=10**9, split="train", multi_label=False, sources=None):
    """Write shards of {path: label}, named by the last two parts of the paths; `sources` is {path: key}."""
    return pack_splits(folder, {split: files}, shard_bytes, multi_label, sources)


def pack_splits(folder, splits, shard_bytes=10**9, multi_label=False, sources=None):
    """Write shards of {split: {path: label}}."""
    target = ("json", "[0]") if multi_label else ("cls", "0")
    samples = {}
    for split, files in splits.items():
        names = member_names("/".join(Path(file).parts[-2:]) for file in files)
        samples[split] = [
            Sample(str(file), names["/".join(Path(file).parts[-2:])], label, target, (sources or {}).get(file))
            for file, label in files.items()
        ]
    shards = plan(folder, samples, shard_bytes)
    write(shards, lambda count: None)
    return shards


def members(shards):
    """Return {path in the shard: file}."""
    return {f"{shard.path}/{sample.name}": sample.file for shard in shards for sample in shard.samples}


def tree(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """{path: label} of 14 videos of two classes; decord cannot read some, and one name exceeds a tar's field."""
    root = tmp_path_factory.mktemp("videos")
    files = {}
    for k, name in enumerate(("run fast", "jump")):
        for i, file in enumerate(("0.mp4", "1.mp4", "a.b.mp4", "a_b.mp4", "v.webm", "t.ts", "n" * 110 + ".mp4")):
            codec = {"v.webm": "libvpx-vp9", "t.ts": "mpeg2video"}.get(file, "libx264")
            path = write_video(root / name / file, 14, first_number=400 * k + 20 * i, codec=codec)
            files[path] = name
    return files


@pytest.fixture(scope="module")
def packed(videos, tmp_path_factory):
    """(folder, shards)"""
    folder = tmp_path_factory.mktemp("packed") / "shards"
    return folder, pack(folder, videos, 20_000)


def test_they_are_named_as_webdataset_names_them(videos, packed):
    folder, shards = packed
    assert len(shards) > 2
    assert {path.name for path in folder.iterdir()} == {
        f"train-{number:06d}.tar{suffix}" for number in range(len(shards)) for suffix in ("", ".csv")
    }
    files = {split_member(path)[1]: file for path, file in members(shards).items()}
    seen = set()
    for shard in shards:
        with tarfile.open(shard.path) as tar:
            infos = tar.getmembers()
            for video, target in zip(infos[::2], infos[1::2], strict=True):
                key, extension = video.name.rsplit(".", 1)
                assert "." not in key and target.name == f"{key}.cls" and key not in seen
                assert tar.extractfile(video).read() == Path(files[video.name]).read_bytes()
                assert tar.extractfile(target).read() == b"0"
                assert (video.mtime, video.uid, video.uname) == (0, 0, "") and files[video.name].endswith(extension)
                seen.add(key)
        index = parse_index(str(shard.path), (folder / f"{shard.path.name}.csv").read_bytes())
        assert [entry.name for entry in index.rows] == [info.name for info in infos[::2]]
        assert [entry.offset for entry in index.rows] == [info.offset_data for info in infos[::2]]
        assert index.num_bytes == shard.path.stat().st_size and index.num_shards == len(shards)
    assert len(seen) == len(videos) and {"jump/a_b", "jump/a_b_2"} < seen


def test_the_size_limit_and_the_mixing_of_classes(packed):
    for shard in packed[1][:-1]:
        assert len(shard.samples) == 1 or shard.num_bytes <= 20_000 + tarfile.RECORDSIZE
    labels = [sample.label for shard in packed[1] for sample in shard.samples]
    assert labels != sorted(labels) and labels != sorted(labels, reverse=True)


def test_the_same_files_give_the_same_bytes(videos, packed, tmp_path):
    shuffled = random.Random(1).sample(sorted(videos), len(videos))
    for path in shuffled:
        os.utime(path, ns=(time.time_ns(), time.time_ns()))
    pack(tmp_path, {path: videos[path] for path in shuffled}, 20_000)
    assert tree(tmp_path) == tree(packed[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_frames_are_those_of_the_files(packed, backend):
    backends = set()
    for member, file in members(packed[1]).items():
        with open_video(member, backend) as ours, open_video(file, backend) as theirs:
            assert (ours.num_frames, ours.fps, ours.backend) == (theirs.num_frames, theirs.fps, theirs.backend)
            for indices in ([9, 3, 3], np.arange(ours.num_frames)):
                assert torch.equal(ours.read(indices), theirs.read(indices))
            backends.add(ours.backend)
        assert probe(member) == probe(file)
        facts = check_file(member)
        assert facts == check_file(file) and not facts.problem
    assert "pyav" in backends


def what_comes_out(file, backend):
    """Return backend, frames, rate and pixels; or the error, without the name of the file."""
    try:
        with open_video(file, backend) as video:
            indices = np.unique(np.linspace(0, video.num_frames - 1, 7).astype(int))
            return video.backend, video.num_frames, video.fps, video.read(indices).numpy().tobytes()
    except MediaError as error:
        return str(error).removeprefix(f"{file}: ")


@pytest.mark.slow
def test_every_kind_of_video(tmp_path):
    (tmp_path / "x").mkdir()
    shards = pack(tmp_path / "s", {video_kind(name, tmp_path / "x" / name): "a" for name in KINDS}, 2_000_000)
    for member, file in members(shards).items():
        for backend in BACKENDS:
            assert what_comes_out(member, backend) == what_comes_out(file, backend), file


def test_streams_that_are_opened_again(tmp_path):
    """PyAV reopens a file to count its frames."""
    (tmp_path / "x").mkdir()
    encode(tmp_path / "x" / "odd.avi", "mpeg4", options={"bf": "2"})
    shards = pack(tmp_path / "s", {tmp_path / "x" / "odd.avi": "a"})
    (member,) = members(shards)
    with open_video(member, "pyav") as ours, open_video(tmp_path / "x" / "odd.avi", "pyav") as theirs:
        for indices in ([30, 5], [2], np.arange(theirs.num_frames)):
            assert torch.equal(ours.read(indices), theirs.read(indices))


def test_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    files = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
        files[tmp_path / name / "0.png"] = name
    shards = pack(tmp_path / "s", files)
    for member in members(shards):
        assert torch.equal(read_image(member), torch.from_numpy(pixels)[None])
        with open_video(member) as video:
            assert video.backend == "pil" and torch.equal(video.read([0]), torch.from_numpy(pixels)[None])
    records = load_splits(str(tmp_path / "s"), splits=("train",), val_fraction=0)["train"]
    assert records.path(0).endswith(".png") and len(records) == 2


def test_the_records_are_those_of_a_list_in_the_same_order(videos, packed, tmp_path):
    """Labels, the held-out split, and the members behind the paths."""
    folder, shards = packed
    files = members(shards)
    (tmp_path / "list.csv").write_text("".join(f"{file},{videos[Path(file)]}\n" for file in files.values()))
    theirs = load_splits(train=str(tmp_path / "list.csv"), splits=("train", "val"), val_fraction=0.2)
    ours = load_splits(str(folder), splits=("train", "val"), val_fraction=0.2)
    for split in ("train", "val"):
        assert ours[split].class_names == theirs[split].class_names
    kept = [files[ours["train"].path(i)] for i in range(len(ours["train"]))]
    assert kept == [file for file in files.values() if file in kept] and len(ours["val"])
    for records in ours.values():
        for i in range(len(records)):
            assert records.label_names(i) == (videos[Path(files[records.path(i)])],)
            assert in_memory(records.file(i)).data == Path(files[records.path(i)]).read_bytes()
        starts = records.members.starts()
        assert {split_member(records.path(i))[0] for i in starts} == {
            split_member(records.path(i))[0] for i in range(len(records))
        }
    assert len(ours["train"].members.starts()) > 1 and "shards: " in ours["train"].describe()


def test_sources_are_those_of_the_list(videos, tmp_path):
    """Files of one source stay together, also with large source keys; without a list, file names give the source."""
    key = {path: source_key(f"{label}{i % 3}") for i, (path, label) in enumerate(videos.items())}
    shards = pack(tmp_path / "listed", videos, sources=key)
    files = members(shards)
    ours = load_splits(str(tmp_path / "listed"), splits=("train", "val"), val_fraction=0.3)
    found = {}
    for split, records in ours.items():
        for i in range(len(records)):
            assert records.sources[i] == key[Path(files[records.path(i)])]
            found.setdefault(int(records.sources[i]), set()).add(split)
    assert sorted(map(len, found.values())) == [1] * 6
    pack(tmp_path / "named", videos)
    assert load_splits(str(tmp_path / "named"), splits=("train",), val_fraction=0)["train"].sources is None


def test_shards_and_files_do_not_mix(videos, tmp_path):
    folder = tmp_path / "data"
    pack(folder, videos)
    (folder / "notes").mkdir()
    assert len(load_splits(str(folder), splits=("train",), val_fraction=0)["train"]) == len(videos)
    for other in ("notes/a.mp4", "train.csv"):
        (folder / other).touch()
        with pytest.raises(UserError, match=f"contains both shards and {folder / other.split('/')[0]}: keep one"):
            load_splits(str(folder))
    pattern = f"{folder}/train-000000.tar"
    assert len(load_splits(str(folder), pattern, splits=("train",), val_fraction=0)["train"]) == len(videos)


def test_a_shard_is_no_video(packed):
    shard = str(packed[1][0].path)
    for look in (open_video, probe):
        with pytest.raises(MediaError, match=rf"^{shard}: a shard, not a video; use {shard}/NAME"):
            look(shard)


def test_shards_bring_the_order_of_their_classes(videos, tmp_path):
    """The order of the source dataset; numbers in it are class names."""
    numbers = {"jump": "10", "run": "9"}
    pack(tmp_path, {path: numbers.get(label, "2") for path, label in videos.items()})
    (tmp_path / "class_names.txt").write_text("9\n10\n2\n")
    for root in (str(tmp_path), f"{tmp_path}/train-000000.tar"):
        records = load_splits(root, splits=("train",), val_fraction=0)["train"]
        assert records.class_names == ("9", "10", "2")
        assert {records.label_names(i) for i in range(len(records))} <= {("10",), ("9",), ("2",)}
    (tmp_path / "other.txt").write_text("2\n9\n10\n")
    records = load_splits(str(tmp_path), class_names=str(tmp_path / "other.txt"), splits=("train",))["train"]
    assert records.class_names == ("2", "9", "10")


def test_a_slow_store_must_not_look_like_files_that_hang(monkeypatch):
    def check(timeout, path="s3://bucket/k.tar/a.mp4"):
        records = Records([path], [0], ["a"])
        records.members = Members([512], [1], [0])
        check_timeout(records, timeout)

    for good in (0, 104):
        check(good)
    check(1, "k.tar/a.mp4")
    with pytest.raises(UserError, match=r"^data.timeout=60: must be 0, or more than the 103.5 s .*data.retries=3"):
        check(60)
    monkeypatch.setenv("VIDEO_RS_RETRIES", "1")
    check(60)
    monkeypatch.setenv("VIDEO_RS_RETRIES", "20")
    with pytest.raises(UserError, match=r"^data.timeout=120: must be 0, or more than the 135.5 s .*data.retries=20"):
        check(120, "k.tar/a.mp4")


def test_a_shard_is_used_once(videos, tmp_path):
    shards = pack(tmp_path, videos, 20_000)
    first, last = f"{tmp_path}/train-000000.tar", f"{tmp_path}/train-{{000000..{len(shards) - 1:06d}}}.tar"
    with pytest.raises(UserError, match=rf"^data.val=.*: {first} is also in data.train$"):
        load_splits(train=first, val=last)
    for suffix in ("", ".csv"):
        shutil.copy(f"{first}{suffix}", tmp_path / f"copy.tar{suffix}")
    message = f"{len(shards) + 1} shards of the train split found, but their indexes count {len(shards)}"
    with pytest.raises(UserError, match=message):
        load_splits(str(tmp_path))


def test_patterns_name_splits(videos, packed, tmp_path):
    folder, shards = packed
    last = len(shards) - 1
    options = {"splits": ("train", "val"), "max_missing": 0}
    pattern, single = f"train-{{000000..{last - 1:06d}}}.tar", f"train-{last:06d}.tar"
    for root, prefix in ((str(folder), ""), ("", f"{folder}/")):
        parts = load_splits(root, prefix + pattern, prefix + single, **options)
        assert len(parts["val"]) == len(shards[-1].samples) and len(parts["train"]) == 14 - len(parts["val"])
    whole = load_splits(f"{folder}/train-{{000000..{last:06d}}}.tar", splits=("train",), val_fraction=0)["train"]
    assert [whole.path(i) for i in range(len(whole))] == list(members(shards))[: len(whole)]
    files = {path: label for path, label in videos.items() if path.stem in "01"}
    pack(folder.parent / "val", files, split="val")
    mixed = load_splits(train=f"{folder}/{pattern}", val=f"{folder.parent}/val/val-000000.tar", **options)
    assert len(mixed["val"]) == 4


def test_several_labels(videos, tmp_path):
    files = dict(zip(list(videos)[:3], ("run;jump", "jump", "")))
    pack(tmp_path, files, multi_label=True)
    records = load_splits(str(tmp_path), multi_label=True, splits=("train",), val_fraction=0.3)["train"]
    assert {records.label_names(i) for i in range(len(records))} <= {("run", "jump"), ("jump",), ()}
    with pytest.raises(UserError, match=r"train-000000.tar.csv:\d: .*data.multi_label=true"):
        load_splits(str(tmp_path), splits=("train",))


def spoiled(packed, tmp_path, name, change):
    """Return a copy of the shards with one file changed or deleted."""
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    shutil.copytree(packed[0], folder)
    data = change((folder / name).read_bytes())
    (folder / name).unlink() if data is None else (folder / name).write_bytes(data)
    return str(folder)


def resized(index, change):
    """Return an index with another size of the last member."""
    lines = index.split(b"\n")
    fields = lines[-3].split(b",")
    fields[2] = b"%d" % (int(fields[2]) + change)
    return b"\n".join([*lines[:-3], b",".join(fields), *lines[-2:]])


FIRST, INDEX = "train-000000.tar", "train-000000.tar.csv"


@pytest.mark.parametrize(
    ("name", "change", "messages"),
    [
        (FIRST, lambda data: data[:-10240], (FIRST, "is truncated:", "copy it again")),
        (FIRST, lambda data: data + bytes(10240), (INDEX, "does not belong to ")),
        (FIRST, lambda data: bytes(len(data)), (INDEX, "does not belong to ")),
        (FIRST, lambda data: None, ("no such shard", FIRST, "only its index exists")),
        (INDEX, lambda data: None, (FIRST, f"has no index {INDEX} beside it")),
        (INDEX, lambda data: data[:-30], (INDEX, "not a complete shard index")),
        (INDEX, lambda data: data[: data.rindex(b"\n", 0, -1) + 1], (INDEX, "complete shard index (the last row")),
        (INDEX, lambda data: b"", (INDEX, "complete shard index (the first line")),
        (INDEX, lambda data: b"path,label\n", (INDEX, "complete shard index (the first line")),
        (INDEX, lambda data: data.replace(b",512,", b",x,", 1), (INDEX, "complete shard index (invalid literal")),
        (INDEX, lambda data: resized(data, -1), (INDEX, "does not belong to ")),
        (INDEX, lambda data: data.replace(b"jump", b"j\xfcmp", 1), (INDEX, "complete shard index ('utf-8' codec")),
        (INDEX, lambda data: data.replace(b",train,\n", b",train,abc\n", 1), (INDEX, "line 2: 'abc' is not a source")),
        (INDEX, lambda data: data.replace(b",train,\n", b",train,12345678901234567\n", 1), (INDEX, "line 2: '1234")),
        (INDEX, lambda data: data.replace(b",512,", b",99999999,", 1), (INDEX, "line 2: ", "is outside a tar")),
        (INDEX, lambda data: data.replace(b",train,", b",practice,"), (INDEX, "'practice' is not train, val or test")),
        (INDEX, lambda data: data.replace(data.split(b"\n")[2].split(b",")[0], data.split(b"\n")[1].split(b",")[0]),
         (INDEX, "a name is repeated")),
    ],
)  # fmt: skip
def test_what_is_wrong_with_shards_is_one_line(packed, tmp_path, name, change, messages):
    with pytest.raises(UserError) as caught:
        load_splits(spoiled(packed, tmp_path, name, change))
    assert all(message in str(caught.value) for message in messages) and "\n" not in str(caught.value), caught.value
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("shard indexes")]
    assert not left


def test_shards_that_are_not_there(packed, tmp_path):
    folder = spoiled(packed, tmp_path, FIRST, lambda data: None)
    os.unlink(f"{folder}/{INDEX}")
    (tmp_path / "empty").mkdir()
    for root, given, message in (
        (folder, {}, r"\d of the \d shards of the train split found"),
        (f"{folder}/x-000.tar", {}, "no such shard: .*x-000.tar"),
        ("", {"train": f"{folder}/train-{{000000..000001}}.tar"}, "data.train: no such shard: .*train-000000.tar"),
        (f"{tmp_path}/nowhere/a.tar", {}, "no such folder or bucket"),
        (f"{folder}/{{000000..000001.tar", {}, "unclosed brace"),
        (f"{folder}/{{000003..000001}}.tar", {}, "not a range"),
        ("", {"train": "s3://bucket/list.csv"}, "remote data must be shards"),
        ("nothing://bucket/shards", {}, "Protocol not known"),
        (str(tmp_path / "empty"), {}, "no train, val or test folder"),
    ):
        with pytest.raises(UserError, match=message):
            load_splits(root, **given)


def test_two_packings_in_one_folder(videos, packed, tmp_path):
    """As left by a copy that deletes nothing: another shard size, other splits."""
    old = pack(tmp_path / "size", videos, 10_000)
    new = pack(tmp_path / "size", videos, 20_000)
    assert len(old) > len(new)
    files = list(videos)
    pack(tmp_path / "split", {file: videos[file] for file in files[:7]}, split="val")
    pack(tmp_path / "split", videos)
    pattern = f"{tmp_path}/size/train-{{000000..{len(old) - 1:06d}}}.tar"
    for root, train in ((tmp_path / "size", ""), (tmp_path / "split", ""), ("", pattern)):
        with pytest.raises(UserError, match=r"\.tar\.csv and .*\.tar\.csv are not of one packing.*: delete"):
            load_splits(str(root), train, splits=("train",), val_fraction=0)
    remove_others(tmp_path / "size", new)
    assert len(load_splits(str(tmp_path / "size"), splits=("train",), val_fraction=0)["train"]) == 14


def test_other_labels_make_one_tar_anew_and_all_indexes(videos, tmp_path):
    shards = pack(tmp_path, videos, 20_000)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    pack(tmp_path, {**videos, Path(shards[1].samples[0].file): "swim"}, 20_000)
    same = {path.name for path in tmp_path.iterdir() if path.stat().st_mtime_ns == before[path]}
    assert same == {shard.path.name for shard in shards} - {shards[1].path.name}
    assert len(load_splits(str(tmp_path), splits=("train",), val_fraction=0)["train"]) == 14


def test_other_sizes_of_shards_are_another_dataset(videos, tmp_path):
    """A resumed run would see another order."""
    prints = set()
    for size in (10_000, 20_000):
        pack(tmp_path / str(size), videos, size)
        prints.add(load_splits(str(tmp_path / str(size)), splits=("train",), val_fraction=0)["train"].fingerprint())
    assert len(prints) == 2


def test_some_of_the_shards(packed, tmp_path):
    """The hint about missing shards works, also with data.root."""
    folder = spoiled(packed, tmp_path, FIRST, lambda data: None)
    os.unlink(f"{folder}/{INDEX}")
    with pytest.raises(UserError, match="or select some: data.train="):
        load_splits(folder, splits=("train",))
    given = f"{folder}/train-000001.tar"
    records = load_splits(folder, given, splits=("train",), val_fraction=0)["train"]
    assert len(records) == len(packed[1][1].samples)


def test_a_folder_of_tars_without_indexes(packed, tmp_path):
    folder = Path(shutil.copytree(packed[0], tmp_path / "x"))
    for index in folder.glob("*.csv"):
        index.unlink()
    (folder / "class_names.txt").write_text("jump\nrun fast\n")
    with pytest.raises(UserError, match=r"has no index train-000000.tar.csv beside it: .*prepare_dataset --shards"):
        load_splits(str(folder))


def test_what_goes_while_it_is_looked_at(packed, tmp_path):
    folder = spoiled(packed, tmp_path, FIRST, lambda data: None)
    with pytest.raises(UserError, match=f"{FIRST}: the file no longer exists"):
        read_index(f"{folder}/{FIRST}", packed[1][0].num_bytes)
    os.symlink("loop", f"{folder}/loop")
    with pytest.raises(UserError, match="/loop: cannot be read .*check the path"):
        load_splits(folder)


def test_a_name_that_is_too_long():
    name = "n" * 300
    with pytest.raises(UserError, match=f"^{name}: cannot be read .File name too long.; check the path"):
        storage.read(name)


def test_an_index_with_wrong_offsets_is_not_written(packed, monkeypatch, tmp_path):
    lengths = shard_writer._lengths
    monkeypatch.setattr(shard_writer, "_lengths", lambda *sample: (lengths(*sample)[0] + 512, lengths(*sample)[1]))
    with pytest.raises(RuntimeError, match="is not where its index says"):
        pack_splits(tmp_path, {"train": dict.fromkeys(members(packed[1]).values(), "a")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: os.truncate(path, 100)])
def test_a_file_that_changes_while_it_is_packed(videos, tmp_path, change):
    path = Path(shutil.copy(next(iter(videos)), tmp_path / "a.mp4"))
    shards = plan(tmp_path / "s", {"train": [Sample(str(path), "x/a.mp4", "x", ("cls", "0"), None)]}, 10**6)
    change(path)
    with pytest.raises(UserError, match=f"{path} was changed or deleted"):
        write(shards, lambda count: None)
    assert not list((tmp_path / "s").glob("*"))


def test_names_that_are_not_utf_8():
    names = member_names([os.fsdecode(b"x/\xfc.mp4"), os.fsdecode(b"x/\xe4.mp4")])
    assert {*names.values()} == {"x/\ufffd.mp4", "x/\ufffd_2.mp4"}


def test_folders_of_videos_called_tar(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            write_video(tmp_path / "x.tar" / f"{split}.tar" / name / "0.mp4", 5)
            write_video(tmp_path / "y.tar" / split / name / "0.mp4", 5)
    assert len(load_splits(str(tmp_path / "y.tar"), splits=("train",))["train"]) == 2
    given = [str(tmp_path / "x.tar" / f"{split}.tar") for split in ("train", "val")]
    assert len(load_splits("", *given, splits=("train",))["train"]) == 2


def test_members_that_cannot_be_read(packed, tmp_path):
    folder, shards = packed
    member = list(members(shards))[0]
    shard, name = split_member(member)
    for wrong, message in (
        (f"{shard}/other.mp4", "no such file in the shard"),
        (f"{tmp_path}/x.tar/a.mp4", "no such shard, or no index x.tar.csv beside it"),
    ):
        with pytest.raises(MediaError, match=message) as caught:
            open_video(wrong)
        assert str(caught.value).startswith(f"{wrong}: ")
    copied = spoiled(packed, tmp_path, FIRST, lambda data: data)
    records = load_splits(copied, splits=("train",), val_fraction=0)["train"]
    first, second = records.file(0), records.file(1)
    data = Path(copied, FIRST).read_bytes()
    with pytest.raises(MediaError, match="not found at its offset"):
        open_video(replace(first, size=first.size - 1))
    Path(copied, FIRST).write_bytes(data[: first.offset + 10])
    with pytest.raises(MediaError, match="the shard is truncated"):
        open_video(first)
    Path(copied, FIRST).write_bytes(bytes(512) + data[: len(data) - 512])
    with pytest.raises(MediaError, match="not found at its offset"):
        open_video(second)
    Path(copied, FIRST).unlink()
    with pytest.raises(MachineError, match="the file no longer exists"):
        open_video(first)


def test_a_folder_may_be_called_tar(tmp_path):
    path = write_video(tmp_path / "x.tar" / "a.mp4", 5)
    with open_video(str(path)) as video:
        assert video.num_frames == 5


def test_expand():
    assert expand("a.tar") == ["a.tar"]
    assert expand("k-{08..11}.tar") == ["k-08.tar", "k-09.tar", "k-10.tar", "k-11.tar"]
    assert expand("{a,b}-{0..1}.tar") == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]
    with pytest.raises(UserError, match="shards, more than"):
        expand("{0..9999}{0..9999}.tar")


def test_packing_goes_on_and_makes_anew_what_has_changed(videos, packed, tmp_path):
    files = {}
    for path, label in videos.items():
        files[Path(shutil.copytree(path.parent, tmp_path / path.parent.name, dirs_exist_ok=True)) / path.name] = label
    out = tmp_path / "out"
    pack(out, files, 10_000)
    shards = pack(out, files, 20_000)
    remove_others(out, shards)  # of the first
    assert tree(out) == tree(packed[0])
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    changed = shards[1].samples[0].file
    data = bytearray(Path(changed).read_bytes())
    data[-1] ^= 1
    Path(changed).write_bytes(data)
    pack(out, files, 20_000)
    assert {path.name for path in out.iterdir() if path.stat().st_mtime_ns != before[path]} == {
        shards[1].path.name,
        f"{shards[1].path.name}.csv",
    }
    assert bytes(data) in shards[1].path.read_bytes()


KILLED = """
import sys
from pathlib import Path
from video_rs.data.tools.shard_writer import Sample, plan, write
files = sorted(Path(sys.argv[1]).iterdir())
samples = [Sample(str(file), f"a/{file.name}", "a", ("cls", "0"), None) for file in files]
write(plan(Path(sys.argv[2]), {"train": samples}, 45_000_000), lambda count: None)
"""


@pytest.mark.slow
def test_killed_in_the_midst_of_a_shard(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    noise = np.random.default_rng(0)
    for number in range(8):
        (source / f"{number}.mp4").write_bytes(noise.bytes(20_000_000))
    command = [sys.executable, "-c", KILLED, source, out]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    undisturbed = {path.name: (path.stat().st_size, hash(path.read_bytes())) for path in out.iterdir()}
    assert len(undisturbed) == 8
    for number, old in ((0, False), (2, False), (0, True), (2, True)):
        if old:  # everything has to be made again
            for file in source.iterdir():
                os.utime(file)
        else:
            shutil.rmtree(out)
        process = subprocess.Popen(command, cwd=ROOT)
        end = time.monotonic() + 30
        while not list(out.glob(f".train-{number:06d}.tar.*")) and time.monotonic() < end:
            pass
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (out / f"train-{number:06d}.tar.csv").exists()  # nor an old one, beside a tar that may be new
        for left in out.glob(".*"):  # as the command does when it begins
            left.unlink()
        assert subprocess.run(command, cwd=ROOT).returncode == 0
        assert {path.name: (path.stat().st_size, hash(path.read_bytes())) for path in out.iterdir()} == undisturbed


def test_the_index_lies_beside_the_tar():
    assert index_path("s3://b/k-000.tar") == "s3://b/k-000.tar.csv"
