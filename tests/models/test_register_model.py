"""A family of one file: created and listed by name, with the methods of a network, trained as ours are."""

import functools
import importlib.util

import numpy as np
import pytest
import torch

from video_rs import checkpoint
from video_rs.data_config import DataConfig
from video_rs.errors import UserError
from video_rs.models import registry
from video_rs.models.base import VideoModel, classifier_names
from video_rs.models.registry import create_model, empty_model, list_models, register_model
from video_rs.training.finetune import depths, freeze
from video_rs.training.losses import CrossEntropy
from video_rs.training.lr_schedule import learning_rate
from video_rs.training.optim import create
from video_rs.training.schedule import Schedule
from video_rs.training.trainer import Trainer

FAMILY = """
import torch
from torch import nn
from video_rs.data_config import DataConfig
from video_rs.models.base import VideoModel
from video_rs.models.registry import register_model


class TinyNet(VideoModel):
    def __init__(self, num_classes, in_channels, data_config, depth):
        super().__init__(num_classes, data_config or DataConfig(4, 1).with_channels(in_channels))
        self.num_features = 8
        self.stem = nn.Conv3d(in_channels, 8, 3, 4)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv3d(8, 8, 1), nn.BatchNorm3d(8)) for _ in range(depth)))
        self.head = nn.Linear(8, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x, keys=None):
        return self.blocks(self.stem(x)).relu()

    def group_matcher(self, coarse=False):
        return {"stem": r"stem\\.", "blocks": r"blocks\\.(\\d+)"}


@register_model
def tiny_net(num_classes=400, in_channels=3, data_config=None, **kwargs):
    return TinyNet(num_classes, in_channels, data_config, kwargs.get("depth", 2))
"""


