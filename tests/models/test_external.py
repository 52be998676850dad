"""Networks of timm and PyTorchVideo: built, checked against the bare packages, refused in one line."""

import copy
import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from video_rs.contract import IMAGENET_MEAN, IMAGENET_STD, DataContract
from video_rs.errors import MachineError, UserError
from video_rs.models.external_pytorchvideo import ENTRIES, AveragePool
from video_rs.models.zoo import create_model

torch.set_num_threads(1)
NAMES = sorted(ENTRIES)
MVIT = [name for name in NAMES if name.startswith("mvit")]
LARGE = ("c2d_r50", "x3d_m", "x3d_l", "slowfast_r101", "slowfast_16x8_r101_50_50", "csn_r101")
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


def contract(num_frames, size=32, test_size=None, **kwargs):
    test_size = test_size or size
    return DataContract(num_frames, 2, train_size=size, short_side=test_size, test_size=test_size, **kwargs)


def clips(contract, size=None, count=1):
    generator = torch.Generator().manual_seed(0)
    size = size or contract.train_size
    return torch.rand(count, contract.in_channels, contract.num_frames, size, size, generator=generator)


def shake(network):
    """Norms that do not hide what lies before them: as they start, the last of a block is zero."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            for tensor, low in ((module.weight, 0.5), (module.running_var, 0.5), (module.running_mean, -0.2)):
                tensor.data.uniform_(low, low + 0.5, generator=generator)
    return network


def theirs(name, **arguments):
    from pytorchvideo.models import hub

    return getattr(hub, name)(**arguments).eval()


def two_paths(x):
    """SlowFast's own packing (slowfast/datasets/utils.py) with alpha 4."""
    num_frames = x.shape[2]
    return [x[:, :, torch.linspace(0, num_frames - 1, num_frames // 4).long()], x]


# PyTorchVideo ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW if n in LARGE else ()) for n in NAMES if n not in MVIT])
def test_convolutional_networks_on_their_own_clips(name):
    """Without memory or arithmetic: parameters and FLOPs as published, windows as the hub's, one row of logits.

    Their FLOPs are multiply-adds, and for most networks count batch norm and activations beside the products.
    """
    with torch.device("meta"):
        model = create_model(f"pytorchvideo/{name}").eval()
        bare = theirs(name)
    parameters, gflops = PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.005)
    windows = [m.window for m in model.modules() if isinstance(m, AveragePool)]
    assert windows == [tuple(m.kernel_size) for m in bare.modules() if isinstance(m, nn.AvgPool3d)]
    with FlopCounterMode(display=False) as flops:
        logits = model(torch.empty(1, 3, model.contract.num_frames, *[model.contract.test_size] * 2, device="meta"))
    assert logits.shape == (1, 400)
    counted = flops.get_total_flops() / 2e9
    exact = name in ("slow_r50", "slowfast_r50")
    assert counted == pytest.approx(gflops, abs=0.005) if exact else 0.92 * gflops < counted < gflops
    assert (model.contract.mean, model.contract.std) == ((0.45,) * 3, (0.225,) * 3)
    head, bias = (model.get_parameter(key) for key in model.head_names)
    assert (head.shape[0], bias.shape) == (400, (400,))


@pytest.mark.parametrize(
    ("name", "num_frames"),
    [("slow_r50", 3), ("i3d_r50", 4), ("r2plus1d_r50", 8), ("x3d_xs", 4), ("slowfast_r50", 8)],
)
def test_small_clips_give_their_result_for_that_size(name, num_frames):
    """Theirs, with its windows as large as the small clip is at its end; a larger crop slides them."""
    small = contract(num_frames, 48, test_size=80)
    model = shake(create_model(f"pytorchvideo/{name}", num_classes=5, contract=small)).eval()
    bare = theirs(name, model_num_class=5)
    bare.load_state_dict(model.network.state_dict())
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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_the_hubs_at_native_sizes(name):
    model = shake(create_model(f"pytorchvideo/{name}")).eval()
    bare = theirs(name, **({"head_num_classes": 1000} if name == "mvit_base_16" else {}))
    bare.load_state_dict(model.network.state_dict())
    for size in {model.contract.train_size, model.contract.train_size if name in LARGE else model.contract.test_size}:
        x = clips(model.contract, size)
        given = two_paths(x) if "slowfast" in name else x.squeeze(2) if name == "mvit_base_16" else x
        with torch.no_grad():
            ours, reference = model(x), bare(given)
        ours = ours.softmax(1) if ENTRIES[name].softmax else ours
        assert (ours - reference).abs().max() < 1e-5 * reference.abs().max(), size


def test_logits_in_training_too():
    """X3D's hub network gives probabilities even then."""
    model = create_model("pytorchvideo/x3d_xs", num_classes=3, contract=contract(4), dropout=0.0).train()
    logits = model(clips(model.contract, count=2))
    assert (logits < 0).any()
    logits.sum().backward()  # of probabilities it would be a constant
    assert model.get_parameter(model.head_names[0]).grad.abs().sum() > 0


@pytest.mark.parametrize("name", MVIT)
def test_mvit(name):
    if name == "mvit_base_16x4":  # of the other, test_equal_to_the_hubs_at_native_sizes loads the weights
        whole = create_model(f"pytorchvideo/{name}")
        assert sum(p.numel() for p in whole.parameters()) / 1e6 == pytest.approx(PUBLISHED[name][0], abs=0.005)
    frames = 1 if name == "mvit_base_16" else 4
    model = create_model(f"pytorchvideo/{name}", num_classes=5, contract=contract(frames)).eval()
    bare = theirs(name, head_num_classes=5, spatial_size=32, temporal_size=frames)
    bare.load_state_dict(model.network.state_dict())
    x = clips(model.contract)
    with FlopCounterMode(display=False) as flops:
        logits = model(x)
    assert torch.equal(logits, bare(x.squeeze(2) if frames == 1 else x))
    assert flops.get_total_flops() > 1e7
    assert model.head_names == ("network.head.proj.weight", "network.head.proj.bias")


def test_their_own_settings():
    model = create_model("pytorchvideo/r2plus1d_r50", num_classes=2, dropout=0.3, bn_momentum=0.7)
    assert model.network.blocks[-1].dropout.p == 0.3
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm3d)} == {0.7}
    assert create_model("pytorchvideo/slow_r50", dropout=0.0).network.blocks[-1].dropout is None
    mvit = create_model("pytorchvideo/mvit_base_16x4", contract=contract(4), dropout=0.1, drop_path=0.2)
    assert mvit.network.head.dropout.p == 0.1
    assert mvit.network.blocks[-1].drop_path.drop_prob == pytest.approx(0.2)
    flow = create_model("pytorchvideo/slowfast_r50", in_channels=2, contract=contract(8, in_channels=2)).eval()
    assert flow(clips(flow.contract)).shape == (1, 400)
    assert create_model("pytorchvideo/x3d_xs", in_channels=2).contract.mean == (0, 0)


