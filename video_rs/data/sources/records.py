"""The samples of one split: paths and labels in packed arrays."""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha1
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from video_rs.data import storage
from video_rs.data.shards import Member, Members
from video_rs.data.sources.tables import format_path, shorten
from video_rs.errors import MediaError, PathError, StorageError, first_line, printable

if TYPE_CHECKING:
    from video_rs.data.video.stream_index import StreamIndex

SPLITS = ("train", "val", "test")
SEPARATOR = ";"  # between the labels of one file in a list
_CODEC = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()  # as os.fsencode, in half the time


class Paths:
    """File names in one buffer.

    A million Python strings would be copied into every forked worker as reference counts change, and would fragment the
    heap once freed.

    Attributes:
        packed: all names, each followed by a zero byte.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self.packed, self._ends = bytearray(), array("q")
        for path in paths:
            self.append(path)

    def append(self, path: str) -> None:
        """Append one name."""
        self.packed += path.encode(*_CODEC)
        self.packed.append(0)
        self._ends.append(len(self.packed))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        return self.encoded(index).decode(*_CODEC)

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def encoded(self, index: int) -> bytes:
        """Return one name in the encoding of the file system."""
        return bytes(self.packed[self._ends[index - 1] if index else 0 : self._ends[index] - 1])


class LabelSets:
    """The classes of N files, with any number of classes per file, in two arrays.

    Args:
        ends: end of each file's classes in `values`, int64 ``[N]``, ascending.
        values: class numbers of all files, int32 ``[M]``, unique within a file, in the order of the list.
    """

    def __init__(self, ends: np.ndarray, values: np.ndarray) -> None:
        self.ends, self.values = np.asarray(ends, np.int64), np.asarray(values, np.int32)

    @classmethod
    def pack(cls, sets: Iterable[Iterable[int]]) -> LabelSets:
        """Pack one iterable of class numbers per file. Repeated numbers are dropped."""
        unique = [tuple(dict.fromkeys(map(int, each))) for each in sets]
        return cls(np.cumsum([len(each) for each in unique]), [value for each in unique for value in each])

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the int32 class numbers of one file."""
        return self.values[self.ends[index - 1] if index else 0 : self.ends[index]]

    def first(self) -> np.ndarray:
        """Return the first class of each file, int32 ``[N]``; -1 for a file without classes."""
        starts = np.append(0, self.ends)[: len(self)]
        return np.where(starts < self.ends, np.append(self.values, np.int32(-1))[starts], np.int32(-1))


def segment_name(path: str, start: float, end: float) -> str:
    """Return a path with its segment for messages, such as "a.mp4 (1 s to 2.5 s)". See :meth:`Records.segment`."""
    return f"{path} ({start:g} s to {f'{end:g} s' if end else 'the end'})" if start or end else path


