"""Re-encoded videos have the frames, times and pixels of a sequential decode, and are written atomically."""

import errno
import resource
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from tests.data import videos
from video_rs.data.tools.encode import Settings, encode_video, even_size, read_header
from video_rs.data.video.decode import open_video
from video_rs.data.video.stream_index import best_stream, open_container, read_stream_index
from video_rs.errors import MachineError, MediaError, UserError

KINDS = [  # as in tests/data/videos.py: codecs, colours, times, edit lists, streams
    *("bt709.mp4", "bt601.mp4", "full_range_tag.mp4", "rotated_90.mp4", "rotated_180.mp4", "rotated_270.mp4"),
    *("variable_rate.mkv", "late_start.mp4", "cut_start_pyramid.mp4", "edit_middle.mp4", "hevc_open_gop.mkv"),
    *(
        "h264.ts",
        "h264_no_b.avi",
        "mpeg4_b_frames.avi",
        "vp9.webm",
        "two_streams.mp4",
        "with_sound.mp4",
        "one_frame.mp4",
    ),
]


def sequential(path):
    """Return uint8 frames, upright, and their times in seconds."""
    with open_container(path) as container:
        frames = list(container.decode(best_stream(container, path)))
    pixels = [np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)) for frame in frames]
    return np.stack(pixels), np.array([float(frame.pts * frame.time_base) for frame in frames])


def psnr(a, b):
    """Return the PSNR of the worst frame in dB."""
    error = np.square(a.astype(np.float64) - b).mean((1, 2, 3)).max()
    return 10 * np.log10(255**2 / error)


@pytest.mark.parametrize("name", KINDS)
def test_frames_times_and_pixels_are_those_of_a_sequential_decode(name, tmp_path):
    source, target = tmp_path / name, tmp_path / "out" / "copy.mp4"
    videos.write(name, source)
    expected, times = sequential(source)
    assert encode_video(source, target, Settings(crf=4)) == len(expected)
    found, found_times = sequential(target)
    assert found.shape == expected.shape and np.allclose(found_times, times, atol=1e-6)
    assert psnr(found, expected) > 34  # another colour matrix gives 30, a wrong frame or rotation 12
    assert [file.name for file in target.parent.iterdir()] == ["copy.mp4"]


def test_they_are_fast_to_read(make_video, tmp_path):
    source = make_video(tmp_path / "a.mkv", 50, height=96, width=128, gop=250)
    encode_video(source, tmp_path / "a.mp4", Settings(short_side=64))
    found = read_stream_index(tmp_path / "a.mp4")
    step = found.pts[1] - found.pts[0]
    assert [key.pts // step for key in found.keyframes] == [0, 16, 32, 48] and not found.decord_problem
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.width, context.height, context.pix_fmt, context.has_b_frames) == (86, 64, "yuv420p", False)
        assert len(container.streams) == 1
        assert {f.pict_type for f in container.decode(video=0)} == {PictureType.I, PictureType.P}
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat") and b"cabac=0" in data and b"threads=1 " in data
    with open_video(tmp_path / "a.mp4", "decord") as video:
        assert video.backend == "decord" or "decord" not in sys.modules


def test_numbers_survive_scaling(make_video, frame_numbers, tmp_path):
    source = make_video(tmp_path / "a.mp4", 40, height=130, width=98, rotation=90)
    assert encode_video(source, tmp_path / "b.mp4", Settings(short_side=64)) == 40
    with open_video(tmp_path / "b.mp4") as video:
        frames = video.read(range(40))
    assert frames.shape == (40, 64, 84, 3)
    assert frame_numbers(np.rot90(frames.numpy(), -1, (1, 2))) == list(range(40))


@pytest.mark.parametrize(
    "size, expected",
    [((340, 256), (340, 256)), ((1080, 1920), (256, 456)), ((1920, 1080), (456, 256)), ((255, 301), (254, 300))]
    + [((257, 257), (256, 256)), ((1, 9), (2, 8)), ((240, 320), (240, 320))],
)
def test_sizes(size, expected):
    assert even_size(*size, 256) == expected


