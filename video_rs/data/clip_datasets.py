"""The samples of training and evaluation.

``ClipDataset`` returns training clips, which depend only on their keys. ``ViewDataset`` returns all views of a video,
decoded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from video_rs.data.clips import TemporalSampling
from video_rs.data.sampler import SampleKey
from video_rs.data.segments import FrameRange, frame_range
from video_rs.data.sources.records import Records
from video_rs.data.transforms.crops import Box, TrainTransform, ViewTransform
from video_rs.data.video.decode import Video, open_video
from video_rs.errors import MediaError, StorageError, UserError
from video_rs.rng import keyed_rng

SAME_CLASS = 5  # replacements of a sample that are drawn from its class; later ones are files of other classes
MAX_REPLACEMENTS = 100


@dataclass(eq=False)
class ClipDataset(Dataset):
    """Training clips of videos. Images are treated as videos of one frame.

    A file that cannot be read is replaced by a random file of the same class, drawn from the sample's key, or of other
    classes if several files of the class cannot be read. A key always gives the same sample, alone or in a batch,
    independently of what was read before. Unreadable files are opened once.

    Args:
        records: the files and their labels.
        sampling: the temporal sampling of clips.
        transform: a ``TrainTransform``, or an object with its ``size``, ``filter``, ``box`` and ``finish``.
        seed: seed of the run.
        decoder: "pyav" or "decord", see :func:`video_rs.data.video.decode.open_video`.
        repeats: number of copies of a sample that share one decode, see :class:`SampleKey`. Each copy has its own crop,
            flip and augmentation.
        skip: ``{path: reason}`` of files that must not be opened. They are treated as unreadable.
        phases: sampling and transform of phases 1, 2 and so on, see :class:`SampleKey`. Phase 0 uses the arguments
            above.
        finishes: flip and augment the clips. If False, each sample contains its generator, and
            ``transform.finish_batch`` flips and augments on the device, with the same result.
    """

    records: Records
    _: KW_ONLY
    sampling: TemporalSampling
    transform: TrainTransform
    seed: int = 0
    decoder: str = "pyav"
    repeats: int = 1
    skip: Mapping[str, str] = field(default_factory=dict)
    phases: Sequence[tuple[TemporalSampling, TrainTransform]] = ()
    finishes: bool = True

    def __post_init__(self) -> None:
        self._unreadable: dict[int, str] = {}  # index of a record: reason

    def heartbeat(self, index: int) -> None:
        """Do nothing; a loader replaces this method.

        It is called with the number of a record just before its file is opened and before each copy is augmented, and
        with -1 when the sample or batch is done.
        """

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """Return one sample.

        Returns:
            A dict. clip: uint8 ``[T, S, S, C]``; frames: frame numbers in the file; index: index of the record that
            was read, which differs from the key if the file was replaced; label: see :func:`target`; broken:
            ``[(path, reason)]`` of the files that were replaced; rng: the sample's generator, if not ``finishes``.

        Raises:
            UserError: the file and all its replacements, of any class, could not be read.
            MachineError: the storage fails.
        """
        clips, rngs = self._empty_clips([key]), []
        index, frames, broken = self._fill(clips, [key], rngs)
        self.heartbeat(-1)
        label = target(self.records, index)
        sample = {"clip": clips[0], "frames": frames, "label": label, "index": index, "broken": broken}
        return sample if self.finishes else sample | {"rng": rngs[0]}

    def __getitems__(self, keys: Sequence[SampleKey]) -> dict[str, Any]:
        """Return a batch. Consecutive copies of a sample are decoded once.

        Returns:
            A dict. clip: uint8 ``[N, T, S, S, C]``, all of one phase; index: int64 ``[N]``; label: int64 ``[N]``, or
            float32 ``[N, classes]`` if files can have several labels; broken: as for a single sample, once per decode;
            rngs: the generators of the samples, if not ``finishes``.

        Raises:
            UserError: the file and all its replacements, of any class, could not be read.
            MachineError: the storage fails.
        """
        clips, broken, rngs = self._empty_clips(keys), [], []
        indices, labels = torch.empty(len(keys), dtype=torch.int64), torch.empty(len(keys), dtype=torch.int64)
        if self.records.multi_label:
            labels = torch.empty(len(keys), len(self.records.class_names))
        first = 0
        for _, copies in groupby(keys, self._use):
            copies = list(copies)
            part = slice(first, first + len(copies))
            index, _, replaced = self._fill(clips[part], copies, rngs)
            labels[part], indices[part] = target(self.records, index), index
            broken += replaced
            first = part.stop
        self.heartbeat(-1)
        batch = {"clip": clips, "label": labels, "index": indices, "broken": broken}
        return batch if self.finishes else batch | {"rngs": rngs}

    def _use(self, key: SampleKey) -> tuple[int, int, int]:
        return key.epoch, key.index, key.copy // self.repeats

    def _sizes(self, key: SampleKey) -> tuple[TemporalSampling, TrainTransform]:
        return self.phases[key.phase - 1] if key.phase else (self.sampling, self.transform)

    def _empty_clips(self, keys: Sequence[SampleKey]) -> Tensor:
        sampling, transform = self._sizes(keys[0])
        return _empty(len(keys), sampling.num_frames, transform.size, transform.size, 3)

    def _fill(
        self, clips: Tensor, copies: list[SampleKey], rngs: list[np.random.Generator]
    ) -> tuple[int, np.ndarray, list[tuple[str, str]]]:
        """Read the copies of one sample into ``[R, T, S, S, C]`` and append the generator of each to ``rngs``.

        Returns:
            The index of the record that was read, the frame numbers, and the files that were replaced.
        """
        use, (sampling, transform) = self._use(copies[0]), self._sizes(copies[0])
        index, broken, tried, labels = use[1], [], set(), self.records.labels
        for attempt in range(MAX_REPLACEMENTS + 1):
            path = self.records.path(index)
            drawn = [keyed_rng(self.seed, "sample", key.epoch, key.index, key.copy, attempt) for key in copies]
            try:
                if reason := self.skip.get(path) or self._unreadable.get(index):
                    raise MediaError(reason)
                self.heartbeat(index)
                with open_record(self.records, index, self.decoder) as video:
                    rng = keyed_rng(self.seed, "clip", *use, attempt)
                    frames = frame_range(video, *self.records.segment(index))
                    _, numbers = read_random_clip(video, frames, sampling, transform, rng, drawn, out=clips)
            except (MediaError, StorageError) as error:
                self._unreadable[index] = self.records.fault(error, index)
                broken.append((path, self._unreadable[index]))
                tried.add(self.records.name(index))
                candidates = labels == labels[index] if attempt < SAME_CLASS else labels != labels[use[1]]
                rng = keyed_rng(self.seed, "replace", *use, attempt)
                index = self._untried(np.flatnonzero(candidates), rng, tried)
                if index < 0:
                    break
                continue
            for clip, rng in zip(clips, drawn, strict=True) if self.finishes else ():
                self.heartbeat(index)
                finished = transform.finish(clip, rng)
                if finished is not clip:
                    clip.copy_(finished)
            rngs += drawn
            return index, numbers, broken
        self.heartbeat(-1)
        first = ": ".join(broken[0])
        raise UserError(
            f"{len(broken)} consecutive files cannot be read (the first: {first}): check the dataset and the disk"
        )

    def _untried(self, candidates: np.ndarray, rng: np.random.Generator, tried: set[str]) -> int:
        """Return a random candidate, or any other file if all were tried; -1 if there is none."""
        for indices in (candidates, np.arange(len(self.records))):
            for index in rng.permutation(indices):
                if self.records.name(index) not in tried:
                    return int(index)
        return -1


@dataclass(eq=False)
class ViewDataset(Dataset):
    """All views of each test video (`clips` clips times the crops of the transform), decoded once.

    Only the cropped frames of the views are held in memory, so memory does not depend on the length of the video.

    Args:
        records, sampling, decoder, skip: as for :class:`ClipDataset`.
        clips: number of evenly spaced clips per video.
        transform: returns the crops of a clip.
        stamps: :func:`video_rs.files.stamp` of the files that a loader added to `skip`. Changed files are read again.
    """

    records: Records
    _: KW_ONLY
    sampling: TemporalSampling
    clips: int
    transform: ViewTransform
    decoder: str = "pyav"
    skip: Mapping[str, str] = field(default_factory=dict)
    stamps: dict[str, tuple[int, int]] = field(default_factory=dict)

    def heartbeat(self, index: int) -> None:
        """Do nothing; see :class:`ClipDataset`."""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the views of one video.

        Returns:
            A dict. views: uint8 ``[V, T, size, size, C]``, in clip-major order; frames: the frame numbers of the clips,
            ``[clips, T]`` (both None if the file cannot be read); label: see :func:`target`; index: as given; error:
            the reason why the file cannot be read, or None.

        Raises:
            MachineError: the storage fails.
        """
        path = self.records.path(index)
        item = {"views": None, "frames": None, "label": target(self.records, index), "index": index, "error": None}
        if path in self.skip:
            return item | {"error": self.skip[path]}
        self.heartbeat(index)
        try:
            with open_record(self.records, index, self.decoder) as video:
                numbers = even_clips(frame_range(video, *self.records.segment(index)), self.sampling, self.clips)
                item |= {"views": clip_views(video.read, numbers, self.transform), "frames": numbers}
        except (MediaError, StorageError) as error:
            item["error"] = self.records.fault(error, index)
        self.heartbeat(-1)
        return item


