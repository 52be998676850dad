import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from video_rs.cli.common import run
from video_rs.cli.main import dispatch
from video_rs.data.clips import TemporalSampling
from video_rs.data.sources import dataset_index
from video_rs.data.sources.records import Records
from video_rs.data.tools import lengths
from video_rs.data.tools.index import index_videos
from video_rs.data.tools.lengths import Length, describe_short, sample_lengths


@pytest.mark.parametrize(
    "frames, sampling, part, clip, fits",
    [
        ([63] * 10, {}, "", "", ""),  # 1 + 31 x 2
        ([62] * 3 + [63] * 7, {}, "30", "32 frames x stride 2", "data.stride=1 would fit 100 %"),
        ([40] * 3 + [10] + [99] * 16, {}, "20", "32 frames x stride 2", "data.stride=1 would fit 95 %"),
        ([40] * 10, {"stride": 8}, "100", "32 frames x stride 8", "data.stride=1 would fit 100 %"),
        ([40] * 10, {"num_frames": 8, "stride": 8}, "100", "8 frames x stride 8", "data.stride=5 would fit 100 %"),
        ([9, 99], {}, "50", "32 frames x stride 2", "data.stride=1 data.num_frames=8 would fit 100 %"),
        ([9, 99], {"kind": "segments"}, "50", "32 frames", "data.num_frames=8 would fit 100 %"),
        ([31] + [99] * 199, {"stride": 1}, "0.5", "32 frames x stride 1", "data.num_frames=16 would fit 100 %"),
        ([1] * 4 + [9] + [99] * 5, {"stride": 1}, "50", "32 frames x stride 1", "data.num_frames=8 would fit 60 %"),
        ([1] * 4, {}, "100", "32 frames x stride 2", ""),
        ([1] * 4, {"num_frames": 1}, "", "", ""),
        ([], {}, "", "", ""),
    ],
)
def test_short_videos_and_the_setting_that_fits(frames, sampling, part, clip, fits):
    text = f"{part} % are shorter than a clip ({clip}) and repeat frames{f'; {fits}' if fits else ''}"
    found = describe_short([Length(n, 25.0) for n in frames], TemporalSampling(**sampling))
    assert found == (text if part else "")


def test_with_a_frame_rate_seconds_count():
    sampling = TemporalSampling(num_frames=8, stride=2, fps=10.0)  # 1.4 s from the first to the last frame
    same = [Length(36, 25.0), Length(43, 30.0), Length(15, 10.0), Length(15, 0.0)]
    assert describe_short(same, sampling) == ""
    text = describe_short([Length(n - 1, rate) for n, rate in same], sampling)
    assert text.startswith("100 % are shorter than a clip (8 frames x stride 2 at 10 per second)")
    assert text.endswith("; data.stride=1 would fit 100 %")


def records_of(paths):
    return Records([str(path) for path in paths], [0] * len(paths), ("a",))


def test_lengths_come_from_headers_folders_segments_and_the_index(tmp_path, make_video, monkeypatch):
    monkeypatch.setenv("VIDEO_RS_CACHE", str(tmp_path / "cache"))
    files = [
        make_video(tmp_path / f"{n}{suffix}", num_frames=n) for n in (5, 40) for suffix in (".mp4", ".mkv", ".avi")
    ]
    videos = records_of([*files, tmp_path / "gone.mp4"])
    expected = [5] * 3 + [40] * 3
    assert [length.frames for length in sample_lengths(videos)] == expected
    assert {round(length.rate, 2) for length in sample_lengths(videos)} == {25.0}
    assert len(sample_lengths(videos, files=2)) == 1  # the first and the last
    segments = records_of(files[3:])
    segments.segments = np.array([[0.0, 0.4], [0.4, 0.0], [0.0, 0.0]])
    assert [length.frames for length in sample_lengths(segments)] == [10, 30, 40]
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(7):
        Image.new("RGB", (32, 32)).save(folder / f"{number}.png")
    assert sample_lengths(records_of([folder])) == [Length(7, 0.0)]
    mp4 = records_of(files[::3])
    index_videos(mp4).index.save(dataset_index.index_file(mp4))
    dataset_index.attach(mp4)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    assert sample_lengths(mp4) == [Length(5, 25.0), Length(40, 25.0)]


@pytest.mark.parametrize("fault", ["hang", "crash", "stop"])
def test_a_header_that_hangs_or_crashes_its_reader(tmp_path, make_video, monkeypatch, fault):
    files = [make_video(tmp_path / f"{n}.mp4", num_frames=5) for n in range(3)]
    opened = lengths.open_container

    def open_container(path):
        if str(path).endswith("1.mp4"):
            if fault == "hang":
                time.sleep(60)
            os.kill(os.getpid(), signal.SIGKILL if fault == "crash" else signal.SIGSTOP)
        return opened(path)

    monkeypatch.setattr(lengths, "open_container", open_container)
    processes, fork = [], os.fork
    monkeypatch.setattr(os, "fork", lambda: processes.append(fork()) or processes[0])
    assert sample_lengths(records_of(files), seconds=1.0) == [Length(5, 25.0)]
    with pytest.raises(ProcessLookupError):
        os.kill(processes[0], 0)


def test_without_processes_or_descriptors_no_length_is_measured(tmp_path, make_video, monkeypatch):
    videos = records_of([make_video(tmp_path / "0.mp4", num_frames=5)])
    monkeypatch.setattr(os, "fork", fail := lambda *args, **options: (_ for _ in ()).throw(BlockingIOError()))
    assert sample_lengths(videos) == []
    monkeypatch.setattr("multiprocessing.connection.Pipe", fail)
    assert sample_lengths(videos) == []


def test_training_reports_the_fraction_of_short_videos(tmp_path, make_video, capsys):
    for split, label, number in ((s, c, n) for s in ("train", "val") for c in "ab" for n in range(5)):
        make_video(tmp_path / split / label / f"{number}.mp4", num_frames=20 if number else 9)
    (tmp_path / "tiny.yaml").write_text(
        "model: {name: resnet3d_rs_26, width: 0.125}\ntrain: {device: cpu, batch_size: 4, max_steps: 1}\n"
        "data: {num_frames: 8, stride: 2, train_size: 32, short_side: 32, test_size: 32, workers: 0}\n"
    )
    words = ["train", "--cfg", f"{tmp_path}/tiny.yaml", f"data.root={tmp_path}", f"out={tmp_path}/run"]
    short = "of 10 training videos, 20 % are shorter than a clip (8 frames x stride 2) and repeat frames"
    assert run(dispatch, words) == 0
    assert f"short videos   {short}; data.stride=1 would fit 100 %\n" in capsys.readouterr().out
    assert run(dispatch, [*words, "data.stride=1", "--dry-run"]) == 0
    assert "short videos" not in capsys.readouterr().out