def test_the_same_bytes_every_time(make_video, tmp_path):
    source = make_video(tmp_path / "a.mp4", 30)
    for name in ("b.mp4", "c.mp4"):
        encode_video(source, tmp_path / name)
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()


@pytest.mark.slow
def test_quality_of_a_recorded_video(assets, tmp_path):
    source = assets / "videos/k400_sample.mp4"
    encode_video(source, tmp_path / "a.mp4")
    with open_video(source) as before, open_video(tmp_path / "a.mp4") as after:
        assert before.num_frames == after.num_frames == 300 and before.fps == pytest.approx(after.fps)
        a, b = (video.read(range(0, 300, 20), short_side=256).numpy() for video in (before, after))
    assert psnr(a, b) > 36 and read_header(source)[0] == pytest.approx(read_header(tmp_path / "a.mp4")[0])


def test_bad_sources_leave_nothing(make_video, tmp_path):
    cut = make_video(tmp_path / "cut.mp4", 60, options={"movflags": "faststart"})
    cut.write_bytes(cut.read_bytes()[:-2000])
    (tmp_path / "text.mp4").write_text("no video")
    videos.write("audio_only.mp4", tmp_path / "sound.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for name in ("cut.mp4", "text.mp4", "sound.mp4", "folder.mp4", "gone.mp4"):
        with pytest.raises(MediaError, match=name) as caught:
            encode_video(tmp_path / name, tmp_path / "out/a.mp4")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_bad_settings_and_targets(make_video, tmp_path):
    for settings in ({"short_side": 255}, {"short_side": 0}, {"crf": 52}, {"gop": 0}):
        with pytest.raises(UserError, match="invalid"):
            Settings(**settings)
    source = make_video(tmp_path / "a.mp4", 5)
    with pytest.raises(UserError, match="cannot be written"):
        encode_video(source, source / "b.mp4")


def test_a_header_that_asks_for_too_much_memory_is_the_files_fault(assets, tmp_path):
    file = assets / "cases/m00392_h264frag.mp4"
    for read in (lambda: read_header(file), lambda: encode_video(file, tmp_path / "copy.mp4")):
        with pytest.raises(MediaError, match="m00392_h264frag.mp4: cannot be decoded .Cannot allocate memory"):
            read()


def test_too_many_open_files_are_not_the_sources_fault(make_video, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise av.error.OSError(errno.EMFILE, "Too many open files", "copy.mp4")

    monkeypatch.setattr("video_rs.data.tools.encode.h264_writer", refuse)
    with pytest.raises(MachineError, match="a.mp4: Too many open files: lower"):
        encode_video(make_video(tmp_path / "a.mp4", 8), tmp_path / "copy.mp4")


def test_encoder_errors_name_the_source(make_video, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OverflowError("Python int too large to convert to C int")

    monkeypatch.setattr("video_rs.data.tools.encode.h264_writer", refuse)
    with pytest.raises(MediaError, match=r"a.mp4: cannot be encoded \(Python int too large"):
        encode_video(make_video(tmp_path / "a.mp4", 8), tmp_path / "copy.mp4")


def test_a_full_disk(make_video, tmp_path):
    """Writes fail at any place, in the frames or as the header is moved, by a limit on the size of files."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 64, 96, 3), np.uint8)
    source = make_video(tmp_path / "a.mp4", frames=noise)
    encode_video(source, tmp_path / "whole.mp4")
    size = (tmp_path / "whole.mp4").stat().st_size
    script = "import sys; from video_rs.data.tools.encode import encode_video; encode_video(*sys.argv[1:])"
    for limit in (1000, size // 2, size - 100):
        done = subprocess.run(
            [sys.executable, "-c", script, source, tmp_path / "out/b.mp4"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert MachineError.__name__ in done.stderr and "File too large" in done.stderr, (limit, done.stderr)
        assert not list((tmp_path / "out").iterdir())
