"""The trainer on XLA's CPU device and on the CPU: equal numbers, and no compilation after the first steps."""

import pytest
import torch
from torch import nn

from tests.xla import trainers
from video_rs.distributed.device import flush
from video_rs.models.layers import keyed_uniform
from video_rs.models.sync_batch_norm import SyncBatchNorm3d
from video_rs.rng import sample_keys
from video_rs.training import optim

pytestmark = pytest.mark.xla


def compiled():
    """Return the number of graphs compiled in this process."""
    from torch_xla.debug import metrics

    data = metrics.metric_data("CompileTime")
    return data[0] if data else 0


def take(trainer, steps):
    """Take steps; return the loss of each and the number of compiled graphs after each."""
    losses, graphs = [], []
    for step in range(trainer.step, trainer.step + steps):
        before = float(trainer.metrics.sums[0])
        trainer.train_step(trainers.micro_batches(trainer.schedule, step))
        losses.append((float(trainer.metrics.sums[0]) - before) / trainer.schedule.batch_size)
        graphs.append(compiled())
    return losses, graphs


@pytest.fixture(scope="module")
def runs(xla_on_the_cpu):
    """A trainer on each device after ten steps: losses, gradients and state after the first, graphs after each.

    In float64: the gradients of a network this small differ by 1e-3 in float32, as they do from one CPU to another.
    """
    torch.set_num_threads(1)
    found = {}
    for device in ("cpu", "xla"):
        trainer = trainers.trainer(device, precision="float64")
        losses, graphs = take(trainer, 1)
        gradients = trainers.on_host({name: p.grad for name, p in trainer.model.named_parameters()})
        state = trainers.on_host(trainer.model.state_dict())
        more, later = take(trainer, 9)
        found[device] = {"losses": losses + more, "gradients": gradients, "state": state, "graphs": graphs + later}
        found[device]["trainer"] = trainer
    return found


def relative(a, b):
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def test_one_step_equals_the_cpus(runs):
    ours, theirs = runs["xla"], runs["cpu"]
    assert ours["losses"][0] == pytest.approx(theirs["losses"][0], rel=1e-5)
    for name, value in theirs["gradients"].items():
        assert relative(ours["gradients"][name], value) < 1e-5, name


def test_statistics_of_batch_norm_equal_the_cpus(runs):
    for name, value in runs["cpu"]["state"].items():
        if "running" in name or "tracked" in name:
            torch.testing.assert_close(runs["xla"]["state"][name], value, rtol=1e-5, atol=1e-6)


def test_ten_steps_equal_the_cpus(runs):
    assert runs["xla"]["losses"] == pytest.approx(runs["cpu"]["losses"], rel=1e-3)
    averages = [trainers.on_host(runs[device]["trainer"].ema.state_dict()) for device in ("xla", "cpu")]
    for name, value in averages[1].items():
        assert relative(averages[0][name], value) < 1e-3, name


def test_nothing_is_compiled_after_the_first_steps(runs):
    graphs = runs["xla"]["graphs"]
    assert graphs[0] > 0
    assert graphs[2:] == [graphs[2]] * 8  # the second step is the first whose learning rate is not 0


def test_the_step_runs_on_the_device_alone(runs):
    """An operation that XLA does not support would run on the host and have a counter."""
    from torch_xla.debug import metrics

    def fetched():
        return (metrics.metric_data("TransferFromDeviceTime") or [0])[0]

    metrics.clear_counters()
    trainer, before = runs["xla"]["trainer"], fetched()
    trainer.train_step(trainers.micro_batches(trainer.schedule, 10))
    assert fetched() == before  # nor was anything waited for
    assert not [name for name in metrics.counter_names() if name.startswith("aten::")]


