import contextlib
import dataclasses
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from video_rs.data_config import DataConfig
from video_rs.distributed.world import World
from video_rs.errors import MachineError
from video_rs.evaluation.multiview import score

CLASSES, FRAMES, SIZE = 3, 2, 4
CPU = torch.device("cpu")


class Net(nn.Module):
    """A linear function of each frame's mean colour, so that the expected scores are easy to compute."""

    def __init__(self):
        super().__init__()
        self.num_classes = CLASSES
        self.data_config = DataConfig(num_frames=FRAMES, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))
        self.linear = nn.Linear(3, CLASSES).double()
        self.dropout = nn.Dropout(0.9)
        self.batches = []

    def forward(self, clips):
        self.batches.append(len(clips))
        return self.dropout(self.linear(clips.mean(dim=(2, 3, 4))))


class Loader(list):
    """Items of a view loader in any order; by default those of the whole dataset."""

    length = None

    @property
    def dataset(self):
        return range(len(self) if self.length is None else self.length)

    def only(self, indices, length=None):
        """Return the loader of one rank."""
        part = Loader(self[i] for i in indices)
        part.length = len(self.dataset) if length is None else length
        return part


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def make_items(num_videos=5, num_views=6):
    rng = torch.Generator().manual_seed(1)
    shape = (num_views, FRAMES, SIZE, SIZE, 3)
    return Loader(
        {"index": i, "label": i % CLASSES, "views": torch.randint(256, shape, generator=rng, dtype=torch.uint8)}
        | {"error": None}
        for i in range(num_videos)
    )


def by_hand(net, views):
    clips = (views.double() / 255 - torch.tensor(net.data_config.mean)) / torch.tensor(net.data_config.std)
    return net.linear(clips.mean(dim=(1, 2, 3))).softmax(1)


@pytest.mark.parametrize("views_per_forward", [1, 4, 6, 7, 100])
def test_scores_are_the_mean_softmax_of_the_views(net, views_per_forward):
    items = make_items()
    scores = score(net, items, device=CPU, views_per_forward=views_per_forward, keep_views=True)
    expected = torch.stack([by_hand(net, item["views"]) for item in items]).detach().numpy()
    np.testing.assert_allclose(scores.views, expected, atol=1e-3)
    np.testing.assert_allclose(scores.probs, expected.mean(1), atol=1e-6)
    assert scores.labels.tolist() == [0, 1, 2, 0, 1] and scores.scored.all() and scores.errors == []
    assert set(net.batches[:-1]) <= {views_per_forward} and sum(net.batches) == 30


def test_order_of_the_loader_does_not_matter(net):
    items = make_items()
    shuffled = Loader([items[i] for i in (3, 0, 4, 2, 1)])
    first, second = (score(net, loader, device=CPU) for loader in (items, shuffled))
    np.testing.assert_allclose(first.probs, second.probs, atol=1e-7)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_a_broken_video_is_not_scored_and_not_replaced(net):
    items = make_items()
    items[2] |= {"views": None, "error": "x.mp4 is empty"}
    counted = []
    scores = score(net, items, device=CPU, keep_views=True, progress=counted.append)
    assert scores.scored.tolist() == [True, True, False, True, True]
    assert scores.errors == [(2, "x.mp4 is empty")] and scores.labels[2] == 2
    assert not scores.probs[2].any() and not scores.views[2].any()
    np.testing.assert_allclose(scores.probs[3], by_hand(net, items[3]["views"]).mean(0).detach(), atol=1e-6)
    assert sum(counted) == 5


def test_output_that_is_not_finite_is_not_scored(net):
    with torch.no_grad():
        net.linear.bias[0] = float("nan")
    scores = score(net, make_items(2), device=CPU)
    assert not scores.scored.any() and np.isfinite(scores.probs).all()
    assert [index for index, _ in scores.errors] == [0, 1] and "not finite" in scores.errors[0][1]


def test_the_model_returns_to_training_mode(net):
    net.train()
    score(net, make_items(1), device=CPU)
    assert net.training


def test_a_video_delivered_twice_is_an_error(net):
    items = make_items(2)
    with pytest.raises(ValueError, match="item 1 twice"):
        score(net, Loader([items[1], items[1]]), device=CPU)


