"""Convolutions and pools against direct formulas, keyed drops against their statistics."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from video_rs.models.layers import Conv, Dropout, DropPath, MaxPool, average_pool, keyed_uniform, pad
from video_rs.rng import sample_keys

CLIP = (2, 3, 7, 9, 10)


def clip(shape=CLIP) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)


STRIDES = [(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 2)]


@pytest.mark.parametrize("kernel", [(1, 1, 1), (1, 3, 3), (3, 1, 1), (5, 3, 3), (3, 3, 3)])
def test_symmetric_convolution_is_conv3d(kernel):
    for case in product(STRIDES, (torch.contiguous_format, torch.channels_last_3d)):
        stride, memory_format = case
        conv = Conv(3, 4, kernel, stride, bias=True).double()
        expected = F.conv3d(clip(), conv.weight, conv.bias, stride, [k // 2 for k in kernel])
        found = conv(clip().contiguous(memory_format=memory_format))
        torch.testing.assert_close(found, expected, msg=str(case))


@pytest.mark.parametrize("kernel", [(1, 1, 1), (1, 3, 3), (3, 1, 1)])
def test_a_convolution_in_2d_is_the_one_in_3d(kernel, monkeypatch):
    functions = []
    for function in (F.conv2d, F.conv3d):
        name = function.__name__
        monkeypatch.setattr(F, name, lambda *args, f=function, n=name: functions.append(n) or f(*args))
    for case in product(STRIDES, ("symmetric", "same"), ("zeros", "replicate")):
        stride, padding, temporal_padding = case
        conv, found = Conv(3, 4, kernel, stride, padding=padding, temporal_padding=temporal_padding).double(), []
        functions.clear()
        for conv.as_2d in (True, False):
            x = clip().requires_grad_()
            out = conv(x)
            (out * torch.linspace(1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
            found.append([out.detach(), x.grad, conv.weight.grad.clone()])
            conv.weight.grad = None
        for ours, expected in zip(*found):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12, msg=str(case))
        in_3d_anyway = kernel[0] > 1 and stride[1] > 1
        assert functions == ["conv3d" if in_3d_anyway else "conv2d", "conv3d"], case


@given(n=st.integers(1, 12), k=st.sampled_from([1, 3, 5, 7]), s=st.integers(1, 3))
@settings(max_examples=60)
def test_same_padding_is_tensorflows(n, k, s):
    x = torch.arange(1.0, n + 1)[None, None, :, None, None]
    conv = Conv(1, 1, (k, 1, 1), (s, 1, 1), padding="same")
    torch.nn.init.ones_(conv.weight)
    total = max((math.ceil(n / s) - 1) * s + k - n, 0)
    starts = [i * s - total // 2 for i in range(math.ceil(n / s))]
    expected = [sum(i + 1 for i in range(start, start + k) if 0 <= i < n) for start in starts]
    assert conv(x).flatten().tolist() == pytest.approx(expected)
    padded, left = pad(x, (k, 1, 1), (s, 1, 1), "symmetric")
    assert padded is x and left == [k // 2, 0, 0]


@pytest.mark.parametrize("kernel", [(3, 1, 1), (5, 3, 3)])
def test_replicated_frames_make_a_still_clip_stay_still(kernel):
    for case in product(("symmetric", "same"), (1, 4, 5)):
        padding, length = case
        still = clip((1, 3, 1, 8, 8)).expand(-1, -1, length, -1, -1)
        conv = Conv(3, 4, kernel, (2, 1, 1), padding=padding, temporal_padding="replicate").double()
        out = conv(still)
        assert out.shape[2] == math.ceil(length / 2), case
        assert torch.allclose(out, out[:, :, :1].expand_as(out)), case
        conv.temporal_padding = "zeros"
        out = conv(still)
        assert length == 1 or not torch.allclose(out, out[:, :, :1].expand_as(out)), case


@pytest.mark.parametrize("stride", STRIDES)
def test_average_pool_counts_what_is_there(stride):
    x = clip()
    kernel = [max(s, 2) if i else s for i, s in enumerate(stride)] if stride == (1, 1, 1) else list(stride)
    out = average_pool(x, stride)
    assert out.shape[2:] == tuple(math.ceil(n / s) for n, s in zip(x.shape[2:], stride, strict=True))
    for t, i, j in [(0, 0, 0), (2, 3, 4), tuple(n - 1 for n in out.shape[2:])]:
        t0, i0, j0 = (a * s for a, s in zip((t, i, j), stride, strict=True))
        window = x[:, :, t0 : t0 + kernel[0], i0 : i0 + kernel[1], j0 : j0 + kernel[2]]
        torch.testing.assert_close(out[:, :, t, i, j], window.mean((2, 3, 4)))


@pytest.mark.parametrize(("padding", "before"), [("same", 0), ("symmetric", 1)])
@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 3, 3)])
def test_max_pool_ignores_the_padding(padding, before, kernel):
    x = clip((2, 3, 8, 10, 10)) - 100  # even sizes: "same" pads at the end alone
    stride = (2, 2, 2) if kernel[0] == 3 else (1, 2, 2)
    out = MaxPool(kernel, stride, padding=padding)(x)
    for t, i, j in [(0, 0, 0), (1, 2, 3), tuple(n - 1 for n in out.shape[2:])]:
        lows = [a * s - (before if k == 3 else 0) for a, s, k in zip((t, i, j), stride, kernel, strict=True)]
        slices = tuple(slice(max(low, 0), low + k) for low, k in zip(lows, kernel, strict=True))
        window = x[(slice(None), slice(None), *slices)]
        torch.testing.assert_close(out[:, :, t, i, j], window.amax((2, 3, 4)))


def keys(n: int, step: int = 0) -> torch.Tensor:
    return torch.from_numpy(sample_keys(7, step, torch.arange(n).numpy()))


@pytest.mark.parametrize("make", [keys, torch.arange], ids=["hashed keys", "small keys"])
def test_keyed_numbers_are_uniform_and_independent(make):
    u = keyed_uniform(make(400), stream=3, size=500)
    assert u.dtype == torch.float32 and u.min() >= 0 and u.max() < 1
    counts = torch.histc(u, 64, 0, 1)
    expected = u.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 130  # chi-squared, 63 degrees of freedom: 1e-6
    limit = 6 / math.sqrt(u.numel())  # six standard deviations of a correlation
    others = [u.roll(1, 0), u.roll(1, 1), keyed_uniform(make(400), 4, 500), keyed_uniform(keys(400, 1), 3, 500)]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([u.flatten(), other.flatten()]))[0, 1]) < limit
    assert u.mean(0).std() < 1.3 / math.sqrt(12 * 400) and u.mean(1).std() < 1.3 / math.sqrt(12 * 500)


def test_keyed_numbers_depend_on_key_stream_and_element_alone():
    whole = keyed_uniform(keys(10), 5, 8)
    torch.testing.assert_close(keyed_uniform(keys(10)[4:6], 5, 3), whole[4:6, :3], rtol=0, atol=0)


def splitmix64(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@given(key=st.integers(-(2**63), 2**63 - 1), stream=st.integers(0, 500))
def test_keyed_numbers_are_splitmix64(key, stream):
    counters = [(stream << 32) + element for element in range(3)]
    bits = [splitmix64((splitmix64(key % 2**64) + c * 0x9E3779B97F4A7C15) % 2**64) >> 40 for c in counters]
    assert (keyed_uniform(torch.tensor([key]), stream, 3) * 2**24).long().tolist() == [bits]


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_its_share_and_the_mean(rate):
    layer = Dropout(rate, stream=0)
    out = layer(torch.ones(200, 1000), keys(200))
    share = (out > 0).float().mean().item()
    assert share == pytest.approx(1 - rate, abs=6 * math.sqrt(rate * (1 - rate) / out.numel()))
    assert out.max().item() == pytest.approx(1 / (1 - rate))
    assert layer.eval()(out, None) is out


def test_drop_path_drops_whole_samples():
    out = DropPath(0.25, stream=2)(torch.ones(4000, 2, 1, 2, 2), keys(4000)).flatten(1)
    assert (out == out[:, :1]).all()
    share = (out[:, 0] > 0).float().mean().item()
    assert share == pytest.approx(0.75, abs=6 * math.sqrt(0.25 * 0.75 / 4000))
    assert out.max().item() == pytest.approx(1 / 0.75)


def test_drops_keep_half_precision():
    x = torch.ones(3, 5, dtype=torch.bfloat16)
    assert Dropout(0.5, stream=0)(x, keys(3)).dtype == torch.bfloat16
