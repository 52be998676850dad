"""Datasets of clips: ``VideoDataset`` for users, and what the trainer and the evaluation make of it.

``ClipDataset`` gives training clips that depend on their keys alone, ``ViewDataset`` all views of a video from one
decode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from video_rs.data.clips import TemporalSampling
from video_rs.data.sampler import SampleKey
from video_rs.data.shards import File
from video_rs.data.sources.dataset_index import attach
from video_rs.data.sources.records import Records
from video_rs.data.sources.splits import LIST_SUFFIXES, load_splits
from video_rs.data.transforms.crops import TrainTransform, ViewTransform
from video_rs.data.transforms.video_transform import VideoTransform, create_transform, torch_seeded_rng
from video_rs.data.video.decode import Video, open_video
from video_rs.data.video.media import is_image
from video_rs.data.video.stream_index import StreamIndex
from video_rs.errors import MediaError, UserError
from video_rs.rng import keyed_rng

MAX_REPLACEMENTS = 10
HUNG = "hung the decoder"


class VideoDataset(Dataset):
    """The videos or images of one split, as clips for a network: ``dataset[3] -> (clip, label)``.

    It works with ``torch.utils.data.DataLoader``, whatever its workers and sampler. With a training transform every
    access draws another clip, from torch's generator: ``torch.manual_seed`` makes it reproducible. With an evaluation
    transform it is the centre crop of the middle clip.

    The clip is float32 ``[C, T, S, S]``, normalized; an image is a clip of one frame, ``[C, 1, S, S]``, as the image
    networks of this package take it (use ``clip.squeeze(1)`` for others). The label is an int, or with `multi_label` a
    float32 vector ``[classes]`` of zeros and ones. A file that cannot be read raises ``MediaError``, which names it.

    Args:
        root: a folder with ``train``, ``val`` and ``test`` folders of class folders, or with lists ``train.csv``, ...;
            a folder of class folders; the folder of an official release (UCF101, Kinetics, ...); shards. Without a
            "val" split a part of "train" is set aside. Or one list of lines "path label", which is the whole split.
            See docs/datasets.md.
        split: "train", "val" or "test".
        transform: of :func:`video_rs.create_transform`; None: for evaluation, with its defaults.
        decoder: "pyav" or "decord".
        multi_label: whether a file can have several labels; None: as the transform says.
        sources: other arguments of :func:`video_rs.data.sources.splits.load_splits`: ``class_names``, a file with one
            name per line in the order of the labels; ``val_fraction``; ``frame_folders``; ``fold``; ...

    Attributes:
        records: paths and labels of the files.
        transform, decoder: as given.
        classes: the names of the classes, in the order of the labels.

    Raises:
        UserError: the dataset is missing, empty or inconsistent, or consists of images and clips have several frames.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: VideoTransform | None = None,
        *,
        decoder: str = "pyav",
        multi_label: bool | None = None,
        **sources: Any,
    ) -> None:
        transform = transform or create_transform()
        multi_label = transform.multi_label if multi_label is None else multi_label
        place = {"root": str(root)}
        if str(root).endswith(LIST_SUFFIXES):
            place = {"val": str(root), split: str(root)}  # with a "val", none is made of "train"
        records = load_splits(**place, splits=(split,), multi_label=multi_label, **sources)[split]
        attach(records)
        self._set(records, transform, decoder)

    @classmethod
    def from_records(cls, records: Records, transform: VideoTransform, *, decoder: str = "pyav") -> VideoDataset:
        """Return the dataset of given paths and labels."""
        dataset = cls.__new__(cls)
        dataset._set(records, transform, decoder)
        return dataset

    def _set(self, records: Records, transform: VideoTransform, decoder: str) -> None:
        if transform.sampling.num_frames > 1 and is_image(path := records.path(0)):
            raise UserError(
                f"the data are images ({path}), data.num_frames={transform.sampling.num_frames} is for videos: set it "
                "to 1 and use an image network (imagenet_rs*.yaml; model.name=resnet_rs_* or timm/*)"
            )
        self.records, self.transform, self.decoder = records, transform, decoder
        self.classes = records.class_names

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        """Return the clip and the label of one file. Raise ``MediaError`` if it cannot be read."""
        index = range(len(self))[index]
        with _open(self.records, index, self.decoder) as video:
            clip = self._random_clip(video) if self.transform.is_training else self._centre_clip(video)
        return self.transform.normalize(clip), target(self.records, index)

    def _random_clip(self, video: Video) -> Tensor:
        rng = torch_seeded_rng()
        crops, _ = read_random_clip(video, self.transform.sampling, self.transform.spatial, rng, [rng])
        return self.transform.spatial.finish(crops[0], rng)

    def _centre_clip(self, video: Video) -> Tensor:
        frames = self.transform.sampling.even_clips(video.num_frames, 1, video.fps)
        return clip_views(video.read, frames, self.transform.spatial)[0]

    def training_samples(
        self,
        *,
        seed: int = 0,
        repeats: int = 1,
        phases: Sequence[tuple[int, int]] = (),
        skip: Collection[str] = frozenset(),
        finishes: bool = True,
    ) -> ClipDataset:
        """Return the samples of a training run, which depend on their keys alone; the transform is one for training.

        Args:
            phases: frames and size in pixels of the clips of phases 1, 2 and so on.
            seed, repeats, skip, finishes: as for :class:`ClipDataset`.
        """
        sampling, spatial = self.transform.sampling, self.transform.spatial
        if not self.transform.is_training:
            raise ValueError("training needs a transform for it: create_transform(..., is_training=True)")
        return ClipDataset(
            self.records,
            sampling=sampling,
            transform=spatial,
            seed=seed,
            decoder=self.decoder,
            repeats=repeats,
            skip=skip,
            phases=[(replace(sampling, num_frames=frames), spatial.with_size(size)) for frames, size in phases],
            finishes=finishes,
        )

    def views(self, clips: int = 1, crops: int = 1) -> ViewDataset:
        """Return `clips` clips of each video and `crops` crops of each; images have one clip."""
        spatial = self.transform.spatial
        if self.transform.is_training:
            raise ValueError("views need a transform for evaluation: create_transform(..., is_training=False)")
        return ViewDataset(
            self.records,
            sampling=self.transform.sampling,
            clips=clips if self.transform.sampling.num_frames > 1 else 1,
            transform=ViewTransform(spatial.short_side, spatial.size, crops, spatial.filter),
            decoder=self.decoder,
        )


