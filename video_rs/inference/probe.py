"""Measure how well features separate the classes, with k nearest neighbours and logistic regression of scikit-learn.

    result = probe(read_features("train.npz"), read_features("test.npz"))
    result.logistic.metrics["top1"], result.logistic.metrics["interval"]

Rows of one source video or one file are never on both sides of a split: of test and training rows, of a fold, or of the
validation part that chooses k and C.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from video_rs.errors import UserError, format_value, truncate
from video_rs.evaluation.metrics import average_precision, metric_names, ranking, summarize
from video_rs.evaluation.multiview import Scores
from video_rs.inference.features_file import Features
from video_rs.inference.probe_fit import Fit, Linear, targets_of
from video_rs.terminal import counted

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of scikit-learn's C, the inverse of the strength of regularisation."""
DEFAULTS = (1, 1.0)  # k and C if no validation part can be split off
VALIDATION_FOLDS = 5  # one of them is the validation part
RESAMPLES, MULTI_LABEL_RESAMPLES = 1000, 200
MUST_MATCH = {"model": "model", "sha256": "SHA-256 of the weights", "layer": "layer", "pool": "pool"}
"""Entries of ``Features.about`` that must be equal in both files, and their names in messages."""
IGNORED_DATA_KEYS = ("train_size", "class_names", "multi_label")
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
    notes: list[str] = []
    rows = _usable(train, "training", notes)
    targets, evaluated = targets_of(train), train if test is None else test
    if test is None:
        groups = groups_of_evaluated = group_sources(train)
        _check_classes(targets[rows], groups[rows], train.class_names, folds)
        fold = assign_folds(targets[rows], groups[rows], folds, seed)
        parts = [(rows[fold != number], rows[fold == number]) for number in np.unique(fold)]
    else:
        rows_of_test = _usable(test, "test", notes)
        _check_comparable(train, test)
        groups, groups_of_evaluated = np.split(group_sources(train, test), [len(train.labels)])
        in_test = np.isin(groups[rows], groups_of_evaluated)
        _note(train, rows[in_test], "training row", "whose source video is in the test features", notes)
        rows = rows[~in_test]
        if not len(rows):
            raise UserError("the training features: all source videos are also in the test features; use another test")
        _check_classes(targets[rows], groups[rows], train.class_names)
        unknown = targets_of(test)[rows_of_test].any(axis=0) & ~targets[rows].any(axis=0)
        if unknown.any():
            names = [format_value(test.class_names[number]) for number in np.flatnonzero(unknown)]
            notes.append(f"no training rows of {truncate(names)}: their test rows count as wrong")
        parts = [(rows, rows_of_test)]
    for note in notes:
        log(note)
    count = len(np.unique(groups[rows]))
    log(f"training features: {counted(len(rows), 'row')} of {counted(count, 'source video')}")
    probs = np.zeros((2, len(evaluated.labels), targets.shape[1]), np.float32)
    chosen = []
    for number, (fitted, measured) in enumerate(parts, 1):
        k, strength = choose(train, fitted, groups, seed)
        fit = Fit(train, fitted)
        linear = fit.logistic(strength)
        features = evaluated.features[measured]
        probs[0, measured] = fit.neighbour_probs(features, [k])[0]
        probs[1, measured] = linear.probs(features)
        chosen.append((k, strength))
        place = f"fold {number} of {len(parts)}: " if test is None else ""
        log(f"{place}k-NN with k = {k}, logistic regression with C = {strength:g}")
    if test is None:
        linear = Fit(train, rows).logistic(choose(train, rows, groups, seed)[1])
    labelled = np.flatnonzero(_has_label(evaluated))
    knn, logistic = (
        _measure(evaluated, labelled, each[labelled], groups_of_evaluated[labelled], values, seed)
        for each, values in zip(probs, zip(*chosen, strict=True), strict=True)
    )
    return ProbeResult(knn, logistic, labelled, linear, notes)


