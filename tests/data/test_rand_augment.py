import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from video_rs.data.sampler import SampleKey
from video_rs.data.sources.records import Records
from video_rs.data.transforms import rand_augment
from video_rs.data.transforms.rand_augment import FILL, OPERATIONS, RandAugment
from video_rs.experiment.build import train_dataset
from video_rs.experiment.config import load_config


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


def test_every_operation_keeps_shape_type_and_its_input(clip):
    before, still = clip.clone(), clip[:1].expand(3, -1, -1, -1)
    for operation in OPERATIONS:
        for level in (0, 1.0, 1.5):
            outs = [operation(clip, level, np.random.default_rng(1)) for _ in range(2)]
            assert outs[0].shape == clip.shape and outs[0].dtype == torch.uint8, (operation, level)
            assert torch.equal(*outs) and torch.equal(clip, before), (operation, level)
        frames, one = (operation(given, 0.9, np.random.default_rng(0)) for given in (still, clip[:1]))
        assert torch.equal(frames, one.expand(3, -1, -1, -1)), operation


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
    if torch.equal(out[:, :, :-10], left):
        assert (out[:, :, -10:] == FILL).all()
    else:
        assert torch.equal(out[:, :, 10:], right) and (out[:, :, :10] == FILL).all()
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


def test_cutout_size():
    clip = torch.zeros(1, 300, 300, 3, dtype=torch.uint8)
    for level, half in ((0.5, 20), (1.0, 40), (1.5, 60)):
        blank = [(apply("cutout", clip, level, seed) == FILL)[0, ..., 0] for seed in range(30)]
        rows, columns = (max(int(b.any(axis).sum()) for b in blank) for axis in (1, 0))
        assert (rows, columns) == (2 * half, 2 * half) and all(b.any() for b in blank), level


def test_values_at_the_magnitudes_of_the_recipe():
    for operation, before, *expected in (
        ("posterize", 0b10111111, 0b10110000, 0b10111100),  # 4 and 6 bits
        ("solarize", 250, 250, 250),  # from 256 and 384 on: never
        ("solarize_add", 100, 210, 255),  # 110 and 165
        ("solarize_add", 128, 128, 128),
        ("brightness", 50, 95, 140),  # 1.9 and 2.8 times
        ("contrast", 24, 41, 58),  # away from 40 * 32 // 256 = 5
        ("color", 70, 70, 70),  # gray stays gray
        ("sharpness", 70, 70, 70),  # flat stays flat
        ("invert", 70, 185, 185),
        ("auto_contrast", 70, 70, 70),
        ("equalize", 70, 70, 70),
    ):
        clip = torch.full((2, 40, 32, 3), before, dtype=torch.uint8)
        for level, after in zip((1.0, 1.5), expected, strict=True):
            out = apply(operation, clip, level).int()
            assert (out - after).abs().max() <= (operation == "color"), (operation, level, out.unique())


def test_color_and_sharpness_move_away_by_1_9_and_2_8():
    red = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    red[..., 0] = 80  # of gray 0.2989 * 80 = 23.9
    dot = torch.full((1, 9, 9, 3), 100, dtype=torch.uint8)
    dot[:, 4, 4] = 113  # smoothed: 100 + 13 * 5 / 13 = 105
    for level, factor in ((1.0, 1.9), (1.5, 2.8)):
        assert abs(apply("color", red, level)[0, 0, 0, 0].item() - (23.9 + factor * 56.1)) < 1.5
        assert abs(apply("sharpness", dot, level)[0, 4, 4, 0].item() - (105 + factor * 8)) < 1.5


@pytest.mark.parametrize(("level", "degrees", "shear", "pixels"), [(1.0, 30, 0.3, 100), (1.5, 45, 0.45, 150)])
def test_moves_at_the_magnitudes_of_the_recipe(level, degrees, shear, pixels):
    clip = torch.zeros(1, 401, 401, 3, dtype=torch.uint8)
    clip[:, 200:203, 240:243] = 255  # a dot 41 to the right of the centre

    def dot(name):
        places = torch.nonzero(apply(name, clip, level)[0, ..., 0] == 255).double()
        y, x = places.mean(0).tolist()
        return y - 200, x - 200

    y, x = dot("rotate")
    at_rest = np.degrees(np.arctan2(1, 41))
    assert abs(abs(np.degrees(np.arctan2(y, x)) - at_rest) - degrees) < 1
    y, x = dot("translate_x")
    assert (y, abs(x - 41)) == (1, pixels)
    y, x = dot("translate_y")
    assert (abs(y - 1), x) == (pixels, 41)
    y, x = dot("shear_x")
    assert abs(abs(x - 41) - shear * 201) < 1.5 and y == 1
    y, x = dot("shear_y")
    assert abs(abs(y - 1) - shear * 241) < 1.5 and abs(x - 41) < 1.5


def test_operations_are_drawn_evenly_at_the_magnitude_of_the_config(tmp_path, make_video, monkeypatch):
    """From the config: `layers` operations per clip, uniform over all sixteen, at the given magnitude."""
    drawn = []

    def spy(index):
        return lambda clip, level, rng: (drawn.append((index, level)), clip)[1]

    monkeypatch.setattr(rand_augment, "OPERATIONS", tuple(map(spy, range(16))))
    sizes = ["data.num_frames=1", "data.train_size=16", "data.rand_augment_layers=2", "data.rand_augment_magnitude=15"]
    records = Records([str(make_video(tmp_path / "a.mp4", 2))], [0], ["a"])
    dataset = train_dataset(load_config("k400_rs50", sizes), records)
    dataset[SampleKey(0, 0)]
    assert len(drawn) == 2 and {level for _, level in drawn} == {1.5}
    for seed in range(1600):
        dataset.transform.rand_augment(torch.zeros(0), np.random.default_rng(seed))
    counts = np.bincount([index for index, _ in drawn], minlength=16)
    assert len(counts) == 16 and ((counts - 200) ** 2 / 200).sum() < 38  # chi squared, 15 degrees: p = 0.001


def test_layers_and_keys(clip):
    assert RandAugment(0)(clip, np.random.default_rng(0)) is clip
    augment = RandAugment(2, 10)
    outs = [augment(clip, np.random.default_rng(seed)) for seed in (5, 5, 6)]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
