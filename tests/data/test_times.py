"""Times of frames: from timestamps, for files of any rate. Clips and windows have the frames shown at their times."""

from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data import videos
from tests.data.writers import picture
from video_rs.data.clips import TemporalSampling, Timeline
from video_rs.data.sources.dataset_index import file_version, pack
from video_rs.data.sources.records import Records
from video_rs.data.tools.check_file import check_file
from video_rs.data.tools.encode import encode_video
from video_rs.data.video.decode import BACKENDS, open_video, probe
from video_rs.data.video.stream_index import read_stream_index
from video_rs.data.video.times import frame_times
from video_rs.data.windows import window_clips

seeds = st.integers(0, 2**32 - 1)
uneven = st.lists(st.floats(0.005, 30), min_size=2, max_size=60).map(lambda gaps: np.cumsum([0, *gaps]))
samplings = st.builds(TemporalSampling, st.integers(1, 20), st.integers(1, 4), fps=st.sampled_from([0.5, 7.5, 25, 60]))


def shown_at(times, seconds):
    """Return the last frame whose time is not after `seconds`, found one by one."""
    return max(number for number, time in enumerate(times) if time <= seconds + 1e-6 / Timeline(len(times), times).rate)


def is_even(times):
    return Timeline(len(times), times).starts is None


@given(uneven, samplings, seeds, st.integers(1, 5))
def test_sampled_frames_are_the_last_shown_at_their_times(times, sampling, seed, clips):
    length, end = len(times), times[-1] + np.median(np.diff(times))
    if is_even(times):
        end = length * times[-1] / (length - 1)
    assert Timeline(length, times).duration == pytest.approx(end)
    span = (sampling.num_frames - 1) * sampling.stride / sampling.fps
    loops = span >= end * (1 - 1e-9)
    start = np.random.default_rng(seed).random() * (end if loops else end - span)
    starts = [start, *np.linspace(0, max(0, end - sampling.num_frames * sampling.stride / sampling.fps), clips)]
    starts[1:] = starts[1:] if clips > 1 else [max(0, end - sampling.num_frames * sampling.stride / sampling.fps) / 2]
    drawn = [sampling.random_clip(length, np.random.default_rng(seed), times)]
    for start, clip in zip(starts, [*drawn, *sampling.even_clips(length, clips, times)], strict=True):
        assert clip.dtype == np.int64 and clip.min() >= 0 and clip.max() < length
        for k, frame in enumerate(clip.tolist()):
            moment = start + k * sampling.stride / sampling.fps
            moment = moment % end if loops else moment
            near = (shown_at(times, max(moment - 1e-9, 0)), shown_at(times, moment + 1e-9))  # borders, to a rounding
            if loops and frame in (0, length - 1):  # the end is the start
                continue
            if is_even(times):
                assert abs(times[frame] - times[near[0]]) <= 2 * end / length
            else:
                assert frame in near


@given(uneven, st.integers(1, 20), st.integers(1, 4), seeds)
def test_without_fps_times_are_ignored(times, num_frames, stride, seed):
    for kind in ("dense", "segments"):
        sampling, length = TemporalSampling(num_frames, stride, kind), len(times)
        drawn = [sampling.random_clip(length, np.random.default_rng(seed), given) for given in (times, None)]
        assert np.array_equal(*drawn)
        assert np.array_equal(sampling.even_clips(length, 3, times), sampling.even_clips(length, 3))


@given(
    st.integers(1, 400),
    st.sampled_from([10, 15, 24000 / 1001, 25, 29.97, 50, 60]),
    st.sampled_from([600, 1000]),
    samplings,
    seeds,
)
def test_rounded_times_give_the_clips_of_their_rate(length, rate, per_second, sampling, seed):
    """Matroska rounds timestamps to 1/1000 s, and QuickTime to 1/600 s."""
    times = np.rint(per_second * np.arange(length) / rate) / per_second
    assert is_even(times)
    even = np.arange(length) * (times[-1] / max(1, length - 1))
    drawn = [sampling.random_clip(length, np.random.default_rng(seed), given) for given in (times, even)]
    assert np.array_equal(*drawn)
    assert np.array_equal(sampling.even_clips(length, 4, times), sampling.even_clips(length, 4, even))


