"""k nearest neighbours and logistic regression on standardised features, with scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from video_rs.inference.features_file import Features


def targets_of(features: Features) -> np.ndarray:
    """Return bool ``[N, C]``, True for the classes of each row."""
    labels = features.labels
    return labels if labels.ndim == 2 else labels[:, None] == np.arange(len(features.class_names))


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear classifier of features.

    Attributes:
        weight: float32 ``[C, D]``.
        bias: float32 ``[C]``. It is infinite for a class that no training row, or each one, has.
        multi_label: True if each logit has its own sigmoid.
    """

    weight: np.ndarray
    bias: np.ndarray
    multi_label: bool

    def probs(self, features: np.ndarray) -> np.ndarray:
        """Return probabilities ``[N, C]`` of features ``[N, D]``."""
        from scipy.special import expit, softmax

        logits = features @ self.weight.T + self.bias
        return expit(logits) if self.multi_label else softmax(logits, axis=1)


class Fit:
    """Training rows, with features standardised by their own mean and standard deviation, and both methods on them."""

    def __init__(self, features: Features, rows: np.ndarray) -> None:
        self.targets, self.multi_label = targets_of(features)[rows], features.labels.ndim == 2
        x = features.features[rows]
        self.mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        x -= self.mean
        self.std = np.sqrt(np.einsum("nd,nd->d", x, x, dtype=np.float64) / len(x)).astype(np.float32)
        self.std[self.std <= 1e-5 * np.abs(self.mean)] = 1  # constant up to rounding
        x /= self.std
        self.features = x

    def neighbour_probs(self, features: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
        """Return the fraction of each class among the k rows of the highest cosine, ``[N, C]`` for each k."""
        from sklearn.neighbors import NearestNeighbors
        from sklearn.preprocessing import normalize

        # the nearest unit vector is that of the highest cosine; metric="cosine" takes a gigabyte more
        index = NearestNeighbors(n_neighbors=max(counts), algorithm="brute").fit(normalize(self.features))
        nearest = index.kneighbors(normalize((features - self.mean) / self.std), return_distance=False)
        return [sum(self.targets[column] for column in nearest.T[:k]) / k for k in counts]

    def logistic(self, strength: float) -> Linear:
        """Fit logistic regression, for several labels one for each class. `strength` is scikit-learn's C."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        model, present = LogisticRegression(C=strength, max_iter=1000), self.targets.any(axis=0)
        everywhere = self.targets.all(axis=0)
        weight = np.zeros((len(present), self.features.shape[1]))
        bias = np.where(present, np.where(everywhere & self.multi_label, np.inf, 0), -np.inf)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            if self.multi_label:
                for number in np.flatnonzero(present & ~everywhere):
                    model.fit(self.features, self.targets[:, number])
                    weight[number], bias[number] = model.coef_[0], model.intercept_[0]
            elif not everywhere.any():
                model.fit(self.features, self.targets.argmax(axis=1))
                weight[present], bias[present] = model.coef_, model.intercept_
                if present.sum() == 2:  # scikit-learn has one logit for two classes
                    sign = np.array([-0.5, 0.5])
                    weight[present], bias[present] = sign[:, None] * model.coef_, sign * model.intercept_
        weight /= self.std
        return Linear(weight.astype(np.float32), (bias - weight @ self.mean).astype(np.float32), self.multi_label)
