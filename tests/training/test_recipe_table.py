"""The table "Recipe decisions" of DESIGN.md, row by row: hand-computed values, and what each row guards against.

A test passes on the code as it is, and what it checks fails under each of the named mutations. The second row, "BN
across replicas", needs two processes: ``test_ema_and_losses.py::test_batch_norm_across_replicas``.
"""

from __future__ import annotations

import dataclasses
import math
import pkgutil
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from video_rs import checkpoint, config
from video_rs.cli import build
from video_rs.cli.job import Job
from video_rs.contract import IMAGENET_MEAN, IMAGENET_STD
from video_rs.data import rand_augment
from video_rs.data.records import Records
from video_rs.data.sampler import SampleKey
from video_rs.errors import UserError
from video_rs.models.layers import Conv, DropPath, SelfGating
from video_rs.models.presets import PRESETS
from video_rs.models.zoo import create_model


def under(**mutations):
    """Parametrizes a test: ``with mutated:`` around what passes on the code and must fail under each mutation."""
    cases = [pytest.param(None, id="as_it_is"), *(pytest.param(m, id=name) for name, m in mutations.items())]
    return pytest.mark.parametrize("mutated", cases, indirect=True)


@pytest.fixture
def mutated(request, monkeypatch):
    if request.param is None:
        return nullcontext()
    request.param(monkeypatch)
    return pytest.raises((AssertionError, pytest.fail.Exception))


def replaced(target, make):
    """A mutation: what is at ``target`` becomes ``make(what was there)``."""
    return lambda patch: patch.setattr(target, make(pkgutil.resolve_name(target)))


def overridden(*settings):
    """A mutation: every config has other values."""
    return replaced("video_rs.config.load_config", lambda load: lambda name, more=(): load(name, [*more, *settings]))


@pytest.fixture
def job(tmp_path):
    """A run of a small network with the recipe of a config: 40 training samples, 4 a step, two at once."""
    torch.set_num_threads(1)

    def make(name="k400_rs50", *overrides):
        image = name.startswith("imagenet")
        root = tmp_path / ("images" if image else "videos")
        for folder in (root / split / label for split in ("train", "val") for label in "ab"):
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(20):
                (folder / f"{i:02}.{'png' if image else 'mp4'}").touch()
        small = [f"data.root={root}", "train.batch_size=4", "train.micro_batch=2", "train.device=cpu"]
        small += ["model.width=0.125", f"model.name={'resnet_rs_26' if image else 'resnet3d_rs_26'}"]
        return Job(config.load_config(name, [*small, "train.precision=float64", *overrides]))

    return make


def micro_batches(*labels):
    """One of two clips for each pair of labels."""
    clips = torch.randint(0, 256, (len(labels), 2, 1, 32, 32, 3), dtype=torch.uint8)
    return [{"clip": clip, "label": torch.tensor(pair), "broken": []} for clip, pair in zip(clips, labels)]


def momentum(value):
    finish = "video_rs.models.resnet_rs.ResNetRS._finish"
    return replaced(finish, lambda original: lambda self, bn_momentum: original(self, value))


@under(torchs_0=momentum(0.0), torchs_default=momentum(0.1), one_without_ema=momentum(1.0))
def test_running_statistics(mutated, job):
    """BN running statistics: momentum 1 (the configs of both references: TF's 0); 0.1 where a recipe has no EMA."""
    with mutated:
        for ema, mean, variance in ((0.9999, 6, 8), (0, 0.9 * 0.2 + 0.6, 0.9 * (0.9 + 0.2) + 0.8)):
            model = job("k400_rs50", f"train.ema_decay={ema}").model
            norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm3d)]
            for norm in norms:
                for values in ([1.0, 3.0], [4.0, 8.0]):  # means 2 and 6, variances 2 and 8
                    norm(torch.tensor(values).double().view(2, 1, 1, 1, 1).expand(2, norm.num_features, 1, 1, 1))
                assert norm.running_mean.tolist() == pytest.approx([mean] * norm.num_features)
                assert norm.running_var.tolist() == pytest.approx([variance] * norm.num_features)
            assert len(norms) == 32  # 4 in the stem, 3 in each of 8 blocks, 4 in shortcuts


