"""Image networks of timm (https://github.com/huggingface/pytorch-image-models) as ``timm/<name>``.

Any name of ``timm.list_models()``, with or without the tag of its weights: "timm/resnet50", "timm/resnet50.a1_in1k".
The data config is the network's ``pretrained_cfg``.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from video_rs.data_config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from video_rs.errors import UserError, first_line, is_out_of_memory
from video_rs.models.adapters.base import (
    External,
    NoClasses,
    downloading,
    known,
    package,
    refuse,
    refuse_clips,
)

KEYS = {"in_chans": "in_channels", "drop_rate": "model.dropout", "drop_path_rate": "model.drop_path"}
"""timm's argument: what sets it here."""


def names(pattern: str) -> list[str]:
    """All networks of timm, those with the tags of their weights if the pattern, which is for messages, has a dot."""
    timm = package(pattern, "timm")
    listed = timm.list_pretrained() if "." in pattern else timm.list_models()
    return [f"timm/{name}" for name in listed]


def create(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    dropout: float | None = None,
    drop_path: float | None = None,
    data_config: DataConfig | None = None,
) -> TimmNetwork:
    """A network of timm with fresh weights; arguments as for ``create_model``. Raises UserError."""
    timm = package(name, "timm")
    model = name.removeprefix("timm/")
    architecture = model.partition(".")[0]
    known(f"timm/{architecture}", (f"timm/{other}" for other in timm.list_models()))
    if model != architecture:
        known(name, (f"timm/{other}" for other in timm.list_pretrained(f"{architecture}.*")))
    cfg = timm.get_pretrained_cfg(model)
    native = native_data_config(cfg).with_channels(in_channels)
    data_config = data_config or native
    arguments: dict[str, Any] = {"num_classes": num_classes, "drop_rate": dropout, "drop_path_rate": drop_path}
    if in_channels != 3:
        arguments["in_chans"] = in_channels
    if cfg.fixed_input_size and data_config.train_size != native.train_size:
        arguments["img_size"] = data_config.train_size
    network = _build(name, timm, {k: v for k, v in arguments.items() if v is not None}, data_config)
    classes = getattr(network, "num_classes", 0) if num_classes is None else num_classes
    if not classes:
        raise NoClasses(f"{name} has no classes of its own; say how many with num_classes (model.num_classes)")
    classifier = cfg.classifier or ()
    classifier = (classifier,) if isinstance(classifier, str) else classifier
    model = TimmNetwork(name, network, classes, data_config, native=native, classifier=classifier)
    for size in {data_config.train_size, data_config.test_size} - {native.train_size, native.test_size}:
        _try(model, size)
    return model


class TimmNetwork(External):
    """An image network: clips of one frame only, and of those with ``fixed_input_size`` images of one size alone."""

    @property
    def _size(self) -> int | None:
        return self.built_for.train_size if self.network.pretrained_cfg["fixed_input_size"] else None

    def check(self, num_frames: int, height: int, width: int) -> None:
        refuse_clips(self.name, num_frames)
        if self._size:
            self.check_built_for(num_frames, height, width)

    def logits(self, clips: Tensor) -> Tensor:
        return self.network(clips.squeeze(2).contiguous(memory_format=torch.channels_last))

    def public_weights(self) -> dict[str, Tensor]:
        timm = package(self.name, "timm")
        model = self.name.removeprefix("timm/")
        if not timm.get_pretrained_cfg(model).has_weights:
            raise UserError(f"timm has no weights for {self.name}; train it, or name a file of weights")
        sizes = {} if self._size in (None, self.native.train_size) else {"img_size": self._size}
        channels = {} if self.data_config.in_channels == 3 else {"in_chans": self.data_config.in_channels}
        with torch.random.fork_rng([]), downloading(self.name):
            try:
                network = timm.create_model(model, pretrained=True, **sizes, **channels)
            except RuntimeError as error:
                if "loading state_dict" not in first_line(error):
                    raise
                what = str(error).splitlines()[-1].strip().partition(": copying")[0]  # the last that does not fit
                raise UserError(f"{self.public} does not fit: {what[:200]}") from None
        return network.state_dict()


def native_data_config(cfg: Any) -> DataConfig:
    """What timm's weights expect to see (its ``pretrained_cfg``); timm resizes with PIL, which antialiases."""
    size = cfg.input_size[-1]
    test_size = size if cfg.fixed_input_size else (cfg.test_input_size or cfg.input_size)[-1]
    crop = cfg.test_crop_pct or cfg.crop_pct
    mean, std = tuple(cfg.mean or IMAGENET_MEAN), tuple(cfg.std or IMAGENET_STD)
    return DataConfig(
        num_frames=1,
        stride=1,
        mean=mean,
        std=std,
        train_size=size,
        short_side=math.floor(test_size / crop),
        test_size=test_size,
        filter="bilinear-antialias" if cfg.interpolation == "bilinear" else "bicubic-antialias",
        in_channels=cfg.input_size[0],
    )


@torch.no_grad()
def _try(model: TimmNetwork, size: int) -> None:
    """Raises UserError where images of this size do not pass: networks of windows and patches may tell only then."""
    model.check(model.data_config.num_frames, size, size)
    image = torch.zeros(1, model.data_config.in_channels, size, size, device=next(model.parameters()).device)
    fault = f"{model.name} cannot take images of {size}x{size}, its own are of {model.native.train_size}"
    with _one_line(fault):
        model.eval()(image)
    model.train()


@contextlib.contextmanager
def _one_line(fault: str) -> Iterator[None]:
    """Turn what networks raise for sizes that a patch or window does not divide into a UserError."""
    try:
        yield
    except (AssertionError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{fault}: {first_line(error)}") from None


def _build(name: str, timm: Any, arguments: dict[str, Any], data_config: DataConfig) -> nn.Module:
    try:
        with _one_line(f"timm cannot build {name} with {arguments}"):
            return timm.create_model(name.removeprefix("timm/"), **arguments)
    except TypeError as error:
        argument = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if argument and argument[1] == "img_size":
            raise UserError(f"{name} takes images of one size alone, not of {data_config.train_size}") from None
        if not argument or argument[1] not in KEYS:
            raise
        refuse(name, KEYS[argument[1]], arguments[argument[1]], 3 if argument[1] == "in_chans" else "null")