# timm -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "resnet18"])
def test_timm_is_timms(name):
    import timm

    model = create_model(f"timm/{name}", num_classes=7).eval()
    bare = timm.create_model(name, num_classes=7).eval()
    bare.load_state_dict(model.network.state_dict())
    x = clips(model.contract)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        logits = model(x)
    assert torch.equal(logits, model(x.squeeze(2)))  # an image is a clip of one frame
    assert (logits - bare(x.squeeze(2))).abs().max() < 1e-6
    assert flops.get_total_flops() > 1e6
    own, other = model.state_dict(), create_model(f"timm/{name}", num_classes=8).state_dict()
    assert {key for key in own if own[key].shape != other[key].shape} == set(model.head_names)


def test_timms_contract():
    """From the pretrained_cfg; timm resizes the short side to size / crop_pct with PIL."""
    c = create_model("timm/resnet18.a1_in1k").contract
    assert (c.num_frames, c.train_size, c.test_size, c.short_side) == (1, 224, 288, 288)  # test_crop_pct 1
    assert (c.mean, c.std, c.filter) == (IMAGENET_MEAN, IMAGENET_STD, "bicubic-antialias")
    c = create_model("timm/test_vit").contract
    assert (c.train_size, c.test_size, c.short_side) == (160, 160, 168)  # 160 / 0.95


def test_timms_settings():
    vit = create_model("timm/test_vit", num_classes=3, dropout=0.3, drop_path=0.2, contract=contract(1, 64))
    assert vit.network.head_drop.p == 0.3
    assert vit.network.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert vit.eval()(clips(vit.contract)).shape == (1, 3)  # built for 64 instead of 160
    gray = create_model("timm/test_resnet", in_channels=1)
    assert gray.contract.in_channels == 1
    assert gray.eval()(clips(gray.contract, 64)).shape == (1, 1000)