class ClipDataset(Dataset):
    """Training clips of videos; images are videos of one frame.

    A file that cannot be read is replaced by another of its class, drawn from the sample's own key. What is drawn for a
    key is the same whether it is asked for by itself or in a batch, after whatever others.

    Args:
        records: the files and their labels.
        sampling: which frames make a clip.
        transform: a ``TrainTransform``, or what has its ``size``, ``filter``, ``box`` and ``finish``.
        seed: of the run.
        decoder: "pyav" or "decord", see :func:`video_rs.data.video.decode.open_video`.
        repeats: R copies of a sample share the frames of one decode; see :class:`SampleKey`. Crop, flip and
            augmentation are each copy's own.
        skip: paths that are never opened, since they hung a worker; they count as files that cannot be read.
        phases: sampling and transform of phases 1, 2 and so on, see :class:`SampleKey`; phase 0 has those above.
        finishes: whether clips are flipped and augmented. If not, samples carry the generators that have drawn their
            boxes, and ``transform.finish_batch`` does on the device what it would have done here.

    Attributes:
        watch: called with the number of the record just before its file is opened and before each copy is augmented,
            and with -1 when the sample or batch is done. Does nothing unless it is set.
    """

    def __init__(
        self,
        records: Records,
        *,
        sampling: TemporalSampling,
        transform: TrainTransform,
        seed: int = 0,
        decoder: str = "pyav",
        repeats: int = 1,
        skip: Collection[str] = frozenset(),
        phases: Sequence[tuple[TemporalSampling, TrainTransform]] = (),
        finishes: bool = True,
    ) -> None:
        self.finishes = finishes
        self.records, self.sampling, self.transform, self.phases = records, sampling, transform, tuple(phases)
        self.seed, self.decoder, self.repeats, self.skip = seed, decoder, repeats, frozenset(skip)
        self.watch: Callable[[int], None] = _unwatched

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """One sample.

        Returns:
            clip: uint8 ``[T, S, S, C]``; frames: their numbers in the file; label, index: of the file it comes from,
            its label set as :func:`multi_hot`; broken: ``[(path, reason)]`` of the files it had to replace; rng: the
            sample's generator, unless the dataset finishes its clips.

        Raises:
            UserError: ten replacements could not be read either.
        """
        clips, rngs = self._empty_clips([key]), []
        index, frames, broken = self._fill(clips, [key], rngs)
        self.watch(-1)
        label = target(self.records, index)
        sample = {"clip": clips[0], "frames": frames, "label": label, "index": index, "broken": broken}
        return sample if self.finishes else sample | {"rng": rngs[0]}

    def __getitems__(self, keys: Sequence[SampleKey]) -> dict[str, Any]:
        """A batch, written where it stays; consecutive copies of one use are decoded once.

        Returns:
            clip: uint8 ``[N, T, S, S, C]``, of the phase that all keys are of; label, index: int64 ``[N]``, or label
            float32 ``[N, classes]`` of label sets, see :func:`multi_hot`; broken: the entries of all samples, once for
            each decode; rngs: the samples' generators, unless the dataset finishes its clips.

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
        self.watch(-1)
        batch = {"clip": clips, "label": labels, "index": indices, "broken": broken}
        return batch if self.finishes else batch | {"rngs": rngs}

    def _use(self, key: SampleKey) -> tuple[int, int, int]:
        return key.epoch, key.index, key.copy // self.repeats

    def _sizes(self, phase: int) -> tuple[TemporalSampling, TrainTransform]:
        return self.phases[phase - 1] if phase else (self.sampling, self.transform)

    def _empty_clips(self, keys: Sequence[SampleKey]) -> Tensor:
        sampling, transform = self._sizes(keys[0].phase)
        return empty(len(keys), sampling.num_frames, transform.size, transform.size, 3)

    def _fill(
        self, clips: Tensor, copies: list[SampleKey], rngs: list[np.random.Generator]
    ) -> tuple[int, np.ndarray, list[tuple[str, str]]]:
        """Draws the copies of one use into ``[R, T, S, S, C]``; gives the record, its frames and what it replaced.

        ``rngs`` gets the generator of each copy.
        """
        use = self._use(copies[0])
        index, broken = use[1], []
        for attempt in range(MAX_REPLACEMENTS + 1):
            path = self.records.path(index)
            try:
                frames, drawn = self._decode(index, path, clips, copies, attempt)
                rngs += drawn
                return index, frames, broken
            except MediaError as error:
                broken.append((path, _reason(error, path)))
                rng = keyed_rng(self.seed, "replace", *use, attempt)
                index = self._replacement(index, rng, {path for path, _ in broken})
        self.watch(-1)
        first = ": ".join(broken[0])
        raise UserError(
            f"{len(broken)} files in a row cannot be read (the first: {first}): check the dataset and the disk"
        )

    def _decode(
        self, index: int, path: str, clips: Tensor, copies: list[SampleKey], attempt: int
    ) -> tuple[np.ndarray, list[np.random.Generator]]:
        if path in self.skip:
            raise MediaError(f"{path}: {HUNG}")
        self.watch(index)
        rngs = [keyed_rng(self.seed, "sample", key.epoch, key.index, key.copy, attempt) for key in copies]
        sampling, transform = self._sizes(copies[0].phase)
        with _open(self.records, index, self.decoder) as video:
            rng = keyed_rng(self.seed, "clip", *self._use(copies[0]), attempt)
            _, frames = read_random_clip(video, sampling, transform, rng, rngs, out=clips)
        for clip, rng in zip(clips, rngs, strict=True) if self.finishes else ():
            self.watch(index)
            finished = transform.finish(clip, rng)
            if finished is not clip:
                clip.copy_(finished)
        return frames, rngs

    def _replacement(self, index: int, rng: np.random.Generator, tried: set[str]) -> int:
        """Another file of the class, of several the one written first; of any class where it has no other."""
        same = np.flatnonzero(self.records.labels == self.records.labels[index])
        for candidates in (same, np.arange(len(self.records))):
            for candidate in rng.permutation(candidates):
                if self.records.path(candidate) not in tried:
                    return int(candidate)
        return index


class ViewDataset(Dataset):
    """All views of each test video: one decode, `clips` clips times the transform's crops.

    Only the frames of the views are in memory, at the size of the views, however long the video is.

    Args:
        records, sampling, decoder, skip: as for :class:`ClipDataset`.
        clips: spread evenly over the video.
        transform: gives the spatial views of a clip.

    Attributes:
        watch: as of :class:`ClipDataset`.
    """

    def __init__(
        self,
        records: Records,
        *,
        sampling: TemporalSampling,
        clips: int,
        transform: ViewTransform,
        decoder: str = "pyav",
        skip: Collection[str] = frozenset(),
    ) -> None:
        self.records, self.sampling, self.clips = records, sampling, clips
        self.transform, self.decoder, self.skip = transform, decoder, frozenset(skip)
        self.watch: Callable[[int], None] = _unwatched

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One video.

        Returns:
            views: uint8 ``[V, T, size, size, C]``, the crops of the first clip first; frames: the numbers of each
            clip's, ``[clips, T]``; both None if the file cannot be read; label, index: of the file, its label set as
            :func:`multi_hot`; error: the reason, or None.
        """
        path = self.records.path(index)
        item = {"views": None, "frames": None, "label": target(self.records, index), "index": index, "error": None}
        if path in self.skip:
            return item | {"error": HUNG}
        self.watch(index)
        try:
            stream_index, listed = self.records.stream_index(index), self.records.listed_frames(index)
            item["views"], item["frames"] = self.views(self.records.file(index), stream_index, listed)
        except MediaError as error:
            item["error"] = _reason(error, path)
        self.watch(-1)
        return item

    def views(self, path: File, stream_index: StreamIndex | None = None, listed: int = 0) -> tuple[Tensor, np.ndarray]:
        """The views of one file and the frame numbers of its clips. Raises ``MediaError``."""
        with open_video(path, self.decoder, stream_index, listed) as video:
            indices = self.sampling.even_clips(video.num_frames, self.clips, video.fps)
            return clip_views(video.read, indices, self.transform), indices


