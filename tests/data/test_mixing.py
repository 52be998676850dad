import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from video_rs.data.mixing import mix, random_box


def one_class_per_clip():
    """Clip i is i everywhere and of class i, so that a mixed batch tells what was mixed."""
    return torch.arange(5.0)[:, None, None, None, None].expand(5, 3, 4, 12, 16).clone(), torch.eye(5)


@pytest.mark.parametrize("seed", range(20))
def test_targets_tell_the_share_of_each_clip(seed):
    for alphas in ({"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}):
        batch, targets = one_class_per_clip()
        mixed, mixed_targets = mix(batch, targets, np.random.default_rng(seed), **alphas)
        assert torch.allclose(mixed_targets.sum(1), torch.ones(5))
        expected = mixed_targets @ torch.arange(5.0)
        assert torch.allclose(mixed.mean((1, 2, 3, 4)), expected, atol=1e-4)
        assert torch.equal(batch, one_class_per_clip()[0])


def test_cutmix_cuts_one_box_through_all_frames():
    batch, targets = one_class_per_clip()
    foreign = mix(batch, targets, np.random.default_rng(3), cutmix=1.0)[0] != batch
    boxes = foreign[foreign.any(1).any(1).any(1).any(1)]
    assert len(boxes) and all(torch.equal(boxes[0, 0, 0], plane) for box in boxes for plane in box.flatten(0, 1))
    rows, columns = boxes[0, 0, 0].any(1).sum(), boxes[0, 0, 0].any(0).sum()
    assert boxes[0, 0, 0].sum() == rows * columns


def draws(count=1500, **alphas):
    """(own share of each clip, its partner; -1 for itself) of many batches of four."""
    batch, targets = torch.zeros(4, 1, 1, 20, 20), torch.eye(4, dtype=torch.float64)
    for seed in range(count):
        mixed = mix(batch, targets, np.random.default_rng(seed), **alphas)[1]
        foreign = mixed - torch.diag(mixed.diagonal())
        yield mixed.diagonal(), torch.where(foreign.any(1), foreign.argmax(1), -1)


def test_partners_are_a_permutation_and_the_share_is_the_batchs():
    seen = set()
    for own, partners in draws(300, mixup=1.0):
        moved = partners >= 0
        assert sorted(partners[moved].tolist()) == torch.nonzero(moved).flatten().tolist()
        assert (own[~moved] == 1).all() and (own[moved] == own[moved][:1]).all()
        seen.add(tuple(partners.tolist()))
    assert len(seen) == 24  # all permutations of four


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_of_mixup_follows_its_beta_distribution(alpha):
    shares = np.array([own.min().item() for own, _ in draws(mixup=alpha) if own.min() < 1])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 4 * np.sqrt(variance / len(shares))
    assert abs(shares.var() / variance - 1) < 0.15


def test_both_kinds_are_drawn_equally_often():
    batch = torch.arange(4.0)[:, None, None, None, None].expand(4, 1, 1, 20, 20) + 0.5
    whole = []
    for seed in range(400):
        mixed = mix(batch, torch.eye(4), np.random.default_rng(seed), mixup=1.0, cutmix=1.0)[0]
        whole.append(torch.isin(mixed, batch).all())  # mixup blends pixels, CutMix moves them
    assert abs(np.mean(whole) - 0.5) < 0.1


def test_the_box_has_the_area_of_the_share():
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        boxes = np.array([random_box(400, 600, share, np.random.default_rng(seed)) for seed in range(2000)])
        height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
        side = np.sqrt(1 - share)
        assert abs(height.max() - 400 * side) < 3 and abs(width.max() - 600 * side) < 3  # where no border cuts it
        if 0.5 <= share < 1:
            areas = height * width / 240_000
            assert abs(areas.max() - (1 - share)) < 0.01 and (areas < (1 - share) / 2).any()
            whole = (boxes[:, 0] > 0) & (boxes[:, 1] < 400)
            assert abs(((boxes[:, 0] + boxes[:, 1]) / 2)[whole].mean() - 200) < 20  # centred evenly


def test_memory_format_survives():
    batch = torch.rand(4, 2, 8, 8, 3).permute(0, 4, 1, 2, 3)
    for alphas in ({"mixup": 1.0}, {"cutmix": 1.0}):
        mixed, _ = mix(batch, torch.eye(4), np.random.default_rng(0), **alphas)
        assert mixed.is_contiguous(memory_format=torch.channels_last_3d)


def test_off_is_off_and_draws_come_from_the_generator():
    batch, targets = one_class_per_clip()
    assert mix(batch, targets, np.random.default_rng(0)) == (batch, targets)
    outs = [mix(batch, targets, np.random.default_rng(seed), mixup=1.0)[0] for seed in (1, 1, 2)]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_boxes_lie_inside(height, width, share, seed):
    top, bottom, left, right = random_box(height, width, share, np.random.default_rng(seed))
    assert 0 <= top <= bottom <= height and 0 <= left <= right <= width
    assert (bottom - top) * (right - left) <= (1 - share) * height * width + 1e-6
