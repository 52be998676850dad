"""Measure how well features separate the classes, with k nearest neighbours and logistic regression.

    result = probe(read_features("train.npz"), read_features("test.npz"))
    result.logistic.metrics["top1"], result.logistic.metrics["interval"]

Features are standardised with the mean and standard deviation of the training rows. Neighbours are compared by the
cosine of standardised features: the mean, which all rows share, and the length, which depends more on contrast than on
the class, do not count. k and C are chosen on a fifth of the training rows. Rows of one source video or one file are
never on both sides of a split.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from video_rs.errors import UserError, format_value, truncate
from video_rs.evaluation.metrics import average_precision, ranking, summarize
from video_rs.evaluation.multiview import Scores
from video_rs.inference.features_file import Features
from video_rs.inference.probe_fit import (
    Linear,
    ProbeData,
    assign_folds,
    choose,
    fit_linear,
    group_sources,
    neighbour_probs,
)
from video_rs.terminal import counted

RESAMPLES, MULTI_LABEL_RESAMPLES = 1000, 200
MUST_MATCH = ("model", "sha256", "layer", "pool")
"""Entries of ``Features.about`` that are equal if features are comparable."""

NOT_OF_CLIPS = ("train_size", "class_names", "multi_label")
"""Entries of a data config that features do not depend on."""


@dataclass(frozen=True, eq=False)
class Method:
    """The result of one method.

    Attributes:
        metrics: see :func:`video_rs.evaluation.metrics.summarize`. ``interval`` holds the limits of the 95 % confidence
            interval of the first metric (top-1 or mAP), also for each class in ``per_class``; ``chosen`` holds k or C
            of each fold.
        scores: probabilities of the evaluated rows.
    """

    metrics: dict[str, Any]
    scores: Scores


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """The results of :func:`probe`.

    Attributes:
        knn, logistic: the results of both methods.
        rows: indexes of the evaluated rows, those with a label, in the test features or else in the training features.
        linear: logistic regression on all training rows.
        notes: a line for each kind of rows that were left out, and for classes without training rows.
    """

    knn: Method
    logistic: Method
    rows: np.ndarray
    linear: Linear
    notes: Sequence[str]


def probe(
    train: Features,
    test: Features | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
    log: Callable[[str], Any] = print,
) -> ProbeResult:
    """Fit k nearest neighbours and logistic regression on features, and measure both on other source videos.

    Training rows whose source video or file is also in the test features are left out. Rows without features count in
    the ``_all`` metrics only, as in a test. Rows without a label are left out.

    Args:
        train: features to fit.
        test: features to measure on; None for cross-validation on the training features.
        folds: number of parts of the cross-validation.
        seed: seed of the splits and of the bootstrap over sources for the confidence intervals.
        log: called with a line for each kind of rows left out, and for each fold.

    Raises:
        UserError: the features are of different networks or classes, are not finite, or have too few labels or sources.
    """
    if folds < 2:
        raise UserError(f"folds={folds}: must be at least 2")
    _check(train, "training")
    if test is None:
        evaluated = train
        splits = _cross_validation(train, folds, seed)
    else:
        evaluated = test
        _check(test, "test")
        _check_comparable(train, test)
        splits = _train_and_test(train, test)
    for note in splits.notes:
        log(note)
    log(f"fitting {splits.data.describe()}")
    probs = np.zeros((2, len(evaluated.labels), splits.data.num_classes))
    chosen = []
    for number, (part, rows) in enumerate(splits.parts, 1):
        neighbours, strength = choose(part, seed)
        linear = fit_linear(part, strength)
        probs[0, rows] = neighbour_probs(part, evaluated.features[rows], [neighbours])[0]
        probs[1, rows] = linear.probs(evaluated.features[rows])
        chosen.append((neighbours, strength))
        log(f"split {number} of {len(splits.parts)}: k = {neighbours}, C = {strength:g}")
    if test is None:
        linear = fit_linear(splits.data, choose(splits.data, seed)[1])
    rows = np.flatnonzero(_has_label(evaluated))
    knn, logistic = (
        _measure(evaluated, rows, each, splits.groups[rows], values, seed)
        for each, values in zip(probs, zip(*chosen, strict=True), strict=True)
    )
    return ProbeResult(knn, logistic, rows, linear, splits.notes)


class _Splits(NamedTuple):
    """All rows to fit; for each part the rows to fit and the indexes of the rows to predict; groups of all rows."""

    data: ProbeData
    parts: Sequence[tuple[ProbeData, np.ndarray]]
    groups: np.ndarray
    notes: Sequence[str]


def _cross_validation(train: Features, folds: int, seed: int) -> _Splits:
    groups, (rows, notes) = group_sources(train), _usable(train, "training")
    data = ProbeData.of(train, rows, groups)
    _check_classes(data, train.class_names, folds)
    fold = assign_folds(data.classes, data.groups, folds, seed)
    parts = [(data.take(fold != number), rows[fold == number]) for number in np.unique(fold)]
    return _Splits(data, parts, groups, notes)


def _train_and_test(train: Features, test: Features) -> _Splits:
    """Return one part, without the training rows whose source is in the test features."""
    groups, groups_of_test = np.split(group_sources(train, test), [len(train.labels)])
    (rows, notes), (rows_of_test, notes_of_test) = _usable(train, "training"), _usable(test, "test")
    in_test = np.isin(groups[rows], groups_of_test)
    if in_test.all():
        raise UserError("the training features: all source videos are also in the test features; give another test")
    notes += notes_of_test
    if in_test.any():
        notes.append(_note(train, rows[in_test], "training rows whose source video is in the test features"))
    data = ProbeData.of(train, rows[~in_test], groups)
    _check_classes(data, train.class_names)
    unknown = ProbeData.of(test, rows_of_test, groups_of_test).targets.any(axis=0) & ~data.targets.any(axis=0)
    if unknown.any():
        names = [format_value(test.class_names[number]) for number in np.flatnonzero(unknown)]
        notes.append(f"no training rows of {truncate(names)}: their test rows count as wrong")
    return _Splits(data, [(data, rows_of_test)], groups_of_test, notes)


def bootstrap(
    groups: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], resamples: int, seed: int = 0
) -> np.ndarray:
    """Return the limits of the 95 % confidence interval of each value of a statistic, ``[2, ...]``.

    Args:
        groups: int ``[N]``; all rows of a group are drawn together, with replacement.
        statistic: called with the indexes of drawn rows. NaN is ignored.
        resamples: number of draws.
        seed: seed of the draws.
    """
    rng, (names, group) = np.random.default_rng(seed), np.unique(groups, return_inverse=True)
    values = []
    for _ in range(resamples):
        counts = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        values.append(statistic(np.repeat(np.arange(len(group)), counts[group])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all values are NaN
        return np.nanpercentile(values, (2.5, 97.5), axis=0)


def _measure(
    features: Features, rows: np.ndarray, probs: np.ndarray, groups: np.ndarray, chosen: Sequence[float], seed: int
) -> Method:
    """Return the metrics of the probabilities of all rows."""
    labels, scored = features.labels[rows], features.scored[rows].astype(bool)
    errors = [(int(i), features.reason[rows[i]]) for i in np.flatnonzero(~scored)]
    scores = Scores(probs[rows].astype(np.float32), labels, scored, errors=errors)
    metrics = summarize(scores.probs, labels, scored, features.class_names)
    kept, true = scores.probs[scored], labels[scored]
    is_correct = None if labels.ndim == 2 else ranking(kept)[:, 0] == true

    def statistic(drawn: np.ndarray) -> np.ndarray:
        """Return the first metric, then that of each class."""
        if is_correct is None:
            each = np.array([average_precision(kept[drawn, c], true[drawn, c]) for c in range(kept.shape[1])])
            return np.append(np.nanmean(each), each)
        videos = np.bincount(true[drawn], minlength=kept.shape[1])
        correct = np.bincount(true[drawn], is_correct[drawn], minlength=kept.shape[1])
        with np.errstate(invalid="ignore"):
            return np.append(correct.sum() / len(drawn), correct / videos)

    limits = bootstrap(groups[scored], statistic, RESAMPLES if labels.ndim == 1 else MULTI_LABEL_RESAMPLES, seed)
    metrics |= {"interval": limits[:, 0].tolist(), "chosen": list(chosen)}
    for entry, interval in zip(metrics["per_class"], limits[:, 1:].T.tolist(), strict=True):
        entry["interval"] = interval
    return Method(metrics, scores)


def _has_label(features: Features) -> np.ndarray:
    """Return True for the rows to evaluate. Without any class, a row of several labels counts too."""
    return np.ones(len(features.labels), bool) if features.labels.ndim == 2 else features.labels >= 0


def _usable(features: Features, name: str) -> tuple[np.ndarray, list[str]]:
    """Return the indexes of rows with features and a label, and notes on the others."""
    has_label, scored = _has_label(features), features.scored.astype(bool)
    notes = [
        _note(features, np.flatnonzero(rows), f"{name} rows without {what}")
        for rows, what in ((~scored, "features"), (scored & ~has_label, "a label"))
        if rows.any()
    ]
    return np.flatnonzero(has_label & scored), notes


def _note(features: Features, rows: np.ndarray, text: str) -> str:
    return f"left out: {len(rows)} {text} ({_files(features, rows)})"


def _files(features: Features, rows: np.ndarray) -> str:
    return truncate(list(dict.fromkeys(features.paths[row] for row in rows)), 3)


def _check(features: Features, name: str) -> None:
    """Raise UserError for features that cannot be probed."""
    rows, count = _usable(features, name)[0], len(features.class_names)
    labels = features.labels
    if not labels[rows].any() if labels.ndim == 2 else not len(rows):
        scored = "" if features.scored.any() else " and features"
        raise UserError(f"the {name} features: no row has a label{scored}; extract them from a dataset with classes")
    if labels.shape[1] != count if labels.ndim == 2 else labels.max() >= count:
        raise UserError(
            f"the {name} features: damaged, their labels do not fit their {count} class names; make them again"
        )
    bad = rows[~np.isfinite(features.features[rows]).all(axis=1)]
    if len(bad):
        files = f"{counted(len(bad), 'row')} with values that are not finite ({_files(features, bad)})"
        raise UserError(f"the {name} features: {files}; check the weights, and extract them again")


def _check_comparable(train: Features, test: Features) -> None:
    """Raise UserError if the test features are of another network, other settings or other classes."""
    pairs = {key: (train.about.get(key, ""), test.about.get(key, "")) for key in MUST_MATCH}
    configs = [each.about.get("data_config", {}) for each in (train, test)]
    keys = dict.fromkeys(key for config in configs for key in config if key not in NOT_OF_CLIPS)
    pairs |= {f"data.{key}": tuple(config.get(key) for config in configs) for key in keys}
    pairs["number of features"] = train.features.shape[1], test.features.shape[1]
    pairs["number of classes"] = len(train.class_names), len(test.class_names)
    pairs |= {f"class {n}": pair for n, pair in enumerate(zip(train.class_names, test.class_names))}
    pairs["several labels per file"] = train.labels.ndim == 2, test.labels.ndim == 2
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            values = f"{key} is {format_value(theirs)}, {format_value(ours)} in the training features"
            raise UserError(f"the test features: {values}; extract both in the same way")


def _check_classes(data: ProbeData, names: Sequence[str], folds: int = 0) -> None:
    """Raise UserError for fewer than two classes, or for classes with fewer sources than folds."""
    sources = dict(zip(names, data.sources_of_classes(), strict=True))
    present = [name for name, count in sources.items() if count]
    if len(present) < 2 and not data.multi_label:
        raise UserError(f"the training features: one class ({format_value(present[0])}); at least two are needed")
    if few := [f"{format_value(name)} ({count})" for name, count in sources.items() if 0 < count < folds]:
        raise UserError(
            f"classes with fewer source videos than folds={folds}: {truncate(few)}; lower folds, or give test features"
        )
