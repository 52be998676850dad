"""Files that are not videos, damaged or too large are refused with the reason, also by `check`."""

import gzip
import io
import math
import re
import struct
import tarfile
import zipfile

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image

from video_rs.data import limits
from video_rs.data.sources import dataset_index
from video_rs.data.tools.check_file import check_file
from video_rs.data.video.decode import BACKENDS, open_video, probe, read_frames
from video_rs.data.video.images import read_image
from video_rs.data.video.stream_index import read_stream_index
from video_rs.errors import MachineError, MediaError


def refused(path, reason):
    """Assert that each decoder, `probe`, the index and `check` give this reason."""
    for read in (*(lambda b=b: read_frames(path, [0], backend=b) for b in BACKENDS), lambda: probe(path)):
        with pytest.raises(MediaError) as error:
            read()
        assert str(error.value).startswith(f"{path}: {reason}") and "\n" not in str(error.value)
    assert check_file(str(path)).problem.startswith(reason)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("audio_cover.mp4", "no video stream, only a cover image"),
        ("ffconcat.mp4", "a playlist, not a video; use the files that it lists"),
        ("lfs.mp4", "a Git LFS pointer, not the file; run git lfs pull"),
        ("html.mp4", "a web page saved under this name; download the file again"),
        ("encrypted.mp4", "encrypted; decrypt it first"),
        ("m00761_rotated_90.mov", "damaged: it has only 3 of 4294901763 frames"),
        ("m00812_mjpeg.mov", "damaged: it has only 9 of 40 frames"),
        ("m00159_mpeg2.ts", "damaged"),  # FFmpeg rarely returns corrupt packets instead
        ("m00392_h264frag.mp4", "cannot be decoded (Cannot allocate memory)"),
        ("m02379_flv1.flv", "a frame has 24640x8759 pixels; raise data.max_pixels=67108864 (or VIDEO_RS_MAX_PIXELS)"),
    ],
)
def test_recorded_files_are_refused_with_the_reason(name, reason, assets):
    refused(assets / "cases" / name, reason)


def archive(kind):
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("a.mp4", "x")
    elif kind == "tar":
        with tarfile.open(fileobj=file, mode="w") as made:
            made.addfile(tarfile.TarInfo("a.mp4"))
    else:
        file.write(gzip.compress(b"x" * 100, mtime=0))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.txt", b"hello\n", "a text file, not a video"),
        ("notes.nfo", bytes(range(176, 223)) * 40, "a text file, not a video"),
        ("notes.mp4", "grüße\n".encode() * 900, "a text file, not a video"),
        ("utf16.mkv", "hello\n".encode("utf-16"), "a text file, not a video"),
        ("list.avi", b"ffconcat version 1.0\nfile whole.mp4\n", "a playlist"),
        ("hls.mp4", b"#EXTM3U\n#EXTINF:10,\nwhole.mp4\n#EXT-X-ENDLIST\n", "a playlist"),
        ("dash.mp4", b'<?xml version="1.0"?><MPD type="static"></MPD>', "XML text"),
        ("denied.mp4", b"<Error><Code>AccessDenied</Code></Error>", "XML text"),
        ("login.mp4", b"\xef\xbb\xbf<!DOCTYPE html><html></html>", "a web page"),
        ("comment.mp4", b"<!-- 404 --><html></html>", "a web page"),
        ("fragment.mp4", b"<center>404 Not Found</center>", "XML text"),
        ("annex.mp4", b"/annex/objects/SHA256E-s1352828--0a1b.mp4\n", "a git-annex pointer"),
        ("denied.webm", b'{"error": {"code": 403}}', "JSON text"),
        ("a.mp4", archive("zip"), "a zip archive"),
        ("a.mkv", archive("tar"), "a tar archive"),
        ("a.avi", archive("gzip"), "a gzip archive"),
        ("a.mp4.part", b"\0" * 40, "an incomplete download"),
        ("a.crdownload", b"\0" * 40, "an incomplete download"),
        ("a.mov", b"\0" * 5000, "starts with zeros"),
        ("a.wav", b"RIFF\0\0\0\0WAVEfmt ", "an audio file"),
        ("a.wmv", b"%PDF-1.4\n\xe2", "a PDF document"),
        ("a.flv", b"\xff\xd8\xff\xe0\0\x10JFIF\0", "a JPEG image, not a video; give it the right extension"),
        ("rand.mp4", np.random.default_rng(0).bytes(5000), "cannot be decoded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",  # archives contain the time
)
def test_first_bytes_give_the_reason(name, content, reason, make_video, tmp_path):
    make_video(tmp_path / "whole.mp4", 3)  # a playlist must not open it
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, reason)


