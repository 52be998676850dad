"""k nearest neighbours and logistic regression on features, against scikit-learn called by hand."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video_rs.errors import UserError
from video_rs.inference import probe as probe_module
from video_rs.inference.features_file import Features
from video_rs.inference.probe import NEIGHBOURS, STRENGTHS, assign_folds, bootstrap, group_sources, probe
from video_rs.inference.probe_fit import Fit, Linear
from video_rs.inference.probe_report import methods_table, write_probe

NAMES = ("jump", "run", "<sit>")
ABOUT = {"weights": "w.pt", "sha256": "ab", "model": "resnet_rs_50", "pool": "mean", "layer": ""}


def make(num_sources=40, rows_per_source=3, width=6, seed=0, noise=2.0, first=0, multi_label=False):
    """Features with a mean per class and one per source; the last feature is constant."""
    rng = np.random.default_rng(seed)
    sources = np.repeat(np.arange(num_sources), rows_per_source)
    means = np.random.default_rng(5).normal(size=(3, width))
    labels = rng.random((num_sources, 3))[sources] < 0.4 if multi_label else sources % 3
    values = (labels @ means if multi_label else means[labels]) + noise * rng.normal(size=(len(sources), width)) + 4
    values += rng.normal(size=(num_sources, width))[sources]
    values[:, -1] = 7.3
    paths = [f"{first + source}.mp4" for source in sources]
    keys = (first + sources).astype(np.uint64)
    scored, reason = np.ones(len(sources), bool), [""] * len(sources)
    return Features(values.astype(np.float32), labels, NAMES, paths, keys, scored, reason, ABOUT)


def quiet(*features, **options):
    return probe(*features, **options, log=lambda line: None)


def by_hand(train_x, train_y, groups, x):
    """The probabilities of both methods, with k and C chosen on the first of five folds of the training rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def pipeline(model):
        return make_pipeline(StandardScaler(), model)

    def probs_of(model, features):
        probs = model.predict_proba(features)
        return np.stack([p[:, 1] for p in probs], axis=1) if isinstance(probs, list) else probs

    def loss(y, probs):
        if y.ndim == 1:
            return log_loss(y, np.maximum(probs.astype(np.float32), 1e-37), labels=range(3))
        p = np.where(y, probs, 1 - probs).clip(np.finfo(np.float32).eps)
        return -np.log(p).mean()

    def metric(y, probs):
        from sklearn.metrics import average_precision_score

        return average_precision_score(y, probs) if y.ndim == 2 else (probs.argmax(1) == y).mean()

    strata = train_y if train_y.ndim == 1 else np.where(train_y.any(1), train_y.argmax(1), 3)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    fit, val = next(folds.split(train_x, strata, groups))
    found = []
    for values, make_model in (
        (NEIGHBOURS, lambda k: KNeighborsClassifier(k, metric="cosine", algorithm="brute")),
        (STRENGTHS, lambda c: LogisticRegression(C=c, max_iter=1000)),
    ):
        quality = {}
        for value in values:
            model = make_model(value)
            if train_y.ndim == 2 and values is STRENGTHS:
                model = OneVsRestClassifier(model)
            models = {value: pipeline(model)}
            probs = probs_of(models[value].fit(train_x[fit], train_y[fit]), train_x[val])
            quality[value] = metric(train_y[val], probs), -loss(train_y[val], probs)
        best = max(values, key=quality.get)
        model = make_model(best)
        if train_y.ndim == 2 and values is STRENGTHS:
            model = OneVsRestClassifier(model)
        found.append((best, probs_of(pipeline(model).fit(train_x, train_y), x)))
    return found


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_numbers_are_scikit_learns(multi_label):
    """Probabilities of cross-validation and of a test set equal those of pipelines built by hand."""
    features, test = make(multi_label=multi_label), make(first=100, seed=1, multi_label=multi_label)
    result = quiet(features)
    x, y, groups = features.features, features.labels, group_sources(features)
    strata = y if y.ndim == 1 else np.where(y.any(1), y.argmax(1), 3)
    from sklearn.model_selection import StratifiedGroupKFold

    chosen = []
    for rest, held_out in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(x, strata, groups):
        (k, near), (strength, linear) = by_hand(x[rest], y[rest], groups[rest], x[held_out])
        np.testing.assert_allclose(result.knn.scores.probs[held_out], near, atol=1e-6)
        np.testing.assert_allclose(result.logistic.scores.probs[held_out], linear, atol=1e-3)
        chosen.append((k, strength))
    assert list(zip(result.knn.metrics["chosen"], result.logistic.metrics["chosen"], strict=True)) == chosen

    result, ((k, near), (strength, linear)) = quiet(features, test), by_hand(x, y, groups, test.features)
    np.testing.assert_allclose(result.knn.scores.probs, near, atol=1e-6)
    np.testing.assert_allclose(result.logistic.scores.probs, linear, atol=1e-3)
    assert (result.knn.metrics["chosen"], result.logistic.metrics["chosen"]) == ([k], [strength])
    if not multi_label:
        assert result.logistic.metrics["top1"] == (linear.argmax(1) == test.labels).mean()


