import contextlib
import gc
import os
import resource
import sys
from dataclasses import replace
from importlib.util import find_spec

import av
import numpy as np
import pytest
import torch
from PIL import Image

from video_rs.data.transforms.crops import resize
from video_rs.data.video import decode
from video_rs.data.video import decord as decode_decord
from video_rs.data.video import pyav as decode_pyav
from video_rs.data.video.decode import BACKENDS, open_video, probe, read_frames
from video_rs.data.video.images import read_image
from video_rs.data.video.stream_index import Keyframe, read_stream_index
from video_rs.data_config import FILTERS
from video_rs.errors import MachineError, MediaError, UserError

HAS_DECORD = find_spec("decord") is not None  # it has no wheels for some platforms
INSTALLED = ["decord", "pyav"] if HAS_DECORD else ["pyav"]


def sequential(path):
    """Return every frame of the best stream, upright, in the order of a full decode."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        frames = [np.rot90(f.to_ndarray(format="rgb24"), round(f.rotation / 90)) for f in container.decode(stream)]
    return torch.from_numpy(np.stack(frames))


def check(path, backend, used=None):
    """Compare reads from all over the file, with short and long distances between frames, with a full decode."""
    truth = sequential(path)
    with open_video(path, backend) as video:
        assert video.num_frames == len(truth) and (used is None or video.backend == used), (path.name, backend)
    rng = np.random.default_rng(0)
    starts = np.unique(np.linspace(0, len(truth) - 1, 12).astype(int))
    batches = [np.arange(start, min(start + 4, len(truth))) for start in starts] + [rng.integers(0, len(truth), 5)]
    for indices in batches:
        assert torch.equal(read_frames(path, indices, backend=backend), truth[indices]), (path.name, backend, indices)


FILES = {  # name: (backend with data.decoder=decord, options of the writer)
    "h264.mp4": ("decord", {}),
    "h264.mkv": ("decord", {}),
    "many_keyframes.mp4": ("decord", {"gop": 2}),
    "mpeg4.avi": ("decord", {"codec": "mpeg4"}),
    "vp9.webm": ("decord", {"codec": "libvpx-vp9"}),
    "rotated.mp4": ("decord", {"rotation": 90}),
    "open_gop.mp4": ("pyav", {"options": {"x264-params": "open-gop=1:bframes=2:b-adapt=0"}}),
    "b_frames.avi": ("pyav", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "h264_b_frames.avi": ("pyav", {}),
    "vp8.webm": ("pyav", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "10"}}),
    "mpeg1.mpg": ("pyav", {"codec": "mpeg1video"}),
    "transport.ts": ("pyav", {"codec": "libx264"}),
}


@pytest.mark.parametrize("name", FILES)
def test_who_decodes_what_and_that_it_is_right(name, make_video, tmp_path):
    used, options = FILES[name]
    path = make_video(tmp_path / name, 60, **options)
    check(path, "decord", used if HAS_DECORD else "pyav")
    check(path, "pyav", "pyav")


def test_a_file_cut_with_stream_copy_hides_its_first_frames(make_video, frame_numbers, tmp_path):
    source, cut = make_video(tmp_path / "a.mp4", 40), tmp_path / "cut.mp4"
    with av.open(str(source)) as i, av.open(str(cut), "w") as o:
        stream = i.streams.video[0]
        copy = o.add_stream_from_template(stream)
        shift = 5 * int(1 / stream.time_base / stream.average_rate)
        for packet in i.demux(stream):
            if packet.size:
                packet.stream, packet.pts, packet.dts = copy, packet.pts - shift, packet.dts - shift
                o.mux(packet)
    truth = frame_numbers(sequential(cut))
    assert truth[-1] == 39 and truth[0] > 0
    for backend in BACKENDS:
        with open_video(cut, backend) as video:
            assert video.backend == "pyav" and frame_numbers(video.read(range(video.num_frames))) == truth


def test_an_edit_list_may_hide_the_end(make_video, frame_numbers, tmp_path):
    path = make_video(tmp_path / "a.mp4", 40, gop=8)
    data = bytearray(path.read_bytes())
    duration = data.find(b"elst") + 12  # past version, flags and number of entries
    data[duration : duration + 4] = (int.from_bytes(data[duration : duration + 4], "big") // 2).to_bytes(4, "big")
    path.write_bytes(data)
    truth = sequential(path)
    assert frame_numbers(truth) == list(range(20))
    check(path, "decord", "pyav")


@pytest.mark.parametrize("backend", INSTALLED)
def test_indices_in_any_order_with_repeats(backend, make_video, frame_numbers, tmp_path):
    path = make_video(tmp_path / "a.mp4", 30)
    indices = [7, 3, 3, 29, 0, 7]
    with open_video(path, backend) as video:
        assert frame_numbers(video.read(indices)) == indices
        assert frame_numbers(video.read([5, 4])) == [5, 4]  # again, from the same open file
        for bad in ([30], [-1], []):
            with pytest.raises(IndexError):
                video.read(bad)


@pytest.mark.parametrize("backend", INSTALLED)
def test_short_side(backend, make_video, frame_numbers, tmp_path):
    path = make_video(tmp_path / "a.mp4", 20, height=64, width=100)
    small = read_frames(path, range(20), short_side=32, backend=backend)
    assert small.shape == (20, 32, 50, 3) and frame_numbers(small) == list(range(20))
    assert torch.equal(small, decode.resize(read_frames(path, range(20), backend=backend), 32, 50))


@pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")
def test_what_decord_opens_but_cannot_read(make_video, frame_numbers, tmp_path):
    path = make_video(tmp_path / "narrow.mp4", 20, height=64, width=48)
    with open_video(path, "decord") as video:
        assert video.backend == "decord" and video.num_frames == 20
        assert frame_numbers(video.read([3, 9])) == [3, 9] and video.backend == "pyav"


def test_without_decord(make_video, frame_numbers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    path = make_video(tmp_path / "a.mp4", 20)
    with open_video(path, "decord") as video:
        assert video.backend == "pyav" and frame_numbers(video.read([3, 9])) == [3, 9]


@pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")
def test_both_backends_agree_on_colour(make_video, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    path = make_video(tmp_path / "a.mp4", frames=noise)
    assert torch.equal(*(read_frames(path, range(4), backend=backend) for backend in ("decord", "pyav")))


def test_frames_that_break_their_promises_are_counted(make_video, frame_numbers, tmp_path):
    path = make_video(tmp_path / "a.mp4", 40)
    honest = read_stream_index(path)
    no_keyframe = Keyframe(int(honest.pts[15]))
    for wrong in (replace(honest, keyframes=[no_keyframe]), replace(honest, pts=honest.pts + 1)):
        with open_video(path, "pyav", wrong) as video:
            assert frame_numbers(video.read([3, 16, 39])) == [3, 16, 39]


def test_probe(make_video, tmp_path):
    info = probe(make_video(tmp_path / "a.mp4", 30, height=48, width=80, fps=15, rotation=-90))
    assert (info.num_frames, info.fps, info.height, info.width) == (30, 15, 80, 48)
    assert (info.duration, info.codec, info.rotation) == (2.0, "h264", -90)


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def cut_inside_a_packet(source, path):
    with av.open(str(source)) as container:
        key = [packet for packet in container.demux(video=0) if packet.is_keyframe][2]
        path.write_bytes(source.read_bytes()[: key.pos + key.size // 2])


def cut_between_packets(source, path):
    """Write a file with its header first and only 20 whole packets."""
    with av.open(str(source)) as i, av.open(str(path), "w", options={"movflags": "faststart"}) as o:
        copy = o.add_stream_from_template(i.streams.video[0])
        for packet in i.demux(i.streams.video[0]):
            if packet.size:
                packet.stream = copy
                o.mux(packet)
    with av.open(str(path)) as container:
        end = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size][19]
    path.write_bytes(path.read_bytes()[:end])


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "audio", "cut", "cut_header_first", "cut_flv", "folder"])
def test_files_that_are_no_videos(kind, make_video, tmp_path):
    path = tmp_path / "bad.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is not a video\n" * 50)
    elif kind == "audio":
        audio_only(path)
    elif kind == "cut":
        path.write_bytes(make_video(tmp_path / "whole.mp4", 60).read_bytes()[:2000])
    elif kind == "cut_header_first":
        cut_between_packets(make_video(tmp_path / "whole.mp4", 60), path)
    elif kind == "cut_flv":
        path = tmp_path / "bad.flv"
        cut_inside_a_packet(make_video(tmp_path / "whole.flv", 60, codec="flv"), path)
    elif kind == "folder":
        path.mkdir()
    for backend in BACKENDS:
        with pytest.raises(MediaError) as error:
            open_video(path, backend)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value), backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_data_is_an_error_not_a_crash(backend, assets):
    with pytest.raises(MediaError, match="corrupted.mp4"):
        read_frames(assets / "videos" / "corrupted.mp4", range(50), backend=backend)


@pytest.mark.parametrize("backend", INSTALLED)
def test_a_relative_name_with_a_colon_is_no_url(backend, make_video, tmp_path, monkeypatch, frame_numbers):
    make_video(tmp_path / "a.mp4", 5).rename(tmp_path / "10:30.mp4")
    monkeypatch.chdir(tmp_path)
    assert frame_numbers(read_frames("10:30.mp4", [3], backend=backend)) == [3] and probe("10:30.mp4").num_frames == 5
    with pytest.raises(MediaError, match="^10:31.mp4: no such file"):
        open_video("10:31.mp4", backend)


@pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")
def test_few_large_frames_are_in_memory_together(make_video, tmp_path, monkeypatch, frame_numbers):
    path = make_video(tmp_path / "a.mp4", 10, height=64, width=96)
    index = read_stream_index(path)
    assert index.frame_bytes == 64 * 96 * 3

    def pieces(limit):
        monkeypatch.setattr(decode_decord, "CHUNK_BYTES", limit)
        reader = decode_decord.DecordReader(path, index)
        return [len(piece) for piece in reader.frames(np.arange(10), lambda *size: (0, 0, *size))]

    assert pieces(64 * 2**20) == [10] and pieces(4 * index.frame_bytes + 1) == [4, 4, 2]
    assert pieces(100) == [1] * 10
    assert frame_numbers(read_frames(path, range(10), backend="decord")) == list(range(10))


@pytest.mark.parametrize("backend", INSTALLED)
def test_the_filter_reaches_the_resize(backend, make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", 4)
    full = read_frames(path, [0, 3], backend=backend)
    outs = {name: read_frames(path, [0, 3], short_side=24, filter=name, backend=backend) for name in FILTERS}
    assert all(torch.equal(out, resize(full, 24, 36, name)) for name, out in outs.items())
    assert len({out.numpy().tobytes() for out in outs.values()}) == len(FILTERS)


def test_unknown_backend(tmp_path):
    with pytest.raises(UserError, match="unknown decoder .*pyav, decord"):
        open_video(tmp_path / "a.mp4", "opencv")


def test_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a rotated camera: show a quarter turn clockwise
    Image.fromarray(pixels).save(tmp_path / "a.PNG", exif=exif)
    image = read_image(tmp_path / "a.PNG")
    assert torch.equal(image[0], torch.from_numpy(np.rot90(pixels, -1).copy()))
    with open_video(tmp_path / "a.PNG") as video:
        assert video.num_frames == 1 and torch.equal(video.read([0, 0]), image.expand(2, -1, -1, -1))


def test_images_of_more_than_8_bits(tmp_path):
    values = np.array([[0, 257, 12850, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert read_image(tmp_path / name)[0, 0].tolist() == [[v] * 3 for v in (0, 1, 50, 255)]
    for kind in (np.int32, np.float32):
        Image.fromarray(values.astype(kind)).save(tmp_path / "b.tif")
        with pytest.raises(MediaError, match="b.tif: 32 bits"):
            read_image(tmp_path / "b.tif")


def test_gray_palette_and_broken_images(tmp_path):
    Image.new("L", (5, 4), 77).save(tmp_path / "gray.png")
    assert (read_image(tmp_path / "gray.png") == 77).all()
    Image.new("RGBA", (5, 4), (1, 2, 3, 0)).save(tmp_path / "alpha.png")
    assert read_image(tmp_path / "alpha.png").shape == (1, 4, 5, 3)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 nothing")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-300])
    for name in ("bad.jpg", "cut.jpg", "missing.jpg"):
        with pytest.raises(MediaError, match=name):
            read_image(tmp_path / name)


@pytest.mark.parametrize("backend", INSTALLED)
def test_what_the_caller_gets_wrong_is_not_the_files_fault(backend, make_video, tmp_path):
    def wrong(*size):
        raise ValueError("a bug")

    path = make_video(tmp_path / "a.mp4", 8)
    with open_video(path, backend) as video:
        with pytest.raises(ValueError, match="^a bug$"):
            video.read([0], crop=wrong)
        with pytest.raises(ValueError, match="^a bug$"):
            video.read_crops([0], wrong, 32)
        with pytest.raises(ValueError, match="out is"):
            video.read_crops([0, 1], lambda *size: [(0, 0, 8, 8)], 32, out=torch.empty(1, 9, 32, 32, 3).byte())
        for indices in ([1.9], [[0, 1]], [], "ab"):
            with pytest.raises(IndexError, match="a.mp4: frame indices must be"):
                video.read(indices)
        with pytest.raises(IndexError, match="a.mp4: frame 8 is not one of its 8 frames"):
            video.read([3, 8, -1])
        with pytest.raises(ValueError, match="size or short_side"):
            video.read([0], size=8, short_side=8)


def test_what_the_machine_lacks_is_not_the_files_fault(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", 8)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = [os.open(path, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used[0] + 1, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many"):
            while True:
                used.append(os.open(path, os.O_RDONLY))
        with pytest.raises(MachineError, match="a.mp4: Too many open files"):
            open_video(path, "pyav")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for file in used:
            os.close(file)


@pytest.mark.parametrize("backend", INSTALLED)
def test_a_header_that_asks_for_too_much_memory_is_the_files_fault(assets, backend):
    file = assets / "cases/m00392_h264frag.mp4"
    for read in (lambda: read_frames(file, [0], backend=backend), lambda: probe(file), lambda: read_stream_index(file)):
        with pytest.raises(MediaError, match="m00392_h264frag.mp4: cannot be decoded .Cannot allocate memory"):
            read()


@pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")
def test_files_are_closed_at_once_also_those_that_are_no_videos(make_video, tmp_path):
    good, fallen_back = make_video(tmp_path / "a.mp4", 8), make_video(tmp_path / "a.ts", 8)
    audio_only(tmp_path / "audio.mp4")

    def opened():
        return len(os.listdir("/proc/self/fd"))

    with open_video(good, "decord") as video:
        video.read([0])
    gc.collect()
    gc.disable()
    try:
        before = opened()
        for _ in range(5):
            for path, backend in (
                (fallen_back, "decord"),
                (tmp_path / "audio.mp4", "pyav"),
                (good, "decord"),
                (good, "pyav"),
            ):
                with contextlib.suppress(MediaError):
                    open_video(path, backend).close()
        assert opened() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["cut.mkv", "cut.webm"])
def test_what_is_left_of_a_cut_off_file_can_be_read(name, make_video, frame_numbers, tmp_path):
    path = make_video(tmp_path / name, 60, codec="libx264" if name.endswith("mkv") else "libvpx-vp9")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for backend in BACKENDS:
        with open_video(path, backend) as video:
            assert 5 < video.num_frames < 55, backend
            assert frame_numbers(video.read(range(video.num_frames))) == list(range(video.num_frames)), backend


def test_decoding_starts_no_threads(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", 30)
    with open_video(path, "pyav") as video:
        before = len(os.listdir("/proc/self/task"))
        frames = video.stream(np.arange(30), short_side=32)
        next(frames)
        assert len(os.listdir("/proc/self/task")) == before


def test_damage_is_concealed_as_in_a_sequential_decode(make_video, tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (90, 8, 12, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    path = make_video(tmp_path / "a.mp4", frames=noise, gop=45, options={"x264-params": "b-pyramid=normal:bframes=3"})
    whole = path.read_bytes()
    with av.open(str(path)) as container:
        spots = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for seed in (3, 4, 8, 17, 19):
        rng, data = np.random.default_rng(seed), bytearray(whole)
        first, size = spots[rng.integers(len(spots))]
        for place in first + 20 + rng.integers(0, max(1, size - 20), 3):
            data[place] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        truth = sequential(path)
        for start in range(0, 70, 7):
            indices = np.arange(start, min(len(truth), start + 24), 4)
            assert torch.equal(read_frames(path, indices, backend="pyav"), truth[indices]), (seed, indices)


def test_only_what_is_needed_is_decoded(make_video, tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", 200, gop=50, options={"bf": "3", "b-pyramid": "none"})
    counts = []

    def decoded(self, *args):
        for frame in original(self, *args):
            counts.append(frame.pts)
            yield frame

    original = decode_pyav.PyAVReader._decode
    monkeypatch.setattr(decode_pyav.PyAVReader, "_decode", decoded)
    read_frames(path, range(102, 130, 4), backend="pyav")
    assert 7 <= len(counts) < 28  # not those before the keyframe, and not all after it
