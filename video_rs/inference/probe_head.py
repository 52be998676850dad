"""Write a checkpoint of a network with a probe as its classification layer."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from video_rs import checkpoint
from video_rs.data_config import DataConfig
from video_rs.errors import UserError, format_value, truncate
from video_rs.hub import fetch, is_address, redact_url, sha256
from video_rs.inference.features_file import Features
from video_rs.inference.probe_fit import Linear
from video_rs.models.registry import create_model
from video_rs.models.weights.init_from import init_from
from video_rs.models.weights.load import model_from_checkpoint
from video_rs.models.weights.source import from_checkpoint


def network_of(features: Features, weights: str = "") -> nn.Module:
    """Return the network that computed features, with a new classifier for their classes, in ``eval()`` mode.

    Args:
        features: features of the default layer, with ``pool`` "mean".
        weights: path or URL of its weights, or of those that it was initialized from, if the file has been moved.

    Raises:
        UserError: the features are of another layer or pool, the weights are missing or are others, or the classifier
            is not one linear layer.
    """
    about = features.about
    for key, wanted in (("layer", ""), ("pool", "mean")):
        if about.get(key) != wanted:
            found = f"{key} {format_value(about.get(key))}"
            raise UserError(f"a head needs features of the default layer and pool 'mean'; these have {found}")
    if not {"model", "model_args", "data_config", "sha256"} <= about.keys():
        raise UserError("these features do not name their network; extract them with video-rs features for a head")
    data_config = DataConfig.from_dict(about["data_config"], "the features file")
    if about.get("weights"):
        network = _load(weights or about["weights"], about["sha256"])
    else:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)  # as train.seed, for what the weights do not have
            network = create_model(**about["model_args"], data_config=data_config)
            if source := weights or about.get("init_from"):
                init_from(network, source)
        if checkpoint.tensors_sha256(network.state_dict()) != about["sha256"]:
            kind = redact_url(source) if source else "random weights"
            raise UserError(
                f"{about['model']} with {kind}: the features are of other weights; name those with --weights"
            )
    network.data_config = data_config
    network.eval().reset_classifier(max(1, len(features.class_names)))
    _check_classifier(network)
    return network


def _load(weights: str, expected: str) -> nn.Module:
    weights = str(checkpoint.resolve(weights))
    if not is_address(weights) and not os.path.isfile(weights):
        raise UserError(f"{weights}: the weights of the features do not exist; name the file with --weights")
    name = redact_url(weights)
    if sha256(fetch(weights)) != expected:
        raise UserError(f"{name}: the features are of other weights; name those with --weights")
    state = checkpoint.load_run(weights)
    network = model_from_checkpoint(state, name)
    network.weights_from = from_checkpoint(state, name).weights_from
    return network


def write_head(
    path: str | Path, network: nn.Module, train: Features, linear: Linear, test: Features | None = None
) -> None:
    """Write a checkpoint of the network with the probe as its classification layer. The network is changed in place.

    Args:
        path: the file, see ``checkpoint.save``.
        network: from :func:`network_of`.
        train: the training features, for their classes.
        linear: the probe.
        test: the test features. Their split, if it was held out, may be tested, because no source of it was fitted.

    Raises:
        UserError: a class had no training rows, or all of them.
    """
    names, infinite = train.class_names, np.flatnonzero(~np.isfinite(linear.bias))
    if len(infinite):
        absent = truncate([format_value(names[number]) for number in infinite])
        raise UserError(f"a head needs training rows with and without each class; not so for {absent}")
    layer = network.get_classifier()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(linear.weight))
        layer.bias.copy_(torch.from_numpy(linear.bias))
    network.data_config = dataclasses.replace(network.data_config, class_names=names, multi_label=linear.multi_label)
    model_args = {**network.model_args, "num_classes": len(names)}
    measured = {} if test is None else {test.about.get("split", ""): test.about.get("fingerprint", "")}
    record = {"weights_from": network.weights_from, "fingerprint": measured}
    checkpoint.save(path, checkpoint.from_weights(model_args, network.data_config, network.state_dict(), **record))


@torch.no_grad()
def _check_classifier(network: nn.Module) -> None:
    """Raise UserError unless the logits are one linear layer of the pooled features, with a bias."""
    layer, config = network.get_classifier(), network.data_config
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        layer.reset_parameters()  # some networks start it with zeros, and then any output is linear
        shape = (1, config.in_channels, config.num_frames, config.test_size, config.test_size)
        maps = network.forward_features(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
        expected = layer(network.forward_head(maps, pre_logits=True))
        if torch.allclose(network.forward_head(maps), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
            return
    raise UserError(f"{network.name}: its classifier is not one linear layer on the features; use another network")