def weights_only(update):
    def mutation(self, model):
        kept = [buffer.clone() for buffer in self.model.buffers()]
        update(self, model)
        for buffer, value in zip(self.model.buffers(), kept):
            buffer.copy_(value)

    return mutation


def decay(choose):
    return lambda patch: patch.setattr("video_rs.training.ema.min", choose, raising=False)


@under(
    constant=decay(lambda most, warming: most),
    never_capped=decay(lambda most, warming: warming),
    not_over_buffers=replaced("video_rs.training.ema.EMA.update", weights_only),
    n_not_saved=replaced(
        "video_rs.training.loop.Trainer.state_dict", lambda state: lambda self: {**state(self), "ema_updates": 0}
    ),
    shorter=overridden("train.ema_decay=0.999"),
)
def test_ema(mutated, job):
    """EMA: 0.9999 (arXiv 2103.07579, sec. 4.2), min(decay, (1 + n) / (10 + n)) as in TF, over buffers too; n saved."""

    def update(trainer, value):
        for changed in (trainer.model.head.bias.data, trainer.model.stem.conv1.norm.running_mean):
            changed.fill_(value)
        trainer.ema.update(trainer.model)
        average = trainer.ema.model
        return [average.head.bias[0].item(), average.stem.conv1.norm.running_mean[0].item()]

    with mutated:
        trainer, resumed = job().trainer, job().trainer
        assert update(trainer, 1) == pytest.approx([9 / 10] * 2)  # from 0; the decay is 1/10
        assert update(trainer, 5) == pytest.approx([46.8 / 11] * 2)  # 2/11
        assert update(trainer, -2) == pytest.approx([-4.8 / 11] * 2)  # 3/12
        resumed.load_state_dict(trainer.state_dict())
        average = update(resumed, 7)
        assert average == pytest.approx([673.8 / 143] * 2)  # 4/13
        resumed.ema.updates = 10**6
        assert update(resumed, average[0] + 1) == pytest.approx([average[0] + 1e-4] * 2, abs=1e-7)


@under(
    nesterov_off=replaced("torch.optim.SGD", lambda sgd: lambda *args, **k: sgd(*args, **{**k, "nesterov": False})),
    nesterov_off_in_the_config=overridden("optim.nesterov=false"),
    momentum_0_8=overridden("optim.momentum=0.8"),
)
def test_optimizer(mutated, job):
    """Optimizer: SGD, momentum 0.9, Nesterov, as the TPU code (resnet_main.py) and the video recipe."""
    with mutated:
        for trainer in (job("k400_rs50").trainer, job("imagenet_rs50").trainer):
            bias, optimizer = trainer.model.head.bias, trainer.optimizer
            for group in optimizer.param_groups:
                group["lr"] = 1.0
            for moved in (1.9, 1.9 + 2.71):  # v = 1, 1.9; the step is g + 0.9 v
                bias.grad = torch.ones_like(bias)
                optimizer.step()
                assert bias.tolist() == pytest.approx([-moved] * 2)


def rate(make):
    return replaced("video_rs.training.optim.learning_rate", make)


def shifted(original):
    def make(base, num_steps, warmup, schedule):
        whole, rest = original(base, num_steps, warmup, schedule), original(base, num_steps - warmup, 0, schedule)
        return lambda step: whole(step) if step < warmup else rest(step - warmup)

    return make


def to_the_peak(original):
    def make(base, num_steps, warmup, schedule):
        whole = original(base, num_steps, warmup, schedule)
        return lambda step: base * step / warmup if step < warmup else whole(step)

    return make