def open_record(records: Records, index: int, decoder: str) -> Video:
    """Open the file of one record. Raise ``MediaError``."""
    return open_video(records.file(index), decoder, records.stream_index(index), records.listed_frames(index))


def even_clips(frames: FrameRange, sampling: TemporalSampling, clips: int) -> np.ndarray:
    """Return the frame numbers of evenly spaced clips in a range of frames, int64 ``[clips, T]``."""
    return frames.first + sampling.even_clips(frames.length, clips, frames.times)


def read_random_clip(
    video: Video,
    frames: FrameRange,
    sampling: TemporalSampling,
    transform: TrainTransform,
    clip_rng: np.random.Generator,
    crop_rngs: Sequence[np.random.Generator],
    out: Tensor | None = None,
) -> tuple[Tensor, np.ndarray]:
    """Read a random clip of a video with one random crop per generator, without flip and augmentation.

    Args:
        frames: the frames to draw the clip from.
        clip_rng: generator that draws the frames.
        crop_rngs: R generators, one per crop.
        out: uint8 ``[R, T, size, size, C]`` to write into.

    Returns:
        `out`, or a new tensor of its shape, and the frame numbers ``[T]``.
    """

    def draw_boxes(height: int, width: int) -> list[Box]:
        return [transform.box(height, width, rng) for rng in crop_rngs]

    numbers = frames.first + sampling.random_clip(frames.length, clip_rng, frames.times)
    return video.read_crops(numbers, draw_boxes, transform.size, filter=transform.filter, out=out), numbers


