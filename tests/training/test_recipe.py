"""From a config to the numbers of a run: three steps against a plain torch loop that spells the recipe out.

Each choice of the recipe is in here once, so that leaving one out (the scaling of the learning rate, the class weights,
the EMA's warm-up, torch's batch-norm momentum of 1, ...) changes the result.
"""

import pytest
import torch

from tests.training import plain
from video_rs import checkpoint
from video_rs.data.tools import motion
from video_rs.errors import UserError
from video_rs.evaluation import multiview
from video_rs.experiment import build, config
from video_rs.experiment.run import make_job

LR, LR_BATCH, BATCH, MICRO, SMOOTHING, DECAY, CLIP, SEED = 0.3, 32, 8, 4, 0.2, 0.01, 0.5, 7


@pytest.fixture
def load(unequal, tmp_path):
    (tmp_path / "recipe.yaml").write_text("")

    def load(*overrides):
        fixed = [
            *(f"data.root={unequal}", f"out={tmp_path / 'run'}", "data.workers=0", "data.num_frames=4"),
            *("data.train_size=24", "data.short_side=24", "data.test_size=24", "model.name=resnet3d_rs_26"),
            *("model.width=0.125", "model.dropout=0.3", "model.drop_path=0.2", "train.device=cpu"),
            *("data.stride=1", "train.epochs=2", f"train.batch_size={BATCH}", f"train.micro_batch={MICRO}"),
            *(f"optim.lr={LR}", f"optim.lr_batch={LR_BATCH}", f"optim.weight_decay={DECAY}"),
            *(f"optim.clip_grad_norm={CLIP}", f"train.label_smoothing={SMOOTHING}", f"train.seed={SEED}"),
            *("optim.warmup_epochs=1", "train.class_weights=balanced", "train.precision=float64"),
        ]
        return config.load_config(tmp_path / "recipe.yaml", [*fixed, *overrides])

    return load


def test_three_steps_equal_the_recipe_spelt_out(load):
    job, twin = make_job(load()), make_job(load())
    assert job.trainer.schedule.num_steps == 4  # 2 epochs of 14 samples, 8 a step
    weights, average, rates, *logged = plain.train(twin, load(), iter(twin.loader(0)), steps=3)
    assert rates[0] == 0 < rates[1]
    batches = iter(job.loader(0))
    for step in range(3):
        job.trainer.train_step([next(batches), next(batches)])
        assert job.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(rates[step], rel=1e-12)
    torch.testing.assert_close(dict(job.trainer.model.state_dict()), dict(weights), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(dict(job.trainer.ema.state_dict()), average, rtol=1e-9, atol=1e-11)
    assert job.trainer.metrics.means() == pytest.approx(logged, rel=1e-9)


def test_an_optimizer_of_timms_has_the_recipes_groups(load):
    config = load("optim.name=rmsproptf", "optim.options={alpha: 0.95, eps: 1e-3}", "optim.layer_decay=0.5")
    optimizer = make_job(config).trainer.optimizer
    assert type(optimizer).__name__ == "RMSpropTF"
    assert {group["weight_decay"] for group in optimizer.param_groups} == {DECAY, 0}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    assert {group["alpha"] for group in optimizer.param_groups} == {0.95}
    assert max(group["lr_scale"] for group in optimizer.param_groups) == 1
    assert min(group["lr_scale"] for group in optimizer.param_groups) < 0.1


def test_without_an_average_batch_norm_keeps_its_own(load):
    assert build.model_args(load(), 3)["bn_momentum"] == 1.0
    assert build.model_args(load("train.ema_decay=0"), 3)["bn_momentum"] == 0.1
    assert make_job(load("train.ema_decay=0")).trainer.ema is None


def test_mixing_and_balanced_sampling_reach_the_loop(load):
    job = make_job(load("data.mixup=0.2", "data.cutmix=1", "train.class_weights=none", "train.balanced_sampling=true"))
    assert (job.trainer.mixup, job.trainer.cutmix) == (0.2, 1.0)
    labels = torch.cat([batch["label"] for batch in job.loader(0)])
    plain = torch.cat([batch["label"] for batch in make_job(load()).loader(0)])
    assert (labels == 0).sum() < (plain == 0).sum()  # the class with most of the files


def test_other_data_are_refused_on_resume(load, unequal):
    job = make_job(load())
    saved = {**job.identity(), **job.trainer.state_dict()}
    (unequal / "train" / motion.CLASSES[0] / "00000.mp4").rename(unequal / "moved.mp4")
    try:
        with pytest.raises(UserError, match="train data differ from those of the run"):
            make_job(load(), saved)
    finally:
        (unequal / "moved.mp4").rename(unequal / "train" / motion.CLASSES[0] / "00000.mp4")
    make_job(load(), saved)


def test_the_source_of_the_first_weights_is_kept(load, tmp_path):
    first = make_job(load())
    checkpoint.save(tmp_path / "a.pt", {**first.identity(), **first.trainer.state_dict()})
    config = load(f"train.init_from={tmp_path / 'a.pt'}")
    started = make_job(config)
    saved = {**started.identity(), **started.trainer.state_dict()}
    record = {"source": str(tmp_path / "a.pt"), "licence": None}
    assert first.identity()["weights_from"] is None and saved["weights_from"] == record
    assert make_job(config, saved).identity()["weights_from"] == record


def test_a_run_finds_out_once_how_many_views_fit(load, monkeypatch, capfd):
    def small(model, views, *_):
        if len(views) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.full((len(views), 3), 1 / 3)

    monkeypatch.setattr(multiview, "_forward", small)
    job = make_job(load("test.batch_size=4"))
    for _ in range(2):
        job.validate(job.model, lambda: None)
    said = capfd.readouterr().err
    assert said == "not enough memory for 4 views in one forward pass: continuing with 2\n"
