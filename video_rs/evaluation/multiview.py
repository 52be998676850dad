"""Multi-view testing: average the class probabilities over K clips x C crops of each video.

Ten clips and three crops are the protocol of the published Kinetics results (SlowFast, arXiv 1812.03982, section 4;
the TF Model Garden's configs of 3D ResNet-RS).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from video_rs import terminal
from video_rs.data.transforms.crops import normalize
from video_rs.distributed.device import autocast, compiles_graphs, select_precision
from video_rs.distributed.memory import free_memory, limited
from video_rs.distributed.world import World
from video_rs.errors import MachineError, is_out_of_memory
from video_rs.models.feature_maps import capture

OUTPUT_NOT_FINITE = "the network's output is not finite"


@dataclass
class Scores:
    """The class probabilities of N videos.

    Attributes:
        probs: float32 ``[N, C]``, mean over the views; zero where ``scored`` is False.
        labels: int64 ``[N]``, or bool ``[N, C]`` if a video can have several labels.
        scored: bool ``[N]``; False if the video could not be read or the output was not finite.
        views: float16 ``[N, V, C]``, the probabilities of every view in clip-major order, or None.
        errors: (index of the video, reason) for each video that was not scored.
    """

    probs: np.ndarray
    labels: np.ndarray
    scored: np.ndarray
    views: np.ndarray | None = None
    errors: list[tuple[int, str]] = field(default_factory=list)

    def classes(self, index: int) -> list[int]:
        """Return the labels of a video."""
        label = self.labels[index]
        return np.flatnonzero(label).tolist() if self.labels.ndim == 2 else [int(label)]


@dataclass(eq=False, repr=False)
class Forward:
    """Compute class probabilities or features of views, with the largest batch that fits in memory.

    Args:
        model: a network in ``eval()`` mode on ``device``. Its ``data_config`` defines the normalization of pixels, and
            ``multi_label`` selects sigmoid instead of softmax.
        views_per_forward: maximum batch size. It is halved permanently if memory runs out.
        reduced: called with the new batch size whenever it is halved.
        processes: number of processes on this machine that compute at the same time.
    """

    model: nn.Module
    device: torch.device
    precision: str
    views_per_forward: int
    reduced: Callable[[int], Any] | None = None
    processes: int = 1

    def __call__(self, views: Tensor, *, features: bool = False, layer: str = "") -> Tensor:
        """Return float32 or float64 ``[n, classes]`` (or ``[n, features]``) on the host.

        Args:
            views: uint8 ``[n, T, H, W, C]``.
            features: return pooled features instead of probabilities.
            layer: with `features`, return the mean of this layer's output over time and space, see
                :func:`video_rs.models.feature_maps.find_layer`; "" for the input of the classifier.

        Raises:
            MachineError: there is not enough memory for a single view.
        """
        outputs: list[Tensor] = []
        while len(views):
            part = views[: self.views_per_forward]
            if (output := self._try(part, features, layer)) is not None:
                outputs.append(output)
                views = views[len(part) :]
                continue
            if len(part) == 1:
                raise MachineError("not enough memory for one view in a forward pass: choose a smaller network")
            self.views_per_forward = len(part) // 2
            if self.reduced is not None:
                self.reduced(self.views_per_forward)
            less = f"continuing with {self.views_per_forward}"
            terminal.write(f"not enough memory for {len(part)} views in one forward pass: {less}", sys.stderr)
        return torch.cat(outputs)

    def _try(self, views: Tensor, features: bool, layer: str) -> Tensor | None:
        try:
            with limited(self.device, self.processes):
                output = _forward(self.model, self._filled(views), self.device, self.precision, features, layer)
            return output[: len(views)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            free_memory(error)
            return None

    def _filled(self, views: Tensor) -> Tensor:
        """Pad the last batch if the device would compile another graph for its size."""
        missing = self.views_per_forward - len(views) if compiles_graphs(self.device) else 0
        return torch.cat([views, views[:1].expand(missing, *views.shape[1:])]) if missing else views


@torch.no_grad()  # inference_mode does not support views on all devices
def _forward(
    model: nn.Module, views: Tensor, device: torch.device, precision: str, features: bool, layer: str
) -> Tensor:
    data_config, parameter = model.data_config, next(model.parameters())
    clips = normalize(views.to(device), data_config.mean, data_config.std, dtype=parameter.dtype)
    with autocast(device, select_precision(precision, device)):
        if layer:
            with capture(model, layer) as maps:
                model(clips)
            found = maps().detach()  # the maps are a leaf of a graph
            output = found.flatten(2).mean(2) if found.ndim > 2 else found
        elif features:
            output = model.forward_head(model.forward_features(clips), pre_logits=True)
        else:
            output = model(clips)
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    if not features:
        output = output.sigmoid() if data_config.multi_label else output.softmax(dim=1)
    return output.cpu()


def score(
    model: nn.Module,
    view_loader: Iterable[dict[str, Any]],
    *,
    device: torch.device,
    precision: str = "auto",
    views_per_forward: int = 8,
    keep_views: bool = False,
    progress: Callable[[int], Any] | None = None,
    world: World | None = None,
    reduced: Callable[[int], Any] | None = None,
) -> Scores | None:
    """Score every video once.

    Args:
        model: a network with ``data_config`` and ``num_classes``, on ``device``. Switched to ``eval()`` mode meanwhile.
        view_loader: a ``DataLoader`` of ``ViewDataset`` items: ``index``, ``label``, ``views`` (uint8
            ``[V, T, H, W, C]``, or None if the file cannot be read) and ``error``.
        views_per_forward: largest number of views in a forward pass, see :class:`Forward`. A forward pass can have
            views of several videos, and a video can take several, so memory depends on this number alone.
        keep_views: also return the probabilities of every view.
        progress: called with 1 after each video that was read, e.g. the ``update`` of a progress bar.
        world: processes that score a part of the videos each, with loaders of the same dataset. They wait for each
            other while any of them reads videos.
        reduced: called with the new number of views if memory ran out.

    Returns:
        Scores of all videos, in the order of the dataset, on rank 0; None on other ranks.
    """
    world = world or World()
    forward = Forward(model, device, precision, views_per_forward, reduced, world.local_size)
    rows: list[_Row] = []

    def readable() -> Iterator[tuple[_Row, Tensor]]:
        for item in view_loader:
            label = torch.as_tensor(item["label"]).clone().numpy()  # a copy: release the worker's tensor
            rows.append(_Row(int(item["index"]), label, item["error"], np.zeros(model.num_classes)))
            if item["views"] is not None:
                yield rows[-1], item["views"]
            world.heartbeat()
            if progress is not None:
                progress(1)

    with world.together("the evaluation", heartbeats=True):
        was_training = model.training
        model.eval()
        try:
            for batch, owners in _batches(readable(), views_per_forward):
                for row, probs in zip(owners, forward(batch).numpy()):
                    row.probs += probs
                    row.num_views += 1
                    if keep_views:
                        row.views.append(probs.astype(np.float16))
        finally:
            model.train(was_training)
    parts = world.gather(rows, "the evaluation", on_main=True)
    return _merged(parts, len(view_loader.dataset), model) if world.is_main else None


@dataclass
class _Row:
    """The scores of one video, sent to rank 0. ``probs`` is the sum over the views."""

    index: int
    label: np.ndarray
    error: str | None
    probs: np.ndarray
    num_views: int = 0
    views: list[np.ndarray] = field(default_factory=list)


def _merged(parts: Sequence[Sequence[_Row]], num_videos: int, model: nn.Module) -> Scores:
    """Collect the rows of all ranks in the order of the dataset."""
    shape = (num_videos, model.num_classes)
    labels = np.zeros(shape, bool) if model.data_config.multi_label else np.full(num_videos, -1, np.int64)
    scores = Scores(np.zeros(shape, np.float32), labels, np.zeros(num_videos, bool))
    delivered = np.zeros(num_videos, bool)
    for row in itertools.chain.from_iterable(parts):
        if delivered[row.index]:
            raise ValueError(f"the loaders delivered item {row.index} twice")
        delivered[row.index] = True
        if labels.ndim == 2:  # the network can have more classes than the data
            labels[row.index, : len(row.label)] = row.label > 0
        else:
            labels[row.index] = row.label
        scores.scored[row.index] = row.num_views > 0 and np.isfinite(row.probs).all()
        if scores.scored[row.index]:
            scores.probs[row.index] = row.probs / row.num_views
        else:
            scores.errors.append((row.index, row.error or OUTPUT_NOT_FINITE))
        if row.views:
            if scores.views is None:
                scores.views = np.zeros((num_videos, *np.shape(row.views)[:1], shape[1]), np.float16)
            scores.views[row.index] = row.views
    scores.errors.sort()
    return scores


def _batches(items: Iterable[tuple[_Row, Tensor]], size: int) -> Iterator[tuple[Tensor, list[_Row]]]:
    """Yield batches of ``size`` views (the last may be smaller) with the row of each view."""
    views: list[Tensor] = []
    owners: list[_Row] = []
    for row, views_of_row in items:
        for view in views_of_row:
            views.append(view)
            owners.append(row)
            if len(views) == size:
                yield torch.stack(views), owners
                views, owners = [], []
    if views:
        yield torch.stack(views), owners
