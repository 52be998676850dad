"""Samples: a training clip that depends on its key alone, and all views of a test video from one decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from video_rs.data.clips import train_indices, view_indices
from video_rs.data.decode import open_video
from video_rs.data.records import Records
from video_rs.data.sampler import SampleKey
from video_rs.data.transforms import ViewTransform
from video_rs.errors import MediaError, UserError
from video_rs.rng import keyed_rng

MAX_REPLACEMENTS = 10


class ClipDataset(Dataset):
    """Training clips of videos; images are videos of one frame.

    A file that cannot be read is replaced by another of its class, drawn from the sample's own key.

    Args:
        records: the files and their labels.
        num_frames, stride: of the temporal sampling, in frames.
        transform: ``transform(clip_THWC, rng) -> clip_THWC``.
        seed: of the run.
        decoder: "auto", "decord" or "pyav".
    """

    def __init__(
        self,
        records: Records,
        *,
        num_frames: int,
        stride: int,
        transform: Callable[[Tensor, np.random.Generator], Tensor],
        seed: int = 0,
        decoder: str = "auto",
    ) -> None:
        self.records, self.num_frames, self.stride = records, num_frames, stride
        self.transform, self.seed, self.decoder = transform, seed, decoder

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """One sample.

        Returns:
            clip: uint8 ``[T, H, W, C]``; frames: their numbers in the file; label, index: of the file it comes from;
            broken: ``[(path, reason)]`` of the files it had to replace.

        Raises:
            UserError: ten replacements could not be read either.
        """
        broken: list[tuple[str, str]] = []
        index = key.index
        for attempt in range(MAX_REPLACEMENTS + 1):
            rng = keyed_rng(self.seed, "sample", *key, attempt)
            try:
                clip, frames = self._clip(index, rng)
            except MediaError as error:
                path = self.records.path(index)
                broken.append((path, _reason(error, path)))
                index = self._replacement(index, rng, {path for path, _ in broken})
            else:
                label = self.records.label(index)
                return {"clip": clip, "frames": frames, "label": label, "index": index, "broken": broken}
        first = ": ".join(broken[0])
        raise UserError(
            f"{len(broken)} files in a row cannot be read (the first: {first}): check the dataset and the disk"
        )

    def _clip(self, index: int, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        with open_video(self.records.path(index), self.decoder) as video:
            indices = train_indices(video.num_frames, self.num_frames, self.stride, rng)
            frames = video.read(indices)
        return self.transform(frames, rng), indices

    def _replacement(self, index: int, rng: np.random.Generator, tried: set[str]) -> int:
        """Another file of the class; of any class where it has no other."""
        same = np.flatnonzero(self.records.labels == self.records.labels[index])
        for candidates in (same, np.arange(len(self.records))):
            for candidate in rng.permutation(candidates)[: MAX_REPLACEMENTS + 2]:
                if self.records.path(candidate) not in tried:
                    return int(candidate)
        return index


class ViewDataset(Dataset):
    """All views of each test video: one decode, `clips` clips times the transform's crops.

    Args:
        records, num_frames, stride, decoder: as for :class:`ClipDataset`.
        clips: spread evenly over the video.
        transform: gives the spatial views of a clip.
    """

    def __init__(
        self,
        records: Records,
        *,
        num_frames: int,
        stride: int,
        clips: int,
        transform: ViewTransform,
        decoder: str = "auto",
    ) -> None:
        self.records, self.num_frames, self.stride = records, num_frames, stride
        self.clips, self.transform, self.decoder = clips, transform, decoder

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One video.

        Returns:
            views: uint8 ``[V, T, size, size, C]``, the crops of the first clip first; frames: the numbers of each
            clip's, ``[clips, T]``; both None if the file cannot be read; label, index: of the file; error: the reason,
            or None.
        """
        path = self.records.path(index)
        item = {"views": None, "frames": None, "label": self.records.label(index), "index": index, "error": None}
        try:
            item["views"], item["frames"] = self.views(path)
        except MediaError as error:
            item["error"] = _reason(error, path)
        return item

    def views(self, path: str) -> tuple[Tensor, np.ndarray]:
        """The views of one file and the frame numbers of its clips. Raises ``MediaError``."""
        with open_video(path, self.decoder) as video:
            indices = view_indices(video.num_frames, self.num_frames, self.stride, self.clips)
            return clip_views(video.read, indices, self.transform), indices


def clip_views(read: Callable[..., Tensor], indices: np.ndarray, transform: ViewTransform) -> Tensor:
    """The spatial views of clips that may share frames; each frame is read once.

    Args:
        read: ``read(numbers, short_side=, filter=)`` gives the frames of ascending numbers, as ``Video.read`` does.
        indices: ``[clips, T]`` frame numbers.

    Returns:
        uint8 ``[clips * crops, T, size, size, C]``, the crops of the first clip first.
    """
    unique, places = np.unique(indices, return_inverse=True)
    crops = transform(read(unique, short_side=transform.short_side, filter=transform.filter))
    views = crops[:, torch.from_numpy(places.reshape(indices.shape))]  # [crops, clips, T, size, size, C]
    return views.transpose(0, 1).flatten(0, 1)


def _reason(error: MediaError, path: str) -> str:
    return str(error).removeprefix(f"{path}: ")
