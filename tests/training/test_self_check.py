"""The check of convolutions at the start: right ones pass, one that is wrong is named."""

import time

import pytest
import torch
import torch.nn.functional as F

from video_rs.distributed import self_check
from video_rs.distributed.device import parameter_dtype
from video_rs.distributed.self_check import check_convolutions, one_of_each_kind
from video_rs.errors import MachineError
from video_rs.models.registry import create_model

KINDS = ["(k,k,k)", "(1,k,k)", "(k,1,1)", "(1,1,1)"]
pytestmark = pytest.mark.usefixtures("one_thread")


def network(precision="float32"):
    return create_model("resnet3d_rs_50", num_classes=5, width=0.25).to(parameter_dtype(precision))


def kind_of(weight):
    """The kind of a 2D or 3D kernel as the network's own route gives it to ``F.conv2d`` and ``F.conv3d``."""
    sides = weight.shape[2:]
    if len(sides) == 3:
        return KINDS[0]
    return KINDS[3] if sides == (1, 1) else KINDS[2] if sides[1] == 1 else KINDS[1]


def test_one_of_each_kind():
    assert sorted(one_of_each_kind(network())) == sorted(KINDS)
    assert list(one_of_each_kind(create_model("resnet_rs_50", num_classes=5))) == ["(1,k,k)", "(1,1,1)"]
    grouped = one_of_each_kind(create_model("pytorchvideo/x3d_xs", num_classes=5))
    assert "(k,k,k) by groups" in grouped and "(k,1,1) by groups" in grouped


@pytest.mark.parametrize("precision", ["float64", "float32", "bf16"])
def test_right_convolutions_pass(precision):
    model = network(precision)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = time.monotonic()
    check_convolutions(model, precision)
    assert time.monotonic() - start < 5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_wrong_one_is_named(monkeypatch, kind, precision):
    """One of a hundred outputs is off, in the precision that is tried and not in float64."""
    for name in ("conv2d", "conv3d"):
        original = getattr(F, name)

        def broken(x, weight, *rest, original=original):
            y = original(x, weight, *rest)
            off = torch.arange(y.numel()).reshape(y.shape) % 100 == 0
            return torch.where(off, 0.5 * y, y) if kind_of(weight) == kind and x.dtype != torch.float64 else y

        monkeypatch.setattr(F, name, broken)
    with pytest.raises(MachineError) as caught:
        check_convolutions(network(), precision)
    text = str(caught.value)
    assert text.startswith(f"a {kind} convolution in {precision} on cpu") and "\n" not in text
    assert torch.__version__ in text and "pytorch#163539" in text
    assert ("train.precision=float32" in text) == (precision == "bf16")


@pytest.mark.parametrize("number", [1, 2])
def test_a_wrong_gradient_is_named(monkeypatch, number):
    original = self_check._parts

    def broken(layer, x, gradient, precision):
        parts = list(original(layer, x, gradient, precision))
        if precision != "float64":
            parts[number] = parts[number] * 1.1
        return parts

    monkeypatch.setattr(self_check, "_parts", broken)
    with pytest.raises(MachineError, match=self_check.PARTS[number]):
        check_convolutions(network(), "float32")


def test_one_that_cannot_be_computed(monkeypatch):
    def failing(x, weight, *rest):
        if x.dtype != torch.float64:
            raise RuntimeError("GET was unable to find an engine to execute this computation\nat line 5")
        return torch.conv3d(x, weight, *rest)

    monkeypatch.setattr(F, "conv3d", failing)
    with pytest.raises(
        MachineError, match=r"\(k,k,k\) convolution .* fails \(GET was unable .* computation\): install"
    ):
        check_convolutions(network(), "float32")