@under(
    not_scaled=replaced("video_rs.cli.job._peak_rate", lambda original: lambda config: config.optim.lr),
    shifted=rate(shifted),
    warm_up_to_the_peak=rate(to_the_peak),
    no_warm_up=rate(lambda original: lambda base, steps, warmup, schedule: original(base, steps, 0, schedule)),
    warm_up_of_1_epoch=overridden("optim.warmup_epochs=1"),
    constant=overridden("optim.schedule=constant"),
    of_another_batch=overridden("optim.lr_batch=256"),
)
def test_learning_rate(mutated, job):
    """Learning rate: 0.8 for 1024 clips, 1.6 for 4096 images, scaled with the batch, printed; TFM's LinearWarmup."""
    with mutated:
        for recipe, lr, batch in (("k400_rs50", 0.8, 1024), ("imagenet_rs50", 1.6, 4096)):
            run, peak = job(recipe), lr * 4 / batch  # 10 steps an epoch, 350 epochs, 5 of them to warm up
            at_50 = 0.9994966 * peak  # (1 + cos(pi / 70)) / 2
            expected = {0: 0, 25: at_50 / 2, 50: at_50, 1750: peak / 2, 2625: 0.1464466 * peak, 3500: 0}
            for run.trainer.step, value in expected.items():
                run.trainer.train_step(micro_batches([0, 1]))
                for group in run.trainer.optimizer.param_groups:
                    assert group["lr"] == pytest.approx(value, rel=1e-6, abs=1e-12)
            assert f"learning rate up to {peak:.4g} = {lr} x 4 / {batch}" in "\n".join(run.summary())


def at_once(step):
    def mutation(self, parts):
        parts = list(parts)
        step(self, [{key: torch.cat([part[key] for part in parts]) for key in ("clip", "label")} | {"broken": []}])

    return mutation


def per_micro_batch(step):
    def mutation(self, parts):
        self.plan = dataclasses.replace(self.plan, batch_size=2)
        step(self, parts)

    return mutation


@under(
    global_batch_at_once=replaced("video_rs.training.loop.Trainer.train_step", at_once),
    mean_of_each_micro_batch=replaced("video_rs.training.loop.Trainer.train_step", per_micro_batch),
    batch_is_a_devices=overridden("train.batch_size=2"),
)
def test_batch(mutated, job):
    """Batch: `train.batch_size` is global, and the gradient its mean; batch norm sees `train.micro_batch`."""
    with mutated:
        run, seen = job(), []
        assert (run.trainer.plan.num_steps, run.trainer.plan.micro_batch) == (3500, 2)
        norm, head = run.model.stem.conv1.norm, run.model.head
        norm.register_forward_hook(lambda module, args, out: seen.append(args[0].detach().transpose(0, 1).flatten(1)))
        torch.nn.init.zeros_(head.weight)
        run.trainer.train_step(micro_batches([0, 1], [1, 1]))
        # probabilities 1/2; targets 0.95 or 0.05 for the first class, 0.275 on average
        assert head.bias.grad.tolist() == pytest.approx([0.225, -0.225])
        torch.testing.assert_close(norm.running_mean, seen[-1].mean(1))
        torch.testing.assert_close(norm.running_var, seen[-1].var(1))
        assert [values.shape[1] for values in seen] == [2 * 16 * 16] * 2  # 1 frame of 16x16, two clips, twice


DECAYED = r"\.conv\.weight$|\.se\.(reduce|expand)\.weight$|^head\.weight$"


def decaying(rule):
    def groups(model, weight_decay):
        parts = {True: [], False: []}
        for name, p in model.named_parameters():
            parts[bool(rule(name, re.search(DECAYED, name)))].append(p)
        return [{"params": parts[True], "weight_decay": weight_decay}, {"params": parts[False], "weight_decay": 0.0}]

    return replaced("video_rs.training.optim.parameter_groups", lambda original: groups)


@under(
    biases=decaying(lambda name, right: right or name.endswith("bias") and ".norm." not in name),
    batch_norm=decaying(lambda name, right: right or ".norm." in name),
    self_gating=decaying(lambda name, right: right or name.endswith("gating.weight")),
    not_se=decaying(lambda name, right: right and ".se." not in name),
    not_the_head=decaying(lambda name, right: right and name != "head.weight"),
    nothing=overridden("optim.weight_decay=0"),
)
def test_weight_decay(mutated, job):
    """Weight decay: 4e-5 on kernels, SE and head too (TFM's l2 regularisers); not on self-gating, BN, biases."""
    with mutated:
        trainer = job("k400_rs50", "model.name=garden_resnet3d_rs_50").trainer
        for group in trainer.optimizer.param_groups:
            group["lr"] = 1.0
        for p in trainer.model.parameters():
            p.data.fill_(1)
            p.grad = torch.zeros_like(p)
        trainer.optimizer.step()
        after = {name: p.flatten()[0].item() for name, p in trainer.model.named_parameters()}
        assert any("gating" in name for name in after)
        expected = {name: 1 - 1.9 * 4e-5 if re.search(DECAYED, name) else 1 for name in after}  # 1.9: Nesterov
        assert after == pytest.approx(expected, abs=1e-12)