@pytest.fixture
def tiny_net(tmp_path, monkeypatch):
    """Import the family from a file outside the package."""
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    (tmp_path / "tiny_family.py").write_text(FAMILY)
    spec = importlib.util.spec_from_file_location("tiny_family", tmp_path / "tiny_family.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_created_and_listed(tiny_net):
    assert list_models("tiny_*") == ["tiny_net"] and "tiny_net" in list_models()
    model = create_model("tiny_net", num_classes=5, depth=3, width=1.0, dropout=None, bn_momentum=0.3)
    assert isinstance(model, tiny_net.TinyNet) and len(model.blocks) == 3 and model.num_classes == 5
    assert {block[1].momentum for block in model.blocks} == {0.3}
    assert model.model_args.items() >= {"name": "tiny_net", "num_classes": 5, "depth": 3}.items()
    twin = empty_model(model.model_args, model.data_config)
    twin.load_state_dict(model.state_dict())
    assert twin.model_args == model.model_args
    assert create_model("tiny_net").num_classes == 400
    with pytest.raises(UserError, match="no model 'tiny_nets'; did you mean tiny_net"):
        create_model("tiny_nets")
    with pytest.raises(UserError, match="tiny_net has no public weights"):
        create_model("tiny_net", pretrained=True)


def test_a_family_in_the_folder_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    monkeypatch.setattr("video_rs.models.__path__", [str(tmp_path)])
    monkeypatch.setattr(registry, "_import_families", functools.cache(registry._import_families.__wrapped__))
    (tmp_path / "tiny_family.py").write_text(FAMILY)
    assert create_model("tiny_net", num_classes=2)(torch.zeros(1, 3, 4, 16, 16)).shape == (1, 2)


def test_the_interface_of_a_network(tiny_net):
    model, x = create_model("tiny_net", num_classes=5).eval(), torch.randn(2, 3, 4, 32, 32)
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert classifier_names(model) == ("head.weight", "head.bias")
    assert max(depths(model).values()) == 3 and depths(model)["head.weight"] == 3
    freeze(model, but_head=True)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    with pytest.raises(UserError, match=r"tiny_net has no such setting: train.activation_checkpointing=\[1\]; set"):
        model.set_grad_checkpointing([1])


def test_settings_that_a_family_does_not_have(tiny_net):
    @register_model
    def plain_net(num_classes=2):
        return tiny_net.TinyNet(num_classes, 3, None, 1)

    model = create_model("plain_net", num_classes=3, width=1.0)
    assert model.num_classes == model.model_args["num_classes"] == 3 and model.data_config == DataConfig(4, 1)
    for options, message in (
        ({"width": 0.5}, "plain_net has no such setting: model.width=0.5; set model.width=1.0"),
        ({"in_channels": 1}, "plain_net has no such setting: model.in_channels=1; set model.in_channels=3"),
        (
            {"dropout": 0.5, "drop_path": 0.2},
            "plain_net has no such setting: model.dropout=0.5, model.drop_path=0.2; "
            "set model.dropout=null model.drop_path=null",
        ),
        ({"in_chans": 1}, "plain_net has no argument 'in_chans'; did you mean in_channels?"),
        ({"num_clases": None}, "plain_net has no argument 'num_clases'; did you mean num_classes?"),
    ):
        with pytest.raises(UserError) as error:
            create_model("plain_net", **options)
        assert str(error.value) == message
    with pytest.raises(UserError, match="there is already a model 'resnet_rs_50'; rename the one in "):
        register_model(plain_net, "resnet_rs_50")
    with pytest.raises(UserError, match="cannot contain a slash: 'my/net'"):
        register_model(plain_net, "my/net")


def test_a_network_without_the_methods_of_one(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    register_model(lambda num_classes=2: torch.nn.Linear(1, num_classes), "bare_net")
    missing = "forward_features, forward_head, get_classifier, reset_classifier, num_classes, num_features, data_config"
    with pytest.raises(UserError, match=f"bare_net has no {missing}; docs/extending.md has"):
        create_model("bare_net")


def test_arguments_of_numpy_are_stored_as_pythons(tmp_path):
    arch = {"temporal_strides": [1, 1, 1, 1]}
    model = create_model("resnet3d_rs_26", num_classes=np.int64(8), width=np.float64(0.125), arch=arch)
    arch["temporal_strides"][0] = 2
    assert model.model_args["arch"] == {"temporal_strides": [1, 1, 1, 1]}
    for _ in range(2):
        state = checkpoint.from_weights(model.model_args, model.data_config, model.state_dict())
        checkpoint.save(tmp_path / "a.pt", state)
        assert checkpoint.load_run(tmp_path / "a.pt")["model_args"] == model.model_args
        model.reset_classifier(np.int64(5))


def test_trained_for_a_step(tiny_net, one_thread):
    model = create_model("tiny_net", num_classes=5)
    schedule = Schedule(num_samples=4, num_steps=1, batch_size=4, micro_batch=4)
    optimizer = create("sgd", model, momentum=0.9, nesterov=True, weight_decay=0.1, layer_decay=0.5)
    trainer = Trainer(
        model, schedule, criterion=CrossEntropy(0.0), optimizer=optimizer, learning_rate=learning_rate(0.1, 1, 0)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clips = torch.randint(0, 256, (4, 4, 32, 32, 3), dtype=torch.uint8)
    trainer.train_step([{"clip": clips, "label": torch.arange(4)}])
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters() if "bias" not in name)


# The methods of the networks that come with the package ---------------------------------------------------------------

NETWORKS = [
    ("resnet3d_rs_26", {"width": 0.125}, (2, 3, 4, 32, 32)),
    ("resnet_rs_26", {"width": 0.125}, (2, 3, 32, 32)),
    ("timm/test_resnet", {}, (2, 3, 160, 160)),
    ("timm/test_vit", {}, (2, 3, 160, 160)),
    ("pytorchvideo/x3d_xs", {"data_config": DataConfig(4, 12, train_size=64, test_size=64)}, (2, 3, 4, 64, 64)),
    pytest.param(
        *("pytorchvideo/mvit_base_16x4", {"data_config": DataConfig(4, 1, train_size=32, test_size=32)}),
        (2, 3, 4, 32, 32),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("name", "options", "shape"), NETWORKS)
def test_heads_and_features(name, options, shape):
    torch.manual_seed(0)
    x, model = torch.randn(shape), create_model(name, num_classes=5, **options).double().eval()
    x = x.double()
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x)) and model(x).shape == (2, 5)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    named = dict(model.named_parameters())
    assert {id(named[key]) for key in classifier_names(model)} == {id(p) for p in model.get_classifier().parameters()}
    assert isinstance(model, VideoModel) and isinstance(model.no_weight_decay(), set)
    model.reset_classifier(8)
    for wrong in ("8", -3):
        with pytest.raises(UserError, match="num_classes must be a whole number, 0 or more"):
            model.reset_classifier(wrong)
    assert model.num_classes == model.model_args["num_classes"] == 8 and model(x).shape == (2, 8)
    assert model.get_classifier().weight.dtype == torch.float64
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled) and classifier_names(model) == ()
    bare = create_model(name, num_classes=0, **options).double().eval()
    bare.load_state_dict(model.state_dict())
    torch.testing.assert_close(bare(x), pooled)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and create_model(**model.model_args | options).num_classes == 3


def test_public_weights_without_a_head(monkeypatch):
    """The weights come with a head, which goes; where a network never had one, nothing does."""
    from tests.models.test_init import small

    source = small("resnet_rs_50", num_classes=1000)
    started = []
    monkeypatch.setattr("video_rs.models.weights.init_from.init_from", lambda model, what: started.append(model))
    model = create_model("resnet_rs_50", pretrained=True, num_classes=0, width=0.125)
    assert started == [model] and model.num_classes == 0 and model.state_dict().keys() < source.state_dict().keys()


def test_timms_checkpointing_is_exact_or_refused(one_thread):
    grads = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = create_model("timm/test_vit", num_classes=3, drop_path=0.3, dropout=0.3).train()
        model.set_grad_checkpointing(enabled)
        model(torch.ones(2, 3, 160, 160), torch.tensor([1, 2])).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    with pytest.raises(UserError, match=r"timm/test_resnet has no such setting: train.activation_checkpointing=\[1"):
        create_model("timm/test_resnet").set_grad_checkpointing([1, 2, 3, 4])
