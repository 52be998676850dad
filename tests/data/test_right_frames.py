"""Frame i is frame i of a full sequential decode, bit for bit, for all kinds of file and both backends."""

from __future__ import annotations

import os
import random
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.data.videos import AUDIO_ONLY, KINDS, encode_kind, shared
from video_rs.data.transforms.crops import resize, short_side_size
from video_rs.data.video.decode import BACKENDS, open_video, read_frames
from video_rs.data.video.stream_index import read_stream_index
from video_rs.data_config import FILTERS
from video_rs.errors import MediaError

DECORD = find_spec("decord") is not None
ASSETS = Path(os.environ.get("VIDEO_RS_TEST_ASSETS", ""), "videos")
RECORDED = sorted(path.name for path in ASSETS.iterdir()) if os.environ.get("VIDEO_RS_TEST_ASSETS") else []

# common files, which decord must still read
COMMON = [
    *("h264.mp4", "pyramid.mp4", "strict_pyramid.mkv", "long_gop.mp4", "closed_gop.mp4", "fast_decode.mp4"),
    *("hevc_closed_gop.mp4", "full_range.mp4", "bt709.mp4", "rotated_90.mp4", "variable_rate.mp4", "late_start.mp4"),
    *("one_frame.mp4", "fragmented.mp4", "vp9.webm", "mpeg4.avi", "with_sound.mp4"),
]
VIDEOS = [name for name in KINDS if name not in (AUDIO_ONLY, "glued.ts")]
# one of each container, codec, frame order and pixel format; `make test-slow` takes all kinds
FAST = [
    *("h264.mp4", "pyramid.mp4", "hevc_open_gop.mkv", "variable_rate.mkv", "vp9.webm", "mpeg4_b_frames.avi", "h264.ts"),
    *("edit_start.mp4", "no_hint_pyramid.mp4", "rotated_odd.mp4", "interlaced.mp4", "new_size.mkv", "two_streams.mp4"),
]
# one of each pixel conversion; not new_size.mkv, whose size changes after the first frames
PIXELS = [
    *("h264.mp4", "81x113.mp4", "odd_444.mp4", "rotated_90.mp4", "rotated_180.mp4", "rotated_270.mp4"),
    *("rotated_odd.mp4", "full_range.mp4", "h264_10_bit.mp4", "h264_422.mp4", "interlaced.mp4", "vp9.webm"),
    "narrow.mp4",
]
USABLE = [backend for backend in BACKENDS if backend != "decord" or DECORD]

