import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from video_rs.evaluation.metrics import average_precision, most_confused, ranking, summarize, summarize_multi_label

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


def test_metrics_by_hand():
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
def test_metrics_agree_with_each_other(probs, data):
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


# Several classes a video ---------------------------------------------------------------------------------------------

SEVERAL = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]], bool)


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            hnp.arrays(
                np.float32, n, elements=st.sampled_from([0, 0.1, 0.25, 0.5, 0.75, 1]) | st.floats(0, 1, width=32)
            ),
            hnp.arrays(bool, n),
        )
    )
)
def test_average_precision_is_scikit_learns(drawn):
    """Half of the drawn scores are ties."""
    scores, positive = drawn
    if positive.any():
        assert average_precision(scores, positive) == pytest.approx(
            average_precision_score(positive, scores), rel=0, abs=1e-9
        )
    else:
        assert math.isnan(average_precision(scores, positive))


def test_map_is_scikit_learns_on_many_classes():
    rng = np.random.default_rng(0)
    labels, probs = rng.random((500, 157)) < 0.04, rng.random((500, 157), np.float32).round(2)
    labels[:, 5] = False  # a class without positives does not count
    kept = np.delete(np.arange(157), 5)
    expected = average_precision_score(labels[:, kept], probs[:, kept], average="macro")
    m = summarize_multi_label(probs, labels, np.ones(500, bool))
    assert m["map"] == m["map_all"] == pytest.approx(expected, rel=0, abs=1e-9)
    assert math.isnan(m["per_class"][5]["average_precision"])


def test_multi_label_metrics_by_hand():
    m = summarize_multi_label(PROBS, SEVERAL, SCORED, ["a", "b", "c"])
    assert (m["num_videos"], m["num_scored"]) == (4, 3)
    # a: right at rank 1; b: .6 leads; c: .1 is the last of three. The fourth video, of class a, was not scored
    assert [c["average_precision"] for c in m["per_class"]] == [1, 1, pytest.approx(1 / 3)]
    assert m["map"] == pytest.approx(7 / 9) and m["map_all"] == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    assert m["hit1"] == pytest.approx(2 / 3) and m["hit1_all"] == 2 / 4
    right = [0.7, 0.8, 0.1, 0.5, 0.7, 0.8, 0.9, 0.6, 0.7]
    assert m["loss"] == pytest.approx(-np.log(right).mean())
    assert m["per_class"][0] == {"name": "a", "videos": 2, "scored": 1, "average_precision": 1.0}


def test_several_classes_with_nothing_scored_or_wrong_shapes():
    m = summarize_multi_label(PROBS, SEVERAL, np.zeros(4, bool))
    assert math.isnan(m["map"]) and math.isnan(m["hit1"]) and (m["map_all"], m["hit1_all"]) == (0, 0)
    assert math.isfinite(summarize_multi_label(np.ones((1, 2)), np.zeros((1, 2)), np.ones(1, bool))["loss"])
    with pytest.raises(ValueError, match=r"labels must be \[N, C\]"):
        summarize_multi_label(PROBS, SEVERAL[:, :2], SCORED)