def _open(records: Records, index: int, decoder: str) -> Video:
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
    frames = sampling.random_clip(video.num_frames, clip_rng, video.fps)
    crops = video.read_crops(
        frames,
        lambda height, width: [transform.box(height, width, rng) for rng in crop_rngs],
        transform.size,
        filter=transform.filter,
        out=out,
    )
    return crops, frames


def clip_views(read: Callable[..., Tensor], indices: np.ndarray, transform: ViewTransform) -> Tensor:
    """The spatial views of clips that may share frames; each frame is read once.

    Args:
        read: ``read(numbers, short_side=, filter=)`` gives the frames of ascending numbers, as ``Video.read`` does.
        indices: ``[clips, T]`` frame numbers.

    Returns:
        uint8 ``[clips * crops, T, size, size, C]``, the crops of the first clip first.
    """
    unique, places = np.unique(indices, return_inverse=True)
    frames = read(unique, short_side=transform.short_side, filter=transform.filter)
    crops = transform.cut(frames)
    views = empty(len(indices), len(crops), indices.shape[1], *crops[0].shape[1:])
    for clip, views_of_clip in zip(torch.from_numpy(places.reshape(indices.shape)), views, strict=True):
        for crop, view in zip(crops, views_of_clip, strict=True):
            torch.index_select(crop, 0, clip, out=view)
    return views.flatten(0, 1)


def target(records: Records, index: int) -> int | Tensor:
    """The label of a file, or its label set as :func:`multi_hot`."""
    if not records.multi_label:
        return records.label(index)
    return multi_hot(records.label_set(index), len(records.class_names))


def multi_hot(labels: np.ndarray, num_classes: int) -> Tensor:
    """float32 ``[classes]``: 1 for each of the labels, 0 for the others."""
    hot = torch.zeros(num_classes)
    hot[torch.from_numpy(labels).long()] = 1
    return hot


def empty(*shape: int) -> Tensor:
    """uint8 memory to write into; in a worker it is shared, so that it reaches the main process without a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # as default_collate; share_memory_() copies
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _unwatched(index: int) -> None:
    pass


def _reason(error: MediaError, path: str) -> str:
    return str(error).removeprefix(f"{path}: ")
