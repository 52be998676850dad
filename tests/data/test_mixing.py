import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from video_rs.data.mixing import mix, random_box


def one_class_per_clip(channels_last=False):
    """Clip i is i everywhere and of class i, so that a mixed batch tells what was mixed."""
    shape = (5, 4, 12, 16, 3) if channels_last else (5, 3, 4, 12, 16)
    batch = torch.arange(5.0)[:, None, None, None, None].expand(shape).clone()
    return batch, torch.eye(5)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_targets_tell_the_share_of_each_clip(seed, channels_last):
    for alphas in ({"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}):
        batch, targets = one_class_per_clip(channels_last)
        mixed, mixed_targets = mix(batch, targets, np.random.default_rng(seed), **alphas, channels_last=channels_last)
        assert torch.allclose(mixed_targets.sum(1), torch.ones(5))
        expected = mixed_targets @ torch.arange(5.0)
        assert torch.allclose(mixed.mean((1, 2, 3, 4)), expected, atol=1e-4)
        assert torch.equal(batch, one_class_per_clip(channels_last)[0])


@pytest.mark.parametrize("channels_last", [False, True])
def test_cutmix_cuts_one_box_through_all_frames(channels_last):
    batch, targets = one_class_per_clip(channels_last)
    mixed, _ = mix(batch, targets, np.random.default_rng(3), cutmix=1.0, channels_last=channels_last)
    foreign = mixed != batch
    foreign = foreign if not channels_last else foreign.permute(0, 4, 1, 2, 3)
    boxes = foreign[foreign.any(1).any(1).any(1).any(1)]
    assert len(boxes) and all(torch.equal(boxes[0, 0, 0], plane) for box in boxes for plane in box.flatten(0, 1))
    rows, columns = boxes[0, 0, 0].any(1).sum(), boxes[0, 0, 0].any(0).sum()
    assert boxes[0, 0, 0].sum() == rows * columns


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