def test_files_that_are_not_images_are_named(make_video, tmp_path):
    make_video(tmp_path / "video.mp4", 3).rename(tmp_path / "video.jpg")
    (tmp_path / "page.png").write_bytes(b"<!DOCTYPE html><html></html>")
    with pytest.raises(MediaError, match=r"video.jpg: an mp4 or mov video, not an image; give it the right extension"):
        read_image(tmp_path / "video.jpg")
    with pytest.raises(MediaError, match=r"page.png: a web page saved under this name"):
        read_image(tmp_path / "page.png")


def test_only_image_formats_are_opened(tmp_path, recwarn):
    """PIL would run Ghostscript for a PostScript file; PIL's own pixel limit is disabled."""
    Image.new("RGB", (20, 10)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(MediaError, match=r"a.png: "):
        read_image(tmp_path / "a.png")
    Image.new("1", (20000, 10000)).save(tmp_path / "large.png")
    with pytest.raises(MediaError, match=r"large.png: a frame has 20000x10000 pixels; raise data.max_pixels=67108864"):
        read_image(tmp_path / "large.png")
    assert not recwarn.list and Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_metadata_in_any_encoding(name, make_video, tmp_path):
    path = tmp_path / name
    source = make_video(tmp_path / "source.mp4", 10, codec="mpeg4")
    with av.open(str(source)) as given, av.open(str(path), "w") as made:
        made.metadata["title"] = "TITLE-TITLE"
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = stream
                made.mux(packet)
    data = path.read_bytes()
    assert b"TITLE-TITLE" in data
    path.write_bytes(data.replace(b"TITLE-TITLE", b"caf\xe9\xff\xc7\xd6\xb0\xa1\xfe\xfe"))
    for backend in BACKENDS:
        assert len(read_frames(path, range(10), backend=backend)) == 10
    assert check_file(str(path)).problem == ""


def test_an_mp4_without_moov_is_named(make_video, tmp_path):
    data = make_video(tmp_path / "whole.mp4", 20).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: data.index(b"moov") - 100])
    refused(tmp_path / "cut.mp4", "an mp4 or mov without its index (moov)")


def with_cover(path, *, video):
    """Write a cover image, followed by 30 frames if `video` is True."""
    cover = io.BytesIO()
    Image.new("RGB", (96, 64), "red").save(cover, "png")
    with av.open(str(path), "w") as made:
        picture = made.add_stream("png", rate=1, width=96, height=64, pix_fmt="rgb24")
        picture.disposition = Disposition.attached_pic
        stream = made.add_stream("libx264", rate=25, width=96, height=64, pix_fmt="yuv420p") if video else None
        made.start_encoding()
        packet = av.Packet(cover.getvalue())
        packet.stream, packet.pts, packet.dts, packet.is_keyframe = picture, 0, 0, True
        made.mux(packet)
        for number in range(30 if video else 0):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 8 * number, np.uint8))
            frame.pts = number
            made.mux(stream.encode(frame))
        if video:
            made.mux(stream.encode())


def test_cover_images_are_not_read_as_video(tmp_path):
    with_cover(tmp_path / "both.mp4", video=True)
    for backend in BACKENDS:
        means = read_frames(tmp_path / "both.mp4", range(30), backend=backend).float().mean((1, 2, 3))
        assert len(means) == 30 and (means.diff() > 0).all()
    with_cover(tmp_path / "alone.mp4", video=False)
    refused(tmp_path / "alone.mp4", "no video stream, only a cover image")
    with av.open(str(tmp_path / "attached.mkv"), "w") as made:
        sound = made.add_stream("aac", rate=8000, layout="mono")
        made.add_attachment("cover.png", "image/png", (b"\x89PNG\r\n\x1a\n" + bytes(40)))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        made.mux(sound.encode(frame))
        made.mux(sound.encode())
    refused(tmp_path / "attached.mkv", "no video stream")


