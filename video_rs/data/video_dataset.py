"""``VideoDataset``, a map-style torch dataset of clips."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from video_rs.data.clip_datasets import (
    ClipDataset,
    ViewDataset,
    clip_views,
    even_clips,
    open_record,
    read_random_clip,
    target,
)
from video_rs.data.segments import frame_range
from video_rs.data.sources.dataset_index import attach
from video_rs.data.sources.lists import list_splits
from video_rs.data.sources.records import Records
from video_rs.data.sources.splits import LIST_SUFFIXES, SPLITS, load_splits
from video_rs.data.transforms.crops import ViewTransform
from video_rs.data.transforms.video_transform import VideoTransform, create_transform, torch_seeded_rng
from video_rs.data.video.media import is_image
from video_rs.errors import UserError
from video_rs.files import expand_path


class VideoDataset(Dataset):
    """The videos or images of one split as clips: ``dataset[3] -> (clip, label)``.

        transform = video_rs.create_transform(**model.data_config, is_training=True)
        train = video_rs.VideoDataset("/data/mine", "train", transform)
        loader = torch.utils.data.DataLoader(train, batch_size=4, shuffle=True, num_workers=2)

    Works with ``torch.utils.data.DataLoader`` and any number of workers and any sampler. With a training transform,
    every access draws a random clip from torch's generator; use ``torch.manual_seed`` to make it reproducible. With an
    evaluation transform, the clip is the centre crop of the middle clip of the video.

    The clip is float32 ``[C, T, S, S]``, normalized. An image is a clip of one frame, ``[C, 1, S, S]``, which the image
    networks of this package accept; use ``clip.squeeze(1)`` for other networks. The label is an int, or with
    `multi_label` a float32 vector ``[classes]`` of zeros and ones. A file that cannot be read raises ``MediaError``.

    Args:
        root: a folder with ``train``, ``val`` and ``test`` folders of class folders, or with lists ``train.csv``, ...;
            a folder of class folders; the folder of an official release (UCF101, Kinetics, ...); shards. Without a
            "val" split a part of "train" is set aside. Or one list of lines "path label", which is the whole split
            unless it has a column "split". Two lists are numbered separately unless `class_names` is given. See
            docs/datasets.md.
        split: "train", "val" or "test".
        transform: from :func:`video_rs.create_transform`; None for the default evaluation transform.
        decoder: "pyav" or "decord".
        multi_label: True if a file can have several labels; None to use the setting of the transform.
        sources: other arguments of :func:`video_rs.data.sources.splits.load_splits`: ``class_names``, a file with one
            name per line in the order of the labels; ``val_fraction``; ``frame_folders``; ``fold``; ...

    Attributes:
        records: paths and labels of the files.
        transform, decoder: as given.
        classes: the names of the classes, in the order of the labels.

    Raises:
        UserError: the split has another name; the dataset is missing, empty or inconsistent, or consists of images
            although clips have several frames.
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
        if not isinstance(transform, VideoTransform):
            raise TypeError(f"transform must be made by video_rs.create_transform, got {type(transform).__name__}")
        if split not in SPLITS:
            raise UserError(f"split {split!r}: must be train, val or test")
        multi_label = transform.multi_label if multi_label is None else multi_label
        root = expand_path(root)
        place = {"root": str(root)}
        if str(root).endswith(LIST_SUFFIXES):
            # with a "val", no part of "train" is held out
            has_splits = os.path.isfile(root) and list_splits(str(root))
            place = {"list": str(root)} if has_splits else {"val": str(root), split: str(root)}
        records = load_splits(**place, splits=(split,), multi_label=multi_label, **sources)[split]
        attach(records)
        self._set(records, transform, decoder)

    @classmethod
    def from_records(cls, records: Records, transform: VideoTransform, *, decoder: str = "pyav") -> VideoDataset:
        """Create a dataset from paths and labels."""
        dataset = cls.__new__(cls)
        dataset._set(records, transform, decoder)
        return dataset

    def _set(self, records: Records, transform: VideoTransform, decoder: str) -> None:
        num_frames = transform.sampling.num_frames
        if num_frames > 1 and is_image(path := records.path(0)):
            raise UserError(
                f"the data are images ({path}), and data.num_frames={num_frames} is for videos: set it to 1 in the "
                "transform or config, and use an image network (resnet_rs_* or timm/*; imagenet_rs*.yaml)"
            )
        self.records, self.transform, self.decoder = records, transform, decoder
        self.classes = records.class_names

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        """Return the clip and the label of one file. Raise ``MediaError`` if it cannot be read."""
        try:
            index = range(len(self))[operator.index(index)]
        except TypeError:
            raise TypeError(f"the index of a sample must be a whole number; found {index!r}") from None
        except IndexError:
            raise IndexError(f"index {index} is out of range: the dataset has {len(self)} files") from None
        sampling, spatial = self.transform.sampling, self.transform.spatial
        with open_record(self.records, index, self.decoder) as video:
            frames = frame_range(video, *self.records.segment(index))
            if self.transform.is_training:
                rng = torch_seeded_rng()
                crops, _ = read_random_clip(video, frames, sampling, spatial, rng, [rng])
                clip = spatial.finish(crops[0], rng)
            else:
                clip = clip_views(video.read, even_clips(frames, sampling, 1), spatial)[0]
        return self.transform.normalize(clip), target(self.records, index)

    def training_samples(self, *, phases: Sequence[tuple[int, int]] = (), **options: Any) -> ClipDataset:
        """Return the samples of a training run, which depend only on their keys. Requires a training transform.

        Args:
            phases: number of frames and size in pixels of the clips in phases 1, 2 and so on.
            options: ``seed``, ``repeats``, ``skip`` and ``finishes`` of :class:`ClipDataset`.
        """
        sampling, spatial = self.transform.sampling, self.transform.spatial
        if not self.transform.is_training:
            raise ValueError("training needs a training transform: create_transform(..., is_training=True)")
        others = [(replace(sampling, num_frames=frames), replace(spatial, size=size)) for frames, size in phases]
        options |= {"sampling": sampling, "transform": spatial, "decoder": self.decoder, "phases": others}
        return ClipDataset(self.records, **options)

    def views(self, clips: int = 1, crops: int = 1) -> ViewDataset:
        """Return a dataset of `clips` clips per video and `crops` crops per clip. Images have one clip."""
        sampling, spatial = self.transform.sampling, self.transform.spatial
        if self.transform.is_training:
            raise ValueError("views need an evaluation transform: create_transform(..., is_training=False)")
        clips = clips if sampling.num_frames > 1 else 1
        transform = ViewTransform(spatial.short_side, spatial.size, crops, spatial.filter)
        return ViewDataset(self.records, sampling=sampling, clips=clips, transform=transform, decoder=self.decoder)
