"""Local storage: failed reads, retries, and failures of a single file."""

import errno
import gc
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from video_rs.data import storage
from video_rs.data.clip_datasets import ViewDataset
from video_rs.data.clips import TemporalSampling
from video_rs.data.shards import Members
from video_rs.data.sources.records import Records
from video_rs.data.sources.splits import load_splits
from video_rs.data.tools.check_file import check_file
from video_rs.data.tools.encode import encode_video
from video_rs.data.transforms.crops import ViewTransform
from video_rs.data.video.decode import open_video, probe, read_frames
from video_rs.data.video.stream_index import open_container, read_stream_index
from video_rs.errors import MachineError, MediaError, PathError, StorageError

EIO, ESTALE = OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    pauses = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def failing(monkeypatch):
    """Return a function that makes the reads with some numbers fail, and returns the list of all reads."""
    pread, state = os.pread, {"numbers": (), "reads": []}

    def fail(numbers=(), error=EIO):
        def fake(file, size, position):
            state["reads"].append(position)
            if len(state["reads"]) - 1 in numbers:
                raise error
            return pread(file, size, position)

        state["reads"] = []
        monkeypatch.setattr(storage.os, "pread", fake)
        return state["reads"]

    return fail


FOREVER = range(10**6)


def clip(path):
    with open_video(path) as video:
        return video.read(np.unique(np.linspace(0, video.num_frames - 1, 5).astype(int)))


def copied(path):
    encode_video(path, copy := path.with_name("copy.mp4"))
    return copy.read_bytes()


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.ts", "clip.webm", "clip.mov"])
@pytest.mark.parametrize("function", [read_stream_index, probe, clip, check_file, copied])
def test_decoders_do_not_hide_read_errors(function, name, make_video, failing, monkeypatch, tmp_path, capfd):
    """FFmpeg can treat it as the end of the file, and conceal the rest."""
    monkeypatch.setenv("VIDEO_RS_RETRIES", "0")
    monkeypatch.setattr("video_rs.data.video.stream_index.BUFFER_BYTES", 2048)  # many reads
    codec = {"webm": "libvpx-vp9"}.get(name[5:], "libx264")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    path = make_video(tmp_path / name, frames=pixels, gop=4, codec=codec)
    reads = failing()
    whole = function(path)
    assert len(reads) > 5
    for first in sorted({*range(0, len(reads), 1 + len(reads) // 25), len(reads) - 1}):
        failing(range(first, 10**6))
        with pytest.raises(
            StorageError, match="/.?(clip|copy)[^/]*: cannot be read .Input/output error.; check the storage$"
        ):
            function(path)
    failing()
    again = function(path)
    assert torch.equal(again, whole) if isinstance(whole, torch.Tensor) else repr(again) == repr(whole)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp"])
def test_images_do_not_hide_read_errors(name, failing, monkeypatch, tmp_path):
    monkeypatch.setenv("VIDEO_RS_RETRIES", "0")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    Image.fromarray(pixels).save(path := tmp_path / name)
    reads = failing()
    read_frames(path, [0])
    for first in range(len(reads)):
        failing(range(first, 10**6))
        with pytest.raises(StorageError, match=f"{name}: cannot be read"):
            read_frames(path, [0])


@pytest.mark.parametrize("error", [EIO, ESTALE])
def test_a_read_succeeds_after_two_failures(error, make_video, failing, no_pauses, tmp_path):
    path = make_video(tmp_path / "a.mp4")
    expected = clip(path)
    failing((0, 1), error)
    assert torch.equal(clip(path), expected) and no_pauses == [0.5, 1.0]


def test_number_of_retries(make_video, failing, no_pauses, monkeypatch, tmp_path):
    path = make_video(tmp_path / "a.mp4")
    for retries, pauses in ((3, [0.5, 1, 2]), (0, []), (7, [0.5, 1, 2, 4, 8, 8, 8])):
        monkeypatch.setenv("VIDEO_RS_RETRIES", str(retries))
        no_pauses.clear()
        failing(FOREVER)
        with pytest.raises(StorageError) as caught:
            clip(path)
        assert no_pauses == pauses and caught.value.path == str(path)
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (str(copy), copy.path, copy.exit_code) == (str(caught.value), str(path), 3)


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.ENOENT, PathError, "no such file$"),
        (errno.EACCES, PathError, "cannot be read .Permission denied.; check the path and its permissions$"),
        (errno.EMFILE, MachineError, "Too many open files; lower data.workers or raise the limit$"),
        (errno.EIO, StorageError, "check the storage$"),
    ],
)
def test_errors_of_open(number, kind, text, no_pauses, monkeypatch, tmp_path, make_video):
    path, real = make_video(tmp_path / "a.mp4"), os.open

    def fail(name, *args, **options):
        if name == str(path):
            raise OSError(number, os.strerror(number), name)
        return real(name, *args, **options)

    monkeypatch.setattr(storage.os, "open", fail)
    with pytest.raises(kind, match=text) as caught:
        clip(path)
    assert type(caught.value) is kind and len(no_pauses) == (3 if kind is StorageError else 0)


def test_a_wrong_path_is_a_user_error(tmp_path):
    with pytest.raises(MediaError, match="none.mp4: no such file$") as caught:
        probe(tmp_path / "none.mp4")
    assert caught.value.exit_code == 2


