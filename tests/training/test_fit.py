"""``fit``: training from Python, without a config."""

import dataclasses
import inspect
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import video_rs
from video_rs import checkpoint
from video_rs.data.transforms import create_transform
from video_rs.data.video_dataset import VideoDataset
from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.experiment.config import Config, differences
from video_rs.models.registry import create_model
from video_rs.training.fit import fit
from video_rs.training.options import Options
from video_rs.training.run_status import look
from video_rs.training.trainer import Trainer

SIZES = DataConfig(num_frames=4, stride=1, train_size=32, short_side=32, test_size=32)
OPTIONS = {"epochs": 2, "batch_size": 4, "micro_batch": 2, "log_every": 1, "workers": 0, "threads": 1, "device": "cpu"}


@pytest.fixture
def data(make_video, tmp_path):
    """Two classes of four training videos and one validation video."""
    for split, count in (("train", 4), ("val", 1)):
        for label in ("left", "right"):
            for i in range(count):
                make_video(tmp_path / "data" / split / label / f"{i}.mp4", 10, first_number=i + 100 * (label == "left"))
    return tmp_path / "data"


def run(data, out, with_val=True, **options):
    """Train a new small network."""
    torch.manual_seed(0)
    model = create_model("resnet3d_rs_26", num_classes=2, width=0.125, dropout=0.2, data_config=SIZES)
    train = VideoDataset(data, "train", create_transform(**model.data_config, is_training=True))
    val = VideoDataset(data, "val", create_transform(**model.data_config)) if with_val else None
    return fit(model, train, val, out=out, **{**OPTIONS, **options})


def interrupt_after(patch, step):
    original = Trainer.train_step

    def train_step(self, micro_batches):
        original(self, micro_batches)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    patch.setattr(Trainer, "train_step", train_step)


def count_steps(patch, taken):
    original = Trainer.train_step

    def train_step(self, micro_batches):
        original(self, micro_batches)
        taken.append(self.step)

    patch.setattr(Trainer, "train_step", train_step)


def test_an_interrupted_call_resumes_to_the_same_bits(data, tmp_path):
    expected, taken = run(data, tmp_path / "whole"), []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt, match="checkpoint saved at step 1"):
        interrupt_after(patch, 1)
        run(data, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        count_steps(patch, taken)
        result = run(data, tmp_path / "run", workers=1)
    assert taken == [2, 3, 4]
    assert result.metrics == expected.metrics and set(result.metrics) == {"top1", "top5", "loss"}
    assert "resuming at step 1 of 4" in (tmp_path / "run" / "log.txt").read_text()
    whole, resumed = (checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "run"))
    assert whole["step"] == resumed["step"] == 4
    for part in ("model", "ema"):
        assert all(torch.equal(resumed[part][name], value) for name, value in whole[part].items())


def test_a_complete_run_returns_its_result(data, tmp_path, monkeypatch, capfd):
    result = run(data, tmp_path / "run", max_steps=1)
    monkeypatch.setattr(Trainer, "train_step", lambda *given: pytest.fail("it trains again"))
    assert run(data, tmp_path / "run", max_steps=1) == result
    assert "is complete" in capfd.readouterr().out


def test_the_best_weights_predict(data, tmp_path):
    result = run(data, tmp_path / "run", max_steps=1)
    assert result.path == tmp_path / "run" / "best.pt"
    classifier = video_rs.load(result.path, device="cpu")
    found = classifier.predict(str(data / "val" / "left" / "0.mp4"), top_k=2)
    assert {prediction.label for prediction in found} == {"left", "right"}


def test_without_validation_data_the_last_weights_are_kept(data, tmp_path):
    result = run(data, tmp_path / "run", with_val=False, max_steps=2)
    assert result.metrics == {} and checkpoint.load(result.path)["step"] == 2


def test_another_call_on_the_same_folder_is_refused(data, tmp_path):
    run(data, tmp_path / "run", max_steps=1)
    with pytest.raises(UserError, match="was started with another config .lr was 0.8, now 0.1"):
        run(data, tmp_path / "run", max_steps=1, lr=0.1, workers=1)