def test_nothing_readable(net):
    items = make_items(2)
    for item in items:
        item |= {"views": None, "error": "gone"}
    scores = score(net, items, device=CPU, keep_views=True)
    assert scores.probs.shape == (2, CLASSES) and not scores.scored.any() and scores.views is None


def test_several_classes_are_the_mean_sigmoid_of_the_views(net):
    items = make_items()
    for item in items:  # the network has a class more than the data
        item["label"] = torch.tensor([float(item["index"] % 2), 1.0])
    items[4]["label"] = torch.zeros(2)
    net.data_config = dataclasses.replace(net.data_config, multi_label=True)
    scores = score(net, items, device=CPU, keep_views=True)
    pixels = torch.stack([item["views"] for item in items]).double() / 255
    clips = (pixels - torch.tensor(net.data_config.mean)) / torch.tensor(net.data_config.std)
    expected = net.linear(clips.mean(dim=(2, 3, 4))).sigmoid().detach().numpy()
    np.testing.assert_allclose(scores.probs, expected.mean(1), atol=1e-6)
    np.testing.assert_allclose(scores.views, expected, atol=1e-3)
    assert scores.labels.dtype == bool
    assert scores.labels.astype(int).tolist() == [[0, 1, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="item 4 twice"):
        score(net, Loader([*items[:4], items[4], items[4]]), device=CPU)


class Rank(World):
    """One of two ranks, run one after the other. Rank 0 receives what rank 1 sent."""

    def __init__(self, rank, received=()):
        super().__init__(rank=rank, size=2)
        self.received, self.sent = received, None

    @contextlib.contextmanager
    def together(self, what, heartbeats=False):
        yield

    def gather(self, value, what, on_main):
        self.sent = pickle.dumps(value)
        return [value, *map(pickle.loads, self.received)] if self.is_main else []


@pytest.mark.parametrize("multi_label", [False, True])
def test_only_rank_0_holds_the_scores_of_all_videos(net, multi_label):
    items = make_items(7)
    items[3] |= {"views": None, "error": "gone"}
    if multi_label:
        net.data_config = dataclasses.replace(net.data_config, multi_label=True)
        for item in items:
            item["label"] = torch.nn.functional.one_hot(torch.tensor(item["label"]), CLASSES)
    one = score(net, items, device=CPU, keep_views=True)
    other, main = Rank(1), Rank(0)
    assert score(net, items.only(range(1, 7, 2)), device=CPU, keep_views=True, world=other) is None
    main.received = [other.sent]
    two = score(net, items.only(range(0, 7, 2)), device=CPU, keep_views=True, world=main)
    for name in ("probs", "labels", "scored", "views"):
        np.testing.assert_array_equal(getattr(two, name), getattr(one, name))
    assert two.errors == one.errors == [(3, "gone")]
    with pytest.raises(ValueError, match="item 1 twice"):
        score(net, items.only(range(7)), device=CPU, world=main)


def test_memory_of_other_ranks_does_not_grow_with_the_dataset(net):
    """The scores of a million videos would take 24 MB; those of two videos take a few hundred bytes."""
    rank = Rank(1)
    items = make_items(2).only(range(2), length=10**6)
    score(net, items.only(range(1)), device=CPU, world=rank)  # imports
    tracemalloc.start()
    try:
        score(net, items, device=CPU, keep_views=True, world=rank)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000 and len(rank.sent) < 10_000


def test_views_that_do_not_fit_are_scored_in_smaller_batches(net, capfd):
    class Small(Net):
        limit = 3

        def forward(self, clips):
            if len(clips) > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(clips)

    small = Small()
    small.load_state_dict(net.state_dict())
    expected = score(net, make_items(), device=CPU)
    less = []
    scores = score(small, make_items(), device=CPU, reduced=less.append)
    np.testing.assert_allclose(scores.probs, expected.probs, atol=1e-6)
    assert less == [4, 2]
    assert set(small.batches) == {2}  # 8, 4 and 2: tried once each
    assert capfd.readouterr().err.splitlines() == [
        f"not enough memory for {n} views in one forward pass: continuing with {n // 2}" for n in (8, 4)
    ]
    small.limit = 0
    with pytest.raises(MachineError, match="not enough memory for one view"):
        score(small, make_items(), device=CPU)
