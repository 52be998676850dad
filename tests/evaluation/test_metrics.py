import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from video_rs.evaluation.metrics import most_confused, ranking, summarize

PROBS = np.array(
    [
        [0.7, 0.2, 0.1],  # right
        [0.5, 0.3, 0.2],  # wrong: 1 taken for 0
        [0.1, 0.6, 0.3],  # right
        [0.0, 0.0, 0.0],  # not scored
    ],
    dtype=np.float32,
)
LABELS = np.array([0, 1, 1, 2])
SCORED = np.array([True, True, True, False])


def test_figures_by_hand():
    m = summarize(PROBS, LABELS, SCORED, ["a", "b", "c"])
    assert (m["num_videos"], m["num_scored"], m["top_k"]) == (4, 3, 3)
    assert m["top1"] == pytest.approx(2 / 3)
    assert m["top1_all"] == pytest.approx(2 / 4)
    assert m["top5"] == 1.0  # clipped to three classes
    assert m["top5_all"] == pytest.approx(3 / 4)
    assert m["mean_class"] == pytest.approx((1 + 1 / 2) / 2)  # class c has no scored video
    assert m["mean_class_all"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert m["loss"] == pytest.approx(-np.log([0.7, 0.3, 0.6]).mean())
    assert m["confusion"].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert m["per_class"][1] == {"name": "b", "videos": 2, "scored": 2, "correct": 1, "accuracy": 0.5}
    assert m["per_class"][2]["videos"] == 1 and math.isnan(m["per_class"][2]["accuracy"])


def test_top5_of_many_classes():
    probs = np.arange(20, dtype=np.float32)[None].repeat(3, axis=0) / 190
    m = summarize(probs, np.array([19, 15, 14]), np.ones(3, bool))
    assert (m["top_k"], m["top1"], m["top5"]) == (5, pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_nothing_scored_is_nan_and_counts_as_wrong():
    m = summarize(PROBS, LABELS, np.zeros(4, bool))
    assert math.isnan(m["top1"]) and math.isnan(m["loss"]) and m["top1_all"] == 0.0


def test_a_certain_mistake_has_a_finite_loss():
    assert math.isfinite(summarize(np.array([[1.0, 0.0]]), np.array([1]), np.ones(1, bool))["loss"])


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="labels"):
        summarize(PROBS, np.array([0, 1, 2, 3]), SCORED)
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        summarize(PROBS, LABELS, SCORED, ["a", "b"])


@given(
    probs=hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 9)), elements=st.floats(0, 1, width=32)),
    data=st.data(),
)
def test_figures_agree_with_each_other(probs, data):
    num, classes = probs.shape
    labels = data.draw(hnp.arrays(np.int64, num, elements=st.integers(0, classes - 1)))
    scored = data.draw(hnp.arrays(bool, num))
    m = summarize(probs, labels, scored)
    assert m["confusion"].sum() == m["num_scored"] == scored.sum()
    assert sum(c["correct"] for c in m["per_class"]) == np.trace(m["confusion"])
    assert m["top1_all"] <= m["top5_all"] <= 1 and m["mean_class_all"] <= 1
    if scored.any():
        assert m["top1"] == pytest.approx(np.trace(m["confusion"]) / scored.sum())
        assert m["top1"] == pytest.approx((probs[scored].argmax(1) == labels[scored]).mean())
        assert m["top1_all"] == pytest.approx(m["top1"] * scored.mean())


def test_ties_go_to_the_lower_class():
    assert ranking(np.full((1, 4), 0.25))[0].tolist() == [0, 1, 2, 3]


def test_most_confused():
    confusion = np.array([[9, 2, 0], [5, 0, 1], [0, 0, 7]])
    assert most_confused(confusion) == [(1, 0, 5), (0, 1, 2), (1, 2, 1)]
    assert most_confused(confusion, 1) == [(1, 0, 5)]
