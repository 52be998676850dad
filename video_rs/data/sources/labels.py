"""Label sets: any number of classes for each file, packed into two arrays that forked workers share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from video_rs.errors import UserError

SEPARATOR = ";"  # of the labels of one file in a list


class LabelSets:
    """The classes of N files.

    Args:
        ends: where the classes of each file end in `values`, int64 ``[N]``, ascending.
        values: class numbers of one file after the other, int32 ``[M]``, each once in a file, as they were written.
    """

    def __init__(self, ends: np.ndarray, values: np.ndarray) -> None:
        self.ends, self.values = np.asarray(ends, np.int64), np.asarray(values, np.int32)

    @classmethod
    def of(cls, sets: Iterable[Iterable[int]]) -> LabelSets:
        """From one iterable of class numbers per file; a class that is named twice counts once."""
        unique = [tuple(dict.fromkeys(map(int, each))) for each in sets]
        return cls(np.cumsum([len(each) for each in unique]), [value for each in unique for value in each])

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        """int32 class numbers of one file."""
        return self.values[self.ends[index - 1] if index else 0 : self.ends[index]]

    def first(self) -> np.ndarray:
        """The class that was written first for each file, int32 ``[N]``; -1 for a file without any."""
        starts = self._starts()
        labels = np.full(len(self), -1, np.int32)
        some = starts < self.ends
        labels[some] = self.values[starts[some]]
        return labels

    def take(self, indices: np.ndarray) -> LabelSets:
        """Of some files, in the order of `indices`."""
        starts = self._starts()[indices]
        lengths = self.ends[indices] - starts
        ends = np.cumsum(lengths)
        places = np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)
        return LabelSets(ends, self.values[places])

    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)[: len(self)]


def split_labels(written: str, place: str) -> tuple[str, ...]:
    """The labels in a field of a list, ``"run;jump"``; none in an empty one. Raises UserError, which names `place`."""
    if not written.strip():
        return ()
    labels = tuple(label.strip() for label in written.split(SEPARATOR))
    if "" in labels:
        raise UserError(f"{place}: '{written}' has an empty label before or after a ';': write label1;label2")
    return labels
