"""Predict with a trained network: ``video_rs.load("runs/k400_rs50/best.pt").predict("clip.mp4")``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from video_rs import checkpoint
from video_rs import hub as download
from video_rs.data.clips import TemporalSampling
from video_rs.data.dataset import clip_views
from video_rs.data.transforms.crops import ViewTransform, resize, short_side_size
from video_rs.data.video.decode import Video, open_video
from video_rs.data.video.media import is_image
from video_rs.data_config import DataConfig
from video_rs.distributed import device as runtime
from video_rs.errors import MediaError, UserError
from video_rs.evaluation.metrics import ranking
from video_rs.evaluation.multiview import Forward
from video_rs.models.registry import empty_model


class Prediction(NamedTuple):
    """One class that a video may show: its name, its index and its probability in [0, 1].

    The probabilities of all classes add up to 1, unless a video may show several (``data_config.multi_label``).
    """

    label: str
    index: int
    score: float


class Window(NamedTuple):
    """What a part of a video shows; ``start`` and ``end`` in seconds."""

    start: float
    end: float
    predictions: list[Prediction]


def load(path: str | Path, device: str = "auto") -> Classifier:
    """A classifier from a checkpoint of this package (its weight average, where there is one).

    Args:
        path: e.g. ``runs/k400_rs50/best.pt``, a ``.safetensors`` file, or the address of either, ``https://...`` or
            ``hf-hub:owner/name``: see :func:`video_rs.hub.local`.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".

    Raises:
        UserError: the checkpoint is missing, damaged or not one of a whole model; the device is not there.
        MachineError: it could not be fetched from its address.
    """
    chosen = runtime.select_device(device)
    state = checkpoint.load_run(path)
    return Classifier(model_from_checkpoint(state, download.redact_url(path)), chosen)


def model_from_checkpoint(state: Mapping[str, Any], name: str = "the checkpoint") -> nn.Module:
    """The network of a checkpoint, in ``eval()`` mode on the CPU.

    Raises:
        UserError: the weights are not those of the architecture the checkpoint names, or that is unknown.
    """
    data_config = DataConfig.from_dict(state["data_config"], name)
    try:
        model = empty_model(state["model_args"], data_config)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    try:
        model.load_state_dict(checkpoint.weights(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{name} is not a {state['model_args']['name']} as it says: {reason}") from None
    if data_config.class_names and len(data_config.class_names) != model.num_classes:
        raise UserError(f"{name} is damaged: {len(data_config.class_names)} class names, {model.num_classes} classes")
    return model.eval()


class Classifier:
    """A network, its data config and its class names.

    Args:
        model: with a ``data_config``; moved to ``device``.
        device: to compute on.
        views_per_forward: memory depends on it, the result does not.

    Attributes:
        model, device, data_config: as given; the data config is the model's.
        class_names: in the order of the logits; numbers where the data config has no names.
    """

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu", *, views_per_forward: int = 8) -> None:
        self.device = torch.device(device)
        self.model = model.eval().to(self.device, memory_format=torch.channels_last_3d)
        self.data_config, self.views_per_forward = model.data_config, views_per_forward
        self._forward = Forward(self.model, self.device, "auto", views_per_forward)
        self.class_names = self.data_config.class_names or tuple(str(c) for c in range(model.num_classes))

    def predict(
        self,
        source: str | Path | Tensor | np.ndarray,
        top_k: int = 5,
        *,
        clips: int = 4,
        crops: int = 1,
        fps: float = 0.0,
    ) -> list[Prediction]:
        """The most probable classes, most probable first.

        A video network takes the mean over evenly spaced clips. An image network takes an image as it is, and of a
        video the mean over evenly spaced frames. An image says nothing to a video network: that is an error.

        Args:
            source: a video or image file, or a folder of frames; or the frames themselves, uint8 ``[T, H, W, C]``
                (RGB), or ``[H, W, C]`` for an image.
            top_k: how many; at most the number of classes.
            clips, crops: views of a video; 10 and 3 are the test protocol of Kinetics. Crops are 1 (centre) or 3.
            fps: frames per second of a source that is frames; 0: of the rate that the network wants.

        Raises:
            MediaError: the file cannot be read, or is an image given to a video network.
            UserError: the network's output is not finite.
        """
        if isinstance(source, (str, Path)):
            self._refuse_image(is_image(source), source)
            with open_video(source) as video:
                indices = self._view_indices(video.num_frames, clips, video.fps)
                probs = self._clip_probs(video.read, indices, crops)
        else:
            frames = self._frames(source)
            indices = self._view_indices(len(frames), clips, fps)
            probs = self._clip_probs(partial(_resized, frames), indices, crops)
        return self._top(probs.mean(axis=0), top_k)

    def predict_windows(
        self, path: str | Path, every_seconds: float, top_k: int = 5, *, crops: int = 1
    ) -> Iterator[Window]:
        """Slide over a long video and predict a clip every so often, reading it once, as it goes.

        A window is as long as one clip of the network, or as ``every_seconds`` where its clips are segments, which have
        no length of their own. One more is added at the end where the video would otherwise end unseen; a video shorter
        than a clip is looped and is one window. Times are frame numbers over the mean frame rate.

        Args:
            path: of a video file; the frames in a folder have no times.
            every_seconds: from the start of one window to the start of the next.
            top_k, crops: as for :meth:`predict`.

        Raises:
            MediaError: the file cannot be read, or is an image.
            UserError: the network's output is not finite.
        """
        if is_image(path):
            raise MediaError(f"{path}: is an image: windows need a video")
        data_config, group = self.data_config, max(1, self.views_per_forward // crops)
        with open_video(path) as video:
            if not (fps := video.fps):
                raise MediaError(f"{path}: has no frame rate, so its windows have no times")
            starts, span, clips = window_clips(TemporalSampling.of(data_config), video.num_frames, fps, every_seconds)
            read = read_once(video, clips, data_config.short_side, data_config.filter)
            for first in range(0, len(starts), group):
                probs = self._clip_probs(read, clips[first : first + group], crops)
                for start, row in zip(starts[first : first + group], probs):
                    end = min(start + span, video.num_frames)
                    yield Window(float(start / fps), float(end / fps), self._top(row, top_k))

    def _clip_probs(self, read: Callable[..., Tensor], indices: np.ndarray, crops: int) -> np.ndarray:
        """Class probabilities of clips, ``[K, T]`` frame numbers -> ``[K, classes]``, each the mean over its crops."""
        data_config = self.data_config
        transform = ViewTransform(data_config.short_side, data_config.test_size, crops, data_config.filter)
        probs = self._forward(clip_views(read, indices, transform))
        return probs.unflatten(0, (len(indices), crops)).mean(dim=1).numpy()

    def _view_indices(self, length: int, clips: int, fps: float) -> np.ndarray:
        return TemporalSampling.of(self.data_config).even_clips(length, clips if length > 1 else 1, fps)

    def _frames(self, source: Tensor | np.ndarray) -> Tensor:
        frames = torch.as_tensor(source).cpu()
        channels = self.data_config.in_channels
        if frames.dtype != torch.uint8 or frames.ndim not in (3, 4) or frames.shape[-1] != channels:
            given = f"{frames.dtype} {list(frames.shape)}"
            raise UserError(f"frames must be uint8 [T, H, W, {channels}] or [H, W, {channels}], got {given}")
        self._refuse_image(frames.ndim == 3, "the tensor")
        return frames if frames.ndim == 4 else frames[None]

    def _refuse_image(self, image: bool, source: Any) -> None:
        if image and self.data_config.num_frames > 1:
            raise MediaError(
                f"{source}: is an image, and this network sees clips of {self.data_config.num_frames} frames: "
                "give it videos, or use the weights of an image network"
            )

    def _top(self, probs: np.ndarray, top_k: int) -> list[Prediction]:
        if top_k < 1:
            raise UserError(f"top_k must be at least 1, got {top_k}")
        if not np.isfinite(probs).all():
            raise UserError("the network's output is not finite: its weights are spoilt, use another checkpoint")
        order = ranking(probs[None])[0, :top_k]
        return [Prediction(self.class_names[c], int(c), float(probs[c])) for c in order]


def _resized(frames: Tensor, numbers: np.ndarray, *, short_side: int, filter: str) -> Tensor:
    return resize(frames[torch.from_numpy(numbers)], *short_side_size(*frames.shape[1:3], short_side), filter)


def read_once(video: Video, clips: np.ndarray, short_side: int, filter: str) -> Callable[..., Tensor]:
    """A ``read`` for :func:`clip_views` of one group of `clips` after the other; frames are decoded once.

    Args:
        clips: ``[K, T]`` frame numbers; none is below the first one of an earlier clip.
    """
    numbers = np.unique(clips)
    coming = zip(numbers.tolist(), video.stream(numbers, short_side=short_side, filter=filter))
    kept: dict[int, Tensor] = {}

    def read(wanted: np.ndarray, **_: Any) -> Tensor:
        for number in [number for number in kept if number < wanted[0]]:
            del kept[number]  # no later clip needs it
        while wanted[-1] not in kept:
            number, frame = next(coming)
            kept[number] = frame
        return torch.stack([kept[number] for number in wanted.tolist()])

    return read


def window_clips(
    sampling: TemporalSampling, length: int, fps: float, every_seconds: float
) -> tuple[np.ndarray, int, np.ndarray]:
    """The windows over a video of `length` frames: first frames ``[K]``, frames in each, and their clips ``[K, T]``."""
    step = every_seconds * fps
    if sampling.kind == "segments":
        span = min(length, max(1, round(step)))
        starts = window_starts(length, span, step)
        return starts, span, starts[:, None] + sampling.even_clips(span, 1)
    span = sampling.span(fps)
    starts = window_starts(length, span, step)
    return starts, span, sampling.clip_at(starts, length, fps)


def window_starts(length: int, span: int, step: float) -> np.ndarray:
    """First frames of the windows over a video.

    Args:
        length: frames in the video.
        span: frames in a window.
        step: frames from one start to the next, above 0; need not be whole. Below 1 it is 1.

    Returns:
        ascending int64, at least one: every ``step`` as long as the window ends inside the video; where windows overlap
        or touch, the last one ends with the video.
    """
    if not step > 0:
        raise UserError(f"the time between windows must be above 0, got {step:g} frames")
    last, step = max(0, length - span), max(1.0, step)
    starts = np.unique(np.rint(np.arange(int(last / step) + 1) * step).astype(np.int64))
    starts = starts[starts <= last]
    return np.append(starts, last) if step <= span and starts[-1] < last else starts
