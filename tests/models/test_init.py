"""Start a network from files: bare weights, runs, timm's weights, image weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import same
from video_rs import checkpoint
from video_rs.data_config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from video_rs.errors import UserError
from video_rs.models.architecture import GARDEN_3D
from video_rs.models.presets import BLOCKS, PRESETS
from video_rs.models.registry import create_model
from video_rs.models.resnet_rs import ResNetRS
from video_rs.models.weights.init_from import init_from, load_into
from video_rs.models.weights.source import Source, read_file
from video_rs.models.weights.state_dict import sizes_of, to_timm

NAMES = ("a", "b", "c")


pytestmark = pytest.mark.usefixtures("one_thread")


def small(name="resnet_rs_26", num_classes=3, **kwargs):
    model = create_model(name, num_classes=num_classes, width=0.125, **kwargs)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def calibrated(model):
    """Set batch-norm statistics from a batch; without them, activations explode with depth."""
    for block in (block for stage in model.stages for block in stage):
        torch.nn.init.uniform_(block.conv3.norm.weight, 0.1, 0.3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.momentum = 1.0
    model.train()(torch.randn(8, 3, 64, 64))
    return model


def save_run(path, model, ema=None, **model_args):
    checkpoint.save(
        path,
        {
            "format": 1,
            "config": {},
            "model_args": {"num_classes": model.num_classes, "width": 0.125, **model_args},
            "data_config": model.data_config.to_dict(),
            "model": model.state_dict(),
            "ema": ema,
            "step": 3,
        },
    )
    return path


@pytest.mark.parametrize("kind", ["pt", "safetensors", "timm", "prefixed", "wrapped"])
def test_init_from_bare_weights(tmp_path, kind):
    source, model = small(), small()
    state, path = source.state_dict(), tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        kinds = {
            "timm": to_timm(state),
            "prefixed": {f"module.{name}": tensor for name, tensor in state.items()},
            "wrapped": {"state_dict": state, "epoch": 3},
        }
        torch.save(kinds.get(kind, state), path)
    report = init_from(model, path)
    assert same(model.state_dict(), state)
    assert len(report.matched) == len(state)
    unknown = "" if kind == "timm" else ", architecture of the source unknown: not compared"
    left = ", entry state_dict, not used: epoch" if kind == "wrapped" else ""
    assert str(report) == f"{len(state)} weights unchanged{unknown}{left}"


def test_init_from_a_run_prefers_the_average_and_takes_its_data_config(tmp_path):
    pixels = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "filter": "bicubic-antialias"}
    source = small("resnet3d_rs_26", data_config=DataConfig(**pixels, class_names=NAMES, num_frames=64))
    ema = {name: tensor + 1 for name, tensor in source.state_dict().items()}
    path = save_run(tmp_path / "last.pt", source, ema, name="resnet3d_rs_26")
    model = small("resnet3d_rs_26")
    init_from(model, path)
    assert same(model.state_dict(), ema)
    assert model.data_config == dataclasses.replace(DataConfig(), **pixels, class_names=NAMES)
    own = small("resnet3d_rs_26", data_config=DataConfig(class_names=("x", "y", "z")))
    init_from(own, path)
    assert own.data_config.class_names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("theirs", "how"),
    [
        (NAMES, None),
        ((), None),
        (("c", "a", "b"), "3 of 3 classes by name"),
        (("x", "a", "d"), "1 of 3 classes by name"),
        (("c", "x", "a", "y", "z"), "2 of 3 classes by name"),
        (("d", "e", "f"), "other class names, new head"),
        (("d", "e"), "other class names, new head"),
    ],
)
def test_classes_are_known_by_name(tmp_path, theirs, how):
    source = small(num_classes=len(theirs) or 3, data_config=DataConfig(class_names=theirs))
    model = small(data_config=DataConfig(class_names=NAMES))
    fresh = model.head.weight.clone(), model.head.bias.clone()
    report = init_from(model, save_run(tmp_path / "best.pt", source, name="resnet_rs_26"))
    assert report.adapted == ({"head.weight": how, "head.bias": how} if how else {})
    assert f", head.weight ({how})" in str(report) or not how
    rows = [theirs.index(name) if name in theirs else None for name in NAMES] if theirs else [0, 1, 2]
    heads = (model.head.weight, source.head.weight, fresh[0]), (model.head.bias, source.head.bias, fresh[1])
    for ours, trained, before in heads:
        for i, row in enumerate(rows):
            assert torch.equal(ours[i], before[i] if row is None else trained[row])
    assert torch.equal(model.stem.conv1.conv.weight, source.stem.conv1.conv.weight)
    assert model.data_config.class_names == NAMES


def test_runs_of_a_newer_version_are_refused(tmp_path):
    path = save_run(tmp_path / "new.pt", small(), name="resnet_rs_26")
    state = checkpoint.load(path)
    checkpoint.save(path, {**state, "format": checkpoint.FORMAT + 1})
    with pytest.raises(UserError, match="new.pt has checkpoint format 3"):
        init_from(small(), path)
    checkpoint.save(path, {**state, "data_config": {**state["data_config"], "audio": 1}})
    with pytest.raises(UserError, match=r"new.pt has data config fields \['audio'\]"):
        init_from(small(), path)
    save_run(path, small(), name="resnet_rs_9")
    with pytest.raises(
        UserError, match="new.pt holds resnet_rs_9, a network unknown to this version of .* upgrade it$"
    ):
        init_from(small(), path)


def test_init_from_images_inflates_and_replaces_the_head(tmp_path):
    source, model = small(num_classes=7), small("resnet3d_rs_26")
    path = save_run(tmp_path / "image.pt", source, name="resnet_rs_26")
    head = model.head.weight.clone()
    report = init_from(model, path, method="average")
    torch.testing.assert_close(model.head.weight, head)
    kernel = source.stem.conv1.conv.weight
    torch.testing.assert_close(model.stem.conv1.conv.weight, kernel.expand(-1, -1, 5, -1, -1) / 5)
    assert model.data_config.mean == IMAGENET_MEAN and model.data_config.filter == "bicubic"
    assert model.data_config.num_frames == 32
    assert "5 inflated" in str(report) and "head.weight (7 -> 3 classes, new head)" in str(report)


def test_averages_of_other_trainers_come_first(tmp_path):
    """Files of timm's train.py and of torchvision's references with AveragedModel; entries that are not weights."""
    model, plain, average = small(), small().state_dict(), small().state_dict()
    averaged = {"n_averaged": torch.tensor(3)} | {f"module.{name}": value for name, value in average.items()}
    files = [
        ({"epoch": 3, "state_dict": plain, "state_dict_ema": average}, average),
        ({"model": plain, "model_ema": averaged}, average),
        (averaged, average),
        ({"model": plain, "ema": {"decay": 0.99, "shadow": plain}}, plain),
    ]
    for saved, expected in files:
        torch.save(saved, tmp_path / "a.pth")
        init_from(model, tmp_path / "a.pth")
        assert same(model.state_dict(), expected)


def test_init_from_is_strict(tmp_path):
    model = small()
    state = model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    wide = create_model("resnet_rs_26", num_classes=3, width=0.25)
    without_se = {name: tensor for name, tensor in state.items() if ".se." not in name}
    blocks = {name: tensor for name, tensor in state.items() if not name.startswith("stages.3")}
    faults = {
        "it has no head.bias$": {name: tensor + 1 for name, tensor in state.items() if name != "head.bias"},
        "this network has no stem.extra.weight$": {**state, "stem.extra.weight": torch.zeros(1)},
        r"shapes: head.weight is \[3, 5\] but \[3, 256\]": {**state, "head.weight": torch.zeros(3, 5)},
        r"blocks 3, 4, 6, 3 \(depth 50\), this one 2, 2, 2, 2 \(depth 26\)$": small("resnet_rs_50").state_dict(),
        r"width 0.25 \(channels 16, 32, 64, 128\), this one 0.125 \(channels 8, 16, 32, 64\)$": wide.state_dict(),
        r"not those of a ResNet-RS: blocks by stage \[2, 2, 2, 0\]": blocks,
        "not those of a ResNet-RS: they have no stages, the first is conv.weight$": {"conv.weight": torch.zeros(1)},
        "it has no stages.0.0.se.reduce.weight, .* and 28 more$": without_se,
        "layer1.0.attn.weight is not a weight of the image ResNet-RS": {
            **to_timm(state),
            "layer1.0.attn.weight": state["head.bias"],
        },
    }
    for message, broken in faults.items():
        torch.save(broken, tmp_path / "broken.pt")
        with pytest.raises(UserError, match=message) as error:
            init_from(model, tmp_path / "broken.pt")
        assert "broken.pt" in str(error.value) and "\n" not in str(error.value)
    assert same(model.state_dict(), before)
    torch.save({"epoch": 3}, tmp_path / "broken.pt")
    with pytest.raises(UserError, match="holds no weights"):
        init_from(model, tmp_path / "broken.pt")
    for name in ("nothing.pt", "nothing.safetensors"):
        with pytest.raises(UserError, match=f"{name} does not exist"):
            init_from(model, tmp_path / name)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match="cut.safetensors is truncated or damaged"):
        init_from(model, tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("theirs", "ours", "differs"),
    [
        ("resnet_rs_50", "garden_resnet_rs_50", "activation is relu, not swish; padding is symmetric, not"),
        ("garden_resnet_rs_50", "resnet_rs_50", "shortcut_pool_in_stage1 is True, not False; activation is"),
        ("garden_resnet3d_rs_50", "resnet3d_rs_50", "stem_pool is max, not conv; shortcut is conv, not"),
        (
            "garden_r3d_50",
            "garden_slowonly_50",
            "is 5, not 1; stem_temporal_stride is 2, .*50: set model.name=garden_r3d_50$",
        ),
        ("resnet_rs_50", "inflated_garden_resnet_rs_50", "shortcut_pool_in_stage1 is False, not True; activ"),
        ("garden_resnet_rs_50", "garden_resnet3d_rs_50", "activation is swish, not relu.*. They fit infl"),
        (
            "garden_resnet_rs_50",
            "resnet3d_rs_50",
            "symmetric. They fit inflated_garden_resnet_rs_50: set model.name=inflated_garden_resnet_rs_50 "
            r"\(inflate: --model inflated_garden_resnet_rs_50\)$",
        ),
        ("resnet3d_rs_50", "resnet_rs_50", "its network is for videos, this one for images"),
        (
            "timm",
            "garden_resnet_rs_50",
            r"its network \(of timm\) has another architecture: .*activation is relu, not",
        ),
    ],
)
def test_a_checkpoint_of_another_architecture(tmp_path, theirs, ours, differs):
    """Most of these have the same shapes, but the results would be meaningless."""
    source = small("resnet_rs_50" if theirs == "timm" else theirs)
    path = tmp_path / "source.pt"
    torch.save(to_timm(source.state_dict()), path) if theirs == "timm" else save_run(path, source, name=theirs)
    model = small(ours)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=differs) as error:
        init_from(model, path)
    assert str(error.value).startswith(f"{path} does not fit: ") and "\n" not in str(error.value)
    assert "zero_init" not in str(error.value) and same(model.state_dict(), before)


def test_images_go_into_video_architectures_with_other_2d_parts(tmp_path):
    source = small("resnet_rs_50")
    report = init_from(small("garden_resnet3d_rs_50"), save_run(tmp_path / "image.pt", source, name="resnet_rs_50"))
    assert report.differences == {
        "stem_pool": ("conv", "max"),
        "shortcut": ("pool", "conv"),
        "self_gating": (False, True),
        "padding": ("symmetric", "same"),
    }
    assert "differs from the source: stem_pool conv -> max, shortcut pool -> conv, self_gating False -> " in str(report)
    assert "padding symmetric -> same (the logits will differ)" in str(report)
    assert "not used: stem.pool.conv.weight, " in str(report) and "not in the source: stages.0.2.gating" in str(report)
    broken = {name: tensor for name, tensor in source.state_dict().items() if "stages.1.0.se" not in name}
    torch.save(broken, tmp_path / "broken.pt")
    with pytest.raises(UserError, match="it has no stages.1.0.se.reduce.weight, .*, stages.1.0.se.expand.bias$"):
        init_from(small("garden_resnet3d_rs_50"), tmp_path / "broken.pt")


def without(state, *parts):
    return {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize("kind", ["ours", "run", "timm"])
@pytest.mark.parametrize("parts", [(".se.",), ("stem.pool.",), (".se.", "stem.pool.")])
def test_parts_that_both_architectures_have_are_wanted(tmp_path, kind, parts):
    """timm's resnet50d has ResNet-RS's names, except for squeeze-and-excitation and the stem's pool."""
    source, path = small(), tmp_path / "image.pt"
    state = without(source.state_dict(), *parts)
    if kind == "run":
        checkpoint.save(path, {**checkpoint.load(save_run(path, source, name="resnet_rs_26")), "model": state})
    else:
        torch.save(to_timm(state) if kind == "timm" else state, path)
    for model in (small("resnet3d_rs_26"), small()):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        said = "they have no stages, the first is conv1.0.weight" if kind == "timm" else f"it has no .*{parts[-1]}"
        with pytest.raises(UserError, match=f"image.pt does not fit: .*{said}") as error:
            init_from(model, path)
        assert "\n" not in str(error.value) and same(model.state_dict(), before)