drawn = {"derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
drawn["phases"] = [Phase.generate]  # shrinking a failure would decode for minutes


def sequential(path):
    """Return all frames of a decode from the start, uint8 ``[T, H, W, 3]``."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        frames, size = [], None
        for frame in container.decode(stream):
            size = size or (frame.width, frame.height)
            frames.append(np.rot90(rgb(frame, *size), round(frame.rotation / 90)))
    return torch.from_numpy(np.stack(frames))


def rgb(frame, width, height):
    if frame.interlaced_frame and frame.format.name == "yuv420p":  # PyAV converts these field by field
        graph = av.filter.Graph()
        source = graph.add_buffer(width=width, height=height, format="yuv420p", time_base=frame.time_base)
        graph.link_nodes(source, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        graph.push(frame)
        frame = graph.pull()
    return frame.to_ndarray(format="rgb24", width=width, height=height)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in VIDEOS])
def test_frames_and_crops_are_those_of_a_sequential_decode(name):
    """Yield every kind of file with each backend, and the reads to compare."""
    path = shared(name)
    truth = sequential(path)
    for backend in USABLE:
        check_frames(path, truth, backend, max_examples=4)
        check_crops(path, truth, backend)
        if name in PIXELS:
            check_resizing(path, truth, backend)
            check_several_crops(path, truth, backend)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECORDED if name != "corrupted.mp4"])
def test_recorded_files(name):
    truth = sequential(ASSETS / name)
    for backend in USABLE:
        check_frames(ASSETS / name, truth, backend, max_examples=3)


def check_frames(path, truth, backend, max_examples):
    count = len(truth)
    distinct = {frame.numpy().tobytes() for frame in truth}
    assert len(distinct) > count * 0.4  # or wrong frames could pass
    with open_video(path, backend) as video:
        assert video.num_frames == count
        one = st.integers(0, count - 1)

        @settings(max_examples=max_examples, **drawn)
        @given(st.lists(one, min_size=1, max_size=8), one)
        def compare(indices, single):
            for wanted in (indices, [single]):
                frames = read_frames(path, wanted, backend=backend)
                assert torch.equal(frames, truth[wanted]), (path.name, backend, wanted)
            # and from a file that has been read before
            assert torch.equal(video.read(indices), truth[indices]), (path.name, backend, indices)

        compare()
    for wanted in ([count - 1], [0], list(range(0, count, max(1, count // 40)))):
        frames = read_frames(path, wanted, backend=backend)
        assert torch.equal(frames, truth[wanted]), (path.name, backend, wanted)


@st.composite
def boxes(draw, height, width):
    """Draw a box in the frame; often at its edges, the whole frame, or a single pixel."""

    def span(length):
        size = draw(st.integers(1, length))
        return draw(st.integers(0, length - size)), size

    (top, h), (left, w) = span(height), span(width)
    corner = (height - h, width - w) if draw(st.booleans()) else (top, left)
    whole, pixel = (0, 0, height, width), (*corner, 1, 1)
    return draw(
        st.sampled_from([(top, left, h, w), (*corner, h, w), (top | 1, left | 1, h // 2, w // 2), whole, pixel])
    )


def fits(box, height, width):
    top, left, h, w = box
    return h > 0 and w > 0 and top + h <= height and left + w <= width


def check_crops(path, truth, backend):
    height, width = truth.shape[1:3]

    @settings(max_examples=8, **drawn)
    @given(boxes(height, width).filter(lambda box: fits(box, height, width)), st.integers(0, len(truth) - 1))
    def compare(box, index):
        top, left, h, w = box
        wanted = [index, len(truth) - 1]
        frames = read_frames(path, wanted, backend=backend, crop=box)
        expected = truth[wanted, top : top + h, left : left + w]
        assert torch.equal(frames, expected), (path.name, backend, wanted, box)

    compare()


def check_resizing(path, truth, backend):
    """Frames are cropped, then resized."""
    height, width = truth.shape[1:3]

    @settings(max_examples=4, **drawn)
    @given(
        boxes(height, width).filter(lambda box: fits(box, height, width)), st.integers(1, 90), st.sampled_from(FILTERS)
    )
    def compare(box, size, filter):
        top, left, h, w = box
        crop = truth[:3, top : top + h, left : left + w].contiguous()
        for options, shape in (
            ({"size": size}, (size, size)),
            ({"size": (size, 33)}, (size, 33)),
            ({"short_side": size}, short_side_size(h, w, size)),
        ):
            frames = read_frames(path, range(3), backend=backend, crop=lambda *_: box, filter=filter, **options)
            expected = resize(crop, *shape, filter)
            assert torch.equal(frames, expected), (path.name, backend, box, options)

    compare()


def check_several_crops(path, truth, backend):
    height, width = truth.shape[1:3]
    box = boxes(height, width).filter(lambda box: fits(box, height, width))
    indices = [5, 0, 5, 17]

    @settings(max_examples=5, **drawn)
    @given(st.lists(box, min_size=1, max_size=3), st.booleans())
    def compare(plan, into):
        asked = []
        out = torch.zeros(len(plan), len(indices), 24, 24, 3, dtype=torch.uint8) if into else None
        with open_video(path, backend) as video:
            crops = video.read_crops(indices, lambda *size: asked.append(size) or plan, 24, out=out)
        assert asked == [(height, width)] and (not into or crops is out)
        for crop, (top, left, h, w) in zip(crops, plan, strict=True):
            expected = resize(truth[indices, top : top + h, left : left + w].contiguous(), 24, 24)
            assert torch.equal(crop, expected), (path.name, backend, plan)

    compare()


@pytest.mark.parametrize("name", ["pal8.avi", "av1_no_seq.mp4"])
def test_headers_in_the_first_packet_survive_a_seek(name, assets):
    """The palette of a raw video, and the sequence header of AV1."""
    path = assets / "cases" / name
    truth = sequential(path)
    assert 100 < truth.float().mean() < 110  # not black
    index = read_stream_index(path)
    for backend in USABLE:
        check_frames(path, truth, backend, max_examples=4)
        check_crops(path, truth, backend)
        with open_video(path, backend, index) as video:
            assert torch.equal(video.read([40, 50]), truth[[40, 50]]) and torch.equal(video.read([20]), truth[[20]])


def test_headers_that_change_midway_survive_a_seek(make_video, tmp_path):
    """Frames after a seek are those of a sequential decode, although the later keyframes do not repeat the headers."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 12, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    options = "keyint=10:min-keyint=10:scenecut=0:bframes=0:chroma-qp-offset="
    parts = [
        make_video(tmp_path / f"{offset}.mp4", frames=pixels, options={"x264-params": f"{options}{offset}"})
        for offset in (0, 12)
    ]
    path, time = tmp_path / "changes.mp4", 0
    with av.open(str(path), "w") as made:
        stream = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as given:
                source = given.streams.video[0]
                stream = stream or made.add_stream_from_template(source)
                extradata = source.codec_context.extradata
                size = int.from_bytes(extradata[6:8], "big")  # of the SPS, before the PPS
                sets = [
                    extradata[8 : 8 + size],
                    extradata[8 + size + 3 :][: int.from_bytes(extradata[9 + size : 11 + size], "big")],
                ]
                first = b"".join(len(each).to_bytes(4, "big") + each for each in sets) if number else b""
                for packet in given.demux(source):
                    if packet.size:
                        copy = av.Packet(first + bytes(packet))
                        copy.stream, copy.time_base, copy.is_keyframe = stream, source.time_base, packet.is_keyframe
                        copy.pts = copy.dts = time
                        time += packet.duration
                        made.mux(copy)
                        first = b""
    truth = sequential(path)
    assert len(truth) == 60 and torch.equal(truth[30:], sequential(parts[1]))
    for backend in USABLE:
        check_frames(path, truth, backend, max_examples=6)
        for wanted in ([55, 56], [35], [5], [45], [15, 58]):
            assert torch.equal(read_frames(path, wanted, backend=backend), truth[wanted]), (backend, wanted)
    with open_video(path) as video:  # one decoder that has seen the second headers
        for wanted in ([58], [25], [45], [2]):
            assert torch.equal(video.read(wanted), truth[wanted]), wanted


@pytest.mark.parametrize("backend", USABLE)
def test_indices_out_of_range(backend):
    for name in ("h264.mp4", "vp8.webm", "one_frame.mp4", "edit_start.mp4"):
        path = shared(name)
        truth = sequential(path)
        with open_video(path, backend) as video:
            for bad in ([len(truth)], [0, len(truth) + 100], [-1], [0, -len(truth)], []):
                with pytest.raises(IndexError, match=name):
                    video.read(bad)
                with pytest.raises(IndexError, match=name):
                    video.read_crops(bad, lambda height, width: [(0, 0, 4, 4)], 8)
            height, width = truth.shape[1:3]
            for box in ((0, 0, height + 1, 4), (0, width, 4, 1), (-1, 0, 4, 4), (0, 0, 0, 4), (height - 1, 0, 2, 2)):
                with pytest.raises(IndexError, match=name):
                    video.read([0], crop=box)
            assert torch.equal(video.read([0]), truth[:1]), name  # the file can still be read


@pytest.mark.parametrize("backend", BACKENDS)
def test_sound_alone_is_no_video(backend):
    with pytest.raises(MediaError, match="no video stream"):
        open_video(shared(AUDIO_ONLY), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_glued_pieces_are_taken_for_damage(backend):
    """Packet counters of a recording with gaps do not continue, so missing packets cannot be detected."""
    with pytest.raises(MediaError, match="damaged"):
        open_video(shared("glued.ts"), backend)


@pytest.mark.skipif(not DECORD, reason="decord is not installed")
def test_decord_is_not_given_up_lightly():
    used = {}
    for name in COMMON:
        with open_video(shared(name), "decord") as video:
            used[name] = video.backend
    assert used == dict.fromkeys(COMMON, "decord")


def test_writing_a_video_leaves_the_process_as_it_was(tmp_path):
    before = os.sched_getscheduler(0)
    encode_kind("av1.mkv", tmp_path / "av1.mkv")
    assert os.sched_getscheduler(0) == before


def test_damaged_vp8_frames_do_not_depend_on_the_clip(make_video, tmp_path):
    """FFmpeg reports no error for these: blocks keep the content of an older frame in the same buffer."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 64, 96, 3), np.uint8)
    whole = make_video(tmp_path / "whole.webm", frames=pixels, codec="libvpx").read_bytes()
    for seed in range(4):
        data, rng = bytearray(whole), random.Random(seed)
        for _ in range(40):
            data[rng.randrange(len(data) // 4, len(data))] ^= 1 << rng.randrange(8)
        path = tmp_path / f"{seed}.webm"
        path.write_bytes(data)
        with open_video(path) as video:
            frames = video.read(np.arange(video.num_frames))
        for step in (2, 3, 5):
            numbers = np.arange(step - 1, len(frames), step)
            assert torch.equal(read_frames(path, numbers), frames[numbers]), (seed, step)