def clip_views(read: Callable[..., Tensor], indices: np.ndarray, transform: ViewTransform) -> Tensor:
    """Return the crops of clips that may share frames; each frame is read once.

    Args:
        read: ``read(numbers, short_side=, filter=)`` returns frames by ascending number, as ``Video.read`` does.
        indices: ``[clips, T]`` frame numbers.

    Returns:
        uint8 ``[clips * crops, T, size, size, C]``, in clip-major order.
    """
    unique, places = np.unique(indices, return_inverse=True)
    frames = read(unique, short_side=transform.short_side, filter=transform.filter)
    crops = transform.cut(frames)
    views = _empty(len(indices), len(crops), indices.shape[1], *crops[0].shape[1:])
    for clip, views_of_clip in zip(torch.from_numpy(places.reshape(indices.shape)), views, strict=True):
        for crop, view in zip(crops, views_of_clip, strict=True):
            torch.index_select(crop, 0, clip, out=view)
    return views.flatten(0, 1)


def target(records: Records, index: int) -> int | Tensor:
    """Return the label of a file; float32 ``[classes]`` of zeros and ones if files can have several labels."""
    if not records.multi_label:
        return records.label(index)
    hot = torch.zeros(len(records.class_names))
    hot[torch.from_numpy(records.label_set(index)).long()] = 1
    return hot


def _empty(*shape: int) -> Tensor:
    """Return an uninitialized uint8 tensor. In a worker it is in shared memory, to avoid a copy to the main process."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # as default_collate; share_memory_() would copy
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