def test_a_freeze_of_ten_minutes_is_not_a_jump():
    times = np.arange(300) / 30 + 600 * (np.arange(300) >= 150)
    sampling = TemporalSampling(8, 2, fps=30)
    early = sampling.clip_at(Timeline(300, times).starts[10], 300, times)
    assert early.tolist() == [10, 12, 14, 16, 18, 20, 22, 24]
    assert TemporalSampling(8, 2, fps=30).even_clips(300, 1, times)[0].tolist() == [149] * 8  # the picture is frozen
    assert sampling.even_clips(300, 2, times)[1].tolist() == [284, 286, 288, 290, 292, 294, 296, 298]


BASE = Fraction(1, 1000)


@pytest.mark.parametrize(
    ("pts", "header", "expected"),
    [
        ([5, 6, 20, 30], 25, [0, 0.001, 0.015, 0.025]),
        ([7], 25, [0]),
        ([0, 40, None, 120], 0, [0, 0.04, 0.08, 0.12]),  # missing
        ([None, None], 20, [0, 0.05]),
        ([None, None], 0, None),
        ([0, 1000, 2000, 0, 1000], 0, [0, 1, 2, 3, 4]),  # steps back
        ([0, 40, 120, 80, 160], 25, [0, 0.04, 0.08, 0.12, 0.16]),  # out of order
        ([0, 40, 10**12, 10**12 + 40], 1000, [0, 0.04, 0.08, 0.12]),  # a jump of 31 years
        ([0, 40, 80, 10**6], 25, [0, 0.04, 0.08, 1000]),  # a long freeze
        ([-(2**63), 0, 2**63 - 1], 25, [0, 0.04, 0.08]),
    ],
)
def test_wrong_timestamps_fall_back_to_a_constant_rate(pts, header, expected):
    times, fps = frame_times(pts, BASE, header)
    if expected is None:
        assert times is None and fps == 0
        return
    assert times == pytest.approx(expected)
    assert fps == pytest.approx((len(pts) - 1) / times[-1] if len(pts) > 1 else header)
    assert frame_times(pts, None, 50)[1] == 50


@pytest.mark.parametrize(
    ("name", "fps", "frames"),
    [("mr_vp8.webm", 26.155, 78), ("vfr_libx264.ts", 14.369, 173), ("vfr_gif.gif", 14.369, 173)],
)
def test_rates_are_measured_if_all_frames_are_decoded(assets, name, fps, frames, tmp_path):
    path = assets / "cases" / name
    with av.open(str(path)) as container:
        expected = np.array([frame.time for frame in container.decode(video=0)])
    with open_video(path) as video:
        assert video.num_frames == frames and video.fps == pytest.approx(fps, abs=5e-4)
        assert video.times == pytest.approx(expected - expected[0], abs=1e-9)
        sampling = TemporalSampling(16, 2, fps=30)
        for clip in sampling.even_clips(video.num_frames, 3, video.times):
            assert (np.diff(clip) >= 0).all()
            seconds = video.times[clip]
            assert seconds[-1] - seconds[0] == pytest.approx(1.0, abs=0.25)  # 15 steps of 2 / 30 s
        assert probe(path).duration == video.duration == pytest.approx(video.times[-1] + 0.031, abs=2e-3)
    assert check_file(str(path)).fps == video.fps
    assert encode_video(path, tmp_path / "copy.mp4") == frames
    with open_video(tmp_path / "copy.mp4") as copy:
        assert copy.times.tolist() == video.times.tolist() and copy.fps == video.fps


def write_gif(path):
    """Write a GIF whose frames are shown for 2 to 90 hundredths of a second."""
    ticks = np.cumsum([0, 2, 90, 3, 5, 30, 4, 8, 2, 60, 10, 7])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=100)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "rgb8"
        for number, tick in enumerate(ticks.tolist()):
            frame = av.VideoFrame.from_ndarray(picture(number, 64, 96), format="rgb24").reformat(format="rgb8")
            frame.pts, frame.time_base = tick, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


