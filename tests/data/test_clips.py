import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_rs.data.clips import train_indices, view_indices

lengths, sizes, strides = st.integers(1, 400), st.integers(1, 40), st.integers(1, 8)


@given(lengths, sizes, strides, st.integers(0, 2**32 - 1))
def test_a_training_clip_lies_in_the_video_or_is_tiled(length, num_frames, stride, seed):
    indices = train_indices(length, num_frames, stride, np.random.default_rng(seed))
    assert indices.shape == (num_frames,) and indices.dtype == np.int64
    assert indices.min() >= 0 and indices.max() < length
    assert ((np.diff(indices) - stride) % length == 0).all()
    if length > (num_frames - 1) * stride:
        assert (np.diff(indices) == stride).all()  # long enough: never looped


@pytest.mark.parametrize(("length", "starts"), [(12, 5), (8, 1), (7, 7), (1, 1)])
def test_training_starts_cover_all_places_and_no_other(length, starts):
    rng = np.random.default_rng(0)
    seen = {int(train_indices(length, num_frames=8, stride=1, rng=rng)[0]) for _ in range(300)}
    assert seen == set(range(starts))


@given(lengths, sizes, strides, st.integers(1, 12))
def test_views_are_spread_evenly_as_published(length, num_frames, stride, clips):
    views = view_indices(length, num_frames, stride, clips)
    room = max(0, length - num_frames * stride)
    starts = [room // 2] if clips == 1 else [k * room // (clips - 1) for k in range(clips)]
    expected = np.add.outer(starts, stride * np.arange(num_frames)) % length
    assert views.dtype == np.int64 and np.array_equal(views, expected)


def test_views_equal_the_float_formula_of_the_source_at_its_own_settings():
    for length in range(1, 1500):
        starts = np.linspace(0, max(0, length - 64), 10).astype(int)
        assert np.array_equal(view_indices(length, 32, 2, 10)[:, 0], starts % length)


def test_ten_views_of_a_kinetics_video():
    views = view_indices(300, 32, 2, 10)
    assert views[0, 0] == 0 and views[-1, 0] == 300 - 64 and views[-1, -1] == 298


@pytest.mark.parametrize("bad", [(0, 8, 1, 1), (5, 0, 1, 1), (5, 8, 0, 1), (5, 8, 1, 0)])
def test_impossible_arguments(bad):
    with pytest.raises(ValueError):
        view_indices(*bad)