def test_parts_that_one_architecture_has_alone(tmp_path):
    """A source of unknown architecture may lack self-gating and have an additional pool, nothing else."""
    source, path = small(), tmp_path / "image.pt"
    torch.save(source.state_dict(), path)
    architecture = dataclasses.replace(GARDEN_3D, padding="symmetric")
    report = init_from(ResNetRS(architecture, BLOCKS[26], 3, width=0.125), path)
    assert {name.split(".")[-2] for name in report.missing} == {"gating"}
    assert "architecture of the source unknown: not compared" in str(report)
    no_excite = ResNetRS(dataclasses.replace(architecture, se_ratio=0.0), BLOCKS[26], 3, width=0.125)
    with pytest.raises(UserError, match="image.pt does not fit: this network has no stages.0.0.se.reduce.weight"):
        init_from(no_excite, path)
    report = init_from(no_excite, save_run(path, source, name="resnet_rs_26"))
    assert report.differences["se_ratio"] == (0.25, 0.0) and "unknown" not in str(report)
    torch.save(without(small("garden_resnet3d_rs_50").state_dict(), ".gating."), path)
    with pytest.raises(UserError, match="it has no stages.0.2.gating.weight"):  # nothing is inflated here
        init_from(small("garden_resnet3d_rs_50"), path)


