"""SGD, AdamW and LAMB against formulas and other implementations, and steps that are skipped."""

import copy

import pytest
import torch
from torch import nn

from video_rs.errors import UserError
from video_rs.experiment.schema import TIMM_OPTIMIZERS
from video_rs.training import optim
from video_rs.training.lamb import Lamb

BETAS, EPS, DECAY = (0.85, 0.97), 1e-7, 0.05
MAKERS = {
    "sgd": lambda model: optim.create("sgd", model, momentum=0.9, nesterov=True, weight_decay=DECAY),
    "sgd_without_momentum": lambda model: optim.create("sgd", model, momentum=0, nesterov=False, weight_decay=DECAY),
    "adamw": lambda model: optim.create("adamw", model, betas=BETAS, eps=EPS, weight_decay=DECAY),
    "lamb": lambda model: optim.create("lamb", model, betas=BETAS, eps=EPS, weight_decay=DECAY),
}
every_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(7, 4)).to(dtype)
    nn.init.zeros_(model[2].weight)  # a norm of 0 has no trust ratio
    return model


def gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p)


def take(model, optimizer, steps, rate=0.1):
    for step in steps:
        gradients(model, step)
        for group in optimizer.param_groups:
            group["lr"] = rate / (1 + step)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def lamb_by_hand(model, steps, rate=0.1):
    """Algorithm 2 of arXiv 1904.00962, one tensor after the other."""
    params = [p.detach().clone() for p in model.parameters()]
    decays = [DECAY if p.ndim > 1 else 0 for p in params]
    means, squares = ([torch.zeros_like(p) for p in params] for _ in range(2))
    for t, step in enumerate(steps, 1):
        gradients(model, step)
        for i, g in enumerate(p.grad for p in model.parameters()):
            means[i] = BETAS[0] * means[i] + (1 - BETAS[0]) * g
            squares[i] = BETAS[1] * squares[i] + (1 - BETAS[1]) * g**2
            r = means[i] / (1 - BETAS[0] ** t) / ((squares[i] / (1 - BETAS[1] ** t)).sqrt() + EPS)
            u = r + decays[i] * params[i]
            norms = params[i].norm(), u.norm()
            trust = norms[0] / norms[1] if decays[i] and min(norms) > 0 else 1
            params[i] = params[i] - rate / (1 + step) * trust * u
    return params


