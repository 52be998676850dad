"""Compute class activation maps over time, which show where and when a network sees a class in a video.

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) with a time axis. The gradient of the class's logit, averaged over
time and space, weights the maps of a layer; negative sums are set to zero. If only global pooling and a linear layer
follow, these weights are those of the classifier (CAM, Zhou et al. 2016, arXiv 1512.04150).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from video_rs.data.chunk_dataset import image_for_clips, select_views
from video_rs.data.clip_datasets import clip_views
from video_rs.data.clips import TemporalSampling
from video_rs.data.segments import frame_range
from video_rs.data.transforms.crops import ViewTransform, normalize
from video_rs.data.video.decode import open_video
from video_rs.data.video.media import is_image
from video_rs.distributed.memory import limited
from video_rs.errors import MachineError, MediaError, UserError, did_you_mean, is_out_of_memory
from video_rs.models.feature_maps import capture, find_layer, stage_names

if TYPE_CHECKING:
    from video_rs.inference.predict import Classifier

MIN_CELLS = 7  # per side of the default layer's maps
MAX_FRAMES = 512  # of one explanation; clips of longer videos are evenly spaced
FRAMES_PER_PASS = 32


@dataclass(frozen=True, eq=False)
class Explanation:
    """The activation map of one class in a video.

    Attributes:
        frames: uint8 ``[T, H, W, 3]``, the input of the network: the test crop of each sampled frame, in order.
        maps: float32 ``[T, H, W]``, in [0, 1]; the maximum over the video is 1, or 0 if nothing supports the class.
        label, index, score: the class and its mean probability over the clips, as in ``Prediction``.
        times: seconds of each frame; None if unknown.
        layer: the name of the layer.
    """

    frames: np.ndarray
    maps: np.ndarray
    label: str
    index: int
    score: float
    times: np.ndarray | None
    layer: str


def explain(
    classifier: Classifier,
    source: Any,
    classes: str | Sequence[str] = (),
    *,
    top_k: int = 1,
    layer: str = "",
    clips: int = 0,
    segment: tuple[float, float] = (0.0, 0.0),
    fps: float = 0.0,
) -> list[Explanation]:
    """Return the activation maps of classes in a video or an image.

    A frame that several clips share has the mean of their maps. Maps are computed in the dtype of the weights.

    Args:
        source, fps: one video or image, as for ``Classifier.predict``: a file, a folder of frames, or frames in memory.
        classes: names of classes; none for the `top_k` most probable ones.
        layer: name of a stage or module, see :func:`video_rs.models.feature_maps.find_layer`. By default the last stage
            with at least 7 cells per side, or else the one with the most cells.
        clips: number of evenly spaced clips; 0 for as many as cover the video, up to 512 frames of a file.
        segment: start and end in seconds of a file; an end of 0 is the end of the video.

    Returns:
        One explanation for each class, all of the same frames.

    Raises:
        MediaError, StorageError: the file cannot be read, or is an image and the network takes clips.
        UserError: there is no such class or layer, the layer has no maps, or the network has no classes.
    """
    classifier.require_classes()
    model, names = classifier.model, [classes] if isinstance(classes, str) else classes
    for name in names:
        if name not in classifier.class_names:
            raise UserError(f"the network has no class {name[:100]!r}{did_you_mean(name, classifier.class_names)}")
    if layer:
        find_layer(model, layer)  # fail early
    views, numbers, times = _read(classifier, source, clips, segment, fps)
    probs = classifier.forward(views).numpy().mean(axis=0)
    ranked = classifier.top(probs, model.num_classes if names else top_k)
    shown = [next(each for each in ranked if each.label == name) for name in names] or ranked
    frames, first = np.unique(numbers, return_index=True)
    try:
        with limited(classifier.device):
            layer, cams = _maps(model, views, [prediction.index for prediction in shown], layer)
            maps = [_of_frames(cam, numbers, views.shape[1:4]) for cam in cams.unbind(1)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError("not enough memory for activation maps: take fewer clips (--views) or classes") from error
    pictures, times = views.flatten(0, 1)[torch.from_numpy(first)].numpy(), None if times is None else times[frames]
    return [Explanation(pictures, cam, *prediction, times, layer) for cam, prediction in zip(maps, shown)]


def _of_frames(cams_NTHW: Tensor, numbers: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Enlarge the maps of clips to their size, average those of equal frames, and divide them by their maximum."""
    places = torch.from_numpy(np.unique(numbers, return_inverse=True)[1].reshape(-1))
    cams = F.interpolate(cams_NTHW[:, None], size, mode="trilinear").reshape(-1, *size[1:])
    counts = places.bincount()
    mean = cams.new_zeros(len(counts), *size[1:]).index_add_(0, places, cams).div_(counts[:, None, None])
    return mean.div_(mean.max().clamp_min(torch.finfo(mean.dtype).tiny)).numpy()