def test_the_width_of_bare_weights(tmp_path):
    source = create_model("resnet_rs_26", num_classes=3, width=0.3)
    torch.save(source.state_dict(), tmp_path / "image.pt")
    model = create_model("resnet3d_rs_26", **sizes_of(read_file(tmp_path / "image.pt").state))
    assert init_from(model, tmp_path / "image.pt").inflated
    with pytest.raises(UserError, match="no public weights of this network"):
        init_from(create_model("resnet_rs_50", width=0.125), "pretrained")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("video", ["resnet3d_rs_50", "inflated_garden_resnet_rs_50"])
def test_images_go_into_their_video_architecture_exactly(tmp_path, video, suffix):
    image = video.replace("3d", "").replace("inflated_", "")
    source = small(image, data_config=dataclasses.replace(PRESETS[image].data_config, class_names=NAMES))
    path = save_run(tmp_path / f"image.{suffix}", source, name=image)
    model = small(video)
    report = init_from(model, path)
    assert not (report.differences or report.adapted or report.unused or report.missing)
    assert model.data_config == dataclasses.replace(
        PRESETS[video].data_config,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        filter=source.data_config.filter,
        class_names=NAMES,
    )
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = calibrated(source).eval()(images)
        load_into(model, Source(source.state_dict()), "calibrated")
        logits = model.eval()(images[:, :, None].expand(-1, -1, 5, -1, -1))
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