SOURCES = [  # variable rates, B-frames, edit lists, negative and late starts, frames without or with equal times
    *("variable_rate.mp4", "variable_rate.mkv", "with_holes.mkv", "dropped_frames.avi", "edit_middle.mp4"),
    *("edit_delay_and_start.mp4", "edit_twice.mp4", "cut_start_pyramid.mp4", "late_start.mkv", "milliseconds.mkv"),
    *("missing_times.mkv", "duplicate_times.mkv", "h264.avi", "h264.flv", "vp8.webm", "h264.ts", "variable.gif"),
]


@pytest.mark.parametrize("name", SOURCES)
def test_prepared_and_original_files_give_the_same_clips(name, tmp_path):
    source = tmp_path / name
    write_gif(source) if name == "variable.gif" else videos.write(name, source)
    encode_video(source, tmp_path / "copy.mp4")
    with open_video(source) as original, open_video(tmp_path / "copy.mp4") as copy:
        assert copy.num_frames == original.num_frames and copy.fps == pytest.approx(original.fps)
        assert copy.times == pytest.approx(original.times, abs=1e-6)
        for fps in (0, 5, 7.5, 25, 30):
            for sampling in (TemporalSampling(8, 2, fps=fps), TemporalSampling(4, kind="segments")):
                for seed in range(20):
                    drawn = [
                        sampling.random_clip(video.num_frames, np.random.default_rng(seed), video.times)
                        for video in (original, copy)
                    ]
                    assert np.array_equal(*drawn)
                even = [sampling.even_clips(video.num_frames, 5, video.times) for video in (original, copy)]
                assert np.array_equal(*even)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["variable_rate.mp4", "late_start.mp4", "milliseconds.mkv", "variable_rate.mkv"])
def test_times_are_those_of_a_sequential_decode_with_and_without_an_index(name, backend):
    path = str(videos.shared(name))
    with av.open(path) as container:
        expected = np.array([frame.time for frame in container.decode(video=0)])
    packed = Records([path], [0], ["all"])
    packed.index = pack([(0, file_version(path), read_stream_index(path))], 1)
    assert (packed.stream_index(0) is None) == (name != "late_start.mp4")  # uneven times are read from the file
    for index in (None, packed.stream_index(0)):
        with open_video(path, backend, index) as video:
            assert video.times == pytest.approx(expected - expected[0], abs=1e-9)
            assert video.fps == pytest.approx((len(expected) - 1) / (expected[-1] - expected[0]))


@given(uneven, st.integers(1, 20), st.integers(1, 4), st.sampled_from([0.0, 7.5, 25]), st.floats(0.1, 40))
def test_windows_start_at_multiples_of_the_step(times, num_frames, stride, fps, every):
    for kind in ("dense", "segments"):
        sampling, timeline = TemporalSampling(num_frames, stride, kind, fps), Timeline(len(times), times)
        if timeline.starts is None:
            continue
        starts, ends, clips = window_clips(sampling, timeline, every)
        step = max(every, float(np.median(np.diff(times))))
        whole = np.arange(len(starts)) * step
        assert np.allclose(starts[:-1], whole[:-1]) and starts[-1] <= whole[-1] + 1e-9
        assert (starts >= 0).all() and (ends > starts).all() and (ends <= timeline.duration + 1e-9).all()
        assert clips.shape == (len(starts), num_frames) and clips.min() >= 0 and clips.max() < len(times)
        assert all((clip >= clips[:number, :1]).all() for number, clip in enumerate(clips))  # required by read_once
        slack = 2e-6 / timeline.rate
        assert all(times[clip].max() < end + slack for clip, end in zip(clips, ends, strict=True))
        if kind == "dense":
            first = [[shown_at(times, max(0, s - slack)), shown_at(times, s + slack)] for s in starts]
            assert all(clip[0] in pair for clip, pair in zip(clips, first, strict=True))