def initialized(change, kind):
    """A mutation: ``change(module)`` to every module of a kind, once the network is built."""

    def make(original):
        def finish(self, *args):
            original(self, *args)
            for module in self.modules():
                if isinstance(module, kind):
                    with torch.no_grad():
                        change(module)

        return finish

    return replaced("video_rs.models.resnet_rs.ResNetRS._finish", make)


def fan_out(conv):
    torch.nn.init.kaiming_normal_(conv.weight, mode="fan_out")


def untruncated(conv):
    conv.weight.normal_(std=conv.weight[0].numel() ** -0.5)


def as_convolution(init):
    def mutation(self, channels):
        init(self, channels)
        torch.nn.init.trunc_normal_(self.weight, std=channels**-0.5)

    return mutation


@under(
    fan_out=initialized(fan_out, Conv),
    scale_2=initialized(lambda conv: conv.weight.mul_(2**0.5), Conv),
    untruncated=initialized(untruncated, Conv),
    std_of_the_cut_off_normal=initialized(lambda conv: conv.weight.mul_(0.8796), Conv),
    biases=initialized(lambda conv: conv.bias is not None and conv.bias.uniform_(-0.1, 0.1), Conv),
    last_gamma_1=initialized(lambda norm: norm.weight.fill_(1), torch.nn.BatchNorm3d),
    head_of_torch=initialized(lambda linear: linear.reset_parameters(), torch.nn.Linear),
    head_std_0_02=initialized(lambda linear: linear.weight.mul_(2), torch.nn.Linear),
    gating_as_convolutions=replaced("video_rs.models.layers.SelfGating.__init__", as_convolution),
)
def test_initialisation(mutated):
    """Initialisation: the TPU code's (variance scaling 1, fan-in, cut off; head N(0, 0.01); last gamma 0)."""
    torch.manual_seed(0)
    with mutated:
        model = create_model("resnet3d_rs_26", width=0.5)
        block = model.stages[3][1]
        fans = {block.conv1.conv: 1024 * 3, block.conv2.conv: 256 * 9, block.conv3.conv: 256}
        for conv, fan_in in (fans | {block.se.reduce: 1024, block.se.expand: 256}).items():
            std = fan_in**-0.5
            assert conv.weight.std().item() == pytest.approx(std, rel=0.01)
            assert 2.25 * std < conv.weight.abs().max() <= 2.27370 * std  # cut off at 2 / 0.87963
        assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.01)
        gating = SelfGating(256)
        assert gating.weight.std().item() == pytest.approx(0.0088, rel=0.01) and gating.weight.abs().max() <= 0.02
        gammas = {name: p for name, p in model.named_parameters() if name.endswith("norm.weight")}
        for name, gamma in gammas.items():
            assert gamma.eq(0 if "conv3" in name and "stages" in name else 1).all(), name
        biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
        assert len(biases) == len(gammas) + 2 * 8 + 1 and not any(bias.any() for bias in (*biases, gating.bias))


def rates(rule):
    return replaced("video_rs.models.resnet_rs.drop_path_rates", lambda original: rule)