def test_what_is_beyond_the_ends_of_a_clip_is_part_of_the_architecture(tmp_path):
    source = small("resnet3d_rs_26", temporal_padding="replicate")
    path = save_run(tmp_path / "run.pt", source, name="resnet3d_rs_26", temporal_padding="replicate")
    assert not init_from(small("resnet3d_rs_26", temporal_padding="replicate"), path).differences
    with pytest.raises(UserError) as error:
        init_from(small("resnet3d_rs_26"), path)
    assert str(error.value) == (
        f"{path} does not fit: its network (resnet3d_rs_26) has another architecture: temporal_padding is "
        "replicate, not zeros. Set model.temporal_padding=replicate"
    )
    video = small("garden_r3d_50", temporal_padding="replicate")
    save_run(path, video, name="garden_r3d_50", temporal_padding="replicate")
    with pytest.raises(UserError, match="set model.name=garden_r3d_50 model.temporal_padding=replicate$"):
        init_from(small("garden_slowonly_50"), path)
    save_run(path, small(), name="resnet_rs_26")  # images have no frames before and after
    for name in ("resnet3d_rs_26", "resnet_rs_26"):
        assert not init_from(small(name, temporal_padding="replicate"), path).differences


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("pretraned", "pretraned does not exist; did you mean pretrained?"),
        ("Timm", "Timm does not exist; did you mean timm?"),
        (
            "resnet_rs_50",
            r"resnet_rs_50 is the name of a network \(model.name=resnet_rs_50\), not of a file; use a file",
        ),
        ("timm/resnet18", "timm/resnet18 is the name of a network .* a URL, pretrained or timm$"),
        ("best.pt", "checkpoint best.pt does not exist; check the path$"),
    ],
)
def test_sources_that_are_not_there(tmp_path, monkeypatch, source, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        init_from(small(), source)