# Refused in one line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pytorchvideo/slow_r5", {}, "there is no model 'pytorchvideo/slow_r5'; did you mean pytorchvideo/slow_r50"),
        ("timm/resnet5", {}, "there is no model 'timm/resnet5'; did you mean timm/resnet"),
        ("timm/resnet18.nonsense", {}, "did you mean timm/resnet18"),
        ("torchvision/r3d_18", {}, "no model 'torchvision/r3d_18': networks of other packages begin with timm/ or"),
        ("pytorchvideo/slow_r50", {"width": 0.5}, "no such setting: model.width=0.5; set model.width=1.0"),
        ("pytorchvideo/slow_r50", {"drop_path": 0.1}, "model.drop_path=0.1; set model.drop_path=null"),
        ("timm/resnet18", {"drop_path_rule": "block"}, "model.drop_path_rule=block; set model.drop_path_rule=stage"),
        ("timm/resnet18", {"temporal_padding": "zeros"}, "model.temporal_padding=zeros; set model.temporal_padding=nu"),
        ("timm/vgg11", {"drop_path": 0.1}, "model.drop_path=0.1; set model.drop_path=null"),
        ("timm/resnet18", {"contract": contract(8)}, "is an image network and cannot take clips of 8 frames"),
        ("pytorchvideo/mvit_base_16", {"contract": contract(8)}, "is an image network and cannot take clips of 8"),
        ("timm/test_vit", {"contract": contract(1, 64, 80)}, "built for images of 64x64 and cannot take 80x80"),
        ("timm/twins_svt_small", {"contract": contract(1, 50)}, "timm cannot build timm/twins_svt_small with"),
        ("timm/levit_128s", {"contract": contract(1, 50)}, "cannot take images of 50x50"),
        ("timm/vit_base_patch16_siglip_224", {}, "has no classes of its own; say how many with num_classes"),
        ("pytorchvideo/slowfast_r50", {"contract": contract(6)}, "data.num_frames must be a multiple of 4"),
        ("pytorchvideo/i3d_r50", {"contract": contract(1)}, "needs clips of 2 frames or more, not 1"),
        ("pytorchvideo/mvit_base_16x4", {"contract": contract(4, 32, 40)}, "set data.test_size to data.train_size"),
        ("pytorchvideo/mvit_base_16x4", {"contract": contract(5)}, "an even data.num_frames, not 32 and 5"),
        ("pytorchvideo/mvit_base_16x4", {"contract": contract(4, 34)}, "a multiple of 4 and an even"),
    ],
)
def test_refused(name, arguments, message):
    with torch.device("cpu" if "mvit" in name else "meta"), pytest.raises(UserError) as error:
        create_model(name, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_clips_that_the_network_was_not_built_for():
    image = create_model("timm/test_resnet").eval()
    with pytest.raises(UserError, match="cannot take clips of 2 frames; set data.num_frames=1"):
        image(torch.zeros(1, 3, 2, 32, 32))
    with torch.device("meta"):
        slowfast = create_model("pytorchvideo/slowfast_r50", contract=contract(8)).eval()
    for frames in (6, 16):
        with pytest.raises(UserError, match=f"clips of 8 frames and cannot take {frames}"):
            slowfast(torch.zeros(1, 3, frames, 32, 32, device="meta"))


BROKEN = """
import sys, importlib.abc
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {broken!r}:
            raise {error}
sys.meta_path.insert(0, Finder())
from video_rs.cli.common import run
from video_rs.models.zoo import create_model
assert not {{"timm", "pytorchvideo", "torchvision"}} & sys.modules.keys()
sys.exit(run(lambda argv: create_model({model!r}), []))
"""


@pytest.mark.parametrize(
    ("model", "broken", "error", "words"),
    [
        ("timm/resnet18", "timm", "ModuleNotFoundError('no', name='timm')", "needs the package timm: pip install timm"),
        (
            "pytorchvideo/slow_r50",
            "torchvision",
            "RuntimeError('operator torchvision::nms does not exist')",
            "pytorchvideo, which is installed but cannot be imported (operator torchvision::nms does not exist): torch "
            "and torchvision must be a matching pair",
        ),
    ],
)
def test_missing_and_broken_packages(model, broken, error, words):
    """In a process of its own, so that nothing is imported yet."""
    program = BROKEN.format(model=model, broken=broken, error=error)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: {model} needs the package") and words in line


# Behaviour in training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "frames", "rates"),
    [
        ("timm/test_vit", 1, {"dropout": 0.5, "drop_path": 0.5}),
        ("pytorchvideo/x3d_xs", 4, {"dropout": 0.5}),
    ],
)
def test_what_is_drawn_is_a_function_of_the_keys(name, frames, rates):
    model = create_model(name, num_classes=8, contract=contract(frames), **rates).train()
    for module in model.modules():  # their statistics change with every step
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 0.0
    nn.init.normal_(model.get_parameter(model.head_names[0]))
    x, keys = clips(model.contract, count=3), torch.tensor([5, 6, 7])
    before = torch.get_rng_state()
    first = model(x, keys)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)
    assert torch.equal(model(x, keys), first)
    assert not torch.equal(model(x, keys.flip(0)), first)
    assert not torch.equal(model(x, keys + 1), first)
    assert not torch.equal(model(x), model(x))  # without keys, torch's generator moves on
    assert torch.equal(model.eval()(x), model(x, keys))


