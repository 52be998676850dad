"""Networks of PyTorchVideo against the hub's results, the published sizes and the public weights."""

from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.models.clips import clips, data_config
from video_rs.errors import MachineError, UserError
from video_rs.models.adapters.pytorchvideo import ENTRIES, AveragePool
from video_rs.models.base import classifier_names
from video_rs.models.registry import create_model
from video_rs.models.weights.init_from import init_from

torch.set_num_threads(1)
NAMES = sorted(ENTRIES)
MVIT = [name for name in NAMES if name.startswith("mvit")]
LARGE = ("c2d_r50", "x3d_s", "x3d_m", "x3d_l", "slowfast_r101", "slowfast_16x8_r101_50_50", "csn_r101")
ONE_OF_EACH = [  # of the networks that differ in numbers alone, the small one
    *("slow_r50", "c2d_r50", "i3d_r50", "csn_r101", "r2plus1d_r50", "x3d_xs", "slowfast_r50"),
    *("mvit_base_16", "mvit_base_16x4"),
]
SLOW = (pytest.mark.slow,)
PUBLISHED = {  # millions of parameters, GFLOPs of a test view: docs/source/model_zoo.md of PyTorchVideo
    "c2d_r50": (24.33, 25.89),
    "i3d_r50": (28.04, 37.53),
    "slow_r50": (32.45, 54.52),
    "slowfast_r50": (34.57, 65.71),
    "slowfast_r101": (62.83, 127.20),
    "slowfast_16x8_r101_50_50": (53.77, 215.61),
    "csn_r101": (22.21, 75.62),
    "r2plus1d_r50": (28.11, 76.45),
    "x3d_xs": (3.79, 0.91),
    "x3d_s": (3.79, 2.96),
    "x3d_m": (3.79, 6.72),
    "x3d_l": (6.15, 26.64),
    "mvit_base_16x4": (36.61, 70.80),
}


def shake(network):
    """Randomize batch norm; the last one of a block starts with zero, which would hide the block."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            for tensor, low in ((module.weight, 0.5), (module.running_var, 0.5), (module.running_mean, -0.2)):
                tensor.data.uniform_(low, low + 0.5, generator=generator)
    return network


def theirs(name, weights=None, **arguments):
    """Return the hub's network, with ``weights`` instead of random ones if they are given."""
    from pytorchvideo.models import hub

    if not weights:
        return getattr(hub, name)(**arguments).eval()
    device = "cpu" if name in MVIT else "meta"  # MViT looks at numbers while it is built
    with torch.device(device), mock.patch.multiple(nn.init, trunc_normal_=mock.DEFAULT, kaiming_uniform_=mock.DEFAULT):
        network = getattr(hub, name)(**arguments).eval()
    network.load_state_dict({key.removeprefix("network."): w for key, w in weights.items()}, assign=True)
    return network


def two_paths(x):
    """Pack clips as SlowFast does (slowfast/datasets/utils.py), with alpha 4."""
    num_frames = x.shape[2]
    return [x[:, :, torch.linspace(0, num_frames - 1, num_frames // 4).long()], x]


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW if n in LARGE else ()) for n in NAMES if n not in MVIT])
def test_convolutional_networks_on_their_own_clips(name):
    """On the meta device: parameters and FLOPs as published, windows as the hub's, one row of logits.

    Their FLOPs are multiply-adds, and for most networks count batch norm and activations beside the products.
    """
    with torch.device("meta"):
        model = create_model(f"pytorchvideo/{name}").eval()
    bare = theirs(name, model.state_dict())
    parameters, gflops = PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.005)
    windows = [m.window for m in model.modules() if isinstance(m, AveragePool)]
    assert windows == [tuple(m.kernel_size) for m in bare.modules() if isinstance(m, nn.AvgPool3d)]
    with FlopCounterMode(display=False) as flops:
        logits = model(
            torch.empty(1, 3, model.data_config.num_frames, *[model.data_config.test_size] * 2, device="meta")
        )
    assert logits.shape == (1, 400)
    counted = flops.get_total_flops() / 2e9
    exact = name in ("slow_r50", "slowfast_r50")
    assert counted == pytest.approx(gflops, abs=0.005) if exact else 0.92 * gflops < counted < gflops
    assert (model.data_config.mean, model.data_config.std) == ((0.45,) * 3, (0.225,) * 3)
    head, bias = (model.get_parameter(key) for key in classifier_names(model))
    assert (head.shape[0], bias.shape) == (400, (400,))


