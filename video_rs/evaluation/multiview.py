"""Multi-view testing: K clips x C crops of each video, scored with the mean of the softmax over its views; of the
sigmoid, where a video may be of several classes (``contract.multi_label``).

Ten clips and three crops are the protocol of the published Kinetics results (SlowFast, arXiv 1812.03982, section 4;
the TF Model Garden's configs of 3D ResNet-RS).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from video_rs import memory, runtime
from video_rs.data.transforms import normalize
from video_rs.distributed import World
from video_rs.errors import MachineError

OUTPUT_NOT_FINITE = "the network's output is not finite"


@dataclass
class Scores:
    """What a network says about N videos.

    Attributes:
        probs: float32 ``[N, C]``, the mean over the views; zero where ``scored`` is False.
        labels: int64 ``[N]``; bool ``[N, C]`` where a video may be of several classes.
        scored: bool ``[N]``; False for a video that could not be read, or whose output is not finite.
        views: float16 ``[N, V, C]``, the probabilities of every view in clip-major order, or None.
        errors: (index of the video, reason) for each one that was not scored.
    """

    probs: np.ndarray
    labels: np.ndarray
    scored: np.ndarray
    views: np.ndarray | None = None
    errors: list[tuple[int, str]] = field(default_factory=list)


@torch.no_grad()  # in inference_mode tensors of XLA have no views
def view_probs(model: nn.Module, views: Tensor, *, device: torch.device, precision: str = "auto") -> Tensor:
    """Class probabilities of uint8 views: ``[n, T, H, W, C]`` -> float32 or float64 ``[n, classes]`` on the host.

    The views are normalised as ``model.contract`` says; the probabilities add up to 1, or with its ``multi_label`` each
    class has its own. The model must be in ``eval()`` mode and on ``device``.

    Raises:
        MachineError: not enough memory; the message says for how many views there is.
    """

    def forward(count: int) -> Tensor:
        return _view_probs(model, views[:count], device, precision)

    try:
        return forward(len(views))
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        memory.let_go(error)
    fits = memory.largest_that_fits([len(views) >> n for n in range(1, len(views).bit_length())], forward)
    advice = f"{fits} would fit; set test.batch_size={fits} (views_per_forward)" if fits else "nor is there for one"
    raise MachineError(f"not enough memory for {len(views)} views in one forward pass: {advice}")


def _view_probs(model: nn.Module, views: Tensor, device: torch.device, precision: str) -> Tensor:
    contract, parameter = model.contract, next(model.parameters())
    clips = normalize(views.to(device), contract.mean, contract.std, dtype=parameter.dtype)
    with runtime.autocast(device, runtime.select_precision(precision, device)):
        logits = model(clips)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (logits.sigmoid() if contract.multi_label else logits.softmax(dim=1)).cpu()


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
) -> Scores:
    """Score every video once.

    Args:
        model: with ``contract`` and ``num_classes``, on ``device``; used in ``eval()`` mode and given back as it was.
        view_loader: a ``DataLoader`` of ``ViewDataset`` items: ``index``, ``label``, ``views`` (uint8
            ``[V, T, H, W, C]``, or None for a broken file) and ``error``.
        views_per_forward: views in one forward pass. Views of several videos share one, and the views of one video may
            be spread over several, so memory depends on this number alone.
        keep_views: also return the probabilities of every view.
        progress: called with 1 after each video that was read, e.g. ``tqdm.update``.
        world: the processes that have a part of the videos each, in loaders of the same dataset. They wait for each
            other as long as videos are read, however slow one's disk is.

    Returns:
        Scores in the order of the dataset, in all processes.
    """
    world = world or World()

    def advance() -> None:
        world.alive()
        if progress is not None:
            progress(1)

    with world.together("the evaluation", patient=True):
        part = _score(model, view_loader, device, precision, views_per_forward, keep_views, advance)
        if world.size > 1 and part[1].views is not None:  # the largest by far: only the own ones travel
            part[1].views = part[1].views[part[0]]
    return _merged(world.gather(part, "the evaluation"))


def _score(
    model: nn.Module,
    view_loader: Iterable[dict[str, Any]],
    device: torch.device,
    precision: str,
    views_per_forward: int,
    keep_views: bool,
    advance: Callable[[], None],
) -> tuple[np.ndarray, Scores]:
    """Which videos were in the loader, bool ``[N]``, and their scores."""
    num_videos = len(view_loader.dataset)
    several = model.contract.multi_label
    labels = np.zeros((num_videos, model.num_classes), bool) if several else np.full(num_videos, -1, dtype=np.int64)
    errors: list[tuple[int, str]] = []
    noted = np.zeros(num_videos, bool)
    sums = np.zeros((num_videos, model.num_classes))
    views: list[list[np.ndarray]] = [[] for _ in range(num_videos)]
    seen = np.zeros(num_videos, dtype=np.int64)
    was_training = model.training
    model.eval()
    try:
        for batch, owners in _batches(_readable(view_loader, noted, labels, errors, advance), views_per_forward):
            if device.type == "xla":  # which would compile the network again for the last, smaller group
                batch = torch.cat([batch, batch[:1].expand(views_per_forward - len(batch), *batch.shape[1:])])
            probs_of_views = view_probs(model, batch, device=device, precision=precision)[: len(owners)]
            for owner, probs in zip(owners, probs_of_views, strict=True):
                sums[owner] += probs.numpy()
                seen[owner] += 1
                if keep_views:
                    views[owner].append(probs.numpy().astype(np.float16))
    finally:
        model.train(was_training)

    finite = np.isfinite(sums).all(axis=1)
    errors += [(int(i), OUTPUT_NOT_FINITE) for i in np.flatnonzero(~finite)]
    scored = finite & (seen > 0)
    means = np.where(scored[:, None], sums, 0.0) / np.maximum(seen, 1)[:, None]
    kept = _stack(views) if keep_views else None
    return noted, Scores(means.astype(np.float32), labels, scored, kept, errors)


def _merged(parts: Sequence[tuple[np.ndarray, Scores]]) -> Scores:
    """The scores of all videos, each of which was in one part; of several parts each has the views of its own alone."""
    if len(parts) == 1:
        return parts[0][1]
    whole, views = parts[0][1], [(noted, part.views) for noted, part in parts if part.views is not None]
    taken = parts[0][0].copy()
    for noted, part in parts[1:]:
        if (taken & noted).any():
            raise ValueError(f"two processes scored item {np.flatnonzero(taken & noted)[0]}")
        taken |= noted
        for own, other in ((whole.probs, part.probs), (whole.labels, part.labels), (whole.scored, part.scored)):
            own[noted] = other[noted]
        whole.errors += part.errors
    if views:
        whole.views = np.zeros((len(taken), *views[0][1].shape[1:]), np.float16)
        for noted, values in views:
            whole.views[noted] = values
    whole.errors.sort()
    return whole


def _readable(
    items: Iterable[dict],
    noted: np.ndarray,
    labels: np.ndarray,
    errors: list[tuple[int, str]],
    advance: Callable[[], None],
) -> Iterator[dict]:
    """Note the labels and errors of all items, and pass on those that have views."""
    for item in items:
        index, label = item["index"], item["label"]
        if noted[index]:
            raise ValueError(f"the loader delivered item {index} twice")
        noted[index] = True
        if labels.ndim == 2:  # the network may have more classes than the data
            labels[index, : len(label)] = label.numpy() > 0
        else:
            labels[index] = label
        if item["views"] is None:
            errors.append((int(index), item["error"]))
        else:
            yield item
        advance()


def _batches(items: Iterable[dict], size: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Batches of ``size`` views (the last may be smaller), with the index of the video that each view is of."""
    views: list[Tensor] = []
    owners: list[int] = []
    for item in items:
        for view in item["views"]:
            views.append(view)
            owners.append(item["index"])
            if len(views) == size:
                yield torch.stack(views), owners
                views, owners = [], []
    if views:
        yield torch.stack(views), owners


def _stack(views: list[list[np.ndarray]]) -> np.ndarray | None:
    """``[N, V, C]``, with zeros for a video without views; None when no video has any."""
    shape = next((np.shape(v) for v in views if v), None)
    return None if shape is None else np.stack([np.stack(v) if v else np.zeros(shape, np.float16) for v in views])
