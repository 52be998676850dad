import math

import numpy as np
import pytest
import torch

from video_rs.data.transforms.random_erasing import RandomErasing, random_box

GRAY = torch.full((4, 60, 80, 3), 100, dtype=torch.uint8)


def erased(seed, *args, clip=GRAY):
    return RandomErasing(*args)(clip, np.random.default_rng(seed))


def test_one_box_through_all_frames_has_the_pixel():
    for seed in range(50):
        clip = erased(seed, 1.0, (10.4, 20.6, 30.0))
        changed = (clip != GRAY).any(-1)
        assert (changed == changed[0]).all()
        rows, columns = changed[0].any(1).nonzero(), changed[0].any(0).nonzero()
        assert changed[0].sum() == len(rows) * len(columns)
        assert (clip[changed] == torch.tensor([10, 21, 30], dtype=torch.uint8)).all()
    assert (GRAY == 100).all()


def test_noise_is_uniform_and_each_frames_own():
    boxes = [erased(seed, 1.0)[erased(seed, 1.0, (0, 0, 0)) == 0] for seed in range(20)]
    values = torch.cat(boxes).float()
    assert abs(values.mean() - 127.5) < 2 and values.min() == 0 and values.max() == 255
    assert abs(values.std() - math.sqrt((256**2 - 1) / 12)) < 2
    clip = erased(0, 1.0)
    assert not torch.equal(clip[0], clip[1])


def test_as_often_as_asked():
    share = np.mean([erased(seed, 0.3, (0, 0, 0)) is not GRAY for seed in range(2000)])
    assert abs(share - 0.3) < 0.04
    assert all(erased(seed, 0.0) is GRAY for seed in range(50))


def test_boxes_are_timms(monkeypatch):
    """Area and aspect ratio have the distribution of timm, over many boxes of a large frame."""
    timm = pytest.importorskip("timm.data.random_erasing")
    rng, ours = np.random.default_rng(0), []
    for _ in range(4000):
        top, left, h, w = random_box(400, 400, rng)
        assert top >= 0 and left >= 0 and top + h <= 400 and left + w <= 400 and h < 400 and w < 400
        ours.append((h * w / 160_000, math.log(h / w), top + h / 2))
    theirs, peer = [], timm.RandomErasing(1.0, device="cpu")
    timm.random.seed(0)
    for _ in range(1000):
        image = peer(torch.ones(1, 400, 400))[0] == 0
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        theirs.append((len(rows) * len(columns) / 160_000, math.log(len(rows) / len(columns)), rows.double().mean()))
    for a, b in zip(zip(*ours), zip(*theirs)):
        assert np.mean(a) == pytest.approx(np.mean(b), abs=4 * np.std(b) / math.sqrt(1000))
        assert np.std(a) == pytest.approx(np.std(b), rel=0.1)


def test_a_frame_too_small_for_a_box_stays():
    tiny = torch.full((1, 1, 1, 3), 7, dtype=torch.uint8)
    assert all((erased(seed, 1.0, (0, 0, 0), clip=tiny) == 7).all() for seed in range(20))