def test_a_file_that_changes_while_read_is_an_error(make_video, failing, tmp_path):
    path = make_video(tmp_path / "a.mp4")
    with storage.open_file(path) as file:
        os.truncate(path, 100)
        failing((0,))
        with pytest.raises(StorageError, match="the file has changed"):
            file.read(10)


def test_files_are_closed(make_video, tmp_path):
    """Immediately: garbage collections are rare in a worker."""
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        path, bad = make_video(tmp_path / "a.mp4"), tmp_path / "bad.mp4"
        bad.write_bytes(b"no video" * 99)
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        for _ in range(3):
            clip(path), probe(path), read_frames(tmp_path / "a.png", [0])
            with open_container(path) as container:
                assert container.size == path.stat().st_size
            with pytest.raises(MediaError):
                clip(bad)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def test_reading_and_seeking(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(10)))
    with storage.open_file(tmp_path / "a") as file:
        assert (file.read(3), file.tell(), file.read(), file.read(1)) == (b"\0\1\2", 3, bytes(range(3, 10)), b"")
        assert (file.seek(-2, 2), file.read(9), file.seek(99), file.read(1)) == (8, b"\x08\x09", 99, b"")
        assert (file.seek(1), file.seek(2, 1), file.name) == (1, 3, str(tmp_path / "a"))
        with pytest.raises(ValueError, match="negative"):
            file.seek(-1)


def test_file_and_storage_failures_are_distinguished(tmp_path):
    good, other = tmp_path / "data" / "good", tmp_path / "data" / "other"
    good.parent.mkdir()
    good.write_bytes(b"1")
    error = StorageError("f.mp4", "cannot be read (x)")

    def verdict(others, root=good.parent):
        found = storage.diagnose(error, [*map(str, others)], str(root))
        assert str(found).startswith("f.mp4: ")
        return type(found)

    assert verdict([other, other, good]) is MediaError
    assert verdict([good.parent]) is MediaError  # a folder of frames
    assert verdict([other, other, other, good]) is MachineError  # three are read
    assert verdict([]) is MachineError
    assert verdict([good], tmp_path / "away") is MachineError
    (tmp_path / "empty").mkdir()
    assert verdict([good], tmp_path / "empty") is MachineError  # not mounted
    assert storage.diagnose(error, [str(good)]).__class__ is MediaError


def test_other_files_are_near_or_spread():
    records = Records([f"{i}" for i in range(100)], [0] * 100, ["a"])
    assert records.other_files(50) == ["49", "51", "48"] and records.other_files(0) == ["99", "1", "98"]
    assert records.other_files(50, spread=True) == ["75", "0", "25"]
    assert Records(["a"], [0], ["a"]).other_files(0) == []
    assert Records(["a", "b", "a"], [0] * 3, ["a"]).other_files(0) == ["b"]


def test_a_failed_listing_is_an_error(tiny_splits, monkeypatch):
    """A folder that cannot be listed is never treated as empty."""
    scandir, calls = os.scandir, []

    def fail(folder, times=10**6):
        calls.append(folder)
        if str(folder).rstrip("/").endswith("train/b") and len([each for each in calls if each == folder]) <= times:
            raise OSError(errno.EIO, "Input/output error", folder)
        return scandir(folder)

    for where in ({"root": str(tiny_splits)}, {"train": str(tiny_splits / "list.csv")}):
        expected = load_splits(**where, splits=["train"])["train"]
        monkeypatch.setattr(storage.os, "scandir", fail)
        with pytest.raises(StorageError, match="train/b/?: cannot be read .Input/output error.; check the storage"):
            load_splits(**where, splits=["train"])
        calls.clear()
        monkeypatch.setattr(storage.os, "scandir", lambda folder: fail(folder, 2))
        found = load_splits(**where, splits=["train"])["train"]
        assert found.fingerprint() == expected.fingerprint()
        monkeypatch.setattr(storage.os, "scandir", scandir)


@pytest.fixture
def tiny_splits(tmp_path):
    """Six files of two classes in train, as folders and as a list; the files are not opened."""
    rows = []
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "train" / name / f"{i}.mp4").touch()
            rows.append(f"{tmp_path}/train/{name}/{i}.mp4,{name}\n")
    (tmp_path / "list.csv").write_text("".join(rows))
    return tmp_path


def test_a_failed_read_of_a_shard_is_a_machine_error(tmp_path):
    """Its other members are in the same file. None is left out."""
    records = Records([f"{tmp_path}/a.tar/{i}.mp4" for i in range(5)], [0] * 5, ["a"])
    records.members = Members([512] * 5, [1] * 5, [0] * 5)
    error = StorageError(f"{tmp_path}/a.tar", "cannot be read (Input/output error)")
    with pytest.raises(StorageError) as caught:
        records.fault(error, 2)
    assert caught.value is error


def test_missing_frame_folders_are_a_machine_error(tmp_path):
    folders = []
    for name in ("a", "b"):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        for i in range(3):
            Image.new("RGB", (16, 16)).save(folders[-1] / f"{i}.png")
    records = Records(map(str, folders), [0, 0], ["a"])
    sampling = TemporalSampling(2, 1)
    dataset = ViewDataset(records, sampling=sampling, clips=1, transform=ViewTransform(16, 16))
    folders[0].rename(tmp_path / "moved")
    assert dataset[0]["error"] == "no such file"
    folders[1].rename(tmp_path / "moved too")
    with pytest.raises(MachineError, match=f"^{folders[0]}: no such file; other files"):
        dataset[0]
