"""``tools/index_dataset.py``: its output, and its use by other commands."""

import os
import signal
import time

import pytest

from tests.integration.conftest import tool
from video_rs.data.sources.dataset_index import file_version
from video_rs.data.sources.records import Records
from video_rs.data.tools import index
from video_rs.data.video.stream_index import read_stream_index
from video_rs.errors import MachineError, UserError
from video_rs.experiment.build import build_records
from video_rs.experiment.config import load_config

HANGS = "hung the decoder (no progress for 2 s)"


@pytest.fixture
def dataset(make_video, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEO_RS_CACHE", str(tmp_path / "cache"))
    for split in ("train", "val"):
        for name in ("a", "b"):
            make_video(tmp_path / "data" / split / name / "0.mp4", 20)
    make_video(tmp_path / "data/train/a/1.ts", 10)
    (tmp_path / "data/train/b/broken.mp4").write_bytes(b"no video")
    return tmp_path / "data"


def run(root, *overrides):
    return tool("index_dataset.py", "--cfg", "motion_rs.yaml", f"data.root={root}", *overrides)


def test_it_tells_what_is_there_and_others_find_it(dataset, tmp_path):
    config = load_config("motion_rs.yaml", [f"data.root={dataset}"])
    assert build_records(config)["train"].index is None
    done = run(dataset)
    assert done.returncode == 0, done.stderr
    assert "train: 4 files, 2 of them in the index" in done.stdout and "val: 2 files, 2 of them" in done.stdout
    assert "2 for decord" in done.stdout and "1 for PyAV (unreliable timestamps)" in done.stdout
    assert "1 more can be opened" in done.stdout
    assert (
        "20 to 20 frames, median 20" in done.stdout
        and "1 cannot be opened" in done.stdout
        and "broken.mp4: " in done.stdout
    )
    records = build_records(config)
    assert [records["train"].stream_index(i) is not None for i in range(4)] == [True, False, True, False]
    assert ", indexed" in records["train"].describe()
    assert records["val"].stream_index(1).num_frames == 20 and records["test"] is records["val"]


def test_bad_input(dataset, tmp_path):
    for root, message in ((tmp_path / "nowhere", "no such folder"), (make_images(tmp_path / "x"), "of images")):
        done = run(root)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    done = run(make_images(tmp_path / "frames", "clip/0.png"), "data.frame_folders=true")
    assert done.returncode == 2 and "consists of folders of frames" in done.stderr and done.stderr.count("\n") == 1
    (tmp_path / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDEO_RS_CACHE", str(tmp_path / "file"))
        done = run(dataset)
    assert done.returncode == 2 and "set VIDEO_RS_CACHE" in done.stderr and done.stderr.count("\n") == 1
    assert run(dataset).returncode == 0
    for file in (tmp_path / "cache" / "index").iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(UserError, match="is damaged.*index"):
        build_records(load_config("motion_rs.yaml", [f"data.root={dataset}"]))
    assert run(dataset).returncode == 0  # the index is made again


def test_without_decord_no_file_is_for_decord(make_video, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "find_spec", lambda name: None)
    records = Records([str(make_video(tmp_path / "a.mp4", 10))], [0], ["a"])
    assert index.index_videos(records).decoders == {"PyAV (decord is not installed)": 1}


def crash_or_hang(item, beat):
    name = os.path.basename(item[1])
    if name in ("SEGV", "KILL"):
        os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
    time.sleep(60 if name == "hang" else 0)
    return file_version(item[1]), read_stream_index(item[1])


@pytest.mark.slow
def test_files_that_crash_or_hang_do_not_affect_others(make_video, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_index", crash_or_hang)
    good = [str(make_video(tmp_path / f"{n}.mp4", 10 + n)) for n in range(3)]
    files = [good[0], "SEGV", good[1], "hang", good[2]]
    found = index.index_videos(Records(files, [0] * 5, ["a"]), workers=2, timeout=2.0)
    assert found.problems == ["SEGV: killed the decoder (SIGSEGV)", f"hang: {HANGS}"]
    assert [bool(row["bytes"]) for row in found.index.rows] == [True, False, True, False, True]
    assert [found.index.stream_index(n, files[n]).num_frames for n in (0, 2, 4)] == [10, 11, 12]
    with pytest.raises(MachineError, match="^KILL: its process was killed .SIGKILL., possibly out of memory"):
        index.index_videos(Records([*good, "KILL"], [0] * 4, ["a"]))


def make_images(root, file="0.png"):
    from PIL import Image

    for name in ("train/a", "train/b", "val/a", "val/b"):
        (root / name / file).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / file)
    return root
