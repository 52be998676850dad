"""Classify videos and images: ``video_rs.load("runs/k400_rs50/best.pt").predict("clip.mp4")``."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from video_rs import checkpoint
from video_rs.data.clip_datasets import clip_views
from video_rs.data.clips import TemporalSampling
from video_rs.data.transforms.crops import ViewTransform, resize, short_side_size
from video_rs.data.video.decode import open_video
from video_rs.data.video.media import is_image
from video_rs.data_config import DataConfig
from video_rs.distributed.device import check_threads, select_device
from video_rs.distributed.forks import check_fork
from video_rs.errors import MediaError, UserError
from video_rs.evaluation.metrics import ranking
from video_rs.evaluation.multiview import OUTPUT_NOT_FINITE, Forward
from video_rs.files import expand_path
from video_rs.hub import redact_url
from video_rs.inference.inputs import find_files, frames_of
from video_rs.inference.windows import read_once, window_clips
from video_rs.models.weights.load import model_from_checkpoint


class Prediction(NamedTuple):
    """A class with its index and its probability in [0, 1].

    The probabilities of all classes add up to 1, except for multi-label networks (``data_config.multi_label``).
    """

    label: str
    index: int
    score: float


class Window(NamedTuple):
    """The predictions for a part of a video. ``start`` and ``end`` are in seconds."""

    start: float
    end: float
    predictions: list[Prediction]


Source = str | Path | Tensor | np.ndarray | Image
"""One input: a path, frames in memory, or a PIL image."""


def load(path: str | Path, device: str = "auto") -> Classifier:
    """Load a classifier from a checkpoint of this package. Uses the EMA weights if there are any.

    Args:
        path: a run folder such as ``runs/k400_rs50`` (its ``best.pt``); a ``.pt`` or ``.safetensors`` file; or a URL,
            ``https://...`` or ``hf-hub:owner/name``, see :func:`video_rs.hub.fetch`.
        device: "auto" (CUDA if there is a GPU), "cpu", "cuda" or "cuda:1" (the second GPU).

    Raises:
        UserError: the checkpoint is missing, damaged or contains only weights; or the device is not available.
        MachineError: the file could not be downloaded.
    """
    chosen = select_device(device)
    check_threads(torch.get_num_threads())
    path = expand_path(path)
    state = checkpoint.load_run(path)
    return Classifier(model_from_checkpoint(state, redact_url(path)), chosen)


class Classifier:
    """A network with its data config and class names.

    Args:
        model: has a ``data_config``; moved to ``device``.
        device: to compute on.
        views_per_forward: memory depends on it, results do not.

    Attributes:
        model, device, views_per_forward: as given.
    """

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu", *, views_per_forward: int = 8) -> None:
        self.device = select_device(device)
        self.model = model.eval().to(self.device)
        self.views_per_forward = views_per_forward
        self._forward = Forward(self.model, self.device, "auto", views_per_forward)

    @property
    def data_config(self) -> DataConfig:
        """The data config of the model."""
        return self.model.data_config

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the logits; numbers if the data config has no names."""
        return self.data_config.class_names or tuple(str(c) for c in range(self.model.num_classes))

    @property
    def takes_images(self) -> bool:
        """True for an image network, whose clips are single frames."""
        return self.data_config.num_frames == 1

    def predict(
        self, source: Source | list[Source], top_k: int = 5, *, clips: int = 4, crops: int = 1, fps: float = 0.0
    ) -> list[Prediction] | list[list[Prediction]] | dict[str, list[Prediction]]:
        """Return the most probable classes in descending order.

        A video network averages over evenly spaced clips. An image network classifies an image directly, and averages
        over evenly spaced frames of a video. A video network does not accept images.

        Args:
            source: one of the following.

                - A video or image file, or for a video network a folder whose images are the frames of one video, in
                  the order of their names.
                - Frames: uint8 array or tensor ``[T, H, W, C]`` (RGB), or ``[H, W, C]`` for an image.
                - A PIL image, for image networks.
                - A list of these. The result is a list, as of a Hugging Face pipeline.
                - A folder of videos, or of images for image networks, subfolders included. The result is a dict
                  ``{path: predictions}`` in name order.
            top_k: number of classes; at most all.
            clips, crops: views of a video; 10 and 3 are the test protocol of Kinetics. Crops are 1 (centre) or 3.
            fps: frames per second of frames in memory; 0: the rate that the network expects.

        Raises:
            StorageError: the storage cannot open or read a file.
            MediaError: a file cannot be read, a folder is empty, or a video network got an image. In a list or a folder
                the first such file raises.
            UserError: the source is something else, float frames for example; the network has no classes; its output is
                not finite.
        """
        if (inputs := self._inputs(source)) is not None:
            predictions = [self.predict(each, top_k, clips=clips, crops=crops, fps=fps) for each in inputs]
            return predictions if isinstance(source, (list, tuple)) else dict(zip(inputs, predictions))
        return self._top(self._probs(self._views(source, clips, crops, fps)).numpy().mean(axis=0), top_k)

    def embed(self, source: Source | list[Source], *, clips: int = 4, crops: int = 1, fps: float = 0.0) -> np.ndarray:
        """Return the features before the classification layer, averaged over the views.

        Args:
            source, clips, crops, fps: as for :meth:`predict`.

        Returns:
            float32 ``[N, num_features]``, a row for each file or entry of a list, and for each file of a folder, also
            of one in a list, in the order of ``predict(folder)``.

        Raises:
            MediaError, UserError: as :meth:`predict`.
        """
        if (inputs := self._inputs(source)) is None:
            features = self._forward(self._views(source, clips, crops, fps), features=True)
            return _finite(features.numpy().mean(axis=0, keepdims=True).astype(np.float32))
        rows = [self.embed(each, clips=clips, crops=crops, fps=fps) for each in inputs]
        return np.concatenate([np.empty((0, self.model.num_features), np.float32), *rows])

    def predict_windows(
        self,
        path: str | Path,
        every_seconds: float,
        top_k: int = 5,
        *,
        crops: int = 1,
        warn: Callable[[str], Any] = warnings.warn,
    ) -> Iterator[Window]:
        """Predict windows of a long video at regular intervals. The video is decoded once, in a streaming fashion.

        A window has the length of one clip of the network, or ``every_seconds`` if clips are sampled by segments. A
        window is added at the end if the last frames would not be covered. A video shorter than a clip is looped and
        has one window. Times are those of the frames in the file, also if their rate varies. Consecutive windows with
        the same frames are computed once.

        Args:
            path: path of a video file. Folders of frames have no times.
            every_seconds: time between the starts of consecutive windows.
            top_k, crops: as for :meth:`predict`.
            warn: called with one line if frames of the video are in no window.

        Raises:
            MediaError: the file cannot be read, or is an image.
            UserError: the network's output is not finite.
        """
        if is_image(path):
            raise MediaError(f"{path}: an image; windows need a video")
        data_config, group = self.data_config, max(1, self.views_per_forward // crops)
        with open_video(path) as video:
            if not video.fps:
                raise MediaError(f"{path}: has no frame rate, which windows need")
            windows = window_clips(TemporalSampling.of(data_config), video.timeline, every_seconds)
            if gaps := windows.describe_gaps(video.timeline):
                warn(f"{path}: {gaps}")
            is_new = np.append(True, (windows.clips[1:] != windows.clips[:-1]).any(axis=1))
            clips, borders = windows.clips[is_new], np.append(np.flatnonzero(is_new), len(is_new))
            read = read_once(video, clips, data_config.short_side, data_config.filter)
            for first in range(0, len(clips), group):
                part = clips[first : first + group]
                probs = self._probs(clip_views(read, part, self._transform(crops)))
                for number, row in enumerate(probs.unflatten(0, (len(part), crops)).mean(dim=1).numpy(), first):
                    for window in range(borders[number], borders[number + 1]):
                        start, end = float(windows.starts[window]), float(windows.ends[window])
                        yield Window(start, end, self._top(row, top_k))

    def _inputs(self, source: Any) -> list[Any] | None:
        """Return the entries of a list, or the files of a folder; None for a single input."""
        if isinstance(source, (list, tuple)):
            return list(source)
        if not isinstance(source, (str, Path)) or not Path(source).is_dir():
            return None
        files = find_files(source, self.takes_images)
        return None if files == [str(Path(source))] else files

    def _probs(self, views: Tensor) -> Tensor:
        if not self.model.num_classes:
            raise UserError("the network has no classes; use embed")
        return self._forward(views)

    def _views(self, source: Any, clips: int, crops: int, fps: float) -> Tensor:
        """Return the views of one video or image, uint8 ``[clips * crops, T, S, S, C]``."""
        if not isinstance(clips, numbers.Integral) or clips < 1:
            raise UserError(f"clips={clips!r}: must be a whole number of at least 1")
        transform = self._transform(crops)
        if isinstance(source, (str, Path)):
            self._refuse_image(is_image(source), f"{source}:")
            with open_video(source) as video:
                return clip_views(video.read, self._clips(video.num_frames, clips, video.times), transform)
        frames = frames_of(source, self.data_config.in_channels)
        name = "the PIL image" if isinstance(source, Image) else f"the array {list(frames.shape)}"
        self._refuse_image(frames.ndim == 3, name)
        frames = frames if frames.ndim == 4 else frames[None]
        times = np.arange(len(frames)) / fps if fps else None
        return clip_views(partial(_resized, frames), self._clips(len(frames), clips, times), transform)

    def _clips(self, length: int, clips: int, times: np.ndarray | None) -> np.ndarray:
        return TemporalSampling.of(self.data_config).even_clips(length, clips if length > 1 else 1, times)

    def _transform(self, crops: int) -> ViewTransform:
        check_fork(self.device)
        if crops not in (1, 3):
            raise UserError(f"crops={crops!r}: must be 1 or 3")
        data_config = self.data_config
        return ViewTransform(data_config.short_side, data_config.test_size, crops, data_config.filter)

    def _refuse_image(self, image: bool, name: Any) -> None:
        if image and not self.takes_images:
            raise MediaError(
                f"{name} is an image, but this network takes clips of {self.data_config.num_frames} frames; "
                "give it a video or use an image network"
            )

    def _top(self, probs: np.ndarray, top_k: int) -> list[Prediction]:
        if top_k < 1:
            raise UserError(f"top_k must be at least 1, got {top_k}")
        order = ranking(_finite(probs)[None])[0, :top_k]
        return [Prediction(self.class_names[c], int(c), float(probs[c])) for c in order]


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UserError(f"{OUTPUT_NOT_FINITE}: the checkpoint is damaged; use another one")
    return values


def _resized(frames: Tensor, numbers: np.ndarray, *, short_side: int, filter: str) -> Tensor:
    return resize(frames[torch.from_numpy(numbers)], *short_side_size(*frames.shape[1:3], short_side), filter)