def test_timed_thumbnails_are_not_read_as_video(tmp_path):
    """A track of images that another track refers to as its chapters."""
    path = tmp_path / "chapters.mov"
    with av.open(str(path), "w") as made:
        sound = made.add_stream("aac", rate=8000, layout="mono")
        images = made.add_stream("mjpeg", rate=1, width=96, height=64, pix_fmt="yuvj420p")
        for number in range(3):
            heard = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            heard.sample_rate, heard.pts = 8000, 1024 * number
            made.mux(sound.encode(heard))
            seen = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 80 * number, np.uint8))
            seen.pts = number
            made.mux(images.encode(seen))
        made.mux(sound.encode())
        made.mux(images.encode())
    assert len(read_frames(path, range(3))) == 3
    data = path.read_bytes()
    edits = data.index(b"edts")  # of the sound, 36 bytes; the reference to track 2 takes its place
    chapters = b"tref" + struct.pack(">I", 28) + b"chap" + struct.pack(">5I", *[2] * 5)
    path.write_bytes(data[:edits] + chapters + data[edits + len(chapters) :])
    refused(path, "no video stream, only a cover image")


def test_a_still_image_in_an_mp4_container_is_not_a_video(tmp_path):
    Image.new("RGB", (96, 64), "red").save(tmp_path / "image.avif")
    (tmp_path / "image.avif").rename(tmp_path / "image.mp4")
    refused(tmp_path / "image.mp4", "an AVIF or HEIF image, not a video")


@pytest.mark.parametrize(("box", "place"), [(b"stts", 12), (b"stsz", 16)])
def test_an_index_with_more_frames_than_the_file_is_damage(box, place, make_video, tmp_path):
    """The table of times counts 2**31 frames; the first size in the table of sizes is beyond the end of the file."""
    data = bytearray(make_video(tmp_path / "a.mp4", 20).read_bytes())
    start = data.index(box) + place
    data[start : start + 4] = struct.pack(">I", 2**31)
    (tmp_path / "b.mp4").write_bytes(data)
    refused(tmp_path / "b.mp4", "damaged")


@pytest.mark.parametrize("name", ["m02454_mjpeg.mov", "matrix_tkhd_all_zero.mp4"])
def test_a_display_matrix_without_rotation(name, assets):
    info = probe(assets / "cases" / name)
    assert (info.rotation, info.height, info.width, info.num_frames) == (0, 64, 96, 40)
    frames = [read_frames(assets / "cases" / name, range(40), backend=backend) for backend in BACKENDS]
    assert torch.equal(*frames) and frames[0].shape == (40, 64, 96, 3)
    facts = check_file(str(assets / "cases" / name))
    assert (facts.rotation, facts.height, facts.width, facts.problem) == (0, 64, 96, "")


@pytest.mark.parametrize(("degrees", "turns"), [(45, 0), (60, 0), (135, 0), (-135, 0), (180, 2), (270, 1)])
def test_a_rotation_that_is_no_quarter_turn_means_none(degrees, turns, make_video, tmp_path):
    data = bytearray(make_video(tmp_path / "a.mp4", 4, 64, 96).read_bytes())
    place = data.index(b"tkhd") + 44
    cosine, sine = (round(2**16 * function(math.radians(degrees))) for function in (math.cos, math.sin))
    data[place : place + 20] = struct.pack(">5i", cosine, sine, 0, -sine, cosine)
    (tmp_path / "b.mp4").write_bytes(data)
    whole = np.rot90(read_frames(tmp_path / "a.mp4", range(4)).numpy(), turns, (1, 2))
    for backend in BACKENDS:
        assert np.array_equal(read_frames(tmp_path / "b.mp4", range(4), backend=backend).numpy(), whole)


def test_check_reports_the_damage_that_ffmpeg_reports(assets):
    facts = check_file(str(assets / "cases" / "m00089_mjpeg.mov"))
    assert facts.frames == 40 and facts.problem.startswith("FFmpeg reports damage (decode_sos")


