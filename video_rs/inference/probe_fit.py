"""Splits by source video, k nearest neighbours and logistic regression on features, with scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from video_rs.evaluation.metrics import metric_names, summarize
from video_rs.inference.features_file import Features
from video_rs.terminal import counted

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of scikit-learn's C, the inverse of the strength of regularisation."""
DEFAULTS = (1, 1.0)  # k and C if no validation part can be split off
VALIDATION_FOLDS = 5  # one of them is the validation part


def group_sources(*features: Features) -> np.ndarray:
    """Return a number for each row of all features. Rows of one source video or one file have the same number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sources = np.unique(np.concatenate([each.sources for each in features]), return_inverse=True)[1]
    files = np.unique([path for each in features for path in each.paths], return_inverse=True)[1]
    count = len(sources)
    links = coo_array((np.ones(count, bool), (sources, count + files)), shape=(2 * count, 2 * count))
    return connected_components(links, directed=False)[1][sources]


def assign_folds(classes: np.ndarray, groups: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Return the number of the fold of each row. All rows of a group are in one fold.

    Args:
        classes: int ``[N]``, to be balanced over the folds.
        groups: int ``[N]``, from :func:`group_sources`.
        folds: number of folds, at most that of groups.
        seed: seed of the order of the groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if np.bincount(classes).max() < folds:  # too few rows to balance
        classes = np.zeros_like(classes)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold = np.zeros(groups.max() + 1, np.int64)  # by group, so a group cannot be in two folds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class has fewer rows than folds
        for number, (_, rows) in enumerate(splitter.split(classes, classes, groups)):
            fold[groups[rows]] = number
    return fold[groups]


@dataclass(frozen=True, eq=False)
class ProbeData:
    """Rows to fit.

    Attributes:
        features: float32 ``[N, D]``.
        targets: bool ``[N, C]``.
        groups: int ``[N]``, see :func:`group_sources`.
        multi_label: True if a row can have several classes.
    """

    features: np.ndarray
    targets: np.ndarray
    groups: np.ndarray
    multi_label: bool

    @classmethod
    def of(cls, features: Features, rows: np.ndarray, groups: np.ndarray) -> ProbeData:
        labels, multi_label = features.labels[rows], features.labels.ndim == 2
        targets = labels if multi_label else labels[:, None] == np.arange(len(features.class_names))
        return cls(features.features[rows], targets, groups[rows], multi_label)

    @property
    def num_classes(self) -> int:
        return self.targets.shape[1]

    @property
    def classes(self) -> np.ndarray:
        """The class of each row, int64 ``[N]``: the first one if there are several, C if there is none."""
        return np.where(self.targets.any(axis=1), self.targets.argmax(axis=1), self.num_classes)

    def take(self, rows: np.ndarray) -> ProbeData:
        return ProbeData(self.features[rows], self.targets[rows], self.groups[rows], self.multi_label)

    def sources_of_classes(self) -> list[int]:
        """Return the number of sources of each class."""
        return [len(np.unique(self.groups[has_class])) for has_class in self.targets.T]

    def describe(self) -> str:
        sources = counted(len(np.unique(self.groups)), "source video")
        return f"{len(self.groups)} rows of {sources}, {self.features.shape[1]} features, {self.num_classes} classes"


@dataclass(frozen=True, eq=False)
class Linear:
    """Logistic regression on standardised features.

    Attributes:
        mean, std: float32 ``[D]``, of the training rows.
        weight: float32 ``[C, D]``.
        bias: float32 ``[C]``. It is infinite for a class without training rows, whose probability is 0.
        strength: the chosen C.
        multi_label: True if each logit has its own sigmoid.
    """

    mean: np.ndarray
    std: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    strength: float
    multi_label: bool

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return logits ``[N, C]`` of features ``[N, D]``."""
        return (features - self.mean) / self.std @ self.weight.T + self.bias

    def probs(self, features: np.ndarray) -> np.ndarray:
        """Return probabilities ``[N, C]`` of features ``[N, D]``."""
        from scipy.special import expit, softmax

        return expit(self.logits(features)) if self.multi_label else softmax(self.logits(features), axis=1)

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 weight and bias of one linear layer on features that are not standardised."""
        weight = self.weight.astype(np.float64) / self.std
        return weight.astype(np.float32), (self.bias - weight @ self.mean.astype(np.float64)).astype(np.float32)


def choose(data: ProbeData, seed: int = 0) -> tuple[int, float]:
    """Return k and C with the best metric on a validation part. Between equal ones the lower loss decides."""
    folds = min(VALIDATION_FOLDS, max(data.sources_of_classes()))
    is_val = (
        assign_folds(data.classes, data.groups, folds, seed) == 0 if folds > 1 else np.zeros(len(data.groups), bool)
    )
    if is_val.all() or not is_val.any():
        return DEFAULTS
    fit, val = data.take(~is_val), data.take(is_val)
    labels, scored = val.targets if val.multi_label else val.classes, np.ones(len(val.groups), bool)

    def quality(probs: np.ndarray) -> tuple[float, float]:
        metrics = summarize(probs, labels, scored)
        return float(np.nan_to_num(metrics[next(iter(metric_names(metrics)))])), -metrics["loss"]

    counts = [k for k in NEIGHBOURS if k <= len(fit.groups)]
    by_count = dict(zip(counts, map(quality, neighbour_probs(fit, val.features, counts)), strict=True))
    by_strength = {strength: quality(fit_linear(fit, strength).probs(val.features)) for strength in STRENGTHS}
    return max(by_count, key=by_count.get), max(by_strength, key=by_strength.get)


def neighbour_probs(data: ProbeData, features: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """Return the fraction of each class among the k nearest rows, ``[N, C]`` for each k of `counts`, ascending."""
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize

    mean, std = _standardisation(data.features)  # of unit vectors, the nearest by distance is the nearest by cosine
    index = NearestNeighbors(n_neighbors=max(counts), algorithm="brute").fit(normalize((data.features - mean) / std))
    nearest = index.kneighbors(normalize((features - mean) / std), return_distance=False)
    total, found = np.zeros((len(features), data.num_classes), np.float32), []
    for count, column in enumerate(nearest.T, 1):
        total += data.targets[column]
        if count in counts:
            found.append(total / count)
    return found


def fit_linear(data: ProbeData, strength: float) -> Linear:
    """Fit logistic regression on standardised features, for several labels one for each class.

    Args:
        data: rows to fit.
        strength: scikit-learn's C.
    """
    mean, std = _standardisation(data.features)
    features = (data.features - mean) / std
    weight, bias = np.zeros((data.num_classes, features.shape[1]), np.float32), np.zeros(data.num_classes, np.float32)
    if data.multi_label:
        for number, target in enumerate(data.targets.T):
            if target.all() or not target.any():
                bias[number] = np.inf if target.all() else -np.inf
            else:
                coef, intercept = _fit(features, target, strength)
                weight[number], bias[number] = coef[0], intercept[0]
        return Linear(mean, std, weight, bias, strength, multi_label=True)
    present = np.flatnonzero(data.targets.any(axis=0))
    bias[~data.targets.any(axis=0)] = -np.inf
    if len(present) > 1:
        coef, intercept = _fit(features, data.classes, strength)
        if len(present) == 2:  # scikit-learn has one logit for two classes
            coef, intercept = np.stack([-coef[0], coef[0]]) / 2, np.stack([-intercept[0], intercept[0]]) / 2
        weight[present], bias[present] = coef, intercept
    return Linear(mean, std, weight, bias, strength, multi_label=False)


def _fit(features: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(features, labels)
    return fitted.coef_, fitted.intercept_


def _standardisation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each feature, 1 for those that are constant up to rounding."""
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    std[std <= 1e-5 * np.abs(mean)] = 1
    return mean.astype(np.float32), std.astype(np.float32)