def test_a_step_that_is_not_finite_leaves_nothing(runs):
    trainer = runs["xla"]["trainer"]
    trainer.metrics.bad_steps()
    before = {**trainers.on_host(trainer.model.state_dict()), **momenta(trainer)}
    average = trainers.on_host(trainer.ema.state_dict())
    step, graphs = trainer.step, compiled()
    trainer.criterion.factors.copy_(torch.tensor([1, 1, float("nan"), 1]))
    trainer.train_step(trainers.micro_batches(trainer.schedule, step))
    trainer.criterion.factors.fill_(1)
    assert compiled() <= graphs + 2  # of the factors
    assert trainer.metrics.bad_steps() == {step: [2, 6]}
    after = {**trainers.on_host(trainer.model.state_dict()), **momenta(trainer)}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(torch.equal(trainers.on_host(trainer.ema.state_dict())[name], value) for name, value in average.items())
    trainer.train_step(trainers.micro_batches(trainer.schedule, step))
    assert trainer.metrics.bad_steps() == {}
    weights = trainers.on_host(trainer.model.state_dict())
    assert not any(torch.equal(weights[name], before[name]) for name in ("head.weight", "head.bias"))


def momenta(trainer):
    buffers = [state["momentum_buffer"] for state in trainer.optimizer.state.values()]
    return trainers.on_host({f"momentum {i}": buffer for i, buffer in enumerate(buffers)})


def test_bf16_is_near_float32(runs):
    [loss], _ = take(trainers.trainer("xla", precision="bf16"), 1)
    assert loss != pytest.approx(runs["cpu"]["losses"][0], rel=1e-5)  # as float32's would be
    assert loss == pytest.approx(runs["cpu"]["losses"][0], rel=0.02)


# The parts ------------------------------------------------------------------------------------------------------------


def test_random_numbers_have_the_same_bits():
    import numpy as np

    keys = torch.from_numpy(sample_keys(0, 0, np.arange(1000)))
    assert torch.equal(keyed_uniform(keys.to("xla"), 3, 50).cpu(), keyed_uniform(keys, 3, 50))


OPTIMIZERS = {
    "sgd": lambda model: optim.create("sgd", model, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda model: optim.create("adamw", model, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1),
    "lamb": lambda model: optim.create("lamb", model, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1),
}


def steps_of(name, device, steps, found=None):
    """A layer after steps with gradients that are not finite every third time, from the state ``found`` on."""
    torch.manual_seed(0)
    layer = nn.Linear(7, 5).double().to(device)
    optimizer = OPTIMIZERS[name](layer)
    if found:
        layer.load_state_dict(found["layer"])
        optim.load_optimizer(optimizer, found["optimizer"])
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in layer.parameters():
            gradient = torch.randn(p.shape, dtype=p.dtype, generator=generator)
            p.grad = (gradient * float("nan") if step % 3 == 0 else gradient).to(device)
        for group in optimizer.param_groups:
            group["lr"] = 0.013 * (step + 1)
        optim.step_unless(optimizer, ~layer.weight.grad.sum().isfinite())
        flush(torch.device(device))
    saved = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.detach().cpu(), optimizer.state_dict())
    return {"layer": {k: v.cpu() for k, v in layer.state_dict().items()}, "optimizer": saved}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_equal_the_cpus(name):
    """With skipped steps, the first included; and from one device to the other and back."""
    expected = steps_of(name, "cpu", range(7))
    found = steps_of(name, "xla", range(7))
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if name == "adamw" else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found["layer"], expected["layer"], **tolerance)  # torch corrects Adam's bias in float32
    half = steps_of(name, "cpu", range(2))
    for device, steps in (("xla", range(2, 5)), ("cpu", range(5, 7))):
        half = steps_of(name, device, steps, half)
    torch.testing.assert_close(half["layer"], expected["layer"], **tolerance)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_learning_rate_compiles_nothing(name):
    steps_of(name, "xla", range(3))
    before = compiled()
    steps_of(name, "xla", range(9, 12))
    assert compiled() == before


@pytest.mark.parametrize("synced", [False, True])
def test_batch_norm_keeps_the_unbiased_variance(synced):
    x = torch.randn(3, 4, 2, 2, 2, dtype=torch.float64)
    plain, ours = nn.BatchNorm3d(4).double(), nn.BatchNorm3d(4).double().to("xla")
    ours.__class__, ours.local = SyncBatchNorm3d, not synced
    torch.testing.assert_close(ours(x.to("xla")).cpu(), plain(x))
    torch.testing.assert_close(ours.running_var.cpu(), plain.running_var)
