"""Multi-view scores and precise statistics on XLA's CPU device and on the CPU."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.xla import trainers
from tests.xla.test_trainer import compiled
from video_rs.data_config import DataConfig
from video_rs.distributed.world import World
from video_rs.evaluation.multiview import score
from video_rs.models.sync_batch_norm import convert_sync_batch_norm
from video_rs.training.precise_bn import with_precise_statistics

pytestmark = pytest.mark.xla


class Loader(list):
    """Items in the format of a view loader."""

    @property
    def dataset(self):
        return self


def videos(count, views=2):
    generator = torch.Generator().manual_seed(0)
    shape = (views, *trainers.SHAPE)
    return Loader(
        {"index": i, "label": i % 5, "views": torch.randint(256, shape, generator=generator, dtype=torch.uint8)}
        | {"error": None}
        for i in range(count)
    )


def test_scores_equal_the_cpus_with_one_graph():
    """Seven views in groups of three: the last group is padded, and the padding is not scored."""
    found, model = {}, trainers.network().double()
    loader = Loader([*videos(3), *videos(4, views=1)[3:]])
    for device in ("cpu", "xla"):
        options = {"device": torch.device(device), "precision": "float64"}
        before = compiled()
        found[device] = score(model.to(device), loader, views_per_forward=3, **options)
        graphs = compiled() - before
    np.testing.assert_allclose(found["xla"].probs, found["cpu"].probs, rtol=1e-6)
    assert found["xla"].scored.all()
    assert graphs == 1


def test_precise_statistics_equal_the_cpus():
    """Nothing is compiled after the second batch, the first with a previous mean."""
    found, batches = {}, [{"clip": item["views"]} for item in videos(6)]
    for device in ("cpu", "xla"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)).double().to(device)
        model.data_config = DataConfig(num_frames=4)
        if device == "xla":
            convert_sync_batch_norm(model, local=True)
        seen = []
        model = with_precise_statistics(model, batches, "float64", World(), lambda seen=seen: seen.append(compiled()))
        found[device] = trainers.on_host(model.state_dict())
    for name, value in found["cpu"].items():
        torch.testing.assert_close(found["xla"][name], value, rtol=1e-9, atol=1e-9)
    assert seen[2:] == [seen[2]] * 4


def test_no_64_bits_are_sent_on_a_tpu(monkeypatch):
    """A float64 number is sent as two float32 numbers, whose sum has 48 bits."""
    import torch_xla.core.xla_model as xla_model

    from video_rs.distributed import device

    sent = []

    def all_reduce(kind, tensors, scale):
        sent.extend(tensor.dtype for tensor in tensors)
        for tensor in tensors:  # two processes with the same numbers
            tensor.mul_(2 * scale)

    monkeypatch.setattr(device, "_is_xla_cpu", lambda: False)
    monkeypatch.setattr(xla_model, "all_reduce", all_reduce)
    torch.manual_seed(0)
    numbers = torch.randn(100, dtype=torch.float64) * torch.logspace(-9, 9, 100, dtype=torch.float64)
    wide, narrow = numbers.to("xla"), numbers.float().to("xla")
    device.all_reduce([wide, narrow], 0.25)
    torch.testing.assert_close(wide.cpu(), numbers / 2, rtol=2**-46, atol=0)
    torch.testing.assert_close(narrow.cpu(), numbers.float() / 2)
    assert set(sent) == {torch.float32} and len(sent) == 3
