"""Frame i is frame i of a full sequential decode, to the bit, whatever the file and whichever backend claims it."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.data.videos import AUDIO_ONLY, KINDS, write
from video_rs.contract import FILTERS
from video_rs.data.decode import BACKENDS, open_video, read_frames
from video_rs.data.transforms import resize, short_side_size
from video_rs.errors import MediaError

DECORD = find_spec("decord") is not None
ASSETS = Path(os.environ.get("VIDEO_RS_TEST_ASSETS", ""), "videos")
RECORDED = sorted(path.name for path in ASSETS.iterdir()) if os.environ.get("VIDEO_RS_TEST_ASSETS") else []

# what people have: the fast decoder must not be lost on these
COMMON = [
    "h264.mp4",
    "pyramid.mp4",
    "strict_pyramid.mkv",
    "long_gop.mp4",
    "closed_gop.mp4",
    "fast_decode.mp4",
    "hevc_closed_gop.mp4",
    "full_range.mp4",
    "bt709.mp4",
    "rotated_90.mp4",
    "variable_rate.mp4",
    "late_start.mp4",
    "one_frame.mp4",
    "fragmented.mp4",
    "vp9.webm",
    "mpeg4.avi",
    "with_sound.mp4",
]
VIDEOS = [name for name in KINDS if name not in (AUDIO_ONLY, "glued.ts")]
# one of each way that pixels take
PIXELS = [
    "h264.mp4",
    "81x113.mp4",
    "odd_444.mp4",
    "rotated_90.mp4",
    "rotated_180.mp4",
    "rotated_270.mp4",
    "rotated_odd.mp4",
]
PIXELS += [
    "full_range.mp4",
    "h264_10_bit.mp4",
    "h264_422.mp4",
    "interlaced.mp4",
    "new_size.mkv",
    "vp9.webm",
    "narrow.mp4",
]

NEW_SIZE = ["new_size.mkv"]  # its first frames alone would prove nothing
drawn = {"derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
drawn["phases"] = [Phase.generate]  # to shrink what fails is to decode for minutes


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Of a name, the file, which is written once, and all its frames."""
    folder = tmp_path_factory.mktemp("videos")

    @cache
    def get(name):
        path = ASSETS / name if name in RECORDED else write(name, folder / name)
        return path, sequential(path)

    return get


