"""Whole runs with the parts of a recipe that others leave out: they end well, and resume bit for bit in any phase."""

import re

import pytest
import torch

from tests.integration.test_resume import interrupt_after, run
from video_rs import checkpoint
from video_rs.experiment.config import load_config
from video_rs.experiment.run import make_job

LARGE_BATCH = {
    **{"optim__name": "lamb", "optim__schedule": "step", "optim__layer_decay": 0.8, "optim__lr": 0.01},
    **{"data__phases": [[0.5, 2, 16], [1.5, 4, 24]], "data__cutmix": 1.0, "data__mixup": 0.2, "data__repeats": 2},
    **{"data__color_jitter": [0.4, 0.4, 0.4, 0.1], "data__random_erasing": 0.5, "data__random_erasing_mode": "noise"},
    **{"train__loss": "bce", "train__epochs": 2, "train__batch_size": 16, "train__micro_batch": 8},
}  # 48 samples an epoch, so 3 steps: 2 of the first phase, 3 of the second, 1 of the main sizes
FINETUNE = {"optim__name": "adamw", "train__epochs": 2, "optim__lr": 0.01, "train__freeze": 3}


def clip_sizes(path, start):
    return [tuple(batch["clip"].shape[1:3]) for batch in make_job(load_config(path)).loader(start)]


def test_phases_follow_the_step(tiny_config):
    path = tiny_config(**LARGE_BATCH)
    sizes = [(2, 16)] * 4 + [(4, 24)] * 6 + [(4, 32)] * 2  # of both micro-batches of each step
    assert clip_sizes(path, 0) == sizes and clip_sizes(path, 3) == sizes[6:]


def test_the_log_names_losses_and_marks_mixed_accuracy(tiny_config, tmp_path):
    mixed = {"data__mixup": 0.2, "train__class_weights": "balanced", "train__max_steps": 1}
    assert run(tiny_config(**mixed, out=str(tmp_path / "mixed"))) == 0
    first, line = logged(tmp_path / "mixed", "loss  ", "step 1/1")
    assert first.endswith(
        "smoothed weighted cross entropy of mixed clips (label smoothing 0.1); in validations cross entropy; accuracy "
        "in training is of mixed clips, by their larger part"
    )
    assert re.search(r"  loss \d\.\d+  accuracy of mixed clips \d+\.\d %  lr", line)
    assert run(tiny_config(train__label_smoothing=0, train__max_steps=1, out=str(tmp_path / "plain"))) == 0
    first, line = logged(tmp_path / "plain", "loss  ", "step 1/1")
    assert first.endswith(" cross entropy; in validations cross entropy")
    assert re.search(r"  loss \d\.\d+  accuracy \d+\.\d %  lr", line)


def logged(folder, *starts):
    lines = [line[20:] for line in (folder / "log.txt").read_text().splitlines()]
    return [next(line for line in lines if start in line) for start in starts]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [LARGE_BATCH, FINETUNE], ids=["large_batch", "finetune"])
def test_a_run_goes_on_in_any_phase(tiny_config, tmp_path, recipe):
    if recipe is FINETUNE:
        assert run(tiny_config(train__epochs=0.5, out=str(tmp_path / "first"))) == 0
        recipe = {**recipe, "train__init_from": str(tmp_path / "first" / "last.pt")}
    assert run(tiny_config(**recipe, out=str(tmp_path / "whole"))) == 0
    path = tiny_config(**recipe, out=str(tmp_path / "parts"))
    for step in (1, 3, 5):
        with pytest.MonkeyPatch.context() as patch:
            interrupt_after(patch, step)
            assert run(path) == 130
    assert run(path) == 0
    whole, parts = (checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 6
    for part in ("model", "ema"):
        for name, value in whole[part].items():
            assert torch.equal(value, parts[part][name]), (part, name)
            assert value.isfinite().all()
    if "train__init_from" in recipe:
        first = checkpoint.load(tmp_path / "first" / "last.pt")["ema"]  # whose weights are started from
        frozen = [name for name in first if name.startswith(("stem.", "stages.0.", "stages.1."))]
        assert frozen and all(torch.equal(first[name], whole["model"][name]) for name in frozen)
        assert not torch.equal(first["stages.2.0.conv1.conv.weight"], whole["model"]["stages.2.0.conv1.conv.weight"])