def _maps(model: nn.Module, views: Tensor, classes: Sequence[int], layer: str) -> tuple[str, Tensor]:
    """Return the maps of a layer, by default of the first default layer that the logits depend on, and its name."""
    for each in [layer] if layer else default_layers(model, views[:1]):
        maps = activation_maps(model, views, classes, each)
        if maps is not None:
            return each, maps
    name = layer or "any stage"
    raise UserError(f"the output of the network does not depend on maps of {name}; choose another layer")


def activation_maps(model: nn.Module, views: Tensor, classes: Sequence[int], layer: str) -> Tensor | None:
    """Compute the Grad-CAM of clips, at the size of the layer's maps.

    Args:
        model: a network in ``eval()`` mode. Its parameters and their gradients are unchanged.
        views: uint8 ``[N, T, H, W, C]``.
        classes: indices of K classes.
        layer: name of a stage or module.

    Returns:
        float32 ``[N, K, t, h, w]`` on the host, at least 0, not normalized. None if the logits do not depend on the
        maps, as on those of the last block of a ViT with a class token.

    Raises:
        UserError: there is no such layer, or its output has no maps.
    """
    parts, weights = [], {name: parameter.detach() for name, parameter in model.named_parameters()}
    with torch.inference_mode(False), torch.enable_grad():
        for part in views.split(max(1, FRAMES_PER_PASS // views.shape[1])):
            with capture(model, layer) as captured:
                logits = functional_call(model, weights, (_clips(model, part),))
            maps_NCTHW = captured().detach().float()
            if maps_NCTHW.ndim == 2 or maps_NCTHW.shape[3:] == (1, 1):
                raise UserError(f"the layer {layer} comes after the pooling and has no maps; choose an earlier one")
            gradients = (captured.gradients(logits[:, index].sum()) for index in classes)
            weights_NKC = torch.stack([each.float().mean(dim=(2, 3, 4)) for each in gradients], dim=1)
            if not weights_NKC.any():
                return None
            parts.append(torch.einsum("nkc,ncthw->nkthw", weights_NKC, maps_NCTHW).relu().cpu())
            del logits, captured  # free their memory before the next forward pass
    return torch.cat(parts)


def default_layers(model: nn.Module, views: Tensor) -> list[str]:
    """Return the stages with maps: first the last one with at least 7 cells per side, or with the most cells.

    Args:
        model: a network in ``eval()`` mode.
        views: uint8 ``[N, T, H, W, C]``.
    """
    with contextlib.ExitStack() as hooks, torch.no_grad():
        stages = {name: hooks.enter_context(capture(model, name)) for name in stage_names(model)}
        model(_clips(model, views))
    cells = {}
    for name, maps in stages.items():
        with contextlib.suppress(UserError):  # it has no maps
            cells[name] = min(min(maps().shape[3:], default=0), MIN_CELLS)
    return [name for name in sorted(cells, key=cells.__getitem__)[::-1] if cells[name] > 1]


def _clips(model: nn.Module, views: Tensor) -> Tensor:
    data_config, parameter = model.data_config, next(model.parameters())
    return normalize(views.to(parameter.device), data_config.mean, data_config.std, dtype=parameter.dtype)


def _read(
    classifier: Classifier, source: Any, clips: int, segment: tuple[float, float], fps: float
) -> tuple[Tensor, np.ndarray, np.ndarray | None]:
    """Return the centre crops of clips, uint8 ``[K, T, H, W, C]``, their frames ``[K, T]``, and the times of frames."""
    if not isinstance(source, (str, Path)):
        chunk = classifier.memory_chunk(source, clips, 1, fps)
        numbers = chunk["selection"].clips
        return chunk["views"], numbers, np.arange(numbers.max() + 1) / fps if fps else None
    data_config = classifier.data_config
    if is_image(source) and not classifier.takes_images:
        raise MediaError(image_for_clips(f"{source}:", data_config.num_frames))
    sampling = TemporalSampling.of(data_config)
    transform = ViewTransform(data_config.short_side, data_config.test_size, 1, data_config.filter)
    with open_video(source) as video:
        frames = frame_range(video, *segment)
        numbers = select_views(frames, sampling, clips).clips
        if not clips and numbers.size > MAX_FRAMES:
            numbers = select_views(frames, sampling, max(1, MAX_FRAMES // sampling.num_frames)).clips
        return clip_views(video.read, numbers, transform), numbers, video.times
