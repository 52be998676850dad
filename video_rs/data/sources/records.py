"""Which files a dataset has, and their labels, packed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from hashlib import sha1
from typing import TYPE_CHECKING

import numpy as np

from video_rs.data.shards import Member, Members
from video_rs.data.sources.labels import LabelSets
from video_rs.data.sources.paths import Paths

if TYPE_CHECKING:
    from video_rs.data.sources.dataset_index import VideoIndex
    from video_rs.data.video.stream_index import StreamIndex


class Records:
    """Paths and labels in a few arrays, so that forked workers share them for good (reference counts of Python objects
    would copy the list into each).

    Args:
        paths: of the files.
        labels: one per path, in ``[0, len(class_names))``; or any number per path, as ``LabelSets``.
        class_names: in the order of the labels.

    Attributes:
        labels: int32 ``[N]``; of label sets the class written first, -1 for a file without any.
        label_sets: the classes of each file where it may have any number of them, else None.
        class_names: as given.
        left_out: class folders without a video or an image in them.
        num_missing, missing: how many listed files are not there, and the first three.
        frames: int32 ``[N]``, how many frames a list says that each folder of frames has; None where none does.
        index: what the packets of the files tell, a ``VideoIndex``, where ``video-rs index`` has looked.
        members: where the files lie in shards; None for files of their own.
        share: how much of Kinetics it has, for start-up lines; "" for other datasets.
        sources: the ``source_key`` of each file, uint64 ``[N]``, where the list names the sources; else None.
        made: whether the split was made of training files, for want of one of its own.
        stands_in: whether this validation split is also the test split, for want of one.
    """

    frames: np.ndarray | None = None
    index: VideoIndex | None = None
    members: Members | None = None
    share = ""
    num_missing = 0
    missing: Sequence[str] = ()
    sources: np.ndarray | None = None
    made = False
    stands_in = False

    left_out: Sequence[str] = ()

    def __init__(self, paths: Iterable[str], labels: Iterable[int] | LabelSets, class_names: Sequence[str]) -> None:
        self._paths = paths if isinstance(paths, Paths) else Paths(map(os.fspath, paths))
        self.label_sets = labels if isinstance(labels, LabelSets) else None
        self.labels = self.label_sets.first() if self.multi_label else np.fromiter(labels, np.int32)
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Return the path of one file."""
        return self._paths[int(index)]

    def file(self, index: int) -> str | Member:
        """What ``open_video`` takes to read one file: its path, or where it lies in a shard."""
        path = self.path(index)
        return self.members.member(int(index), path) if self.members else path

    @property
    def multi_label(self) -> bool:
        """Whether a file may have any number of labels."""
        return self.label_sets is not None

    def label(self, index: int) -> int:
        """Of one file; the first of several, -1 for none."""
        return int(self.labels[index])

    def label_set(self, index: int) -> np.ndarray:
        """All labels of one file, int32; one where there are no label sets."""
        return self.label_sets[int(index)] if self.multi_label else self.labels[index : index + 1]

    def label_names(self, index: int) -> tuple[str, ...]:
        """The names of :meth:`label_set`."""
        return tuple(self.class_names[label] for label in self.label_set(index))

    def stream_index(self, index: int) -> StreamIndex | None:
        """What is known of the packets of one file."""
        return self.index.stream_index(int(index), self.path(index)) if self.index else None

    def listed(self, index: int) -> int:
        """How many frames a list says that one folder of frames has; 0 where none does."""
        return 0 if self.frames is None else int(self.frames[index])

    def packed_paths(self) -> bytes:
        """All paths, ended by zeros, and the folder that relative ones start from."""
        ended = bytes(self._paths.packed)
        return ended if os.path.isabs(self.path(0)) else ended + os.fsencode(os.getcwd())

    def fingerprint(self) -> str:
        """Of the classes, the file names and their labels, in order, wherever the files lie: 12 hexadecimal digits."""
        digest = sha1(self.labels.astype("<i4").tobytes())
        if self.multi_label:
            digest.update(b"sets" + self.label_sets.ends.astype("<i8").tobytes())
            digest.update(self.label_sets.values.astype("<i4").tobytes())
        if self.members and len(starts := self.members.starts()) > 1:  # the order of training depends on them
            digest.update(b"shards" + starts.astype("<i8").tobytes())
        digest.update("\0".join(self.class_names).encode(errors="surrogateescape") + b"\0")
        for index in range(len(self)):
            digest.update(b"\0" + os.path.basename(self._paths.encoded(index)))
        return digest.hexdigest()[:12]

    def describe(self) -> str:
        """One phrase for start-up lines: counts, fingerprint, whether there is an index, missing files."""
        values = self.label_sets.values if self.multi_label else self.labels
        found, total = np.unique(values), len(self.class_names)
        text = f"{len(self)} files, {len(found)} classes, "
        if len(found) < total:
            absent = [self.class_names[label] for label in np.setdiff1d(np.arange(total), found)[:3]]
            more = ", ..." if total - len(found) > len(absent) else ""
            text = f"{len(self)} files, {len(found)} of {total} classes (none of {', '.join(absent)}{more}), "
        text += f"shards: {len(self.members.starts())}, " if self.members else ""
        text += f"{len(values) / max(len(self), 1):.2f} labels a file, " if self.multi_label else ""
        text += f"fingerprint {self.fingerprint()}"
        text += ", indexed" if self.index else ""
        text += f"; {self.share}" if self.share else ""
        if self.num_missing:
            text += f"; {self.num_missing} listed files are missing, the first: {', '.join(self.missing)}"
        if self.left_out:
            first = ", ".join(self.left_out[:3])
            text += f"; {len(self.left_out)} folders have no known video or image in them, the first: {first}"
        return text

    def subset(self, indices: np.ndarray) -> Records:
        """Some of the files, with the same classes."""
        labels = self.label_sets.take(indices) if self.multi_label else self.labels[indices]
        part = Records((self.path(i) for i in indices), labels, self.class_names)
        part.sources = None if self.sources is None else self.sources[indices]
        part.frames = None if self.frames is None else self.frames[indices]
        part.members = self.members.take(indices) if self.members else None
        return part