@pytest.mark.parametrize(
    ("name", "num_frames"),
    [
        *(("slow_r50", 3), ("x3d_xs", 4)),
        *(pytest.param(*case, marks=SLOW) for case in (("i3d_r50", 4), ("r2plus1d_r50", 8), ("slowfast_r50", 8))),
    ],
)
def test_small_clips_give_their_result_for_that_size(name, num_frames):
    """Equal to the hub's network with windows of the size of the small clip; on a larger crop they slide."""
    small = data_config(num_frames, 48, test_size=80)
    model = shake(create_model(f"pytorchvideo/{name}", num_classes=5, data_config=small)).eval()
    bare = theirs(name, model.state_dict(), model_num_class=5)
    pools = (m for m in bare.modules() if isinstance(m, nn.AvgPool3d))
    for pool, stride in zip(pools, ENTRIES[name].temporal_strides, strict=True):
        pool.kernel_size = (-(-num_frames // stride), 2, 2)
    for size in (48, 80):
        x = clips(small, size)
        with torch.no_grad():
            ours, reference = model(x), bare(two_paths(x) if "slowfast" in name else x)
        if ENTRIES[name].softmax:
            assert reference.sum().item() == pytest.approx(1)
            ours = ours.softmax(1)
        assert (ours - reference).abs().max() < 1e-6 * reference.abs().max() + 1e-7, size
        assert reference.std() > 1e-4


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=SLOW if name in ("slow_r50", "x3d_xs", "mvit_base_16") else pytest.mark.exhaustive)
        for name in ONE_OF_EACH
    ],
)
def test_equal_to_the_hubs_on_their_own_test_crops(name):
    model = shake(create_model(f"pytorchvideo/{name}")).eval()
    bare = theirs(name, model.state_dict(), **({"head_num_classes": 1000} if name == "mvit_base_16" else {}))
    x = clips(model.data_config, model.data_config.test_size)
    given = two_paths(x) if "slowfast" in name else x.squeeze(2) if name == "mvit_base_16" else x
    with torch.no_grad():
        ours, reference = model(x), bare(given)
    ours = ours.softmax(1) if ENTRIES[name].softmax else ours
    assert (ours - reference).abs().max() < 1e-5 * reference.abs().max()


def test_logits_in_training_too():
    """The hub's X3D returns probabilities in training too."""
    torch.manual_seed(0)
    model = create_model("pytorchvideo/x3d_xs", num_classes=3, data_config=data_config(4), dropout=0.0).train()
    logits = model(clips(model.data_config, count=2))
    assert not torch.allclose(logits.sum(1), torch.ones(2), atol=1e-3)
    logits.sum().backward()  # of probabilities it would be a constant
    assert model.get_parameter(classifier_names(model)[0]).grad.abs().sum() > 0


def test_mvits_size_is_the_published(monkeypatch):
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda *args, **kwargs: None)  # it takes seconds
    whole = create_model("pytorchvideo/mvit_base_16x4")
    assert sum(p.numel() for p in whole.parameters()) / 1e6 == pytest.approx(PUBLISHED[MVIT[1]][0], abs=0.005)


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW if n == "mvit_base_32x3" else ()) for n in MVIT])
def test_mvit(name):
    frames = 1 if name == "mvit_base_16" else 4
    model = create_model(f"pytorchvideo/{name}", num_classes=5, data_config=data_config(frames)).eval()
    bare = theirs(name, model.state_dict(), head_num_classes=5, spatial_size=32, temporal_size=frames)
    x = clips(model.data_config)
    with FlopCounterMode(display=False) as flops:
        logits = model(x)
    assert torch.equal(logits, bare(x.squeeze(2) if frames == 1 else x))
    assert flops.get_total_flops() > 1e7
    assert classifier_names(model) == ("network.head.proj.weight", "network.head.proj.bias")


