"""Networks of timm and PyTorchVideo: error lines, random numbers by key, memory formats."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.models.clips import clips, data_config
from video_rs.errors import UserError
from video_rs.models.adapters import base as external
from video_rs.models.base import classifier_names
from video_rs.models.registry import create_model, list_models

torch.set_num_threads(1)


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
        ("timm/resnet18", {"data_config": data_config(8)}, "is an image network and cannot take clips of 8 frames"),
        (
            "pytorchvideo/mvit_base_16",
            {"data_config": data_config(8)},
            "is an image network and cannot take clips of 8",
        ),
        ("timm/test_vit", {"data_config": data_config(1, 64, 80)}, "of 64x64 and cannot take images of 80x80"),
        ("timm/twins_svt_small", {"data_config": data_config(1, 50)}, "timm cannot build timm/twins_svt_small with"),
        ("timm/levit_128s", {"data_config": data_config(1, 50)}, "cannot take images of 50x50"),
        ("timm/vit_base_patch16_siglip_224", {}, "has no classifier; set num_classes"),
        ("pytorchvideo/slowfast_r50", {"data_config": data_config(6)}, "6 frames: its slow pathway sees every 4th"),
        ("pytorchvideo/i3d_r50", {"data_config": data_config(1)}, "cannot take clips of 1 frames: it needs 2 or more"),
        ("pytorchvideo/mvit_base_16x4", {"data_config": data_config(4, 32, 40)}, "4 frames of 40x40"),
        ("pytorchvideo/mvit_base_16x4", {"data_config": data_config(5)}, "an even data.num_frames, not 32 and 5"),
        ("pytorchvideo/mvit_base_16x4", {"data_config": data_config(4, 34)}, "a multiple of 4 and an even"),
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
        slowfast = create_model("pytorchvideo/slowfast_r50", data_config=data_config(8)).eval()
    with pytest.raises(
        UserError, match=r"cannot take clips of 6 frames: .* \(data.num_frames\) must be a multiple of 4$"
    ):
        slowfast(torch.zeros(1, 3, 6, 32, 32, device="meta"))
    with pytest.raises(UserError, match=r"cannot take clips of 16 frames: it was built for 8; .*DataConfig\("):
        slowfast(torch.zeros(1, 3, 16, 32, 32, device="meta"))
    mvit = create_model("pytorchvideo/mvit_base_16x4", data_config=data_config(4)).eval()
    with pytest.raises(UserError) as error:
        mvit(torch.zeros(1, 3, 2, 64, 48))
    assert str(error.value) == (
        "pytorchvideo/mvit_base_16x4 was built for clips of 4 frames of 32x32 and cannot take clips of 2 frames of "
        "64x48; choose another size with data_config=DataConfig(...), or "
        "data.num_frames, data.train_size and data.test_size in a config"
    )


@pytest.mark.parametrize(
    ("pattern", "some", "count"),
    [
        ("timm/resnet5*", ["timm/resnet50", "timm/resnet51q"], None),
        ("timm/resnet50.a*", ["timm/resnet50.a1_in1k"], None),
        ("timm/resnet50", ["timm/resnet50"], 1),
        ("pytorchvideo/*", ["pytorchvideo/slow_r50", "pytorchvideo/mvit_base_16"], 15),
        ("pytorchvideo/x3d_?", ["pytorchvideo/x3d_l"], 3),
        ("pytorchvideo/zz*", [], 0),
        ("jax/*", [], 0),
    ],
)
def test_names_by_pattern(pattern, some, count):
    names = list_models(pattern)
    assert {*some} <= {*names} and count in (None, len(names))
    assert all(name.startswith(pattern.rstrip("*?")) for name in names)


BROKEN = """
import sys, importlib.abc
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "timm":
            raise ModuleNotFoundError("no", name="timm")
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
sys.meta_path.insert(0, Finder())
from video_rs.cli.common import run
from video_rs.models.registry import list_models
from video_rs.models.registry import create_model
assert not {"timm", "pytorchvideo", "torchvision"} & sys.modules.keys()
assert run(lambda argv: create_model("timm/resnet18"), []) == 3
assert run(lambda argv: create_model("pytorchvideo/slow_r50"), []) == 2
assert run(lambda argv: list_models("timm/*"), []) == 3
"""


@pytest.mark.slow
def test_missing_and_broken_packages():
    """Run in a new process, in which nothing is imported yet."""
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    missing = f"error: the package timm is missing in {sys.executable}; use the Python of the environment that has it"
    lines = done.stderr.splitlines()[-3:]
    assert lines[0].startswith(missing) and lines[2].startswith(missing)
    assert lines[1:2] == [
        "error: pytorchvideo/slow_r50 needs the package pytorchvideo, which is installed but cannot be imported "
        "(operator torchvision::nms does not exist); install a matching pair of torch and torchvision from one index",
    ]


# Behaviour in training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "frames", "rates"),
    [
        ("timm/test_vit", 1, {"dropout": 0.5, "drop_path": 0.5}),
        ("pytorchvideo/x3d_xs", 4, {"dropout": 0.5}),
    ],
)
def test_what_is_drawn_is_a_function_of_the_keys(name, frames, rates):
    model = create_model(name, num_classes=8, data_config=data_config(frames), **rates).train()
    for module in model.modules():  # their statistics change with every step
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 0.0
    nn.init.normal_(model.get_parameter(classifier_names(model)[0]))
    x, keys = clips(model.data_config, count=3), torch.tensor([5, 6, 7])
    before = torch.get_rng_state()
    first = model(x, keys)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)
    assert torch.equal(model(x, keys), first)
    assert not torch.equal(model(x, keys.flip(0)), first)
    assert not torch.equal(model(x, keys + 1), first)
    assert not torch.equal(model(x), model(x))  # without keys, torch's generator moves on
    assert torch.equal(model.eval()(x), model(x, keys))


def test_drawing_from_keys_leaves_other_devices_alone(monkeypatch):
    """The generators of the host and of the keys' device are seeded, then restored."""

    def never(*args):
        raise AssertionError("seeds every device")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", never)
    keys = torch.tensor([5, 6])
    with external.drawn_from(keys):
        torch.rand(1)
    gpus = [torch.Generator().manual_seed(i) for i in range(3)]
    monkeypatch.setattr(torch.cuda, "default_generators", gpus)
    monkeypatch.setattr(external, "_generators", lambda device, of=external._generators: of(torch.device("cuda", 1)))
    before = [generator.get_state() for generator in gpus]
    with pytest.raises(KeyError), external.drawn_from(keys):
        assert [gpu.initial_seed() for gpu in gpus] == [0, 5 + 3 * 6, 2] and torch.initial_seed() == 5 + 3 * 6
        torch.rand(1, generator=gpus[1])
        raise KeyError
    assert all(torch.equal(generator.get_state(), state) for generator, state in zip(gpus, before))


def test_memory_formats_and_copies():
    """Channels last for kernels of either rank; other dtypes; a copy for the EMA."""
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