def test_bad_arguments(data, tmp_path):
    with pytest.raises(UserError, match="no option batchsize; did you mean batch_size"):
        run(data, tmp_path / "run", batchsize=8)
    model = create_model("resnet3d_rs_26", num_classes=1, width=0.125, data_config=SIZES)
    train = VideoDataset(data, "train", create_transform(**model.data_config, is_training=True))
    with pytest.raises(UserError, match="the data has 2 classes, the network 1"):
        fit(model, train, out=tmp_path / "run", **OPTIONS)
    model = create_model("resnet3d_rs_26", num_classes=2, width=0.125, data_config=DataConfig(mean=(0.5,) * 3))
    with pytest.raises(UserError, match="mean=.* does not fit the network"):
        fit(model, train, out=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


def test_help_lists_all_options():
    assert {"epochs", "out", "batch_size", "ema_decay", "workers"} <= set(inspect.signature(fit).parameters)


def small(classes=2, **options):
    torch.manual_seed(0)
    return create_model("resnet3d_rs_26", num_classes=classes, width=0.125, data_config=SIZES, **options)


def datasets(data, model, **changes):
    """Training and validation data; `changes` are of the validation transform."""
    train = VideoDataset(data, "train", create_transform(**model.data_config, is_training=True))
    return train, VideoDataset(data, "val", create_transform(**{**model.data_config, **changes}))


def test_a_model_in_evaluation_mode_is_trained(data, tmp_path):
    model = small().eval()
    fit(model, *datasets(data, model, mean=list(model.data_config.mean)), out=tmp_path / "run", **OPTIONS, max_steps=1)
    assert model.training and next(b for n, b in model.named_buffers() if "num_batches" in n) > 0


def test_a_second_run_undoes_the_options_of_the_first(data, tmp_path):
    run(data, tmp_path / "a", max_steps=1)
    model = small(dropout=0.2)
    model.stem.requires_grad_(False)  # the caller's own
    own = {name for name, p in model.named_parameters() if p.requires_grad}
    probe = {"linear_probe": True, "sync_bn": True, "init_from": tmp_path / "a" / "best.pt"}
    fit(model, *datasets(data, model), out=tmp_path / "b", **OPTIONS, max_steps=1, **probe)
    fit(model, *datasets(data, model), out=tmp_path / "c", **OPTIONS, max_steps=1)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == own
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(type(norm) is torch.nn.BatchNorm3d for norm in norms) and all(norm.training for norm in norms[5:])


def test_without_validation_data_best_is_the_last(data, tmp_path, capfd):
    for _ in range(2):
        result = run(data, tmp_path / "run", with_val=False)
    assert checkpoint.load(result.path)["step"] == 4 and result.metrics == {}
    assert "best validation" not in capfd.readouterr().out


def test_a_complete_run_without_a_readable_best(data, tmp_path):
    result = run(data, tmp_path / "run", max_steps=1)
    result.path.write_bytes(b"")
    assert run(data, tmp_path / "run", max_steps=1) == result


@pytest.mark.parametrize("names", [("right", "left"), ("up", "down")])
def test_a_head_for_other_class_names(data, tmp_path, capsys, names):
    """Files give their rows by class name; the head of a network that is trained itself is kept and reported."""
    datasets = VideoDataset(data, "train", create_transform(**SIZES, is_training=True)), None
    model = small()
    model.data_config = dataclasses.replace(model.data_config, class_names=names)
    state = checkpoint.from_weights(model.model_args, model.data_config, model.state_dict())
    checkpoint.save(tmp_path / "other.pt", state)
    head, fresh = model.head.weight.detach().clone(), small()
    before = fresh.head.weight.detach().clone()
    options = {**OPTIONS, "epochs": 1, "lr": 0.0, "ema_decay": 0.0, "weight_decay": 0.0}
    fit(model, *datasets, out=tmp_path / "kept", **options)
    assert f"the head is kept, for other class names: {', '.join(names)}" in capsys.readouterr().out
    assert torch.equal(model.head.weight.detach(), head)
    fit(fresh, *datasets, out=tmp_path / "file", init_from=tmp_path / "other.pt", **options)
    said = "2 of 2 classes by name" if names == ("right", "left") else "other class names, new head"
    assert f"head.weight ({said})" in capsys.readouterr().out
    assert torch.equal(fresh.head.weight.detach(), head.flip(0) if names == ("right", "left") else before)


def test_more_outputs_than_classes(data, tmp_path):
    model = small(classes=4)
    result = fit(model, *datasets(data, model), out=tmp_path / "run", **OPTIONS, max_steps=1)
    assert video_rs.load(result.path, device="cpu").class_names == ("left", "right", "2", "3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 2}, "stride=2 of the validation transform does not fit the training data, which expects 1"),
        ({"mean": (0.5,) * 3}, "mean=.* of the validation transform"),
        ({"filter": "bicubic"}, "filter=bicubic of the validation transform"),
        ({"is_training": True}, "val: use create_transform"),
    ],
)
def test_validation_data_for_other_clips(data, tmp_path, changes, message):
    model = small()
    with pytest.raises(UserError, match=message):
        fit(model, *datasets(data, model, **changes), out=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


def test_arguments_of_other_kinds(data, tmp_path):
    model = small()
    train, val = datasets(data, model)
    for given, message in (
        ((torch.nn.Linear(1, 1), train), "model: expected a network of video_rs.create_model, got Linear"),
        ((model, torch.utils.data.DataLoader(train)), "train: expected a VideoDataset, got DataLoader"),
        ((model, val), "train: use create_transform"),
    ):
        with pytest.raises(UserError, match=message):
            fit(*given, out=tmp_path / "run", **OPTIONS)


def test_the_folder_is_checked_before_the_data_are_read(data, tmp_path, monkeypatch):
    run(data, tmp_path / "run", max_steps=1)
    options = {**OPTIONS, "lr": 0.1}
    with pytest.raises(UserError, match="was started with another config"):
        fit(None, None, out=tmp_path / "run", **options)


def test_values_of_other_packages_become_plain(data, tmp_path):
    numbers = {"lr": np.float64(0.1), "seed": np.int64(1), "log_every": np.int32(1), "wandb": Path("")}
    options = Options(**numbers, init_from=Path("a/b.pt"), betas=[0.9, 0.99], optimizer_options={"a": np.float32(1)})
    kinds = [type(getattr(options, name)) for name in ("lr", "seed", "init_from", "betas")]
    assert kinds == [float, int, str, tuple] and type(options.optimizer_options["a"]) is float
    run(data, tmp_path / "run", max_steps=1, lr=np.float64(0.1))
    assert checkpoint.load(tmp_path / "run" / "last.pt")["config"]["fit"]["lr"] == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, "schedule is one of .*did you mean cosine"),
        ({"precision": "bfloat16"}, "precision is one of"),
        ({"class_weights": "Balanced"}, "class_weights is one of .*did you mean balanced"),
        ({"optimizer": "adamww"}, "optimizer is one of .*did you mean adamw"),
        ({"device": "gpu"}, "device gpu: unknown"),
        ({"seed": -1}, "seed must be between 0 and"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"lr": object()}, "lr must be a number; found"),
        ({"optimizer_options": {"a": object()}}, "optimizer_options must be"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        Options(**options)


def test_another_network_or_other_crops_are_refused(data, tmp_path):
    run(data, tmp_path / "run", max_steps=1)
    options = {**OPTIONS, "max_steps": 1, "out": tmp_path / "run"}
    model = small(dropout=0.3)
    with pytest.raises(UserError, match="another config .dropout was 0.2, now 0.3"):
        fit(model, *datasets(data, model), **options)
    model = small(dropout=0.2)
    train, val = datasets(data, model)
    train.transform.spatial.flip = 0.0
    with pytest.raises(UserError, match="another config .flip was .0.5., now .0.0."):
        fit(model, train, val, **options)


def test_the_folder_of_a_command(data, tmp_path):
    run(data, tmp_path / "run", max_steps=1)
    with pytest.raises(UserError, match="was started by video_rs.fit"):
        differences({"fit": {}}, Config(out="run"))
    path = tmp_path / "run" / "checkpoints" / "step-00000001.pt"
    checkpoint.save(path, {**checkpoint.load(path), "config": Config().to_dict()})
    with pytest.raises(UserError, match="run was started with a config"):
        run(data, tmp_path / "run", max_steps=1)


def test_the_status_of_a_run_of_fit(data, tmp_path, capsys):
    run(data, tmp_path / "run", max_steps=1)
    assert look(tmp_path / "run")["command"] == f'video_rs.load("{tmp_path / "run" / "best.pt"}")'
    (tmp_path / "run").rename(tmp_path / "moved")
    assert look(tmp_path / "moved")["command"] == f'video_rs.fit(..., out="{tmp_path / "moved"}")'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs and max_steps are both 0"),
        ({"timeout": 0.1}, "timeout=0.1: must be 0"),
        ({"class_weights": "balanced", "loss": "bce"}, "class_weights=balanced: requires loss=cross_entropy"),
        (
            {"schedule": "step", "step_epochs": [1, 9]},
            "step_epochs: must end before epochs=2; the last is after epoch 9",
        ),
        ({"micro_batch": 3}, "micro_batch=3: must divide batch_size=4"),
        ({"phases": ((3, 4, 16), (2, 4, 32))}, "phases: .* must end after epoch 3"),
        ({"optimizer_options": {"a": 1}}, "optimizer_options=.*: only for timm's optimizers, not for optimizer=sgd"),
        ({"mixup": 0.2, "micro_batch": 1}, "a micro-batch of 1: .* for mixup and cutmix with repeats=1; change micro_"),
        ({"freeze": 9}, "freeze=9: the network has 5 stages"),
        ({"early_stop": 1, "val_every": 0}, "early_stop=1: requires val_every above 0"),
        ({"precision": "fp16"}, "precision=fp16 needs CUDA"),
    ],
)
def test_options_that_do_not_fit_together(data, tmp_path, options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        run(data, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_network_whose_weights_are_not_finite_is_refused(data, tmp_path):
    model = small()
    next(model.parameters()).data[0] = float("nan")
    with pytest.raises(UserError, match="^model: its weights are not finite"):
        fit(model, *datasets(data, model), out=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()
