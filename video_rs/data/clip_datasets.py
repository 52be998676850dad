"""The samples of training and evaluation.

``ClipDataset`` gives training clips that depend on their keys alone. ``ViewDataset`` gives all views of a video from
one decode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from video_rs.data.clips import TemporalSampling
from video_rs.data.sampler import SampleKey
from video_rs.data.sources.records import Records
from video_rs.data.transforms.crops import Box, TrainTransform, ViewTransform
from video_rs.data.video.decode import Video, open_video
from video_rs.errors import MediaError, UserError
from video_rs.rng import keyed_rng

MAX_REPLACEMENTS = 10
HUNG = "hung the decoder"


@dataclass(eq=False)
class ClipDataset(Dataset):
    """Training clips of videos; images are videos of one frame.

    A file that cannot be read is replaced by another one of its class, drawn from the sample's own key. A key gives the
    same sample whether it is read alone or in a batch, and whatever was read before.

    Args:
        records: the files and their labels.
        sampling: which frames make a clip.
        transform: a ``TrainTransform``, or an object with its ``size``, ``filter``, ``box`` and ``finish``.
        seed: of the run.
        decoder: "pyav" or "decord", see :func:`video_rs.data.video.decode.open_video`.
        repeats: R copies of a sample share the frames of one decode; see :class:`SampleKey`. Each copy has its own
            crop, flip and augmentation.
        skip: paths that are never opened because they hung a worker; they count as files that cannot be read.
        phases: sampling and transform of phases 1, 2 and so on, see :class:`SampleKey`; phase 0 has those above.
        finishes: flip and augment the clips. If False, samples carry the generators that have drawn their crops, and
            ``transform.finish_batch`` does the rest on the device, with the same result.
    """

    records: Records
    _: KW_ONLY
    sampling: TemporalSampling
    transform: TrainTransform
    seed: int = 0
    decoder: str = "pyav"
    repeats: int = 1
    skip: Collection[str] = frozenset()
    phases: Sequence[tuple[TemporalSampling, TrainTransform]] = ()
    finishes: bool = True

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
            clip: uint8 ``[T, S, S, C]``; frames: their numbers in the file; index: the record that was read, which
            replaces the key's own if that cannot be read; label: its label, see :func:`target`; broken:
            ``[(path, reason)]`` of the files that were replaced; rng: the sample's generator, with ``finishes=False``.

        Raises:
            UserError: ten replacements could not be read either.
        """
        clips, rngs = self._empty_clips([key]), []
        index, frames, broken = self._fill(clips, [key], rngs)
        self.heartbeat(-1)
        label = target(self.records, index)
        sample = {"clip": clips[0], "frames": frames, "label": label, "index": index, "broken": broken}
        return sample if self.finishes else sample | {"rng": rngs[0]}

    def __getitems__(self, keys: Sequence[SampleKey]) -> dict[str, Any]:
        """Return a batch; consecutive copies of one use are decoded once.

        Returns:
            clip: uint8 ``[N, T, S, S, C]``, all of one phase; index: int64 ``[N]``; label: int64 ``[N]``,
            or float32 ``[N, classes]`` where files can have several; broken: as of one sample, once per decode; rngs:
            the samples' generators, with ``finishes=False``.

        Raises:
            UserError: ten replacements of a file could not be read either.
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
        """Read the copies of one use into ``[R, T, S, S, C]`` and append the generator of each to ``rngs``.

        Returns:
            the record that was read, the frame numbers, and the files that were replaced.
        """
        use, (sampling, transform) = self._use(copies[0]), self._sizes(copies[0])
        index, broken = use[1], []
        for attempt in range(MAX_REPLACEMENTS + 1):
            path = self.records.path(index)
            drawn = [keyed_rng(self.seed, "sample", key.epoch, key.index, key.copy, attempt) for key in copies]
            try:
                if path in self.skip:
                    raise MediaError(f"{path}: {HUNG}")
                self.heartbeat(index)
                with open_record(self.records, index, self.decoder) as video:
                    rng = keyed_rng(self.seed, "clip", *use, attempt)
                    _, frames = read_random_clip(video, sampling, transform, rng, drawn, out=clips)
            except MediaError as error:
                broken.append((path, _reason(error, path)))
                rng = keyed_rng(self.seed, "replace", *use, attempt)
                index = self._replacement(index, rng, {path for path, _ in broken})
                continue
            for clip, rng in zip(clips, drawn, strict=True) if self.finishes else ():
                self.heartbeat(index)
                finished = transform.finish(clip, rng)
                if finished is not clip:
                    clip.copy_(finished)
            rngs += drawn
            return index, frames, broken
        self.heartbeat(-1)
        first = ": ".join(broken[0])
        raise UserError(
            f"{len(broken)} files in a row cannot be read (the first: {first}): check the dataset and the disk"
        )

    def _replacement(self, index: int, rng: np.random.Generator, tried: set[str]) -> int:
        """Return another file with the same first label, or any other file if there is none."""
        same = np.flatnonzero(self.records.labels == self.records.labels[index])
        for candidates in (same, np.arange(len(self.records))):
            for candidate in rng.permutation(candidates):
                if self.records.path(candidate) not in tried:
                    return int(candidate)
        return index


@dataclass(eq=False)
class ViewDataset(Dataset):
    """All views of each test video: one decode, `clips` clips times the crops of the transform.

    Only the frames of the views are held in memory, at the size of the views, however long the video is.

    Args:
        records, sampling, decoder, skip: as for :class:`ClipDataset`.
        clips: clips of a video, evenly spaced.
        transform: gives the crops of a clip.
    """

    records: Records
    _: KW_ONLY
    sampling: TemporalSampling
    clips: int
    transform: ViewTransform
    decoder: str = "pyav"
    skip: Collection[str] = frozenset()

    def heartbeat(self, index: int) -> None:
        """Do nothing; see :class:`ClipDataset`."""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the views of one video.

        Returns:
            views: uint8 ``[V, T, size, size, C]``, the crops of the first clip first; frames: the frame numbers of the
            clips, ``[clips, T]``; both None if the file cannot be read; label: see :func:`target`; index: as given;
            error: why the file cannot be read, or None.
        """
        path = self.records.path(index)
        item = {"views": None, "frames": None, "label": target(self.records, index), "index": index, "error": None}
        if path in self.skip:
            return item | {"error": HUNG}
        self.heartbeat(index)
        try:
            with open_record(self.records, index, self.decoder) as video:
                frames = self.sampling.even_clips(video.num_frames, self.clips, video.fps)
                item |= {"views": clip_views(video.read, frames, self.transform), "frames": frames}
        except MediaError as error:
            item["error"] = _reason(error, path)
        self.heartbeat(-1)
        return item


