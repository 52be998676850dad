"""Segments of long videos: what they cover, and how they are drawn."""

import io
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from video_rs.evaluation.plots import timeline_png
from video_rs.inference.timeline import find_segments

NAMES = ("archery", "juggling", "yoga")


@st.composite
def windows(draw):
    """Windows of any length over a video, which may overlap or leave gaps, and their probabilities."""
    count, length, step = draw(st.integers(1, 30)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    starts = np.arange(count) * step / 4
    values = st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]), min_size=3 * count, max_size=3 * count)
    return np.stack([starts, starts + length / 4], axis=1), np.reshape(draw(values), (count, 3))


@given(windows(), st.sampled_from([0.0, 0.5, 0.7, 1.0]), st.booleans())
def test_segments_cover_the_windows_above_the_threshold_and_nothing_else(video, threshold, multi_label):
    times, probs = video
    segments = find_segments(times, probs, NAMES, threshold, multi_label=multi_label)
    assert segments == sorted(segments, key=lambda s: (s.start, s.index))
    for index, name in enumerate(NAMES):
        own = [segment for segment in segments if segment.index == index]
        assert all(segment.label == name for segment in own)
        assert all(one.end < other.start for one, other in zip(own, own[1:]))  # disjoint, and not adjacent
        above = [k for k, row in enumerate(probs) if row[index] >= threshold and (multi_label or row.argmax() == index)]
        covered = [(times[k, 0], times[k, 1]) for k in above]
        covered += [(times[k, 1], times[k + 1, 0]) for k in above if k + 1 in above]  # the gap between neighbours
        for moment in np.arange(times[0, 0], times[-1, 1], 1 / 8) + 1 / 16:
            inside = any(segment.start < moment < segment.end for segment in own)
            assert inside == any(start < moment < end for start, end in covered)
        for segment in own:
            parts = [probs[k, index] for k in above if segment.start <= times[k, 0] and times[k, 1] <= segment.end]
            assert segment.score == pytest.approx(np.mean(parts))


def test_segments_of_one_class_that_overlap_merge_and_other_classes_stay():
    times = np.array([[0, 2], [1, 3], [2, 4], [3, 5], [9, 11]], float)
    probs = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.7, 0.1, 0.2], [0.4, 0.3, 0.3], [0.6, 0.4, 0]])
    segments = find_segments(times, probs, NAMES, 0.5)
    expected = [(0, 4, "archery", 0, 0.8), (1, 3, "juggling", 1, 0.8), (9, 11, "archery", 0, 0.6)]
    assert [segment[:4] for segment in segments] == [each[:4] for each in expected]
    assert [segment.score for segment in segments] == pytest.approx([each[4] for each in expected])


@pytest.mark.parametrize("count", [1, 3, 60])
def test_a_timeline_of_any_length_with_names_in_any_script(count):
    times, probs = np.stack([np.arange(count), np.arange(count) + 1.5], axis=1), np.full((count, 12), 0.6)
    names = ["\u8df3\u821e", "\u0442\u0430\u043d\u0435\u0446", "$x$", *map(str, range(9))]
    sizes = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for threshold in (0.5, 0.7):
            segments = find_segments(times, probs, names, threshold, multi_label=True)
            png = timeline_png(times, probs, names, segments, threshold=threshold, title="$ \u8df3\udce9\n.mp4")
            sizes.append(Image.open(io.BytesIO(png)).size)
    assert sizes[0][1] > sizes[1][1]  # ten classes, and three without segments
