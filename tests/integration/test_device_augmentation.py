"""``data.augment_on=device``: the same samples to the bit, whoever flips and augments them."""

import pytest
import torch

from tests.integration.test_resume import assert_same, interrupt_after, run
from video_rs import checkpoint
from video_rs.experiment.config import load_config
from video_rs.experiment.run import make_job

AUGMENTED = {
    **{"data__flip": 0.5, "data__rand_augment_layers": 2, "data__color_jitter": [0.4, 0.4, 0.4, 0.1]},
    **{"data__random_erasing": 0.5, "data__random_erasing_mode": "noise", "data__mixup": 0.2, "data__repeats": 2},
    **{
        "data__phases": [[0.5, 2, 16]],
        "train__batch_size": 16,
        "train__micro_batch": 8,
        "train__epochs": 1.0,
        "train__precise_bn": 16,
    },
}  # 48 samples: 3 steps, two of them with smaller clips


@pytest.fixture
def job(tiny_config):
    return lambda on, **changes: make_job(load_config(tiny_config(**{**AUGMENTED, "data__augment_on": on, **changes})))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_clips_are_the_same(job, workers):
    host, device = (job(on, data__workers=workers) for on in ("host", "device"))
    changed = 0
    for finished, raw in zip(host.loader(0), device.loader(0), strict=True):
        assert "rngs" not in finished and len(raw["rngs"]) == 8
        for _ in range(2):  # the generators stay as they are
            assert torch.equal(device.trainer.augment(raw["clip"], raw["rngs"]), finished["clip"])
        changed += not torch.equal(raw["clip"], finished["clip"])
    assert changed == 6
    assert host.trainer.augment is None


@pytest.mark.slow
def test_weights_are_the_same_and_a_run_may_change_over(tiny_config, tmp_path):
    for on in ("host", "device"):
        assert run(tiny_config(**AUGMENTED, data__augment_on=on, out=str(tmp_path / on))) == 0
    parts = {"out": str(tmp_path / "both")}
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 1)
        assert run(tiny_config(**AUGMENTED, data__augment_on="device", **parts)) == 130
    assert run(tiny_config(**AUGMENTED, data__augment_on="host", **parts)) == 0
    host, device, both = (checkpoint.load(tmp_path / name / "last.pt") for name in ("host", "device", "both"))
    for other in (device, both):
        assert_same(host, other)
    first, second = (checkpoint.load(tmp_path / name / "best.pt")["model"] for name in ("host", "device"))
    assert all(torch.equal(first[name], second[name]) for name in first)  # precise_bn takes clips without the trainer


def test_a_smaller_micro_batch_has_its_own_generators(job):
    """As when it is tried how many samples fit the memory."""
    device = job("device", data__mixup=0.0)
    batch = next(iter(device.loader(0)))
    part = {key: batch[key][:3] for key in ("clip", "label", "rngs")}
    expected = device.train.transform.spatial.finish_batch(batch["clip"], batch["rngs"])[:3]
    assert torch.equal(device.trainer.augment(part["clip"], part["rngs"]), expected)
