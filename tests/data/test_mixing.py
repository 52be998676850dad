import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from video_rs.data.transforms.mixing import draw_mix, mix, random_boxes

KINDS = ({"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0})


def one_class_per_clip(count=8):
    """Clip i has the value and the class i: a mixed batch shows what was mixed."""
    clips = torch.arange(float(count))[:, None, None, None, None].expand(count, 3, 4, 12, 16)
    return clips.double().clone(), torch.eye(count, dtype=torch.float64)


def mixed(seed=0, step=0, count=8, **alphas):
    batch, targets = one_class_per_clip(count)
    return mix(batch, targets, draw_mix(seed, step, count, 12, 16, **alphas))


@pytest.mark.parametrize("alphas", KINDS)
def test_targets_tell_the_share_of_each_clip(alphas):
    for seed in range(20):
        clips, targets = mixed(seed, **alphas)
        assert torch.allclose(targets.sum(1), torch.ones(8).double())
        assert torch.allclose(clips.mean((1, 2, 3, 4)), targets @ torch.arange(8.0).double(), atol=1e-12)


@pytest.mark.parametrize("alphas", KINDS)
@pytest.mark.parametrize(("micro_batch", "repeats"), [(2, 1), (4, 1), (8, 1), (4, 2), (8, 2)])
def test_micro_batches_are_parts_of_the_whole(alphas, repeats, micro_batch):
    clips, targets = torch.rand(16, 3, 2, 12, 16), torch.rand(16, 5)
    draws = draw_mix(3, 7, 16, 12, 16, **alphas, repeats=repeats)
    whole = mix(clips, targets, draws)
    parts = [
        mix(clips[first : first + micro_batch], targets[first : first + micro_batch], draws.part(first, micro_batch))
        for first in range(0, 16, micro_batch)
    ]
    for together, cut in zip(whole, zip(*parts)):
        assert torch.equal(together, torch.cat(cut))
    assert not torch.equal(whole[0], clips)


def test_half_a_pair_is_an_error():
    draws = draw_mix(0, 0, 8, 12, 16, mixup=1.0, repeats=2)
    for first, count in ((0, 2), (2, 4), (0, 5)):
        with pytest.raises(ValueError, match="not whole pairs"):
            draws.part(first, count)


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_partners_are_of_different_uses(repeats):
    """Partners are never copies of the same sample, which are consecutive."""
    partners = mixed(mixup=1.0, repeats=repeats)[1] - torch.eye(8)
    partners = partners.where(torch.eye(8) == 0, torch.zeros(())).argmax(1)
    assert partners.tolist() == [p + repeats if p // repeats % 2 == 0 else p - repeats for p in range(8)]


def test_cutmix_cuts_one_box_through_all_frames_of_a_pair():
    batch = one_class_per_clip()[0]
    foreign = mixed(3, cutmix=1.0)[0] != batch
    boxes = foreign.flatten(1, 2)
    assert (boxes == boxes[:, :1]).all() and (boxes[::2] == boxes[1::2]).all()
    areas = boxes[::2, 0].sum((1, 2))
    assert len(areas.unique()) == 4  # each pair has its own
    assert torch.equal(areas, boxes[::2, 0].any(2).sum(1) * boxes[::2, 0].any(1).sum(1))


def shares(count=3000, **alphas):
    return draw_mix(0, 0, 2 * count, 200, 300, **alphas).own


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_of_mixup_follows_its_beta_distribution(alpha):
    own, variance = shares(mixup=alpha), 1 / (4 * (2 * alpha + 1))
    assert abs(own.mean() - 0.5) < 4 * np.sqrt(variance / len(own))
    assert abs(own.var() / variance - 1) < 0.15
    targets = mix(torch.zeros(6000, 1, 1, 1, 1), torch.eye(2).repeat(3000, 1), draw_mix(0, 0, 6000, 9, 9, mixup=alpha))
    assert np.allclose(targets[1][::2, 0].numpy(), draw_mix(0, 0, 6000, 200, 300, mixup=alpha).own)


def test_the_share_of_cutmix_is_what_the_box_leaves():
    draws = draw_mix(0, 0, 6000, 200, 300, cutmix=1.0)
    top, bottom, left, right = draws.boxes.T
    assert np.array_equal(draws.own, 1 - (bottom - top) * (right - left) / 60_000) and (draws.blend == 1).all()
    # a uniform share lets a box of side s = sqrt(1 - share) in at a uniform centre: (s - s^2 / 4)^2 of the area is in
    s = np.sqrt(np.linspace(0, 1, 10_001))
    assert draws.own.mean() == pytest.approx(1 - ((s - s**2 / 4) ** 2).mean(), abs=0.02)


def test_both_kinds_are_drawn_equally_often():
    draws = draw_mix(0, 0, 4000, 200, 300, mixup=1.0, cutmix=1.0)
    assert abs((draws.blend == 1).mean() - 0.5) < 0.05
    top, bottom, left, right = draws.boxes[draws.blend < 1].T
    assert ((bottom - top) * (right - left) == 0).all()  # mixup blends pixels, CutMix moves them


def test_draws_depend_on_seed_and_step_alone():
    first = mixed(1, 5, mixup=1.0)[0]
    assert torch.equal(first, mixed(1, 5, mixup=1.0)[0])
    assert not torch.equal(first, mixed(2, 5, mixup=1.0)[0])
    assert not torch.equal(first, mixed(1, 6, mixup=1.0)[0])


def test_the_box_has_the_area_of_the_share():
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        boxes = random_boxes(400, 600, np.full(2000, share), np.random.default_rng(0))
        height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
        side = np.sqrt(1 - share)
        assert abs(height.max() - 400 * side) < 3 and abs(width.max() - 600 * side) < 3  # where no border cuts it
        if 0.5 <= share < 1:
            areas = height * width / 240_000
            assert abs(areas.max() - (1 - share)) < 0.01 and (areas < (1 - share) / 2).any()
            whole = (boxes[:, 0] > 0) & (boxes[:, 1] < 400)
            assert abs(((boxes[:, 0] + boxes[:, 1]) / 2)[whole].mean() - 200) < 20  # centred evenly


@pytest.mark.parametrize("alphas", KINDS)
def test_memory_format_survives(alphas):
    batch = torch.rand(4, 2, 8, 8, 3).permute(0, 4, 1, 2, 3)
    clips, _ = mix(batch, torch.eye(4), draw_mix(0, 0, 4, 8, 8, **alphas))
    assert clips.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.gpu
def test_the_host_waits_for_nothing():
    batch, targets = (tensor.cuda() for tensor in one_class_per_clip())
    for alphas in KINDS:
        draws = draw_mix(0, 0, 8, 12, 16, **alphas)
        expected = mix(*one_class_per_clip(), draws)
        torch.cuda.set_sync_debug_mode("error")
        try:
            clips, mixed_targets = mix(batch, targets, draws)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close((clips.cpu(), mixed_targets.cpu()), expected)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_boxes_lie_inside(height, width, share, seed):
    ((top, bottom, left, right),) = random_boxes(height, width, np.array([share]), np.random.default_rng(seed))
    assert 0 <= top <= bottom <= height and 0 <= left <= right <= width
    assert (bottom - top) * (right - left) <= (1 - share) * height * width + 1e-6
