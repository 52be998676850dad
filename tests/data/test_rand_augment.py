import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from video_rs.data import rand_augment
from video_rs.data.rand_augment import FILL, OPERATIONS, RandAugment


@pytest.fixture
def clip():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(20, 230, (3, 6, 8, 3), generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(6, 1).repeat_interleave(6, 2)


def pil(clip, operation):
    return torch.from_numpy(np.stack([np.array(operation(Image.fromarray(frame.numpy()))) for frame in clip]))


def apply(name, clip, level, seed=0):
    return getattr(rand_augment, name)(clip, level, np.random.default_rng(seed))


def test_sixteen_operations():
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 16


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
@pytest.mark.parametrize("magnitude", [0, 10, 15])
def test_every_operation_keeps_shape_type_and_its_input(operation, magnitude, clip):
    before = clip.clone()
    outs = [operation(clip, magnitude / 10, np.random.default_rng(1)) for _ in range(2)]
    assert outs[0].shape == clip.shape and outs[0].dtype == torch.uint8
    assert torch.equal(*outs) and torch.equal(clip, before)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_frames_of_a_still_clip_stay_equal(operation, clip):
    still = clip[:1].expand(3, -1, -1, -1)
    out = operation(still, 0.9, np.random.default_rng(0))
    assert torch.equal(out[0], out[2]) and torch.equal(out[:1], operation(clip[:1], 0.9, np.random.default_rng(0)))


def test_pointwise_operations_equal_pillows(clip):
    frame = clip[:1]
    assert torch.equal(apply("invert", clip, 1), pil(clip, ImageOps.invert))
    assert torch.equal(apply("posterize", clip, 1), pil(clip, lambda image: ImageOps.posterize(image, 4)))
    assert torch.equal(apply("solarize", clip, 0.5), pil(clip, lambda image: ImageOps.solarize(image, 128)))
    assert torch.equal(apply("equalize", frame, 1), pil(frame, ImageOps.equalize))
    close = [
        ("auto_contrast", ImageOps.autocontrast),
        ("brightness", lambda image: ImageEnhance.Brightness(image).enhance(1.9)),
        ("color", lambda image: ImageEnhance.Color(image).enhance(1.9)),
        ("sharpness", lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),
    ]
    for name, reference in close:
        difference = apply(name, frame, 1).int() - pil(frame, reference).int()
        assert difference.abs().max() <= 2, name


def test_solarize_add(clip):
    out = apply("solarize_add", clip, 1)
    assert torch.equal(out, torch.where(clip < 128, (clip.int() + 110).clamp(max=255), clip.int()).to(torch.uint8))


def test_translate_moves_by_whole_pixels(clip):
    left, right = clip[:, :, 10:], clip[:, :, :-10]
    out = apply("translate_x", clip, 0.1)
    assert torch.equal(out[:, :, :-10], left) and (out[:, :, -10:] == FILL).all() or torch.equal(out[:, :, 10:], right)
    assert (apply("translate_y", clip, 1.0) == FILL).all()  # 100 pixels, further than this clip is high


def test_moves_go_both_ways(clip):
    for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        outs = [apply(name, clip, 0.1, seed) for seed in range(12)]
        assert len({out.numpy().tobytes() for out in outs}) == 2, name


def test_rotate_and_shear_at_zero_change_nothing(clip):
    for name in ("rotate", "shear_x", "shear_y", "translate_x"):
        assert torch.equal(apply(name, clip, 0), clip)


def test_rotation_is_about_the_centre():
    clip = torch.full((1, 31, 31, 3), 10, dtype=torch.uint8)
    clip[:, 15, 15] = 200
    clip[:, 15, 25] = 250  # ten to the right of the centre
    out = apply("rotate", clip, 3)  # 90 degrees
    assert (out[0, 15, 15] == 200).all()
    assert (out[0, 5, 15] == 250).all() or (out[0, 25, 15] == 250).all()


def test_cutout_size(clip):
    out = apply("cutout", torch.zeros(1, 200, 200, 3, dtype=torch.uint8), 1)
    assert (out == FILL).any() and (out == FILL)[..., 0].sum() <= 80 * 80


def test_layers_and_keys(clip):
    assert RandAugment(0)(clip, np.random.default_rng(0)) is clip
    augment = RandAugment(2, 10)
    outs = [augment(clip, np.random.default_rng(seed)) for seed in (5, 5, 6)]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