def group_sources(*features: Features) -> np.ndarray:
    """Return a number for each row of all features. Rows of one source video or one file have the same number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sources = np.unique(np.concatenate([each.sources for each in features]), return_inverse=True)[1]
    files = np.unique([path for each in features for path in each.paths], return_inverse=True)[1]
    count = len(sources)
    links = coo_array((np.ones(count, bool), (sources, count + files)), shape=(2 * count, 2 * count))
    return connected_components(links, directed=False)[1][sources]


def assign_folds(targets: np.ndarray, groups: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Return the number of the fold of each row. All rows of a group are in one fold.

    Args:
        targets: bool ``[N, C]``. The first class of each row is balanced over the folds.
        groups: int ``[N]``, from :func:`group_sources`.
        folds: number of folds, at most that of groups.
        seed: seed of the order of the groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    classes = np.where(targets.any(axis=1), targets.argmax(axis=1), targets.shape[1])
    if np.bincount(classes).max() < folds:  # too few rows to balance
        classes[:] = 0
    fold = np.zeros(len(groups), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class has fewer rows than folds
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        for number, (_, rows) in enumerate(splitter.split(classes, classes, groups)):
            fold[rows] = number
    return fold


def choose(features: Features, rows: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple[int, float]:
    """Return k and C with the best metric on a part of the rows. The lower loss breaks ties."""
    targets = targets_of(features)[rows]
    folds = min(VALIDATION_FOLDS, max(_sources_of_classes(targets, groups[rows])))
    if folds < 2:
        return DEFAULTS
    is_val = assign_folds(targets, groups[rows], folds, seed) == 0
    if is_val.all() or not is_val.any():
        return DEFAULTS
    fit, val, val_features = Fit(features, rows[~is_val]), rows[is_val], features.features[rows[is_val]]

    def quality(probs: np.ndarray) -> tuple[float, float]:
        metrics = summarize(probs, features.labels[val], np.ones(len(val), bool))
        return float(np.nan_to_num(metrics[next(iter(metric_names(metrics)))])), -metrics["loss"]

    counts = [k for k in NEIGHBOURS if k <= len(fit.targets)]
    by_count = dict(zip(counts, map(quality, fit.neighbour_probs(val_features, counts)), strict=True))
    by_strength = {strength: quality(fit.logistic(strength).probs(val_features)) for strength in STRENGTHS}
    return max(by_count, key=by_count.get), max(by_strength, key=by_strength.get)


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
    """Return the metrics of rows with a label, from their probabilities."""
    labels, scored = features.labels[rows], features.scored[rows].astype(bool)
    errors = [(int(i), features.reason[rows[i]]) for i in np.flatnonzero(~scored)]
    metrics = summarize(probs, labels, scored, features.class_names)
    kept, true = probs[scored], labels[scored]
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

    low, high = bootstrap(groups[scored], statistic, RESAMPLES if labels.ndim == 1 else MULTI_LABEL_RESAMPLES, seed)
    of_class = _sources_of_classes(targets_of(features)[rows[scored]], groups[scored])
    sources = np.array([len(np.unique(groups[scored])), *of_class])
    width = 1.96**2 / (sources + 1.96**2)  # Wilson's interval, where all draws are equal because all are right or wrong
    limits = np.stack([np.where(low == 1, 1 - width, low), np.where(high == 0, width, high)], axis=1)
    limits[sources < 2] = np.nan
    first, *others = limits.tolist()
    for entry, interval in zip(metrics["per_class"], others, strict=True):
        entry["interval"] = interval
    metrics |= {"interval": first, "chosen": list(chosen)}
    return Method(metrics, Scores(probs, labels, scored, errors=errors))


def _has_label(features: Features) -> np.ndarray:
    """Return True for the rows to evaluate. Without any class, a row of several labels counts too."""
    return np.ones(len(features.labels), bool) if features.labels.ndim == 2 else features.labels >= 0


def _sources_of_classes(targets: np.ndarray, groups: np.ndarray) -> list[int]:
    return [len(np.unique(groups[has_class])) for has_class in targets.T]


def _usable(features: Features, name: str, notes: list[str]) -> np.ndarray:
    """Return the indexes of rows with features and a label. Raise UserError if they cannot be probed."""
    labels, count = features.labels, len(features.class_names)
    scored, has_label = features.scored.astype(bool), _has_label(features)
    rows = np.flatnonzero(scored & has_label)
    if not (labels[rows].any() if labels.ndim == 2 else len(rows)):
        what = "a label and features" if not scored.any() else "a label"
        raise UserError(f"the {name} features: no row has {what}; extract them from a dataset with classes")
    if labels.shape[1] != count if labels.ndim == 2 else labels.max() >= count:
        raise UserError(f"the {name} features: damaged, labels and class names do not match; extract them again")
    bad = rows[~np.isfinite(features.features[rows]).all(axis=1)]
    if len(bad):
        files = f"{counted(len(bad), 'row')} with values that are not finite ({_files(features, bad)})"
        raise UserError(f"the {name} features: {files}; check the weights, and extract them again")
    _note(features, np.flatnonzero(~scored), f"{name} row", "without features", notes)
    _note(features, np.flatnonzero(scored & ~has_label), f"{name} row", "without a label", notes)
    return rows


def _note(features: Features, rows: np.ndarray, noun: str, why: str, notes: list[str]) -> None:
    if len(rows):
        notes.append(f"left out: {counted(len(rows), noun)} {why} ({_files(features, rows)})")


def _files(features: Features, rows: np.ndarray) -> str:
    return truncate(list(dict.fromkeys(features.paths[row] for row in rows)), 3)


def _check_comparable(train: Features, test: Features) -> None:
    """Raise UserError if the test features are of another network, other settings or other classes."""
    pairs = {name: (train.about.get(key, ""), test.about.get(key, "")) for key, name in MUST_MATCH.items()}
    configs = [each.about.get("data_config", {}) for each in (train, test)]
    keys = dict.fromkeys(key for config in configs for key in config if key not in IGNORED_DATA_KEYS)
    pairs |= {f"data.{key}": tuple(config.get(key) for config in configs) for key in keys}
    pairs["number of features"] = train.features.shape[1], test.features.shape[1]
    pairs["number of classes"] = len(train.class_names), len(test.class_names)
    pairs |= {f"class {n}": pair for n, pair in enumerate(zip(train.class_names, test.class_names))}
    pairs["several labels per file"] = train.labels.ndim == 2, test.labels.ndim == 2
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            values = f"{key} is {format_value(theirs)}, {format_value(ours)} in the training features"
            raise UserError(f"the test features: {values}; extract both in the same way")


def _check_classes(targets: np.ndarray, groups: np.ndarray, names: Sequence[str], folds: int = 0) -> None:
    """Raise UserError for fewer than two classes, or for classes with fewer sources than folds."""
    sources = dict(zip(names, _sources_of_classes(targets, groups), strict=True))
    present = [name for name, count in sources.items() if count]
    if len(present) < 2 and (targets.sum(axis=1) == 1).all():
        raise UserError(f"the training features: one class ({format_value(present[0])}); at least two are needed")
    if few := [f"{format_value(name)} ({count})" for name, count in sources.items() if 0 < count < folds]:
        raise UserError(
            f"classes with fewer source videos than folds={folds}: {truncate(few)}; lower folds, or give test features"
        )