def sequential(path):
    """The truth: uint8 ``[T, H, W, 3]``, all frames as a decode from the start gives them."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        frames, size = [], None
        for frame in container.decode(stream):
            size = size or (frame.width, frame.height)
            frames.append(np.rot90(rgb(frame, *size), round(frame.rotation / 90)))
    return torch.from_numpy(np.stack(frames))


def rgb(frame, width, height):
    if frame.interlaced_frame and frame.format.name == "yuv420p":  # PyAV's own conversion would go field by field
        graph = av.filter.Graph()
        source = graph.add_buffer(width=width, height=height, format="yuv420p", time_base=frame.time_base)
        graph.link_nodes(source, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        graph.push(frame)
        frame = graph.pull()
    return frame.to_ndarray(format="rgb24", width=width, height=height)


def refuses(error):
    """Whether the error says that the file is not for decord."""
    return "decord cannot be trusted with this file" in str(error) or "not for decord" in str(error)


def claimed(path, backend, indices, **options):
    """What the backend reads; None where decord refuses the file."""
    try:
        return read_frames(path, indices, backend=backend, **options)
    except MediaError as error:
        if backend == "decord" and refuses(error):
            return None
        raise


def each(names, backends=BACKENDS, slow=lambda name, backend: False):
    """A parametrization over files and backends."""
    cases = []
    for name in names:
        for backend in backends:
            marks = [pytest.mark.skipif(not DECORD, reason="decord is not installed")] if backend == "decord" else []
            marks += [pytest.mark.slow] * slow(name, backend)
            cases.append(pytest.param(name, backend, marks=marks))
    return pytest.mark.parametrize(("name", "backend"), cases)


@each(VIDEOS, slow=lambda name, backend: backend == "auto" and name not in PIXELS)
def test_frames_are_those_of_a_sequential_decode(name, backend, videos):
    check(*videos(name), backend, max_examples=4)


@each([name for name in RECORDED if name != "corrupted.mp4"], slow=lambda name, backend: backend == "auto")
def test_recorded_files(name, backend, videos):
    check(*videos(name), backend, max_examples=3)


def check(path, truth, backend, max_examples):
    count = len(truth)
    distinct = {frame.numpy().tobytes() for frame in truth}
    assert len(distinct) > count * 0.4  # else other frames could pass for the right ones
    try:
        video = open_video(path, backend)
    except MediaError as error:
        if backend == "decord" and refuses(error):
            return
        raise
    with video:
        assert video.num_frames == count
        one = st.integers(0, count - 1)

        @settings(max_examples=max_examples, **drawn)
        @given(st.lists(one, min_size=1, max_size=8), one)
        def compare(indices, single):
            for wanted in (indices, [single]):
                frames = claimed(path, backend, wanted)
                assert frames is None or torch.equal(frames, truth[wanted]), wanted
            if frames is not None:  # and from a file that was read from before
                assert torch.equal(video.read(indices), truth[indices]), indices

        compare()
    for wanted in ([count - 1], [0], list(range(0, count, max(1, count // 40)))):
        frames = claimed(path, backend, wanted)
        assert frames is None or torch.equal(frames, truth[wanted]), wanted


@st.composite
def boxes(draw, height, width):
    """Any box in the frame; often at its edges, often the whole of it or a single pixel."""

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


@each(VIDEOS, slow=lambda name, backend: backend == "auto" or name not in PIXELS)
def test_a_crop_is_the_whole_frames_crop(name, backend, videos):
    path, truth = videos(name)
    height, width = truth.shape[1:3]

    @settings(max_examples=8, **drawn)
    @given(boxes(height, width).filter(lambda box: fits(box, height, width)), st.integers(0, len(truth) - 1))
    def compare(box, index):
        top, left, h, w = box
        wanted = [index, len(truth) - 1]
        frames = claimed(path, backend, wanted, crop=box)
        assert frames is None or torch.equal(frames, truth[wanted, top : top + h, left : left + w])

    compare()


@each([name for name in PIXELS if name not in NEW_SIZE], slow=lambda name, backend: backend == "auto")
def test_resizing_follows_the_crop(name, backend, videos):
    path, truth = videos(name)
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
            frames = claimed(path, backend, range(3), crop=lambda *_: box, filter=filter, **options)
            assert frames is None or torch.equal(frames, resize(crop, *shape, filter)), options

    compare()


@each([name for name in PIXELS if name not in NEW_SIZE], slow=lambda name, backend: backend == "auto")
def test_several_crops_of_one_decode(name, backend, videos):
    path, truth = videos(name)
    height, width = truth.shape[1:3]
    box = boxes(height, width).filter(lambda box: fits(box, height, width))
    indices = [5, 0, 5, 17]

    @settings(max_examples=5, **drawn)
    @given(st.lists(box, min_size=1, max_size=3), st.booleans())
    def compare(plan, into):
        asked = []
        out = torch.zeros(len(plan), len(indices), 24, 24, 3, dtype=torch.uint8) if into else None
        try:
            with open_video(path, backend) as video:
                crops = video.read_crops(indices, lambda *size: asked.append(size) or plan, 24, out=out)
        except MediaError as error:
            assert backend == "decord" and refuses(error)
            return
        assert asked == [(height, width)] and (not into or crops is out)
        for crop, (top, left, h, w) in zip(crops, plan, strict=True):
            assert torch.equal(crop, resize(truth[indices, top : top + h, left : left + w].contiguous(), 24, 24))

    compare()


@each(["h264.mp4", "vp8.webm", "one_frame.mp4", "edit_start.mp4"])
def test_indices_out_of_range(name, backend, videos):
    path, truth = videos(name)
    try:
        video = open_video(path, backend)
    except MediaError as error:
        assert backend == "decord" and refuses(error)
        return
    with video:
        for bad in ([len(truth)], [0, len(truth) + 100], [-1], [0, -len(truth)], []):
            with pytest.raises(IndexError, match=name):
                video.read(bad)
            with pytest.raises(IndexError, match=name):
                video.read_crops(bad, lambda height, width: [(0, 0, 4, 4)], 8)
        height, width = truth.shape[1:3]
        for box in ((0, 0, height + 1, 4), (0, width, 4, 1), (-1, 0, 4, 4), (0, 0, 0, 4), (height - 1, 0, 2, 2)):
            with pytest.raises(IndexError, match=name):
                video.read([0], crop=box)
        assert torch.equal(video.read([0]), truth[:1])  # and the file is still good


@pytest.mark.parametrize("backend", BACKENDS)
def test_sound_alone_is_no_video(backend, tmp_path):
    with pytest.raises(MediaError, match="no video stream"):
        open_video(write(AUDIO_ONLY, tmp_path / AUDIO_ONLY), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_glued_pieces_are_taken_for_damage(backend, tmp_path):
    """As in a recording with gaps, the packets' counters do not go on: what is missing cannot be told."""
    with pytest.raises(MediaError, match="damaged"):
        open_video(write("glued.ts", tmp_path / "glued.ts"), backend)


@pytest.mark.skipif(not DECORD, reason="decord is not installed")
@pytest.mark.parametrize("name", COMMON)
def test_decord_is_not_given_up_lightly(name, videos):
    with open_video(videos(name)[0]) as video:
        assert video.backend == "decord"


def test_writing_a_video_leaves_the_process_as_it_was(tmp_path):
    before = os.sched_getscheduler(0)
    write("av1.mkv", tmp_path / "av1.mkv")
    assert os.sched_getscheduler(0) == before
