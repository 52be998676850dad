"""The table "Recipe decisions" of DESIGN.md, row by row: hand-computed values, and what each row guards against.

A test passes on the code as it is, and what it checks fails under each of the named mutations. Here are the rows about
training; ``test_recipe_table_data.py`` has those about the data. The second row, "BN across replicas", needs two
processes: ``test_ema_and_losses.py::test_batch_norm_across_replicas``.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import pytest
import torch

from tests.training.mutations import overridden, replaced, under
from video_rs.models.layers import Conv, DropPath, SelfGating
from video_rs.models.registry import create_model
from video_rs.training.pages import start_page


def micro_batches(*labels):
    """One of two clips for each pair of labels."""
    clips = torch.randint(0, 256, (len(labels), 2, 1, 32, 32, 3), dtype=torch.uint8)
    return [{"clip": clip, "label": torch.tensor(pair), "broken": []} for clip, pair in zip(clips, labels)]


def momentum(value):
    def make(original):
        return lambda name, arguments, data_config: original(name, {**arguments, "bn_momentum": value}, data_config)

    return replaced("video_rs.models.registry._build", make)


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
    def mutation(self, model, skip=None):
        kept = [buffer.clone() for buffer in self.model.buffers()]
        update(self, model, skip)
        for buffer, value in zip(self.model.buffers(), kept):
            buffer.copy_(value)

    return mutation


@under(
    constant=replaced("video_rs.training.ema.warmed_up", lambda original: lambda updates, decay: updates * 0 + decay),
    never_capped=replaced("video_rs.training.ema.warmed_up", lambda warm: lambda updates, decay: warm(updates, 1.0)),
    not_over_buffers=replaced("video_rs.training.ema.EMA.update", weights_only),
    n_not_saved=replaced(
        "video_rs.training.trainer.Trainer.state_dict", lambda state: lambda self: {**state(self), "ema_updates": 0}
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
        resumed.ema.updates.fill_(10**6)
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
    return replaced("video_rs.training.lr_schedule.learning_rate", make)


def shifted(original):
    def make(base, num_steps, warmup, *curve):
        whole, rest = original(base, num_steps, warmup, *curve), original(base, num_steps - warmup, 0, *curve)
        return lambda step: whole(step) if step < warmup else rest(step - warmup)

    return make


def to_the_peak(original):
    def make(base, num_steps, warmup, *curve):
        whole = original(base, num_steps, warmup, *curve)
        return lambda step: base * step / warmup if step < warmup else whole(step)

    return make


@under(
    not_scaled=replaced(
        "video_rs.training.options.Options.peak_lr", lambda original: property(lambda options: options.lr)
    ),
    shifted=rate(shifted),
    warm_up_to_the_peak=rate(to_the_peak),
    no_warm_up=rate(lambda original: lambda base, steps, warmup, *curve: original(base, steps, 0, *curve)),
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
            assert f"up to {peak:.4g} = {lr} x 4 / {batch}" in "\n".join(start_page(run, "run"))


def at_once(step):
    def mutation(self, parts):
        parts = list(parts)
        step(self, [{key: torch.cat([part[key] for part in parts]) for key in ("clip", "label")} | {"broken": []}])

    return mutation


def per_micro_batch(step):
    def mutation(self, parts):
        self.schedule = dataclasses.replace(self.schedule, batch_size=2)
        step(self, parts)

    return mutation


@under(
    global_batch_at_once=replaced("video_rs.training.trainer.Trainer.train_step", at_once),
    mean_of_each_micro_batch=replaced("video_rs.training.trainer.Trainer.train_step", per_micro_batch),
    batch_is_a_devices=overridden("train.batch_size=2"),
)
def test_batch(mutated, job):
    """Batch: `train.batch_size` is global, and the gradient its mean; batch norm sees `train.micro_batch`, averaged."""
    with mutated:
        run, seen = job(), []
        assert (run.trainer.schedule.num_steps, run.trainer.schedule.micro_batch) == (3500, 2)
        norm, head = run.model.stem.conv1.norm, run.model.head
        norm.register_forward_hook(lambda module, args, out: seen.append(args[0].detach().transpose(0, 1).flatten(1)))
        torch.nn.init.zeros_(head.weight)
        run.trainer.train_step(micro_batches([0, 1], [1, 1]))
        # probabilities 1/2; targets 0.95 or 0.05 for the first class, 0.275 on average
        assert head.bias.grad.tolist() == pytest.approx([0.225, -0.225])
        torch.testing.assert_close(norm.running_mean, torch.stack([part.mean(1) for part in seen]).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack([part.var(1) for part in seen]).mean(0))
        assert [values.shape[1] for values in seen] == [2 * 16 * 16] * 2  # 1 frame of 16x16, two clips, twice


DECAYED = r"\.conv\.weight$|\.se\.(reduce|expand)\.weight$|^head\.weight$"


def decaying(rule):
    def groups(model, weight_decay, layer_decay):
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
        @functools.wraps(original)
        def finish(self, *args, **named):
            original(self, *args, **named)
            for module in self.modules():
                if isinstance(module, kind):
                    with torch.no_grad():
                        change(module)

        return finish

    return replaced("video_rs.models.resnet_rs.ResNetRS.__init__", make)


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
