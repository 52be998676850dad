"""Networks of timm: its numbers, data configs, settings and public weights."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.clips import clips, data_config
from video_rs.data_config import IMAGENET_MEAN, IMAGENET_STD
from video_rs.errors import MachineError, UserError
from video_rs.models.adapters.timm import _build, _try
from video_rs.models.base import classifier_names
from video_rs.models.registry import create_model
from video_rs.models.weights.init_from import init_from

torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_resnet"])
def test_timm_is_timms(name):
    import timm

    model = create_model(f"timm/{name}", num_classes=7).eval()
    bare = timm.create_model(name, num_classes=7).eval()
    bare.load_state_dict(model.network.state_dict())
    x = clips(model.data_config)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        logits = model(x)
    assert torch.equal(logits, model(x.squeeze(2)))  # an image is a clip of one frame
    assert (logits - bare(x.squeeze(2))).abs().max() < 1e-6
    assert flops.get_total_flops() > 1e6
    own, other = model.state_dict(), create_model(f"timm/{name}", num_classes=8).state_dict()
    assert {key for key in own if own[key].shape != other[key].shape} == set(classifier_names(model))


def test_timms_data_config():
    """From the pretrained_cfg; timm resizes the short side to size / crop_pct with PIL."""
    c = create_model("timm/resnet18.a1_in1k").data_config
    assert (c.num_frames, c.train_size, c.test_size, c.short_side) == (1, 224, 288, 288)  # test_crop_pct 1
    assert (c.mean, c.std, c.filter) == (IMAGENET_MEAN, IMAGENET_STD, "bicubic-antialias")
    c = create_model("timm/test_vit").data_config
    assert (c.train_size, c.test_size, c.short_side) == (160, 160, 168)  # 160 / 0.95


def test_timms_settings():
    vit = create_model("timm/test_vit", num_classes=3, dropout=0.3, drop_path=0.2, data_config=data_config(1, 64))
    assert vit.network.head_drop.p == 0.3
    assert vit.network.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert vit.eval()(clips(vit.data_config)).shape == (1, 3)  # built for 64 instead of 160
    gray = create_model("timm/test_resnet", in_channels=1)
    assert gray.data_config.in_channels == 1
    assert gray.eval()(clips(gray.data_config, 64)).shape == (1, 1000)


@pytest.fixture
def public(tmp_path, monkeypatch):
    """Return a function that publishes weights of a network of timm: a file instead of their address."""
    import timm
    from timm.models import _registry

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def publish(name, **arguments):
        state, file = timm.create_model(name, **arguments).state_dict(), str(tmp_path / f"{name}.pth")
        torch.save(state, file)
        cfg = dataclasses.replace(timm.get_pretrained_cfg(name), file=file)
        for key in (name, name.partition(".")[0]):
            monkeypatch.setitem(_registry._model_pretrained_cfgs, key, cfg)
        return state

    return publish


def test_public_weights(public):
    """timm adapts channels and position embeddings itself."""
    weights, state = public("test_resnet.r160_in1k"), public("test_vit.r160_in1k")
    resnet = create_model("timm/test_resnet", pretrained=True)
    assert all(torch.equal(value, weights[key.removeprefix("network.")]) for key, value in resnet.state_dict().items())
    vit = create_model("timm/test_vit.r160_in1k", num_classes=5, data_config=data_config(1, 64))
    assert set(init_from(vit, "pretrained").adapted) == {"network.head.weight", "network.head.bias"}
    assert torch.equal(vit.state_dict()["network.cls_token"], state["cls_token"])
    assert (vit.data_config.mean, vit.data_config.filter) == ((0.5,) * 3, "bicubic-antialias")


def test_public_weights_of_other_sizes(public):
    """Layers of gMLPs are as wide as the image, and are not resampled."""
    public("gmlp_ti16_224")
    with pytest.raises(UserError) as error:
        create_model("timm/gmlp_ti16_224", data_config=data_config(1, 64), pretrained=True)
    message = str(error.value)
    sizes = "data.num_frames=1 data.train_size=224 and 3 channels"
    assert message.startswith(f"pretrained of timm/gmlp_ti16_224, for {sizes}, does not fit: size mismatch for blocks.")
    assert len(message) < 250


def test_public_weights_of_another_version(public):
    import timm

    state = public("test_resnet.r160_in1k")
    torch.save({**state, "attention.weight": torch.zeros(1)}, timm.get_pretrained_cfg("test_resnet").file)
    with pytest.raises(UserError, match="does not fit: Unexpected key.*attention.weight"):
        create_model("timm/test_resnet", pretrained=True)


def test_public_weights_that_cannot_be_had(public, tmp_path):
    public("test_resnet.r160_in1k")
    (tmp_path / "test_resnet.r160_in1k.pth").write_bytes(b"cut off")
    with pytest.raises(MachineError, match="public weights of timm/test_resnet could not be downloaded"):
        create_model("timm/test_resnet", pretrained=True)
    with torch.device("meta"), pytest.raises(UserError, match="timm has no weights for timm/efficientnet_b6"):
        create_model("timm/efficientnet_b6", pretrained=True)


@pytest.mark.parametrize("shortage", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), "cpu"])
def test_a_machine_too_small_is_not_the_settings_fault(shortage, monkeypatch):
    """torch raises a RuntimeError for both, as for sizes that do not pass."""
    import timm

    def fail(*args, **kwargs):
        raise shortage if shortage != "cpu" else RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    model = create_model("timm/test_resnet")
    monkeypatch.setattr(type(model), "logits", fail)
    monkeypatch.setattr(timm, "create_model", fail)
    for ask in (lambda: _try(model, 64), lambda: _build("timm/test_resnet", timm, {}, model.data_config)):
        with pytest.raises((MemoryError, RuntimeError)) as error:
            ask()
        assert not isinstance(error.value, UserError) and (shortage == "cpu" or error.value is shortage)