def test_a_feature_that_is_constant_up_to_rounding_does_not_count():
    features = make()
    expected = quiet(features).linear
    features.features[:, -1] += np.float32(1e-6) * np.arange(len(features.labels)) % 2
    found = quiet(features).linear
    np.testing.assert_allclose(found.weight, expected.weight, atol=1e-4)


rows = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 12)), min_size=12, max_size=60)


@given(rows, st.integers(2, 5), st.integers(0, 3))
def test_no_fold_shares_a_source_or_a_file_with_another(rows, folds, seed):
    """Classes, sources and files of the rows are arbitrary; even rows of one file can have several sources."""
    source, label, file = map(np.array, zip(*rows, strict=True))
    features = dataclasses.replace(
        make(len(rows), 1), labels=label, sources=source.astype(np.uint64), paths=[f"{n}.mp4" for n in file]
    )
    groups = group_sources(features)
    folds = min(folds, len(set(groups)))
    if folds > 1:
        fold = assign_folds(label[:, None] == np.arange(4), groups, folds, seed)
        for names in (source, file):
            assert all(len(set(fold[names == name])) == 1 for name in names)
        assert set(fold) <= set(range(folds))


@settings(max_examples=15)
@given(st.lists(st.integers(0, 30), min_size=60, max_size=60), st.lists(st.integers(0, 60), max_size=20))
def test_no_fit_sees_a_source_that_it_is_measured_on(sources, sources_of_test):
    """Feature 0 is the source. The rows of each fit, also for choosing k and C, are compared with those it predicts."""
    pairs, fitted = [], []

    class Recorded(Fit):
        def __init__(self, features, rows):
            super().__init__(features, rows)
            self.rows = {*features.features[rows, 0]}

        def neighbour_probs(self, features, counts):
            pairs.append((self.rows, {*features[:, 0]}))
            return super().neighbour_probs(features, counts)

        def logistic(self, strength):
            fitted.append(self.rows)
            return super().logistic(strength)

    def probs(self, features):
        pairs.append((fitted[-1], {*features[:, 0]}))
        return predict(self, features)

    def with_sources(features, keys):
        values = np.column_stack([np.array(keys, np.float32), features.features])
        paths = [f"{key}.mp4" for key in keys]
        return dataclasses.replace(features, features=values, sources=np.array(keys, np.uint64), paths=paths)

    train = with_sources(make(60, 1), sources)
    test = with_sources(make(len(sources_of_test), 1), sources_of_test) if sources_of_test else None
    predict = Linear.probs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_module, "Fit", Recorded)
        patch.setattr(Linear, "probs", probs)
        patch.setattr(probe_module, "STRENGTHS", (0.1, 1.0))
        patch.setattr(probe_module, "RESAMPLES", 3)
        try:
            quiet(train, test, folds=3)
        except UserError:  # too few sources
            return
    assert len(pairs) >= 2 and not any(fitted & measured for fitted, measured in pairs)


def test_rows_of_the_test_and_rows_without_features_or_label_are_left_out():
    train, test = make(), make(first=38, seed=1)
    train.scored[:3], train.labels[3:6], test.scored[-1] = False, -1, False
    lines = []
    result = probe(train, test, log=lines.append)
    assert lines[:4] == [
        "left out: 3 training rows without features (0.mp4)",
        "left out: 3 training rows without a label (1.mp4)",
        "left out: 1 test row without features (77.mp4)",
        "left out: 6 training rows whose source video is in the test features (38.mp4, 39.mp4)",
    ]
    assert list(result.notes) == lines[:4] and lines[4] == "training features: 108 rows of 36 source videos"
    metrics = result.logistic.metrics
    assert (metrics["num_videos"], metrics["num_scored"]) == (120, 119)
    assert metrics["top1_all"] == pytest.approx(metrics["top1"] * 119 / 120)


def test_the_interval_is_that_of_scipy_over_sources():
    from scipy import stats

    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    correct = rng.random(len(groups)) < 0.3 + 0.5 * (groups % 2)
    limits = bootstrap(groups, lambda drawn: correct[drawn].mean(), 4000)

    def accuracy(sources):
        return np.concatenate([correct[groups == source] for source in sources]).mean()

    options = {"vectorized": False, "n_resamples": 4000, "method": "percentile", "rng": 1}
    expected = stats.bootstrap((np.arange(30),), accuracy, **options).confidence_interval
    np.testing.assert_allclose(limits, expected, atol=0.015)
    assert limits[1] - limits[0] > 1.2 * 2 * 1.96 * (0.25 / len(groups)) ** 0.5 * 0.95  # wider than over rows
    np.testing.assert_array_equal(limits, bootstrap(groups, lambda drawn: correct[drawn].mean(), 4000))


