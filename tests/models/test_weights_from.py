"""The record of where a network's first weights came from travels with it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import video_rs
from tests.conftest import same
from tests.models.test_init import small
from video_rs import checkpoint
from video_rs.cli import convert, inflate
from video_rs.models.registry import create_model
from video_rs.models.weights.init_from import init_from
from video_rs.models.weights.load import model_from_checkpoint
from video_rs.models.weights.source import Source
from video_rs.models.weights.timm import read_timm

pytestmark = pytest.mark.usefixtures("one_thread")
TIMM = {"source": "timm/test_resnet.r160_in1k", "licence": "apache-2.0"}


def save(path, model, name):
    args = {"name": name, "num_classes": model.num_classes} | ({} if "/" in name else {"width": 0.125})
    state = checkpoint.from_weights(args, model.data_config, model.state_dict(), weights_from=model.weights_from)
    checkpoint.save(path, state)
    return str(path)


def test_random_weights_come_from_nowhere(tmp_path):
    assert small().weights_from is None
    path = save(tmp_path / "a.safetensors", small(), "resnet_rs_26")
    assert video_rs.load(path, "cpu").model.weights_from is None
    model = small()
    init_from(model, path)
    assert model.weights_from == {"source": path, "licence": None}


def test_public_weights_have_their_licence(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    from timm.models import _registry

    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "timm.pth")
    cfg = dataclasses.replace(timm.get_pretrained_cfg("test_resnet"), file=str(tmp_path / "timm.pth"))
    monkeypatch.setitem(_registry._model_pretrained_cfgs, "test_resnet", cfg)
    model = create_model("timm/test_resnet", pretrained=True)
    assert model.weights_from == TIMM
    path = save(tmp_path / "run.pt", model, "timm/test_resnet")
    loaded = model_from_checkpoint(checkpoint.load_run(path))
    assert loaded.weights_from == TIMM and same(loaded.state_dict(), model.state_dict())
    again = create_model("timm/test_resnet", num_classes=5)
    init_from(again, path)
    assert again.weights_from == {**TIMM, "source": path, "weights_from": TIMM}


def test_timms_resnetrs_name_their_own_file(monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr("video_rs.models.adapters.timm.TimmNetwork.public_weights", lambda self: {})
    assert read_timm((3, 4, 6, 3)).weights_from == {"source": "timm/resnetrs50.tf_in1k", "licence": "apache-2.0"}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_the_record_travels_through_files_conversion_and_inflation(tmp_path, capsys, suffix):
    model = small()
    model.weights_from = TIMM
    path, out = save(tmp_path / f"image.{suffix}", model, "resnet_rs_26"), str(tmp_path / f"out.{suffix}")
    assert model_from_checkpoint(checkpoint.load_run(path)).weights_from == TIMM
    convert.main([path, "--out", out])
    assert checkpoint.load_run(out)["weights_from"] == TIMM
    assert f"first weights: {TIMM['source']}, licence apache-2.0\n" in capsys.readouterr().out
    inflate.main(["--from", path, "--model", "resnet3d_rs_26", "--out", out])
    assert checkpoint.load_run(out)["weights_from"] == {**TIMM, "source": path, "weights_from": TIMM}
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    convert.main([str(tmp_path / "bare.pth"), "--model", "resnet_rs_26", "--out", out])
    assert checkpoint.load_run(out)["weights_from"] == {"source": str(tmp_path / "bare.pth"), "licence": None}


def test_secrets_stay_out_of_the_record(tmp_path, monkeypatch):
    weights = small().state_dict()
    monkeypatch.setattr(checkpoint, "load", lambda path: weights)
    model = small()
    init_from(model, "https://me:secret@host/a.pth?token=secret")
    assert model.weights_from == {"source": "https://host/a.pth", "licence": None}
    assert Source(weights).weights_from == {"source": "", "licence": None}
