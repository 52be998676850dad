import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video_rs.data.transforms import crops as transforms
from video_rs.data.transforms.crops import (
    TrainTransform,
    ViewTransform,
    normalize,
    random_area_crop,
    resize,
    view_boxes,
)
from video_rs.data_config import FILTERS

sides = st.integers(8, 400)


def ramp(frames=3, height=48, width=64):
    """Red increases downwards, green to the right, blue with time."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([y * 4, x * 3, t * 50], dim=-1).to(torch.uint8)


@settings(max_examples=300)
@given(sides, sides, st.integers(0, 2**32 - 1))
def test_random_crops_keep_their_promises(height, width, seed):
    top, left, h, w = random_area_crop(height, width, (0.08, 1.0), (0.5, 2.0), np.random.default_rng(seed))
    assert top >= 0 and left >= 0 and top + h <= height and left + w <= width
    if 0.5 <= width / height <= 2:  # no crop of an allowed shape covers a tenth of a ribbon
        assert h * w >= 0.1 * height * width  # min_covered is the tighter bound
    assert 0.5 - 1 / h <= w / h <= 2 + 1 / h


def test_random_crops_are_distributed_as_in_tensorflow():
    rng = np.random.default_rng(0)
    boxes = np.array([random_area_crop(256, 340, (0.25, 1.0), (0.5, 2.0), rng) for _ in range(4000)])
    top, left, h, w = boxes.T
    ratio = w / h
    # nearly every ratio can be met here, so that the ratio is uniform (mean 1.25), not log-uniform (mean 1.08)
    assert abs(ratio.mean() - 1.25) < 0.03
    assert (top + h < 256)[h < 256].all() and (left + w < 340)[w < 340].all()  # the exclusive upper bound
    near_square = np.abs(ratio - 1) < 0.05
    # uniform height from sqrt(area) on: the mean height is half way, unlike with a uniform area
    assert abs(h[near_square].mean() - (np.sqrt(0.25 * 256 * 340) + 256) / 2) < 5


@pytest.mark.parametrize("least", [0.1, 0.5, 0.9])
def test_the_least_covered_share_is_kept(least):
    def shares(transform_or_crop):
        return np.array([transform_or_crop(np.random.default_rng(seed)) for seed in range(200)])

    def crop(rng):
        _, _, h, w = random_area_crop(100, 100, (0.08, 1.0), (0.5, 2.0), rng, min_covered=least)
        return h * w / 1e4

    assert least <= shares(crop).min() < least + 0.05
    # the transform hands it on: the columns of the clip are numbered, so that first and last tell the crop's width
    columns = torch.arange(100, dtype=torch.uint8)[None, None, :, None].expand(1, 100, 100, 3)
    transform = TrainTransform(100, aspect=(1, 1), min_covered=least, flip=0)

    def width(rng):
        out = transform(columns, rng)[0, 0, :, 0].int()
        return (out[-1] - out[0] + 1).item() / 100

    widths = shares(width)
    assert least**0.5 - 0.02 <= widths.min() < least**0.5 + 0.05


def test_the_fallback_is_central_and_of_allowed_shape():
    never = {"area": (0.99, 1.0), "aspect": (0.5, 0.6)}
    assert random_area_crop(100, 100, **never, rng=np.random.default_rng(0)) == (0, 20, 100, 60)


def test_a_crop_of_everything():
    assert random_area_crop(40, 40, (1.0, 1.0), (1.0, 1.0), np.random.default_rng(0)) == (0, 0, 40, 40)


@pytest.mark.parametrize("name", FILTERS)
def test_filters(name):
    clip = torch.randint(0, 256, (2, 40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mode, _, antialias = name.partition("-")
    planes = clip.permute(0, 3, 1, 2).double()
    expected = torch.nn.functional.interpolate(planes, (16, 20), mode=mode, antialias=bool(antialias)).clamp(0, 255)
    ours = resize(clip, 16, 20, name).permute(0, 3, 1, 2).double()
    assert (ours - expected).abs().max() <= 1.0
    assert resize(clip, 40, 60, name) is clip


def test_every_filter_differs_and_reaches_the_training_clip():
    clip = torch.randint(0, 256, (2, 40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = {"area": (1, 1), "aspect": (1.5, 1.5), "flip": 0}
    outs = {name: TrainTransform(16, filter=name, **whole)(clip, np.random.default_rng(0)) for name in FILTERS}
    assert all(torch.equal(out, resize(clip, 16, 16, name)) for name, out in outs.items())
    assert len({out.numpy().tobytes() for out in outs.values()}) == len(FILTERS) == 4


def test_unknown_filter():
    with pytest.raises(ValueError, match="nearest"):
        resize(ramp(), 8, 8, "nearest")


def test_train_transform_depends_on_the_generator_alone():
    transform, clip = TrainTransform(24), ramp()
    first, again, other = (transform(clip, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (3, 24, 24, 3) and first.dtype == torch.uint8 and first.is_contiguous()
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_augmentations_come_in_their_order_after_the_resize():
    seen = []

    def record(name):
        return lambda clip, rng: seen.append((name, clip.shape)) or clip

    names = ("color_jitter", "rand_augment", "random_erasing")
    TrainTransform(24, **{name: record(name) for name in names})(ramp(), np.random.default_rng(0))
    assert seen == [(name, (3, 24, 24, 3)) for name in names]


def test_one_box_and_one_flip_for_the_whole_clip():
    for seed in range(10):
        out = TrainTransform(24)(ramp(), np.random.default_rng(seed))
        assert torch.equal(out[0, ..., :2], out[2, ..., :2])


def test_flip_probability():
    def flipped(p):
        transform = TrainTransform(24, flip=p)
        outs = [transform(ramp(), np.random.default_rng(seed)) for seed in range(60)]
        return np.mean([bool(out[0, 0, 0, 1] > out[0, 0, -1, 1]) for out in outs])

    assert flipped(0) == 0 and flipped(1) == 1 and 0.25 < flipped(0.5) < 0.75


def test_three_crops_along_the_longer_side():
    clip = ramp(2, 32, 60)
    views = ViewTransform(32, 32, crops=3)(clip)
    assert [int(v) for v in views[:, 0, 0, 0, 1]] == [0, 14 * 3, 28 * 3]
    for view, left in zip(views, (0, 14, 28)):
        assert torch.equal(view, clip[:, :, left : left + 32])
    upright = ViewTransform(32, 32, crops=3)(clip.transpose(1, 2))
    assert torch.equal(upright, views.transpose(2, 3))


@settings(max_examples=50)
@given(sides, sides, st.sampled_from([1, 3]))
def test_view_shapes(height, width, crops):
    height, width = transforms.short_side_size(height, width, 20)
    views = ViewTransform(20, 16, crops)(torch.zeros(1, height, width, 3, dtype=torch.uint8))
    assert views.shape == (crops, 1, 16, 16, 3)


def test_short_side_is_exact_and_the_other_rounded_down():
    assert transforms.short_side_size(240, 426, 256) == (256, 454)
    assert transforms.short_side_size(426, 240, 256) == (454, 256)
    assert transforms.short_side_size(100, 100, 256) == (256, 256)


def test_boxes_of_the_published_evaluation():
    assert view_boxes(256, 340, 256, 3) == [(0, 0), (0, 42), (0, 84)]
    assert view_boxes(256, 341, 224, 1) == [(16, 58)]  # round(170.5 - 112), half to even as TensorFlow rounds


def test_views_that_do_not_fit():
    with pytest.raises(ValueError, match="short side"):
        ViewTransform(32, 48)
    with pytest.raises(ValueError, match="crops"):
        ViewTransform(32, 32, crops=2)
    with pytest.raises(ValueError, match="48x64 pixels have not been resized to a short side of 32"):
        ViewTransform(32, 32)(ramp())


def test_normalize_is_exact_and_copies_nothing_twice():
    batch = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    out = normalize(batch, mean, std, torch.float64)
    expected = (batch.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    assert torch.allclose(out, expected.permute(0, 4, 1, 2, 3), atol=1e-6)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    assert normalize(batch, mean, std, torch.bfloat16).dtype == torch.bfloat16
    assert torch.allclose(normalize(batch, (0,) * 3, (1,) * 3).permute(0, 2, 3, 4, 1), batch / 255)