def test_their_own_settings():
    with torch.device("meta"):
        model = create_model("pytorchvideo/r2plus1d_r50", num_classes=2, dropout=0.3, bn_momentum=0.7)
        undropped = create_model("pytorchvideo/slow_r50", dropout=0.0)
        flow = create_model(
            "pytorchvideo/slowfast_r50", in_channels=2, data_config=data_config(8, in_channels=2)
        ).eval()
        assert flow(torch.empty(1, 2, 8, 32, 32)).shape == (1, 400)
        assert create_model("pytorchvideo/x3d_xs", in_channels=2).data_config.mean == (0, 0)
    assert model.network.blocks[-1].dropout.p == 0.3
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm3d)} == {0.7}
    assert undropped.network.blocks[-1].dropout is None
    mvit = create_model("pytorchvideo/mvit_base_16x4", data_config=data_config(4), dropout=0.1, drop_path=0.2)
    assert mvit.network.head.dropout.p == 0.1
    assert mvit.network.blocks[-1].drop_path.drop_prob == pytest.approx(0.2)


@pytest.fixture
def public(tmp_path, monkeypatch):
    """Serve weights at PyTorchVideo's address for X3D-XS, with torch's cache in a folder of the test."""
    from pytorchvideo.models.hub import x3d

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(x3d.checkpoint_paths, "x3d_xs", (tmp_path / "X3D_XS.pyth").as_uri())
    torch.manual_seed(3)
    state = shake(theirs("x3d_xs")).state_dict()
    torch.save({"model_state": state}, tmp_path / "X3D_XS.pyth")
    return state


def test_public_weights_of_pytorchvideo(public):
    model = create_model("pytorchvideo/x3d_xs", data_config=data_config(4, mean=(0.0,) * 3))
    assert not init_from(model, "pretrained").adapted
    own = model.state_dict()
    assert all(torch.equal(own[f"network.{name}"], value) for name, value in public.items())
    assert (model.data_config.mean, model.data_config.train_size) == ((0.45,) * 3, 32)  # their pixels, our sizes
    other = create_model("pytorchvideo/x3d_xs", num_classes=7)
    head = other.get_parameter(classifier_names(other)[0]).clone()
    assert tuple(init_from(other, "pretrained").adapted) == classifier_names(other)
    assert torch.equal(other.get_parameter(classifier_names(other)[0]), head)
    assert torch.equal(other.state_dict()["network.blocks.0.conv.conv_t.weight"], public["blocks.0.conv.conv_t.weight"])


def test_public_weights_that_cannot_be_had(public, tmp_path, monkeypatch):
    from pytorchvideo.models.hub import x3d

    monkeypatch.setitem(x3d.checkpoint_paths, "x3d_xs", "http://127.0.0.1:9/X3D_XS.pyth")
    model = create_model("pytorchvideo/x3d_xs")
    with pytest.raises(MachineError, match="public weights of pytorchvideo/x3d_xs could not be downloaded: .*refused"):
        init_from(model, "pretrained")
    with pytest.raises(UserError, match="are for 3 channels, not 2"):
        create_model("pytorchvideo/x3d_xs", in_channels=2, pretrained=True)


def test_public_weights_of_another_network(public, tmp_path):
    model = create_model("pytorchvideo/x3d_xs")
    torch.save({"model_state": {k: v for k, v in public.items() if "blocks.2" not in k}}, tmp_path / "X3D_XS.pyth")
    with pytest.raises(UserError, match="pretrained of pytorchvideo/x3d_xs, for .* it has no network.blocks"):
        init_from(model, "pretrained")


def test_pretrained_goes_through_the_same_door(public):
    model = create_model("pytorchvideo/x3d_xs", pretrained=True)
    assert torch.equal(model.state_dict()["network.blocks.5.proj.weight"], public["blocks.5.proj.weight"])