class Records:
    """Paths and labels in NumPy arrays.

    Workers share them; a list of Python objects would be copied page by page as reference counts change.

    Args:
        paths: paths of the files.
        labels: one label per path, in ``[0, len(class_names))``; or ``LabelSets`` with any number of labels per path.
        class_names: class names in the order of the labels.

    Attributes:
        labels: int32 ``[N]``; for label sets, the first class of each file, or -1 for a file without classes.
        label_sets: the classes of each file if it can have several, else None.
        class_names: as given.
        empty_folders: class folders without a video or an image.
        notes: further phrases for :meth:`describe` about entries that were left out or resolved.
        num_missing, missing: number of listed files that do not exist, and the first three.
        frames: int32 ``[N]``, number of frames in each frame folder according to the list; None if not listed.
        segments: float64 ``[N, 2]``, start and end of each segment in seconds; an end of 0 is the end of the file. None
            if all files are whole.
        index: the ``dataset_index.VideoIndex`` made by ``video-rs index``, or None.
        members: the position of each file in its shard; None for separate files.
        coverage: the part of Kinetics that exists on disk, for log lines; "" for other datasets.
        sources: the ``holdout.source_key`` of each file, uint64 ``[N]``; None if the list does not name the sources.
        held_out: True if the split was held out from the training files.
        used_as_test: True if this validation split is also the test split.
        root: folder of the dataset; "" if unknown.
    """

    frames: np.ndarray | None = None
    segments: np.ndarray | None = None
    index: Any = None
    members: Members | None = None
    coverage = ""
    num_missing = 0
    missing: Sequence[str] = ()
    empty_folders: Sequence[str] = ()
    notes: Sequence[str] = ()
    sources: np.ndarray | None = None
    held_out = False
    used_as_test = False
    root = ""

    def __init__(self, paths: Iterable[str], labels: Iterable[int] | LabelSets, class_names: Sequence[str]) -> None:
        self._paths = paths if isinstance(paths, Paths) else Paths(map(os.fspath, paths))
        self.label_sets = labels if isinstance(labels, LabelSets) else None
        self.labels = self.label_sets.first() if self.multi_label else np.fromiter(labels, np.int32)
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        """True if a file can have several labels."""
        return self.label_sets is not None

    def path(self, index: int) -> str:
        """Return the path of one file."""
        return self._paths[int(index)]

    def segment(self, index: int) -> tuple[float, float]:
        """Return start and end of one segment in seconds. An end of 0 is the end of the file, (0, 0) the whole file."""
        return (0.0, 0.0) if self.segments is None else tuple(self.segments[int(index)].tolist())

    def name(self, index: int) -> str:
        """Return the path of one file for messages, with its segment if there is one."""
        return segment_name(self.path(index), *self.segment(index))

    def file(self, index: int) -> str | Member:
        """Return the path of one file, or its position in a shard, as an argument of ``open_video``."""
        path = self.path(index)
        return self.members.member(int(index), path) if self.members else path

    def other_files(self, index: int, *, spread: bool = False) -> list[str]:
        """Return the paths of three other files: the nearest ones, or ones that are spread over all files."""
        near = (index + sign * distance for distance in range(1, len(self)) for sign in (-1, 1))
        far = (index + len(self) * quarter // 4 for quarter in (1, 2, 3)) if spread else ()
        found = {self.path(index): None}
        for each in chain(far, near):
            found[self.path(each % len(self))] = None
            if len(found) > 3:
                break
        return list(found)[1:]

    def fault(self, error: MediaError | StorageError, index: int) -> str:
        """Return the reason why one file cannot be read, for tables.

        Raise ``MachineError`` if other files cannot be read either: the storage has failed. After a failed read, the
        nearest files are tried, because a dataset can be on several disks. If the file is missing, files of the whole
        dataset are tried, because its folder may have been deleted.
        """
        if isinstance(error, StorageError) and not self.members:
            error = storage.diagnose(error, self.other_files(index, spread=isinstance(error, PathError)), self.root)
        if not isinstance(error, MediaError):
            raise error
        return first_line(error, 1000, prefix=f"{self.path(index)}: ")

    def label(self, index: int) -> int:
        """Return the label of one file: the first one if there are several, -1 if there is none."""
        return int(self.labels[index])

    def label_set(self, index: int) -> np.ndarray:
        """Return all labels of one file, int32."""
        return self.label_sets[int(index)] if self.multi_label else self.labels[index : index + 1]

    def label_names(self, index: int) -> tuple[str, ...]:
        """Return the names of :meth:`label_set`."""
        return tuple(self.class_names[label] for label in self.label_set(index))

    def stream_index(self, index: int) -> StreamIndex | None:
        """Return the stream index of one file, or None if the file must be scanned."""
        return self.index.stream_index(int(index), self.path(index)) if self.index else None

    def listed_frames(self, index: int) -> int:
        """Return the listed number of frames of one frame folder; 0 if it is not listed."""
        return 0 if self.frames is None else int(self.frames[index])

    def packed_paths(self) -> bytes:
        """Return all paths, each followed by a zero byte, plus the working directory if they are relative."""
        packed = bytes(self._paths.packed)
        return packed if os.path.isabs(self.path(0)) else packed + os.fsencode(os.getcwd())

    def fingerprint(self) -> str:
        """Return 12 hexadecimal digits of a hash of the classes, file names (without folders) and labels, in order."""
        digest = sha1(self.labels.astype("<i4").tobytes())
        if self.multi_label:
            digest.update(b"sets" + self.label_sets.ends.astype("<i8").tobytes())
            digest.update(self.label_sets.values.astype("<i4").tobytes())
        if self.members and len(starts := self.members.starts()) > 1:  # they change the order of training
            digest.update(b"shards" + starts.astype("<i8").tobytes())
        if self.segments is not None:
            digest.update(b"segments" + self.segments.astype("<f8").tobytes())
        digest.update("\0".join(self.class_names).encode(errors="surrogateescape") + b"\0")
        for index in range(len(self)):
            digest.update(b"\0" + os.path.basename(self._paths.encoded(index)))
        return digest.hexdigest()[:12]

    def describe(self) -> str:
        """Return a one-line summary for logs: counts, fingerprint, index, missing files, empty folders."""
        values = self.label_sets.values if self.multi_label else self.labels
        absent = np.setdiff1d(np.arange(len(self.class_names)), values)
        classes = f"{len(self.class_names)} classes"
        if len(absent):
            first = ", ".join([shorten(self.class_names[label]) for label in absent[:3]] + ["..."] * (len(absent) > 3))
            classes = f"{len(self.class_names) - len(absent)} of {classes} (none of {first})"
        text = f"{len(self)} {'files' if self.segments is None else 'segments'}, {classes}, "
        text += f"shards: {len(self.members.starts())}, " if self.members else ""
        text += f"{len(values) / max(len(self), 1):.2f} labels per file, " if self.multi_label else ""
        text += f"fingerprint {self.fingerprint()}"
        text += ", indexed" if self.index else ""
        text += f"; {self.coverage}" if self.coverage else ""
        if self.num_missing:
            text += (
                f"; {self.num_missing} listed files are missing, the first: {', '.join(map(format_path, self.missing))}"
            )
        if self.empty_folders:
            first = ", ".join(self.empty_folders[:3])
            text += f"; {len(self.empty_folders)} folders contain no video or image, the first: {first}"
        return printable("; ".join([text, *self.notes]))

    def subset(self, indices: np.ndarray) -> Records:
        """Return some of the files, with the same classes."""
        labels = LabelSets.pack(map(self.label_set, indices)) if self.multi_label else self.labels[indices]
        part = Records((self.path(i) for i in indices), labels, self.class_names)
        part.sources = None if self.sources is None else self.sources[indices]
        part.frames = None if self.frames is None else self.frames[indices]
        part.segments = None if self.segments is None else self.segments[indices]
        part.members = self.members.take(indices) if self.members else None
        part.root = self.root
        return part