@under(
    by_block=rates(lambda rate, blocks, rule: [rate * b / (sum(blocks) - 1) for b in range(sum(blocks))]),
    from_i_1=rates(lambda rate, blocks, rule: [rate * (i + 1) / 5 for i, n in enumerate(blocks) for _ in range(n)]),
    the_same_everywhere=rates(lambda rate, blocks, rule: [rate] * sum(blocks)),
    not_scaled_up=replaced(
        "video_rs.models.layers.DropPath.forward", lambda drop: lambda self, x, keys: drop(self, x, keys) * 0.75
    ),
)
def test_drop_path(mutated, job):
    """Drop path: 0.1 * i / 5 in stage i = 2..5 (TPU code, get_drop_connect_rate), by sample; timm's as an option."""
    with mutated:
        blocks = [block for stage in job().model.stages for block in stage]
        by_stage = [0.04] * 2 + [0.06] * 2 + [0.08] * 2 + [0.1] * 2
        assert [block.drop_path.rate for block in blocks] == pytest.approx(by_stage)
        dropped = DropPath(0.25, stream=1)(torch.ones(4000, 3), torch.arange(4000))
        share = (dropped == 0).all(1).double().mean().item()
        assert share == pytest.approx(0.25, abs=0.03) and dropped.unique().tolist() == pytest.approx([0, 4 / 3])
        blocks = [block for stage in job("k400_rs50", "model.drop_path_rule=block").model.stages for block in stage]
        assert [block.drop_path.rate for block in blocks] == pytest.approx([0.1 * b / 7 for b in range(8)])


OPERATIONS = (  # of the TPU code, efficientnet/autoaugment.py, in its order
    *("auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "color", "contrast", "brightness"),
    *("sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "cutout", "solarize_add"),
)
MAGNITUDES = {"imagenet_rs50": 10} | {f"imagenet_rs{depth}": 15 for depth in (101, 152, 200, 270, 350, 420)}


def operations(change):
    return replaced("video_rs.data.rand_augment.OPERATIONS", change)


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
    return build.train_dataset(config.load_config(name), None).transform.rand_augment


def normalized_by(mean, std):
    return replaced(
        "video_rs.training.loop.normalize", lambda original: lambda clip, *_, dtype: original(clip, mean, std, dtype)
    )


@under(
    video_by_imagenets=normalized_by(IMAGENET_MEAN, IMAGENET_STD),
    images_by_255=normalized_by((0, 0, 0), (1, 1, 1)),
    not_inflated=replaced(
        "video_rs.contract.DataContract.differences", lambda original: lambda self, other, fields: {}
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
        inflated = job("finetune_rs50", f"train.init_from={tmp_path / 'image.pt'}").model.contract
        assert (inflated.mean, inflated.std, inflated.filter) == (IMAGENET_MEAN, IMAGENET_STD, "bicubic")
        with pytest.raises(UserError, match=r"data.mean is \(0.0, 0.0, 0.0\), they expect \(0.485, 0.456, 0.406\)"):
            job("k400_rs50", f"train.init_from={tmp_path / 'image.pt'}")


PATTERN = (0, 100, 200, 60)  # columns; halved, they become
HALVED = {
    "bilinear": (50, 130),
    "bilinear-antialias": (70, 110),
    "bicubic": (35, 145),
    "bicubic-antialias": (62.2, 117.8),
}


def resized_by(place, filter):
    make = "video_rs.data.transforms.resize" if place == "train" else "video_rs.data.decode.resize"
    return replaced(make, lambda original: lambda clip, height, width, *_: original(clip, height, width, filter))


@under(
    antialias_in_training=resized_by("train", "bilinear-antialias"),
    antialias_in_the_test=resized_by("test", "bilinear-antialias"),
    bilinear_images_in_training=resized_by("train", "bilinear"),
    bicubic_videos_in_the_test=resized_by("test", "bicubic"),
    another_in_the_config=overridden("data.filter=bicubic-antialias"),
)
def test_resize(mutated, tmp_path):
    """Resize: by the contract's filter, training and test: bilinear for videos (TFM), bicubic for images (TPU)."""
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
            assert PRESETS[conf.model.name].contract.filter == conf.contract().filter == filter
            for clip in (trained, tested):
                assert clip.shape == (1, 16, 16, 3)
                assert clip[0, 8, 4:6, 0].tolist() == pytest.approx(HALVED[filter], abs=0.6)
    assert all(math.dist(a, b) > 5 for f, a in HALVED.items() for g, b in HALVED.items() if f != g)
