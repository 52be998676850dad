import io
import os

import numpy as np
import pytest

from video_rs.data.sources import dataset_index as index
from video_rs.data.sources.dataset_index import VideoIndex, file_version, index_file, load, pack
from video_rs.data.sources.records import Records
from video_rs.data.video.decode import BACKENDS, open_video
from video_rs.data.video.stream_index import Keyframe, StreamIndex, read_stream_index
from video_rs.errors import UserError

FILES = {
    "a.mp4": {},
    "gops.mp4": {"gop": 2, "options": {"bf": "0"}},
    "rounded.mkv": {"fps": 30},  # timestamps in whole milliseconds
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1:bframes=2:b-adapt=0"}},
    "one.mp4": {"num_frames": 1},
    "vp8.webm": {"codec": "libvpx"},  # its packets are unreliable
    "transport.ts": {},
}


def indexed(number, path):
    return number, file_version(path), read_stream_index(path)


@pytest.fixture(scope="module")
def folder(make_video, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    for name, options in FILES.items():
        make_video(folder / name, **options)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def records(folder):
    paths = [str(folder / name) for name in [*FILES, "broken.mp4"]]
    records = Records(paths, [0] * len(paths), ["all"])
    records.index = pack(map(indexed, range(len(FILES)), paths), len(paths))
    return records


def same(stream, expected):
    return (
        np.array_equal(stream.pts, expected.pts)
        and [key.pts for key in stream.keyframes] == [key.pts for key in expected.keyframes]
        and all(
            getattr(stream, name) == getattr(expected, name)
            for name in ("codec", "decord_problem", "frame_bytes", "fps")
        )
    )


def test_indexes_come_back_as_they_were(records, tmp_path):
    records.index.save(tmp_path / "index.npz")
    records.index = load(tmp_path / "index.npz")
    known = [records.stream_index(i) for i in range(len(records))]
    assert [stream is not None for stream in known] == [True] * 5 + [False] * 3
    for i, stream in enumerate(known[:5]):
        assert same(stream, read_stream_index(records.path(i))), records.path(i)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_are_the_same_with_and_without(records, frame_numbers, backend):
    for i in range(5):
        with (
            open_video(records.path(i), backend, records.stream_index(i)) as known,
            open_video(records.path(i), backend) as new,
        ):
            assert (known.num_frames, known.fps, known.backend) == (new.num_frames, new.fps, new.backend)
            wanted = np.arange(known.num_frames)[::-3]
            assert frame_numbers(known.read(wanted)) == frame_numbers(new.read(wanted)) == wanted.tolist()


def test_a_file_that_has_changed_is_looked_at_anew(records, make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", 30)
    changing = Records([str(path)], [0], ["all"])
    changing.index = pack([indexed(0, str(path))], 1)
    assert changing.stream_index(0).num_frames == 30
    content, changed = path.read_bytes(), path.stat().st_mtime
    make_video(path, 31)
    assert changing.stream_index(0) is None
    path.write_bytes(content[::-1])
    os.utime(path, (changed, changed + 1))
    assert changing.stream_index(0) is None
    os.utime(path, (changed, changed))
    assert changing.stream_index(0) is not None
    path.unlink()
    assert changing.stream_index(0) is None


def test_uneven_times_and_far_keyframes_are_not_packed(records):
    even = read_stream_index(records.path(0))
    uneven = StreamIndex(even.codec, np.sort(even.pts**2), [Keyframe(0)], fps=25.0)
    far = StreamIndex("h264", np.arange(70000), [Keyframe(0), Keyframe(66000)], fps=25.0)
    none = StreamIndex("h264", np.arange(3), [], fps=25.0)  # no keyframe from which decoding can start
    near = StreamIndex("h264", np.arange(70000), [Keyframe(0), Keyframe(65535)], fps=25.0)
    rows = pack([(i, (10, 0), stream) for i, stream in enumerate((uneven, far, none, near))], 4).rows
    assert (rows["bytes"] > 0).tolist() == [False, False, False, True]


def test_more_words_than_fit_are_left_out():
    indexes = [StreamIndex(f"codec{i}", np.arange(3), [Keyframe(0)], fps=1.0) for i in range(300)]
    packed = pack([(i, (1, 0), stream) for i, stream in enumerate(indexes)], 300)
    assert all(packed.words[row["codec"]] == f"codec{i}" for i, row in enumerate(packed.rows) if row["bytes"])
    assert 200 < (packed.rows["bytes"] > 0).sum() < 256


def test_a_million_files_take_little(records):
    one = records.index
    assert one.rows.itemsize <= 38 and one.gaps.itemsize == 2 and one.ends.itemsize == 8


def test_damaged_files(tmp_path, records):
    plain = io.BytesIO()
    np.save(plain, np.zeros(3))
    for content in (b"", b"PK\x03\x04 no more", plain.getvalue()):
        (tmp_path / "index.npz").write_bytes(content)
        with pytest.raises(UserError, match="index.npz is damaged"):
            load(tmp_path / "index.npz")
    old = VideoIndex(np.zeros(2, np.int64), np.zeros(0, np.uint16), np.zeros(2, np.int64), ("",))
    old.save(tmp_path / "index.npz")
    with pytest.raises(UserError, match="another version"):
        load(tmp_path / "index.npz")


def test_other_files_have_another_index(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEO_RS_CACHE", str(tmp_path))
    names = [["/a/b.mp4"], ["/a/c.mp4"], ["/a/b.mp4", "/a/c.mp4"], ["b.mp4"]]
    files = [index_file(Records(paths, [0] * len(paths), ["x"])) for paths in names]
    monkeypatch.chdir(tmp_path)
    files.append(index_file(Records(["b.mp4"], [0], ["x"])))
    assert len(set(files)) == 5 and all(file.parent == tmp_path / "index" for file in files)
    assert index.index_file(Records(["/a/b.mp4"], [0], ["y"])) == files[0]
