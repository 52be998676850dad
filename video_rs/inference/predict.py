"""Classify videos and images: ``video_rs.load("runs/k400_rs50/best.pt").predict("clip.mp4")``."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from video_rs import checkpoint
from video_rs.data.chunk_dataset import ChunkDataset, image_for_clips, select_views
from video_rs.data.clip_datasets import clip_views
from video_rs.data.clips import TemporalSampling
from video_rs.data.segments import FrameRange
from video_rs.data.sources.records import Records
from video_rs.data.transforms.crops import ViewTransform, resize, short_side_size
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
from video_rs.inference.rows import FileRows, compute_rows
from video_rs.models.weights.load import model_from_checkpoint

if TYPE_CHECKING:
    from video_rs.inference.explain import Explanation

CLIPS = 4  # of a video, by default


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


def load(path: str | Path, device: str = "auto", *, views_per_forward: int = 8) -> Classifier:
    """Load a classifier from a checkpoint of this package. Uses the EMA weights if there are any.

    Args:
        path: a run folder such as ``runs/k400_rs50`` (its ``best.pt``); a ``.pt`` or ``.safetensors`` file; or a URL,
            ``https://...`` or ``hf-hub:owner/name``, see :func:`video_rs.hub.fetch`.
        device: "auto" (CUDA if there is a GPU), "cpu", "cuda" or "cuda:1" (the second GPU).
        views_per_forward: see :class:`Classifier`.

    Raises:
        UserError: the checkpoint is missing, damaged or contains only weights; or the device is not available.
        MachineError: the file could not be downloaded.
    """
    chosen = select_device(device)
    check_threads(torch.get_num_threads())
    path = expand_path(path)
    state = checkpoint.load_run(path)
    classifier = Classifier(model_from_checkpoint(state, redact_url(path)), chosen, views_per_forward=views_per_forward)
    classifier.weights = path
    return classifier


class Classifier:
    """A network with its data config and class names.

    Args:
        model: has a ``data_config``; moved to ``device``.
        device: to compute on.
        views_per_forward: memory depends on it, results do not.

    Attributes:
        model, device, views_per_forward: as given.
        forward: the function from views to outputs, see :class:`video_rs.evaluation.multiview.Forward`.
        weights: path or URL of the checkpoint for :func:`load`; "" if the model was made in another way.
    """

    weights: str = ""

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu", *, views_per_forward: int = 8) -> None:
        self.device = select_device(device)
        self.model = model.eval().to(self.device)
        self.views_per_forward = views_per_forward
        self.forward = Forward(self.model, self.device, "auto", views_per_forward)

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
        check_clips(clips)
        self.require_classes()
        rows = next(self._rows(self._chunks(source, views=clips, crops=crops, fps=fps)))
        return self.top(rows.values[0], top_k)

    def embed(
        self,
        source: Source | list[Source],
        *,
        clips: int | None = None,
        crops: int = 1,
        fps: float = 0.0,
        pool: str = "mean",
        layer: str = "",
    ) -> np.ndarray:
        """Return the features before the classification layer, averaged over the views.

        Args:
            source, crops, fps: as for :meth:`predict`.
            clips: evenly spaced clips of a video; None for 4, and for every frame of a video for an image network.
            pool, layer: see :func:`video_rs.inference.features.extract_features`.

        Returns:
            float32 ``[N, num_features]``, a row for each file or entry of a list, and for each file of a folder, also
            of one in a list, in the order of ``predict(folder)``.

        Raises:
            MediaError, UserError: as :meth:`predict`.
        """
        if clips is not None:
            check_clips(clips)
        views = self.default_views if clips is None else clips
        chunks = (
            chunk | {"index": number}
            for number, each in enumerate(self._flattened(source))
            for chunk in self._chunks(each, views=views, crops=crops, fps=fps)
        )
        rows = [rows.values for rows in self._rows(chunks, pool=pool, features=True, layer=layer)]
        return np.concatenate(rows or [np.empty((0, self.model.num_features), np.float32)])

    def embed_windows(
        self, path: str | Path, every_seconds: float, *, crops: int = 1, pool: str = "mean", layer: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the features of windows of a long video at regular intervals.

        A window of a video network is as for :meth:`predict_windows`. A window of an image network has all frames until
        the next window.

        Args:
            path, every_seconds, crops: as for :meth:`predict_windows`.
            pool, layer: see :func:`video_rs.inference.features.extract_features`.

        Returns:
            Start and end of each window in seconds, float64 ``[R, 2]``, and its features, float32 ``[R, D]``.

        Raises:
            MediaError, UserError: as :meth:`predict_windows`.
        """
        chunks = self._windows(path, every_seconds, crops, min(self.default_views, 1))
        rows = next(self._rows(chunks, pool=pool, features=True, layer=layer))
        return rows.times, rows.values

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
        self.require_classes()
        for rows in self._rows(self._windows(path, every_seconds, crops), stream=True):
            if rows.gaps:
                warn(f"{path}: {rows.gaps}")
            for times, probs in zip(rows.times, rows.values):
                yield Window(*times.tolist(), self.top(probs, top_k))

    def window_probs(self, path: str | Path, every_seconds: float, *, crops: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities of all classes in the windows of :meth:`predict_windows`.

        They are the input of :func:`video_rs.inference.timeline.find_segments`.

        Args:
            path, every_seconds, crops: as for :meth:`predict_windows`.

        Returns:
            Start and end of each window in seconds, float64 ``[K, 2]``, and probabilities, float32 ``[K, C]``.

        Raises:
            MediaError, UserError: as :meth:`predict_windows`.
        """
        self.require_classes()
        rows = next(self._rows(self._windows(path, every_seconds, crops)))
        return rows.times, rows.values

    def explain(self, source: Source, classes: str | Sequence[str] = (), **options: Any) -> list[Explanation]:
        """Return the activation maps of classes, see :func:`video_rs.inference.explain.explain`."""
        from video_rs.inference.explain import explain

        return explain(self, source, classes, **options)

    def push(self, repo: str, *, private: bool = False) -> str:
        """Publish the checkpoint on the Hugging Face hub, see :func:`video_rs.inference.push.push`."""
        from video_rs.inference.push import push

        if not self.weights:
            raise UserError("only a checkpoint can be pushed; save one with video_rs.checkpoint and load it")
        return push(self.weights, repo, private=private, model=self.model)

    @property
    def default_views(self) -> int:
        """Number of clips per video for features: 4, or 0 (every frame) for an image network."""
        return 0 if self.takes_images else CLIPS

    def chunks(
        self, records: Records, *, views: int, crops: int = 1, every: float = 0.0, decoder: str = "pyav"
    ) -> ChunkDataset:
        """Return the clips of files for this network. For the arguments see ``ChunkDataset``."""
        options = {"views": views, "every": every, "decoder": decoder}
        return ChunkDataset(records, sampling=self._sampling, transform=self._transform(crops), **options)

    @property
    def _sampling(self) -> TemporalSampling:
        return TemporalSampling.of(self.data_config)

    def _rows(
        self, chunks: Iterable[dict[str, Any]], *, features: bool = False, layer: str = "", **options: Any
    ) -> Iterator[FileRows]:
        """Yield the rows of files in order, and raise an error for an output that is not finite.

        `options` are ``pool`` and ``stream`` of :func:`compute_rows`.
        """
        compute = partial(self.forward, features=features, layer=layer)
        for rows in compute_rows(compute, chunks, batch_size=self.views_per_forward, **options):
            if rows.reason:
                raise _damaged()
            yield rows

    def _chunks(self, source: Any, *, views: int, crops: int, fps: float = 0.0, every: float = 0.0) -> Iterator[dict]:
        """Yield the chunks of one input. Raise the errors of its file."""
        if not isinstance(source, (str, Path)):
            yield self.memory_chunk(source, views, crops, fps)
            return
        if every and is_image(source):
            raise MediaError(f"{source}: an image; windows need a video")
        yield from self.chunks(Records([str(source)], [-1], ()), views=views, crops=crops, every=every).read(0)

    def _windows(self, path: str | Path, every_seconds: float, crops: int, views: int = 1) -> Iterator[dict]:
        """Yield the chunks of the windows of a video."""
        if not isinstance(every_seconds, numbers.Real) or not 0 < every_seconds < math.inf:
            raise UserError(f"every_seconds={every_seconds!r}: must be a number above 0")
        return self._chunks(path, views=views, crops=crops, every=float(every_seconds))

    def _flattened(self, source: Any) -> list[Any]:
        """Return single inputs: the entries of lists and the files of folders."""
        inputs = self._inputs(source)
        return [source] if inputs is None else [single for each in inputs for single in self._flattened(each)]

    def _inputs(self, source: Any) -> list[Any] | None:
        """Return the entries of a list, or the files of a folder; None for a single input."""
        if isinstance(source, (list, tuple)):
            return list(source)
        if not isinstance(source, (str, Path)) or not Path(source).is_dir():
            return None
        files = find_files(source, self.takes_images)
        return None if files == [str(Path(source))] else files

    def require_classes(self) -> None:
        """Raise UserError for a network without a classification layer."""
        if not self.model.num_classes:
            raise UserError("the network has no classes; use embed")

    def memory_chunk(self, source: Any, clips: int, crops: int, fps: float) -> dict[str, Any]:
        """Return frames in memory as the only chunk of a file, see ``ChunkDataset.read``."""
        transform, frames = self._transform(crops), frames_of(source, self.data_config.in_channels)
        if frames.ndim == 3 and not self.takes_images:
            name = "the PIL image" if isinstance(source, Image) else f"the array {list(frames.shape)}"
            raise MediaError(image_for_clips(name, self.data_config.num_frames))
        frames = frames if frames.ndim == 4 else frames[None]
        times = np.arange(len(frames)) / fps if fps else None
        selection = select_views(FrameRange(0, len(frames), times), self._sampling, clips)
        views = clip_views(partial(_resized, frames), selection.clips, transform)
        return {"index": 0, "views": views, "groups": selection.groups, "selection": selection, "is_last": True}

    def _transform(self, crops: int) -> ViewTransform:
        check_fork(self.device)
        if crops not in (1, 3):
            raise UserError(f"crops={crops!r}: must be 1 or 3")
        data_config = self.data_config
        return ViewTransform(data_config.short_side, data_config.test_size, crops, data_config.filter)

    def top(self, probs: np.ndarray, top_k: int) -> list[Prediction]:
        """Return the most probable classes in descending order."""
        if top_k < 1:
            raise UserError(f"top_k must be at least 1, got {top_k}")
        if not np.isfinite(probs).all():
            raise _damaged()
        order = ranking(probs[None])[0, :top_k]
        return [Prediction(self.class_names[c], int(c), float(probs[c])) for c in order]


def _damaged() -> UserError:
    return UserError(f"{OUTPUT_NOT_FINITE}: the checkpoint is damaged; use another one")


def check_clips(clips: Any) -> None:
    """Raise UserError for an invalid number of clips per video."""
    if not isinstance(clips, numbers.Integral) or clips < 1:
        raise UserError(f"clips={clips!r}: must be a whole number of at least 1")


def _resized(frames: Tensor, numbers: np.ndarray, *, short_side: int, filter: str) -> Tensor:
    return resize(frames[torch.from_numpy(numbers)], *short_side_size(*frames.shape[1:3], short_side), filter)
