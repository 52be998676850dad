"""What networks cost: against the references' figures, fvcore's counts, the CPU's tensors and sums by hand."""

import pytest
import torch
from torch import nn

from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.models import cost as cost_module
from video_rs.models.cost import activation_bytes, input_shape, macs, measure, on_meta_device
from video_rs.models.presets import PRESETS, Cost
from video_rs.models.registry import create_model, list_models
from video_rs.models.resnet_rs import ResNetRS
from video_rs.models.summary import stages

GMACS = {  # of one image or 32x224x224 clip, but where the name says otherwise
    "resnet_rs_50": 2.279,
    "resnet_rs_101_i160": 4.182,
    "resnet_rs_101": 6.012,
    "resnet_rs_152_i192": 8.747,
    "resnet_rs_152_i224": 11.895,
    "resnet_rs_152": 15.528,
    "resnet_rs_200": 20.093,
    "resnet_rs_270": 26.950,
    "resnet_rs_350": 34.377,
    "resnet_rs_350_i320": 53.684,
    "resnet_rs_420": 63.942,
    "garden_resnet3d_rs_50": 88.02,
    "garden_resnet3d_rs_101": 175.38,
    "garden_resnet3d_rs_152": 256.16,
    "garden_resnet3d_rs_200": 312.06,
    "garden_resnet3d_rs_270": 425.52,
    "garden_resnet3d_rs_300": 455.12,
    "garden_resnet3d_rs_350": 547.61,
    "garden_r3d_50": 91.03,
    "garden_r3d_50g": 99.25,
    "garden_slowonly_50": 41.74,
    "garden_slowonly_50_16x4": 83.48,
}
OTHER_SIZES = [
    ("resnet_rs_50", (224, 224), 4.454),
    ("garden_resnet3d_rs_50", (32, 256, 256), 114.97),
    ("garden_resnet3d_rs_50", (48, 224, 224), 132.03),
    ("garden_resnet3d_rs_50", (48, 256, 256), 172.44),
    ("garden_resnet3d_rs_101", (32, 256, 256), 229.06),
    ("garden_resnet3d_rs_101", (48, 224, 224), 263.06),
    ("garden_resnet3d_rs_101", (48, 256, 256), 343.58),
    ("garden_resnet3d_rs_152", (32, 256, 256), 334.56),
    ("garden_resnet3d_rs_152", (48, 224, 224), 384.22),
    ("garden_resnet3d_rs_152", (48, 256, 256), 501.83),
    ("garden_resnet3d_rs_200", (32, 256, 256), 407.58),
    ("garden_resnet3d_rs_200", (48, 224, 224), 468.07),
    ("garden_resnet3d_rs_200", (48, 256, 256), 611.35),
]
SMALL = [  # preset, input: even and odd sizes
    ("garden_resnet_rs_50", (3, 65, 65)),
    ("garden_resnet3d_rs_50", (3, 7, 61, 61)),
    ("garden_r3d_50g", (3, 8, 64, 64)),
    pytest.param("resnet_rs_50", (3, 64, 64), marks=pytest.mark.slow),
    pytest.param("resnet3d_rs_50", (3, 8, 64, 64), marks=pytest.mark.slow),
    pytest.param("inflated_garden_resnet_rs_50", (3, 5, 64, 64), marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def small(name: str) -> ResNetRS:
    return ResNetRS(PRESETS[name].architecture, (1, 2, 2, 1), 7, width=0.125, drop_path=0.1)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(name)


def test_macs_are_the_references():
    assert {name: PRESETS[name].reference.gmacs for name in GMACS} == GMACS
    assert {name: PRESETS[name].cost.macs / 1e9 for name in GMACS} == pytest.approx(
        GMACS, rel=3e-4
    )  # these are rounded


def test_the_gardens_images_cost_what_the_papers_do():
    for name in list_models("garden_resnet_rs_*"):
        ours, paper = PRESETS[name].cost, PRESETS[name.removeprefix("garden_")].cost
        assert (ours.parameters, ours.macs) == (paper.parameters + 2049, paper.macs + 2048), name  # one more class
        assert PRESETS[name].reference.gmacs == GMACS[name.removeprefix("garden_")], name


@pytest.mark.parametrize(
    "name",
    [
        *("resnet_rs_50", "garden_resnet3d_rs_50", pytest.param("garden_resnet3d_rs_101", marks=pytest.mark.slow)),
        *(pytest.param(f"garden_resnet3d_rs_{depth}", marks=pytest.mark.exhaustive) for depth in (152, 200)),
    ],
)
def test_macs_at_other_sizes(name):
    model, sizes = on_meta(name), [case[1:] for case in OTHER_SIZES if case[0] == name]
    for size, gmacs in sizes:
        assert macs(model, (3, *size)) / 1e9 == pytest.approx(gmacs, rel=2e-4), size
    assert sizes


def test_references_of_test_crops():
    expected = {model: gmacs for model, size, gmacs in OTHER_SIZES if size == (32, 256, 256)}
    for name in list_models("garden_resnet3d_rs_*"):
        assert PRESETS[name].reference.test_gmacs == expected.get(name), name


@pytest.mark.parametrize("name", ["resnet_rs_26", "garden_resnet3d_rs_50"])
def test_costs_of_networks_equal_their_table(name):
    assert PRESETS[name].cost == measure(on_meta(name))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", PRESETS)
def test_costs_of_all_networks_equal_their_table(name):
    assert PRESETS[name].cost == measure(on_meta(name))


@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_macs_and_activations_on_the_meta_device_are_the_cpus(name, shape):
    with torch.device("meta"):
        ours = small(name)
    assert activation_bytes(ours, shape) == activation_bytes(small(name), shape)
    assert macs(ours, shape) == macs(small(name), shape)


@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_macs_are_fvcores(name, shape):
    from fvcore.nn import FlopCountAnalysis

    model = small(name).eval()
    counted = FlopCountAnalysis(model, torch.zeros(1, *shape)).unsupported_ops_warnings(False).by_operator()
    assert macs(model, shape) == counted["conv"] + counted["linear"]


class Small(nn.Module):
    """A network that a person can count."""

    data_config = DataConfig(num_frames=1, stride=1, train_size=16)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.activation = nn.ReLU(inplace=True)
        self.heads = nn.ModuleList([nn.Linear(8, 5), nn.Linear(8, 2)])
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        x = self.activation(self.norm(self.conv(x)))
        pooled = x.mean((2, 3))
        return self.heads[0](pooled), self.heads[1](pooled) * self.scale


def test_a_network_counted_by_hand():
    model = Small().eval()
    pixels, parameters = 16 * 16, 3 * 8 * 9 + 2 * 8 + 8 * 5 + 5 + 8 * 2 + 2 + 1
    multiplied = 3 * 8 * 9 * pixels + 8 * 5 + 8 * 2
    # The image; the convolution's output, which batch norm keeps; the activation's, which is its input overwritten;
    # batch norm's mean and deviation of a batch of two; the means, once for both heads; what the scale multiplies.
    kept = 4 * (3 * pixels + 8 * pixels + 8 * pixels + 2 * 8 / 2 + 8 + 2)
    assert measure(model) == Cost(parameters, multiplied, kept)
    assert not model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    lines = stages(model, (3, 16, 16))
    assert [(line.name, line.layers, line.shapes) for line in lines] == [
        ("conv", "Conv2d", ((8, 16, 16),)),
        ("norm", "BatchNorm2d", ((8, 16, 16),)),
        ("activation", "ReLU", ((8, 16, 16),)),
        ("heads.0", "Linear", ((5,),)),
        ("heads.1", "Linear", ((2,),)),
        ("other", "", ()),
    ]
    assert [line.parameters for line in lines] == [216, 16, 0, 45, 18, 1]
    assert [line.macs for line in lines] == [216 * pixels, 0, 0, 40, 16, 0]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_stages_of_a_video_network():
    model = on_meta("resnet3d_rs_50")
    lines = stages(model, input_shape(model.data_config))
    assert [line.name for line in lines] == [
        *(f"stem.{layer}" for layer in ("conv1", "conv2", "conv3", "pool")),
        *(f"stages.{i}" for i in range(4)),
        "head",
    ]
    assert [line.shapes for line in lines] == [
        *[((32, 16, 112, 112),)] * 2,
        *[((64, 16, 112, 112),), ((64, 16, 56, 56),)],
        *[((256, 16, 56, 56),), ((512, 16, 28, 28),), ((1024, 16, 14, 14),), ((2048, 16, 7, 7),)],
        ((400,),),
    ]
    assert lines[0].macs == 5 * 3 * 3 * 3 * 32 * 16 * 112 * 112
    assert lines[6].layers == "6 x [3x1x1, 256; 1x3x3, 256; 1x1x1, 1024], SE, stride 1x2x2"
    total = PRESETS["resnet3d_rs_50"].cost
    assert sum(line.parameters for line in lines) == total.parameters == 42_592_432
    assert sum(line.macs for line in lines) == total.macs


def test_stages_in_words():
    image = stages(on_meta("garden_resnet_rs_50"), (3, 160, 160))
    assert (image[0].layers, image[0].shapes) == ("3x3, 32, stride 2x2", ((32, 80, 80),))
    assert image[5].layers == "4 x [1x1, 128; 3x3, 128; 1x1, 512], SE, stride 2x2"
    gated = stages(on_meta("garden_r3d_50g"), (3, 64, 224, 224))
    assert gated[1].layers == "max pool 3x3x3, stride 2x2x2"
    assert gated[3].layers.startswith("4 x [3x1x1, 128 or 1x1x1, 128; 1x3x3, 128; 1x1x1, 512], self-gating in the last")


def test_input_shapes():
    assert input_shape(PRESETS["resnet_rs_50"].data_config) == (3, 160, 160)
    assert input_shape(PRESETS["garden_slowonly_50"].data_config, 256) == (3, 8, 256, 256)


def test_networks_that_look_at_numbers_run_on_the_cpu(monkeypatch):
    class Looks(Small):
        def forward(self, x):
            return super().forward(x * (1 + x.sum().item()))

    monkeypatch.setattr(cost_module, "create_model", lambda name: Looks())
    assert on_meta_device("any", lambda model: model.conv.weight.device.type) == "meta"
    assert on_meta_device("any", lambda model: (measure(model), model.conv.weight.device.type)[1]) == "cpu"
    assert on_meta_device("any", measure).macs == 3 * 8 * 9 * 256 + 56


def test_networks_that_look_at_numbers_while_they_are_built(monkeypatch):
    def build(name: str) -> nn.Module:
        float(torch.linspace(0, 1, 3)[1])
        return Small()

    monkeypatch.setattr(cost_module, "create_model", build)
    assert on_meta_device("any", lambda model: model.conv.weight.device.type) == "meta"
    assert on_meta_device("any", measure).parameters == 296


def test_unknown_networks_are_one_line():
    with pytest.raises(UserError, match="did you mean resnet_rs_50"):
        on_meta_device("resnet_rs_51", measure)


def test_pytorchvideos_slow_network_is_the_gardens():
    pytest.importorskip("pytorchvideo.models")
    theirs, ours = on_meta_device("pytorchvideo/slow_r50", measure), PRESETS["garden_slowonly_50"].cost
    assert (theirs.parameters, theirs.macs) == (ours.parameters, ours.macs)


def test_attention_counts():
    pytest.importorskip("timm")
    name, tokens, width, layers = "timm/vit_tiny_patch16_224", 14 * 14 + 1, 192, 12
    products = 2 * tokens * tokens * width  # queries with keys, and weights with values
    linear = 12 * tokens * width * width  # queries, keys, values, projection, two layers of 4 x width
    patches, head = 14 * 14 * width * 3 * 16 * 16, width * 1000
    expected = layers * (products + linear) + patches + head
    assert on_meta_device(name, lambda model: macs(model, (3, 224, 224))) == expected
    assert macs(create_model(name), (3, 224, 224)) == expected