def test_memory_formats_and_copies():
    """As the commands move it: channels last, whatever the rank of the kernels; other dtypes; a copy for the EMA."""
    for name, frames in (("timm/test_resnet", 1), ("pytorchvideo/x3d_xs", 4)):
        model, x = create_model(name, num_classes=3).eval(), torch.rand(2, 3, frames, 64, 64)
        plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        assert all(p.is_contiguous() for p in plain.parameters())
        model.to(torch.device("cpu"), torch.float64, memory_format=torch.channels_last_3d)
        for p in model.parameters():
            assert p.dtype == torch.float64
            if p.ndim in (4, 5):
                assert p.is_contiguous(memory_format=torch.channels_last if p.ndim == 4 else torch.channels_last_3d)
        torch.testing.assert_close(model(x.double()).float(), plain(x), rtol=1e-3, atol=1e-5)


# Public weights -------------------------------------------------------------------------------------------------------


@pytest.fixture
def public(tmp_path, monkeypatch):
    """PyTorchVideo's address for X3D-XS, and what stands there; torch's cache in a folder of the test."""
    from pytorchvideo.models.hub import x3d

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(x3d.checkpoint_paths, "x3d_xs", (tmp_path / "X3D_XS.pyth").as_uri())
    torch.manual_seed(3)
    state = shake(theirs("x3d_xs")).state_dict()
    torch.save({"model_state": state}, tmp_path / "X3D_XS.pyth")
    return state


def test_public_weights_of_timm(tmp_path, monkeypatch):
    """A file in the place of the address; timm fits channels and position embeddings itself."""
    import timm
    from timm.models import _registry

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(4)
    for name in ("test_resnet.r160_in1k", "test_vit.r160_in1k"):
        state = timm.create_model(name).state_dict()
        torch.save(state, tmp_path / f"{name}.pth")
        cfg = dataclasses.replace(timm.get_pretrained_cfg(name), file=str(tmp_path / f"{name}.pth"))
        for key in (name, name.partition(".")[0]):
            monkeypatch.setitem(_registry._model_pretrained_cfgs, key, cfg)
    resnet = create_model("timm/test_resnet", pretrained=True)
    weights = torch.load(tmp_path / "test_resnet.r160_in1k.pth")
    assert all(torch.equal(value, weights[key.removeprefix("network.")]) for key, value in resnet.state_dict().items())
    vit = create_model("timm/test_vit.r160_in1k", num_classes=5, contract=contract(1, 64))
    assert set(vit.load_public()) == {"network.head.weight", "network.head.bias"}
    assert torch.equal(vit.state_dict()["network.cls_token"], state["cls_token"])
    assert (vit.contract.mean, vit.contract.filter) == ((0.5,) * 3, "bicubic-antialias")


def test_public_weights_of_pytorchvideo(public):
    model = create_model("pytorchvideo/x3d_xs", contract=contract(4, mean=(0.0,) * 3))
    assert model.load_public() == ()
    own = model.state_dict()
    assert all(torch.equal(own[f"network.{name}"], value) for name, value in public.items())
    assert (model.contract.mean, model.contract.train_size) == ((0.45,) * 3, 32)  # their pixels, our sizes
    other = create_model("pytorchvideo/x3d_xs", num_classes=7)
    head = other.get_parameter(other.head_names[0]).clone()
    assert other.load_public() == other.head_names
    assert torch.equal(other.get_parameter(other.head_names[0]), head)
    assert torch.equal(other.state_dict()["network.blocks.0.conv.conv_t.weight"], public["blocks.0.conv.conv_t.weight"])


def test_public_weights_that_cannot_be_had(public, tmp_path, monkeypatch):
    from pytorchvideo.models.hub import x3d

    monkeypatch.setitem(x3d.checkpoint_paths, "x3d_xs", "http://127.0.0.1:9/X3D_XS.pyth")
    model = create_model("pytorchvideo/x3d_xs")
    with pytest.raises(MachineError, match="public weights of pytorchvideo/x3d_xs could not be downloaded: .*refused"):
        model.load_public()
    with pytest.raises(UserError, match="are for 3 channels, not 2"):
        create_model("pytorchvideo/x3d_xs", in_channels=2).load_public()
    with pytest.raises(UserError, match="timm has no weights for timm/efficientnet_b6"):
        create_model("timm/efficientnet_b6").load_public()


def test_public_weights_of_another_network(public, tmp_path):
    model = create_model("pytorchvideo/x3d_xs")
    torch.save({"model_state": {k: v for k, v in public.items() if "blocks.2" not in k}}, tmp_path / "X3D_XS.pyth")
    with pytest.raises(UserError, match="not of this network .network.blocks"):
        model.load_public()


def test_pretrained_goes_through_the_same_door(public):
    model = create_model("pytorchvideo/x3d_xs", pretrained=True)
    assert torch.equal(model.state_dict()["network.blocks.5.proj.weight"], public["blocks.5.proj.weight"])
