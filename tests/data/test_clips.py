"""The frames of a clip: in range, ascending, evenly spaced, and at the same times for sources of any rate."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from video_rs.data.clips import TemporalSampling
from video_rs.data_config import DataConfig

lengths, sizes, strides, seeds = st.integers(1, 400), st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**32 - 1)
rates = st.sampled_from([0.0, 7.5, 10, 12.5, 15, 23.976, 25, 29.97, 30, 50, 60, 1000 / 7])
decimals = rates.filter(lambda rate: rate and rate == round(rate, 6))
kinds = st.sampled_from(["dense", "segments"])
SCENE = [25, 30, 60]  # frames a second of the same scene


def rng(seed=0):
    return np.random.default_rng(seed)


def evenly(length, rate):
    """Return the times of frames at a constant rate; None for rate 0."""
    return np.arange(length) / rate if rate else None


@given(lengths, sizes, strides, seeds)
def test_a_training_clip_lies_in_the_video_or_is_tiled(length, num_frames, stride, seed):
    indices = TemporalSampling(num_frames, stride).random_clip(length, rng(seed), evenly(length, 30))
    assert indices.shape == (num_frames,) and indices.dtype == np.int64
    assert indices.min() >= 0 and indices.max() < length
    assert ((np.diff(indices) - stride) % length == 0).all()
    if length > (num_frames - 1) * stride:
        assert (np.diff(indices) == stride).all()  # long enough: never looped


@pytest.mark.parametrize("fps", [0, 15])
@pytest.mark.parametrize(("length", "starts"), [(12, 5), (8, 1), (7, 7), (1, 1)])
def test_training_starts_cover_all_places_and_no_other(length, starts, fps):
    drawn, sampling = rng(), TemporalSampling(num_frames=8, stride=1, fps=fps)
    seen = [int(sampling.random_clip(length, drawn, evenly(length, 15))[0]) for _ in range(300 * starts)]
    assert set(seen) == set(range(starts))
    assert np.bincount(seen).min() > 0.7 * 300  # uniformly


@given(lengths, sizes, strides, st.integers(1, 12))
def test_views_are_spread_evenly_as_published(length, num_frames, stride, clips):
    views = TemporalSampling(num_frames, stride).even_clips(length, clips)
    room = max(0, length - num_frames * stride)
    starts = [room // 2] if clips == 1 else [k * room // (clips - 1) for k in range(clips)]
    expected = np.add.outer(starts, stride * np.arange(num_frames)) % length
    assert views.dtype == np.int64 and np.array_equal(views, expected)


def test_views_equal_the_float_formula_of_the_source_at_its_own_settings():
    for length in range(1, 1500):
        starts = np.linspace(0, max(0, length - 64), 10).astype(int)
        assert np.array_equal(TemporalSampling(32, 2).even_clips(length, 10)[:, 0], starts % length)


def test_ten_views_of_a_kinetics_video():
    views = TemporalSampling(32, 2).even_clips(300, 10)
    assert views[0, 0] == 0 and views[-1, 0] == 300 - 64 and views[-1, -1] == 298


@given(lengths, sizes, strides, kinds, rates, rates, seeds, st.integers(1, 12))
def test_clips_are_in_range_ascending_and_reproducible(length, num_frames, stride, kind, fps, source_fps, seed, clips):
    sampling = TemporalSampling(num_frames, stride, kind, fps)
    drawn = sampling.random_clip(length, rng(seed), evenly(length, source_fps))
    even = sampling.even_clips(length, clips, evenly(length, source_fps))
    assert drawn.shape == (num_frames,) and even.shape == (clips, num_frames)
    assert drawn.dtype == even.dtype == np.int64
    tiled = kind == "dense" and (num_frames - 1) * sampling.step(source_fps) >= length
    for clip in [drawn, *even]:
        assert clip.min() >= 0 and clip.max() < length
        assert tiled or (np.diff(clip) >= 0).all()
    assert np.array_equal(drawn, sampling.random_clip(length, rng(seed), evenly(length, source_fps)))


@given(lengths, sizes, strides, st.sampled_from([7.5, 23.976, 25.0, 30000 / 1001]), seeds, st.integers(1, 12))
@example(2, 2, 2, 30000 / 1001, 0, 1)  # as long as the clip, up to rounding
def test_a_source_of_the_rate_asked_for_or_of_none_is_strided(length, num_frames, stride, fps, seed, clips):
    plain, timed = TemporalSampling(num_frames, stride), TemporalSampling(num_frames, stride, fps=fps)
    drawn = timed.random_clip(length, rng(seed), evenly(length, fps))
    assert ((np.diff(drawn) - stride) % length == 0).all()
    assert np.array_equal(drawn, timed.random_clip(length, rng(seed)))
    assert np.array_equal(timed.even_clips(length, clips, evenly(length, fps)), plain.even_clips(length, clips))
    assert np.array_equal(timed.even_clips(length, clips), plain.even_clips(length, clips))


def by_frame_numbers(sampling, start, length, source_fps):
    """Return the clip of a first frame, computed from frame numbers, without times."""
    step = sampling.stride * (source_fps / sampling.fps)
    numbers = np.floor(start + step * np.arange(sampling.num_frames) + 1e-6).astype(np.int64)
    return numbers % length if length <= (sampling.num_frames - 1) * step else np.minimum(numbers, length - 1)


@given(lengths, sizes, strides, decimals, decimals, seeds, st.integers(1, 12))
def test_clips_at_a_constant_rate_match_frame_arithmetic(length, num_frames, stride, fps, source_fps, seed, clips):
    sampling, times = TemporalSampling(num_frames, stride, fps=fps), evenly(length, source_fps)
    step = stride * (source_fps / fps)
    span = (num_frames - 1) * step
    start = rng(seed).random() * (length - span if length > span else length)
    drawn = sampling.random_clip(length, rng(seed), times)
    assert drawn.tolist() == by_frame_numbers(sampling, start, length, source_fps).tolist()
    room = max(0, length - num_frames * step)
    starts = np.linspace(0, room, clips) if clips > 1 else [room / 2]
    for start, clip in zip(starts, sampling.even_clips(length, clips, times), strict=True):
        assert clip.tolist() == by_frame_numbers(sampling, start, length, source_fps).tolist()


def moments(sampling, source_fps, seconds, seed):
    """Return the times of the middles of the frames, in seconds: of a random clip and of three evenly spaced ones."""
    length = seconds * source_fps
    times = evenly(length, source_fps)
    clips = [sampling.random_clip(length, rng(seed), times), *sampling.even_clips(length, 3, times)]
    return (np.array(clips) + 0.5) / source_fps


@given(st.integers(2, 16), st.integers(1, 4), st.sampled_from([5.0, 7.5, 12.5, 24.0, 30.0, 120.0]), seeds)
def test_sources_of_any_rate_show_the_same_moments(num_frames, stride, fps, seed):
    sampling, seconds = TemporalSampling(num_frames, stride, fps=fps), 20
    room = seconds - (num_frames - 1) * stride / fps
    starts = [rng(seed).random() * room, *(np.arange(3) * (seconds - num_frames * stride / fps) / 2)]
    asked = np.add.outer(starts, np.arange(num_frames) * stride / fps)
    for source_fps in SCENE:  # half a frame of the source
        assert np.abs(moments(sampling, source_fps, seconds, seed) - asked).max() <= (0.5 + 1e-5) / source_fps


@given(st.integers(2, 16), seeds)
def test_segments_of_any_rate_show_the_same_moments(num_frames, seed):
    sampling, seconds = TemporalSampling(num_frames, kind="segments"), 20
    places = [rng(seed).random(num_frames), *((2 * np.arange(3)[:, None] + 1) / 6 + np.zeros(num_frames))]
    asked = (np.arange(num_frames) + np.array(places)) * seconds / num_frames
    for source_fps in SCENE:  # their borders are whole frames
        assert np.abs(moments(sampling, source_fps, seconds, seed) - asked).max() <= (1.5 + 1e-5) / source_fps


@pytest.mark.parametrize(("source_fps", "fps"), [(30, 25), (25, 9), (24, 5), (59.94, 49.95), (25, 30)])
def test_moments_that_begin_a_frame_are_in_it(source_fps, fps):
    """A time at the exact start of a frame is not rounded down to the frame before."""
    clip = TemporalSampling(3000, 3, fps=fps).clip_at(0.0, 10**6, evenly(10**6, source_fps))
    step = 3 * Fraction(str(source_fps)) / Fraction(str(fps))
    assert clip.tolist() == [int(k * step) for k in range(3000)]


def test_the_last_frame_of_a_clip_is_the_last_of_the_video_at_most():
    class Highest:
        def random(self, size=None):
            return np.nextafter(1.0, 0) if size is None else np.full(size, np.nextafter(1.0, 0))

    for length in (7, 8, 100, 10**6):
        for source_fps in (10, 15, 31.4):
            sampling = TemporalSampling(8, 1, fps=15)
            clip = sampling.random_clip(length, Highest(), evenly(length, source_fps))
            if length > 7 * sampling.step(source_fps):
                assert clip[-1] == length - 1 and (np.diff(clip) >= 0).all()
        segments = TemporalSampling(8, kind="segments").random_clip(length, Highest())
        assert segments[-1] == length - 1


@given(lengths, sizes, seeds, st.integers(1, 12))
def test_segments_divide_the_whole_video(length, num_frames, seed, clips):
    sampling = TemporalSampling(num_frames, kind="segments")
    edges = [k * length // num_frames for k in range(num_frames + 1)]
    for clip in [sampling.random_clip(length, rng(seed)), *sampling.even_clips(length, clips)]:
        for frame, first, end in zip(clip, edges, edges[1:], strict=False):
            assert first <= frame < max(end, first + 1)
    if length >= num_frames:
        assert (np.diff(sampling.random_clip(length, rng(seed))) > 0).all()  # disjoint
        assert max(np.diff(edges)) - min(np.diff(edges)) <= 1  # equal
    else:
        assert set(sampling.random_clip(length, rng(seed))) == set(range(length))  # stretched, nothing left out


def test_every_frame_of_a_segment_is_as_likely():
    sampling, drawn, draws = TemporalSampling(3, kind="segments"), rng(), 3000
    counts = np.bincount(np.concatenate([sampling.random_clip(14, drawn) for _ in range(draws)]), minlength=14)
    for first, end in ((0, 4), (4, 9), (9, 14)):
        assert np.abs(counts[first:end] - draws / (end - first)).max() < 4 * np.sqrt(draws)


@pytest.mark.parametrize(
    ("length", "num_frames", "clips", "frames"),
    [
        (30, 3, 1, [[5, 15, 25]]),  # the middles
        (33, 3, 1, [[5, 16, 27]]),
        (3, 3, 1, [[0, 1, 2]]),
        (24, 3, 2, [[2, 10, 18], [6, 14, 22]]),
        (18, 3, 3, [[1, 7, 13], [3, 9, 15], [5, 11, 17]]),
        (2, 5, 2, [[0, 0, 0, 1, 1]] * 2),
        (1, 4, 1, [[0, 0, 0, 0]]),
    ],
)
def test_segments_of_a_test(length, num_frames, clips, frames):
    assert TemporalSampling(num_frames, kind="segments").even_clips(length, clips).tolist() == frames


def test_a_data_config_tells_the_sampling():
    data_config = DataConfig(num_frames=8, stride=4, sampling="segments", fps=15.0)
    assert TemporalSampling.of(data_config) == TemporalSampling(8, 4, "segments", 15.0)


@pytest.mark.parametrize("bad", [{"num_frames": 0}, {"stride": 0}, {"kind": "sparse"}, {"fps": -1}])
def test_impossible_samplings(bad):
    with pytest.raises(ValueError):
        TemporalSampling(**bad)


def test_impossible_videos():
    sampling = TemporalSampling(8, 1)
    for wrong in (lambda: sampling.even_clips(0, 1), lambda: sampling.random_clip(0, rng())):
        with pytest.raises(ValueError, match="at least 1 frame"):
            wrong()
    with pytest.raises(ValueError, match="clips"):
        sampling.even_clips(5, 0)
