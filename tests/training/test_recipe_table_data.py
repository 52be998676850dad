"""The table "Recipe decisions" of DESIGN.md, row by row: hand-computed values, and what each row guards against.

A test passes on the code as it is, and what it checks fails under each of the named mutations. Here are the rows about
the data: RandAugment, normalisation and resize.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.mutations import overridden, replaced, under
from video_rs import checkpoint
from video_rs.data.sampler import SampleKey
from video_rs.data.sources.records import Records
from video_rs.data.transforms import rand_augment
from video_rs.data_config import IMAGENET_MEAN, IMAGENET_STD
from video_rs.errors import UserError
from video_rs.experiment import build, config
from video_rs.models.presets import PRESETS

OPERATIONS = (  # of the TPU code, efficientnet/autoaugment.py, in its order
    *("auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "color", "contrast", "brightness"),
    *("sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "cutout", "solarize_add"),
)
MAGNITUDES = {"imagenet_rs50": 10, "imagenet_rs101_i160": 10, "imagenet_rs101": 15}  # test_presets has them all


def operations(change):
    return replaced("video_rs.data.transforms.rand_augment.OPERATIONS", change)


def ten_pixels(ops):
    at = OPERATIONS.index("translate_x")
    return (*ops[:at], lambda clip, level, rng: ops[at](clip, level / 10, rng), *ops[at + 1 :])


@under(
    identity_as_the_17th=operations(lambda ops: (*ops, lambda clip, level, rng: clip)),
    translate_10_pixels=operations(ten_pixels),
    three_layers=overridden("data.rand_augment_layers=3"),
    magnitude_of_50=overridden("data.rand_augment_magnitude=10"),
    magnitude_of_101=overridden("data.rand_augment_magnitude=15"),
    in_the_video_recipe=overridden("data.rand_augment_layers=2"),
    preset_with_anothers=replaced("video_rs.models.presets.Preset.rand_augment", lambda value: property(lambda p: 15)),
)
def test_rand_augment(mutated, job):
    """RandAugment: 2 of 16 operations, 100 px, magnitude 10 for 50@160 and 101@160, else 15; none for videos."""
    clip = torch.randint(0, 256, (2, 40, 160, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def by_hand(magnitude, rng):
        out = clip
        for _ in range(2):
            out = getattr(rand_augment, OPERATIONS[rng.integers(16)])(out, magnitude / 10, rng)
        return out

    with mutated:
        for name, magnitude in MAGNITUDES.items():
            augment = augmentation(name)
            for seed in range(12):
                expected = by_hand(magnitude, np.random.default_rng(seed))
                assert torch.equal(augment(clip, np.random.default_rng(seed)), expected), (name, seed)
        translate = rand_augment.OPERATIONS[OPERATIONS.index("translate_x")]
        moved = translate(clip, 1.0, np.random.default_rng(0))
        assert torch.equal(moved[:, :, 100:], clip[:, :, :60]) or torch.equal(moved[:, :, :60], clip[:, :, 100:])
        presets = {name: PRESETS[name].rand_augment for name in ("resnet_rs_50", "resnet_rs_101_i160", "resnet_rs_101")}
        assert list(presets.values()) == [10, 10, 15]
        assert augmentation("k400_rs50") is PRESETS["resnet3d_rs_50"].rand_augment is None


def augmentation(name):
    return build.transform(config.load_config(name), is_training=True).spatial.rand_augment


def normalized_by(mean, std):
    return replaced(
        "video_rs.training.trainer.normalize", lambda original: lambda clip, *_, dtype: original(clip, mean, std, dtype)
    )


@under(
    video_by_imagenets=normalized_by(IMAGENET_MEAN, IMAGENET_STD),
    images_by_255=normalized_by((0, 0, 0), (1, 1, 1)),
    not_inflated=replaced(
        "video_rs.data_config.DataConfig.differences", lambda original: lambda self, other, fields=None: {}
    ),
)
def test_normalisation(mutated, job, tmp_path):
    """Normalisation: videos / 255 (TFM), images by ImageNet's mean and std, and so what was inflated from them."""
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1, 1).expand(2, 1, 32, 32, 3)
    by_imagenet = [[-2.117904, -2.035714, -1.804444], [2.248908, 2.428571, 2.64]]
    with mutated:
        for name, expected in (("k400_rs50", [[0] * 3, [1] * 3]), ("imagenet_rs50", by_imagenet)):
            run, seen = job(name), []
            run.model.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0][..., 0, 5, 7]))
            batch = {"clip": black_and_white, "label": torch.tensor([0, 1]), "broken": []}
            run.trainer.train_step([batch])
            assert seen[0].tolist() == [pytest.approx(row, abs=1e-6) for row in expected]
        checkpoint.save(tmp_path / "image.pt", {**run.identity(), **run.trainer.state_dict()})
        inflated = job("finetune_rs50", f"train.init_from={tmp_path / 'image.pt'}").model.data_config
        assert (inflated.mean, inflated.std, inflated.filter) == (IMAGENET_MEAN, IMAGENET_STD, "bicubic")
        with pytest.raises(UserError, match=r"data.mean is \(0.0, 0.0, 0.0\), expected \(0.485, 0.456, 0.406\)"):
            job("k400_rs50", f"train.init_from={tmp_path / 'image.pt'}")


PATTERN = (0, 100, 200, 60)  # columns; halved, they become
HALVED = {
    "bilinear": (50, 130),
    "bilinear-antialias": (70, 110),
    "bicubic": (35, 145),
    "bicubic-antialias": (62.2, 117.8),
}


def resized_by(place, filter):
    read = "video_rs.data.video.decode.Video." + ("read_crops" if place == "train" else "read")
    return replaced(read, lambda original: lambda *args, **options: original(*args, **{**options, "filter": filter}))


@under(
    antialias_in_training=resized_by("train", "bilinear-antialias"),
    antialias_in_the_test=resized_by("test", "bilinear-antialias"),
    bilinear_images_in_training=resized_by("train", "bilinear"),
    bicubic_videos_in_the_test=resized_by("test", "bicubic"),
    another_in_the_config=overridden("data.filter=bicubic-antialias"),
)
def test_resize(mutated, tmp_path):
    """Resize: by the data config's filter, training and test: bilinear for videos (TFM), bicubic for images (TPU)."""
    pixels = np.tile(np.array(PATTERN, dtype=np.uint8)[None, :, None], (32, 8, 3))
    Image.fromarray(pixels).save(tmp_path / "0.png")
    records = Records([str(tmp_path / "0.png")], [0], ["a"])
    frame = ["data.train_size=16", "data.short_side=16", "data.test_size=16", "data.num_frames=1", "data.flip=0"]
    whole = ["data.area=[1,1]", "data.aspect=[1,1]", "data.rand_augment_layers=0"]
    with mutated:
        for name, filter in (("k400_rs50", "bilinear"), ("imagenet_rs50", "bicubic")):
            conf = config.load_config(name, [*frame, *whole])
            trained = build.train_dataset(conf, records)[SampleKey(0, 0)]["clip"]
            tested = build.view_dataset(conf, records, clips=1, crops=1)[0]["views"][0]
            assert PRESETS[conf.model.name].data_config.filter == conf.data_config().filter == filter
            for clip in (trained, tested):
                assert clip.shape == (1, 16, 16, 3)
                assert clip[0, 8, 4:6, 0].tolist() == pytest.approx(HALVED[filter], abs=0.6)
    assert all(math.dist(a, b) > 5 for f, a in HALVED.items() for g, b in HALVED.items() if f != g)