def open_record(records: Records, index: int, decoder: str) -> Video:
    """Open the file of one record. Raise ``MediaError``."""
    return open_video(records.file(index), decoder, records.stream_index(index), records.listed_frames(index))


def read_random_clip(
    video: Video,
    sampling: TemporalSampling,
    transform: TrainTransform,
    clip_rng: np.random.Generator,
    crop_rngs: Sequence[np.random.Generator],
    out: Tensor | None = None,
) -> tuple[Tensor, np.ndarray]:
    """Read a random clip of a video, in one random crop per generator, before flip and augmentation.

    Args:
        clip_rng: draws the frames.
        crop_rngs: R generators, one per crop.
        out: uint8 ``[R, T, size, size, C]`` to write into.

    Returns:
        `out`, or a new tensor of its shape, and the frame numbers ``[T]``.
    """

    def draw_boxes(height: int, width: int) -> list[Box]:
        return [transform.box(height, width, rng) for rng in crop_rngs]

    frames = sampling.random_clip(video.num_frames, clip_rng, video.fps)
    return video.read_crops(frames, draw_boxes, transform.size, filter=transform.filter, out=out), frames


def clip_views(read: Callable[..., Tensor], indices: np.ndarray, transform: ViewTransform) -> Tensor:
    """Return the crops of clips that may share frames; each frame is read once.

    Args:
        read: ``read(numbers, short_side=, filter=)`` returns the frames of ascending numbers, as ``Video.read`` does.
        indices: ``[clips, T]`` frame numbers.

    Returns:
        uint8 ``[clips * crops, T, size, size, C]``, the crops of the first clip first.
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
    """Return the label of a file, or float32 ``[classes]`` of zeros and ones where files can have several labels."""
    if not records.multi_label:
        return records.label(index)
    hot = torch.zeros(len(records.class_names))
    hot[torch.from_numpy(records.label_set(index)).long()] = 1
    return hot


def _empty(*shape: int) -> Tensor:
    """Return uint8 memory to write into. In a worker it is shared, and reaches the main process without a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # as default_collate; share_memory_() would copy
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _reason(error: MediaError, path: str) -> str:
    return str(error).removeprefix(f"{path}: ")
