"""All image networks against timm's ``resnetrs*``: logits, gradients, and state dicts both ways.

With ``-s -m "slow or not slow"`` it prints the largest errors of each network, as docs/models.md gives them.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_rs.models.registry import create_model
from video_rs.models.weights.state_dict import from_timm, looks_like_timm, to_timm
from video_rs.models.weights.timm import DEPTHS

SIZES = ((64, 64), (65, 49), (50, 74))  # even and odd at every stage, and a mixture


@dataclass
class Twins:
    """The same weights in timm's network and in ours, float64; ``figures`` are the errors that were measured."""

    depth: int
    theirs: nn.Module | None
    ours: nn.Module | None
    figures: dict[str, float] = field(default_factory=dict)


TIER = {50: (), 152: pytest.mark.slow}
every_depth = pytest.mark.parametrize(
    "twins",
    [pytest.param(depth, marks=TIER.get(depth, pytest.mark.exhaustive)) for depth in DEPTHS],
    indirect=True,
    ids=lambda depth: f"resnetrs{depth}",
)


@pytest.fixture(scope="module")
def twins(request):
    timm = pytest.importorskip("timm")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(request.param)
    with torch.device("meta"):  # initialising 192 million weights at random takes longer than the test
        theirs = timm.create_model(f"resnetrs{request.param}")
        ours = create_model(f"resnet_rs_{request.param}", dropout=0.0, drop_path=0.0)
    theirs, ours = (network.double().to_empty(device="cpu") for network in (theirs, ours))
    initialize(theirs, generator)
    calibrate(theirs, torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=generator))
    ours.load_state_dict(from_timm(theirs.state_dict()))
    pair = Twins(request.param, theirs, ours.eval())
    yield pair
    print("".join(f"\n| resnetrs{pair.depth} | {name} | {value:.1e} |" for name, value in pair.figures.items()))
    pair.theirs = pair.ours = None
    with contextlib.suppress(AttributeError):  # glibc alone has it: it would keep gigabytes of what the networks freed
        ctypes.CDLL(None).malloc_trim(0)


@torch.no_grad()
def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """All tensors differ, to reveal weights that are swapped."""
    for name, p in network.named_parameters():
        if name.endswith("bn3.weight"):
            p.uniform_(0.1, 0.3, generator=generator)  # the last gamma: blocks that neither vanish nor explode
        elif p.ndim > 1:
            p.uniform_(-1, 1, generator=generator).mul_((3 / p[0].numel()) ** 0.5)
        else:
            p.uniform_(-0.1, 0.1, generator=generator).add_(float(name.endswith("weight")))


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor) -> None:
    """Running statistics as one batch has them; each layer's count is another number."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for number, norm in enumerate(norms):
        norm.running_mean.zero_(), norm.running_var.fill_(1), norm.num_batches_tracked.fill_(number)
    for norm in norms:
        norm.momentum = 1.0
    network.train()(images)
    for norm in norms:
        norm.momentum = 0.1
    network.eval()


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, of the largest value."""
    assert ours.shape == theirs.shape and theirs.isfinite().all() and theirs.any()
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def logit_errors(twins: Twins, dtype: torch.dtype) -> list[float]:
    generator, errors = torch.Generator().manual_seed(1), []
    networks = [twins.ours, twins.theirs]
    if dtype != torch.float64:
        networks = [copy.deepcopy(network).to(dtype) for network in networks]
    for height, width in SIZES:
        images = torch.randn(2, 3, height, width, dtype=dtype, generator=generator)
        with torch.inference_mode():
            errors.append(error(*(network(images) for network in networks)))
        twins.figures[f"logits, {str(dtype).removeprefix('torch.')}, {height}x{width}"] = errors[-1]
    return errors


@every_depth
def test_logits_equal_timms(twins):
    assert max(logit_errors(twins, torch.float64)) < 1e-9
    assert max(logit_errors(twins, torch.float32)) < 2e-5


@pytest.mark.parametrize("depth", [pytest.param(d, marks=() if d == 50 else pytest.mark.slow) for d in DEPTHS])
def test_names_and_shapes_are_timms(depth):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs, ours = (
            timm.create_model(f"resnetrs{depth}").state_dict(),
            create_model(f"resnet_rs_{depth}").state_dict(),
        )

    def shapes(state):
        return {name: tensor.shape for name, tensor in state.items()}

    assert shapes(from_timm(theirs)) == shapes(ours) and shapes(to_timm(ours)) == shapes(theirs)


@every_depth
def test_state_dicts_there_and_back_are_the_same_bits(twins):
    state = twins.theirs.state_dict()
    ours = from_timm(state)
    assert ours.keys() == twins.ours.state_dict().keys()
    assert looks_like_timm(state) and not looks_like_timm(ours)
    for back in (to_timm(ours), to_timm(twins.ours.state_dict())):
        assert back.keys() == state.keys()
        for name, value in state.items():
            assert back[name].dtype == value.dtype and torch.equal(back[name], value), name
    counts = [value.item() for name, value in state.items() if name.endswith("num_batches_tracked")]
    assert len(set(counts)) == len(counts) > 50


@every_depth
def test_gradients_equal_timms(twins):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 1000, (4,), generator=generator)
    networks = (twins.ours, twins.theirs)
    before = [{name: value.clone() for name, value in network.named_buffers()} for network in networks]
    for network in networks:
        F.cross_entropy(network.train()(images), labels, label_smoothing=0.1).backward()
    gradients = to_timm({name: p.grad for name, p in twins.ours.named_parameters()})
    theirs = {name: p.grad for name, p in twins.theirs.named_parameters()}
    assert gradients.keys() == theirs.keys()
    errors = {name: error(gradients[name], gradient) for name, gradient in theirs.items()}
    twins.figures["gradients, float64, 64x64"] = max(errors.values())
    assert max(errors.values()) < 1e-7, max(errors, key=errors.get)

    moved = to_timm(dict(twins.ours.named_buffers()))  # the running statistics after the step
    for name, value in twins.theirs.named_buffers():
        assert not torch.equal(value, before[1][name]) and error(moved[name].double(), value.double()) < 1e-9, name
    for network, buffers in zip(networks, before):  # as the next test expects them
        network.eval().zero_grad(set_to_none=True)
        for name, value in network.named_buffers():
            value.copy_(buffers[name])
