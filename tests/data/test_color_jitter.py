import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import ColorJitter as Torchvisions

from video_rs.data.transforms.color_jitter import NAMES, ColorJitter
from video_rs.data.transforms.crops import TrainTransform

CLIP = torch.randint(0, 256, (3, 20, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STRENGTHS = (0.4, 0.5, 0.6, 0.2)


def jittered(seed, *strengths, clip=CLIP):
    return ColorJitter(*strengths)(clip, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(8))
def test_it_is_torchvisions_with_these_factors(seed):
    rng = np.random.default_rng(seed)
    factors = [rng.uniform(1 - s, 1 + s) for s in STRENGTHS[:3]] + [rng.uniform(-0.2, 0.2)]
    params = {f"{name}_factor": factor for name, factor in zip(NAMES, factors)}
    params["fn_idx"] = torch.from_numpy(rng.permutation(4))
    expected = Torchvisions(*STRENGTHS).transform(CLIP.permute(0, 3, 1, 2), params).permute(0, 2, 3, 1)
    assert torch.equal(jittered(seed, *STRENGTHS), expected)
    assert not torch.equal(expected, CLIP)


def test_all_frames_have_one_draw():
    still = CLIP[:1].expand(5, -1, -1, -1)
    for seed in range(5):
        clip = jittered(seed, *STRENGTHS, clip=still)
        assert (clip == clip[:1]).all()


def test_factors_are_uniform_in_torchvisions_ranges():
    gray = torch.full((1, 1, 1, 3), 100, dtype=torch.uint8)
    values = torch.cat([jittered(seed, 0.5, clip=gray).flatten()[:1] for seed in range(2000)]).float()
    assert values.min() >= 50 and values.max() <= 150
    assert abs(values.mean() - 100) < 2 and abs(values.std() - 100 / 12**0.5) < 1.5
    assert ColorJitter(brightness=1.5).ranges == {"brightness": (0, 2.5)}


def test_the_order_is_drawn():
    """Brightness before contrast gives another gray than contrast before brightness."""
    step = torch.tensor([60, 160], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3)
    assert len({tuple(jittered(seed, 0.9, 0.9, clip=step).flatten().tolist()) for seed in range(50)}) > 25
    orders = {tuple(np.random.default_rng(seed).permutation(4)) for seed in range(300)}
    assert len(orders) == 24


@pytest.mark.parametrize("augment", [ColorJitter(*STRENGTHS), None])
def test_other_draws_do_not_change(augment):
    """Crop and flip are drawn first, and nothing else without augmentation."""
    rngs = [np.random.default_rng(seed) for seed in (5, 5)]
    plain, other = TrainTransform(16), TrainTransform(16, color_jitter=augment)
    assert plain.box(20, 24, rngs[0]) == other.box(20, 24, rngs[1])
    first, second = plain.finish(CLIP, rngs[0]), other.finish(CLIP, rngs[1])
    assert torch.equal(first, second) == (augment is None)
    assert (rngs[0].random() == rngs[1].random()) == (augment is None)