@pytest.fixture
def max_pixels(monkeypatch):
    def change(value):
        monkeypatch.setenv("VIDEO_RS_MAX_PIXELS", str(value))
        assert limits.max_pixels() == value

    return change


def test_frames_and_images_above_the_limit_are_refused(make_video, max_pixels, tmp_path):
    path = make_video(tmp_path / "a.mp4", 8, 64, 96)
    Image.new("RGB", (96, 64)).save(tmp_path / "a.png")
    max_pixels(96 * 64)
    assert len(read_frames(path, range(8))) == 8 and read_image(tmp_path / "a.png").shape == (1, 64, 96, 3)
    max_pixels(96 * 64 - 1)
    refused(path, "a frame has 96x64 pixels; raise data.max_pixels=6143 (or VIDEO_RS_MAX_PIXELS)")
    refused(tmp_path / "a.png", "a frame has 96x64 pixels; raise data.max_pixels=6143 (or VIDEO_RS_MAX_PIXELS)")


def test_limits_of_any_size_can_be_set(make_video, max_pixels, tmp_path):
    max_pixels(10**30)
    assert len(read_frames(make_video(tmp_path / "a.mp4", 8), range(8))) == 8


@pytest.mark.parametrize("factor", [1.25, 4])
def test_a_size_that_grows_midway_is_refused(factor, max_pixels, tmp_path):
    path, sizes = tmp_path / "grows.mkv", [(96, 64)] * 5 + [(int(96 * factor), int(64 * factor))] * 5
    with av.open(str(path), "w") as made:
        stream = made.add_stream("mjpeg", rate=25, width=96, height=64, pix_fmt="yuvj420p")
        made.start_encoding()
        for number, size in enumerate(sizes):
            image = io.BytesIO()
            Image.new("RGB", size, (20 * number, 0, 0)).save(image, "jpeg")
            packet = av.Packet(image.getvalue())
            packet.stream, packet.is_keyframe, packet.time_base = stream, True, stream.time_base
            packet.pts = packet.dts = number * 40
            made.mux(packet)
    assert read_frames(path, range(10)).shape == (10, 64, 96, 3)  # all in the size of the first
    max_pixels(96 * 64)
    width, height = sizes[-1]
    message = f"a frame has {width}x{height} pixels; raise data.max_pixels=6144 (or VIDEO_RS_MAX_PIXELS)"
    with open_video(path) as video:
        assert video.num_frames == 10 and len(video.read(range(5))) == 5
        for wanted in (range(10), [7]):
            with pytest.raises(MediaError, match=re.escape(message)):
                video.read(wanted)
    assert check_file(str(path)).problem == message


def test_resizing_a_narrow_strip_is_limited(max_pixels, tmp_path):
    Image.new("RGB", (4000, 2)).save(tmp_path / "strip.png")
    max_pixels(10**6)
    with pytest.raises(MediaError, match=r"strip.png: a frame has 512000x256 pixels"):
        read_frames(tmp_path / "strip.png", [0], short_side=256)


def test_out_of_memory_is_a_machine_error(assets, monkeypatch):
    """The same error of FFmpeg, with and without free memory."""
    path = assets / "cases" / "m00392_h264frag.mp4"
    with pytest.raises(MediaError, match="Cannot allocate memory"):
        read_stream_index(path)
    monkeypatch.setattr("video_rs.data.video.media._SPARE_BYTES", 2**62)
    with pytest.raises(MachineError, match=r"m00392_h264frag.mp4: Cannot allocate memory: lower data.workers"):
        read_stream_index(path)


def test_files_without_usable_keyframes_can_be_indexed(assets):
    path = assets / "cases" / "pal8.avi"
    index = read_stream_index(path)
    assert index.keyframes == [] and index.num_frames == 60
    version = (path.stat().st_size, int(path.stat().st_mtime))
    packed = dataset_index.pack([(0, version, index)], 1).stream_index(0, str(path))
    with open_video(path, "pyav", packed) as video:
        assert torch.equal(video.read([40, 50]), read_frames(path, [40, 50]))