def test_intervals_without_mistakes_or_with_one_source():
    """All resamples of correct rows are correct. The interval is then Wilson's for the number of source videos."""
    from scipy import stats

    train, test = (make(60, first=first) for first in (0, 100))
    for features in (train, test):
        features.labels[:] = features.sources % 2
        features.labels[-3:] = 2
        features.features[:, :3] += 50 * np.eye(3)[features.labels]
    metrics = quiet(train, test).logistic.metrics
    assert metrics["top1"] == 1
    for found, sources in ((metrics, 60), (metrics["per_class"][0], 30), (metrics["per_class"][1], 29)):
        expected = stats.binomtest(sources, sources).proportion_ci(method="wilson")
        np.testing.assert_allclose(found["interval"], expected, atol=1e-4)
    assert np.isnan(metrics["per_class"][2]["interval"]).all()
    one = dataclasses.replace(test, labels=np.zeros(180, int), sources=np.zeros(180, np.uint64))
    assert methods_table(quiet(train, one)).rows[1][2] == "– to –"


def test_the_report(tmp_path):
    features = dataclasses.replace(make(), start=np.zeros(120), end=np.full(120, 2.0))
    result = quiet(features)
    page = write_probe(tmp_path, result, features, title="<t>", about={"features": "<b>.npz"}).read_text()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["version"] == 1 and metrics["top1"] == result.logistic.metrics["top1"]
    assert metrics["knn"]["interval"] == result.knn.metrics["interval"] and len(metrics["chosen"]) == 5
    low, high = metrics["interval"]
    assert low < metrics["top1"] < high and len(metrics["per_class"][0]["interval"]) == 2
    assert "&lt;b&gt;.npz" in page and "<b>.npz" not in page and "&lt;sit&gt;" in page
    assert f"{100 * low:.2f} % to {100 * high:.2f} %" in page and "k-NN" in page
    assert (tmp_path / "predictions.csv").read_text().startswith("path,start,end,label,predicted")


def changed(**values):
    return lambda features: dataclasses.replace(features, **values)


def with_about(**values):
    return changed(about={**ABOUT, **values})


def not_finite(features):
    features.features[4, 2] = np.nan
    return features


NO_LABEL = changed(labels=np.full(120, -1))
BAD = {
    "weights": (None, with_about(sha256="cd"), "test features: SHA-256 of the weights is 'cd', 'ab' in the training"),
    "network": (None, with_about(model="timm/x"), "test features: model is 'timm/x', 'resnet_rs_50' in"),
    "clips": (None, with_about(data_config={"stride": 2}), "test features: data.stride is 2, null in the training"),
    "names": (None, changed(class_names=("jump", "run", "sit")), "class 2 is 'sit', '<sit>' in the training"),
    "number of classes": (None, changed(class_names=(*NAMES, "x")), "number of classes is 4, 3 in the training"),
    "width": (None, lambda f: changed(features=f.features[:, :4])(f), "number of features is 4, 6 in the training"),
    "same file": (None, lambda f: make(), "training features: all source videos are also in the test features"),
    "test without labels": (None, NO_LABEL, "test features: no row has a label; extract"),
    "no labels": (NO_LABEL, None, "training features: no row has a label; extract"),
    "no features": (changed(scored=np.zeros(120, bool)), None, "training features: no row has a label and features"),
    "one class": (changed(labels=np.zeros(120, int)), None, r"training features: one class \('jump'\); at least two"),
    "few sources": (
        lambda f: changed(labels=np.where(f.sources == 1, 1, 2 * (f.sources > 5)))(f),
        None,
        r"classes with fewer source videos than folds=5: 'run' \(1\); lower folds",
    ),
    "labels": (changed(labels=np.full(120, 3)), None, "damaged, labels and class names do not match"),
    "not finite": (not_finite, None, r"1 row with values that are not finite \(1.mp4\); check the weights"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_features(case):
    change, change_test, message = BAD[case]
    train = change(make()) if change else make()
    with pytest.raises(UserError, match=message) as error:
        quiet(train, change_test(make(first=100)) if change_test else None)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_one_fold():
    with pytest.raises(UserError, match="folds=1: must be at least 2"):
        quiet(make(), folds=1)


def test_a_class_of_the_test_without_training_rows_counts_as_wrong():
    train, test = make(), make(first=100)
    train.labels[train.labels == 2] = 1
    lines = []
    result = probe(train, test, log=lines.append)
    assert "no training rows of '<sit>': their test rows count as wrong" in lines
    assert not result.logistic.scores.probs[:, 2].any() and result.logistic.metrics["per_class"][2]["accuracy"] == 0
    np.testing.assert_allclose(result.logistic.scores.probs.sum(1), 1, rtol=1e-5)