def test_lamb_is_the_papers():
    model = network()
    expected = lamb_by_hand(network(), range(20))
    for ours, theirs in zip(take(model, MAKERS["lamb"](model), range(20)), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_lamb_is_timms():
    timm = pytest.importorskip("timm.optim")
    ours, theirs = network(), network()
    decayed = {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": DECAY}
    others = {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0}
    peer = timm.Lamb([decayed, others], betas=BETAS, eps=EPS, max_grad_norm=None)
    for a, b in zip(take(ours, MAKERS["lamb"](ours), range(20)), take(theirs, peer, range(20))):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_is_torchs_plain_one(name):
    ours, theirs = network(), network()
    groups = optim.parameter_groups(theirs, DECAY)
    plain = {
        "sgd": lambda: torch.optim.SGD(groups, momentum=0.9, nesterov=True, foreach=False),
        "adamw": lambda: torch.optim.AdamW(groups, betas=BETAS, eps=EPS, foreach=False),
    }[name]()
    for a, b in zip(take(ours, MAKERS[name](ours), range(20)), take(theirs, plain, range(20))):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every_optimizer
def test_a_state_whose_memory_is_in_another_order(make):
    """Such a state comes from another kind of device."""

    def layer():
        torch.manual_seed(0)
        return torch.nn.Conv3d(3, 4, 3).to(memory_format=torch.channels_last_3d)

    ours, theirs = layer(), layer()
    optimizer, other = make(ours), make(theirs)
    take(theirs, other, range(2))
    ours.load_state_dict(theirs.state_dict())
    saved = copy.deepcopy(other.state_dict())
    for entries in saved["state"].values():
        for name, value in entries.items():
            entries[name] = value.clone(memory_format=torch.contiguous_format)
    optim.load_optimizer(optimizer, saved)
    for a, b in zip(take(ours, optimizer, [2]), take(theirs, other, [2])):
        torch.testing.assert_close(a, b)


def state_of(optimizer):
    return [value.clone() for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_leaves_everything(make, dtype, bad):
    """Skipped at the first step and later, without a trace."""
    model, undisturbed = network(dtype), network(dtype)
    optimizer, other = make(model), make(undisturbed)
    optimizer.grad_scale = None
    for step in (0, 1, 2, 3, 4):
        if step in (0, 3):
            gradients(model, 99)
            for p in model.parameters():
                p.grad.view(-1)[0] = bad
            optimizer.found_inf = torch.ones(())
            before = [p.detach().clone() for p in model.parameters()]
            kept = state_of(optimizer)
            optimizer.step()
            assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
            if kept:
                assert all(torch.equal(now, old) for now, old in zip(state_of(optimizer), kept, strict=True))
        optimizer.found_inf = torch.zeros(())
        for a, b in zip(take(model, optimizer, [step]), take(undisturbed, other, [step]), strict=True):
            assert torch.equal(a, b)
    for a, b in zip(state_of(optimizer), state_of(other), strict=True):
        assert torch.equal(a, b)


@every_optimizer
def test_state_goes_on_from_a_file(make, tmp_path):
    model = network(torch.float32)
    optimizer = make(model)
    take(model, optimizer, range(3))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    resumed = network(torch.float32)
    other = make(resumed)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    for a, b in zip(take(model, optimizer, range(3, 6)), take(resumed, other, range(3, 6)), strict=True):
        assert torch.equal(a, b)


def timms(name, model, **options):
    return optim.create(name, model, weight_decay=DECAY, lr=0.1, options=options)


def states(optimizer):
    """Return the whole state of an optimizer as one list: tensors, counters of tensors and of groups."""
    saved = optimizer.state_dict()
    entries = [(index, name, value) for index, state in saved["state"].items() for name, value in state.items()]
    entries += [
        (i, name, v) for i, group in enumerate(saved["param_groups"]) for name, v in group.items() if name != "lr"
    ]
    return [(index, name, value.tolist() if torch.is_tensor(value) else value) for index, name, value in entries]


@pytest.mark.parametrize("name", TIMM_OPTIMIZERS)
def test_a_skipped_step_of_timms_leaves_nothing(name, tmp_path):
    """Steps 1 and 5 are skipped; a checkpoint after step 3 is read in between."""
    model, undisturbed = network(torch.float32), network(torch.float32)
    optimizer, other = timms(name, model), timms(name, undisturbed)
    for step in range(1, 8):
        for group in (*optimizer.param_groups, *other.param_groups):
            group["lr"] = 0.01 / step
        gradients(model, step)
        if step in (1, 5):
            for p in model.parameters():
                p.grad.view(-1)[0] = float("nan")
        else:
            gradients(undisturbed, step)
            optim.step_unless(other, torch.zeros((), dtype=torch.bool))
        optim.step_unless(optimizer, torch.tensor(step in (1, 5)))
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), undisturbed.parameters()))
        assert states(optimizer) == states(other)
        if step == 3:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
            saved = torch.load(tmp_path / "state.pt", weights_only=True)
            model = network(torch.float32)
            model.load_state_dict(saved["model"])
            optimizer = timms(name, model)
            optim.load_optimizer(optimizer, saved["optimizer"])
    start = network(torch.float32)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters()))


def test_options_of_timms():
    model = network()
    optimizer = timms("rmsproptf", model, momentum=0.8, alpha=0.95, eps="1e-3")
    assert [group["weight_decay"] for group in optimizer.param_groups] == [DECAY, 0]
    for group in optimizer.param_groups:
        assert (group["momentum"], group["alpha"], group["eps"], group["lr_scale"]) == (0.8, 0.95, 1e-3, 1)
    assert "momentum" not in timms("lion", model).param_groups[0]
    with pytest.raises(UserError, match="rmsproptf has no 'alhpa'.*did you mean alpha"):
        timms("rmsproptf", model, alhpa=0.9)
    with pytest.raises(UserError, match="rmsproptf refuses .*alpha"):
        timms("rmsproptf", model, alpha=-1)
    with pytest.raises(UserError, match="rmsproptf has no 1; it has alpha"):
        optim.create("rmsproptf", model, weight_decay=DECAY, options={1: 2})


def test_lamb_of_float32_corrects_its_bias_exactly():
    """``1 - 0.999 ** 1`` in float32 has only four digits left."""
    p = nn.Parameter(torch.zeros(1))
    p.grad = torch.full((1,), 1e-3)
    Lamb([p], lr=1.0, betas=(0.0, 0.999999), eps=1e-16).step()
    assert p.item() == pytest.approx(-1, rel=1e-6)


@pytest.mark.gpu
@every_optimizer
def test_the_device_skips_without_the_host(make):
    model, other = network(torch.float32).cuda(), network(torch.float32).cuda()
    optimizer, undisturbed = make(model), make(other)
    take(model, optimizer, range(2)), take(other, undisturbed, range(2))
    gradients(model, 2)
    for p in model.parameters():
        p.grad.fill_(float("nan"))
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(state_of(optimizer), state_of(undisturbed)))
