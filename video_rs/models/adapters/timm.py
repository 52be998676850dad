"""Image networks of timm (https://github.com/huggingface/pytorch-image-models) as ``timm/<name>``.

Any name in ``timm.list_models()``, with or without the tag of the weights: "timm/resnet50", "timm/resnet50.a1_in1k".
The data config is derived from the network's ``pretrained_cfg``.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from video_rs.data_config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from video_rs.errors import UserError, first_line, one_line
from video_rs.models.adapters.base import PREFIX, External, NoClasses, downloading, import_package, refuse_clips
from video_rs.models.arguments import check_numbers, refuse

KEYS = {"in_chans": "in_channels", "drop_rate": "model.dropout", "drop_path_rate": "model.drop_path"}
"""Our names of timm's arguments."""

SIZE_ERRORS = (AssertionError, ValueError, RuntimeError)
"""Errors for sizes that a patch or window does not divide."""


def names(pattern: str) -> list[str]:
    """Return all networks of timm, with the tags of their weights if the pattern has a dot."""
    timm = import_package(pattern, "timm")
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
    """Create a network of timm with random weights; arguments and errors as for ``create_model``."""
    timm = import_package(name, "timm")
    model = name.removeprefix("timm/")
    cfg = timm.get_pretrained_cfg(model)
    native = native_data_config(cfg).with_channels(in_channels)
    data_config = data_config or native
    arguments: dict[str, Any] = {"num_classes": num_classes, "drop_rate": dropout, "drop_path_rate": drop_path}
    if in_channels != 3:
        arguments["in_chans"] = in_channels
    if cfg.fixed_input_size and data_config.train_size != native.train_size:
        arguments["img_size"] = data_config.train_size
    network = _build(name, timm, {k: v for k, v in arguments.items() if v is not None}, data_config)
    if num_classes is None:
        num_classes = getattr(network, "num_classes", 0)
        if not num_classes:
            raise NoClasses(f"{name} has no classifier; set num_classes (model.num_classes)")
    model = TimmNetwork(name, network, num_classes, data_config, native=native)
    for size in {data_config.train_size, data_config.test_size} - {native.train_size, native.test_size}:
        _try(model, size)
    return model


class TimmNetwork(External):
    """An image network, for clips of one frame. With ``fixed_input_size`` it supports a single image size."""

    @property
    def num_features(self) -> int:
        """Number of channels of the pooled features."""
        return getattr(self.network, "head_hidden_size", None) or self.network.num_features

    @property
    def _size(self) -> int | None:
        return self.built_for.train_size if self.network.pretrained_cfg["fixed_input_size"] else None

    def check(self, num_frames: int, height: int, width: int) -> None:
        refuse_clips(self.name, num_frames)
        if self._size:
            self.check_built_for(num_frames, height, width)

    def logits(self, clips: Tensor) -> Tensor:
        return self.network(_images(clips))

    def features(self, clips: Tensor) -> Tensor:
        return self.network.forward_features(_images(clips))

    def head(self, features: Tensor, pre_logits: bool) -> Tensor:
        return self.network.forward_head(features, pre_logits=pre_logits)

    def stage_modules(self) -> dict[str, str]:
        """Return the modules of ``feature_info``, or else the children of ``stages``, ``layers`` or ``blocks``."""
        known = dict(self.named_modules())
        modules = [PREFIX + str(entry["module"]) for entry in self._feature_info()]
        modules = [module for module in modules if module in known]
        if not modules or len(set(modules)) < len(modules):
            name = next((name for name in ("stages", "layers", "blocks") if PREFIX + name in known), "")
            modules = [f"{PREFIX}{name}.{child}" for child, _ in known[PREFIX + name].named_children()] if name else []
        kinds = {re.sub(r"\d", "", module) for module in modules[:2]}
        first = 0 if len(kinds) == 2 else 1  # a stem such as "act1" before "layer1"
        return {f"stage{number}" if number else "stem": module for number, module in enumerate(modules, first)}

    def _feature_info(self) -> list[dict[str, Any]]:
        info = getattr(self.network, "feature_info", ())
        return list(getattr(info, "info", info))

    def read_maps(self, tensor: Tensor, output: Any, module: str) -> Tensor | None:
        """Convert ``[N, C, H, W]``, ``[N, H, W, C]``, or tokens ``[N, L, C]`` of a square image."""
        if tensor.ndim == 3 and not hasattr(self.network, "unroll"):  # Hiera's tokens are not in raster order
            for prefix in (getattr(self.network, "num_prefix_tokens", 0), 0):
                side = math.isqrt(max(0, tensor.shape[1] - prefix))
                if side and side * side == tensor.shape[1] - prefix:
                    return tensor[:, prefix:].unflatten(1, (side, side)).permute(0, 3, 1, 2).unsqueeze(2)
        if tensor.ndim == 4:
            channels = {PREFIX + str(entry["module"]): entry["num_chs"] for entry in self._feature_info()}.get(module)
            is_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
            if channels in (tensor.shape[1], tensor.shape[3]) and tensor.shape[1] != tensor.shape[3]:
                is_last = channels == tensor.shape[3]
            tensor = tensor.permute(0, 3, 1, 2) if is_last else tensor
        return super().read_maps(tensor, output, module)

    def get_classifier(self) -> nn.Module:
        """Return the last layer, or a list of both last layers for networks with two heads."""
        names = self.network.pretrained_cfg["classifier"] or ()
        layers = [self.network.get_submodule(name) for name in ([names] if isinstance(names, str) else names)]
        return layers[0] if len(layers) == 1 else nn.ModuleList(layers)

    def reset_classifier(self, num_classes: int) -> None:
        check_numbers({"num_classes": num_classes})
        like = next(self.parameters())
        self.network.reset_classifier(num_classes)
        self.network.to(like.device, like.dtype)
        self._set_num_classes(num_classes)

    def network_groups(self, coarse: bool) -> Any:
        return self.network.group_matcher(coarse=coarse) if hasattr(self.network, "group_matcher") else None

    def set_grad_checkpointing(self, stages: Any = True) -> None:
        """Turn timm's activation checkpointing on (True, or any stages) or off.

        Raises:
            UserError: timm does not support it for this network, or the network has batch norm, whose statistics timm
                would update twice.
        """
        is_exact = not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in self.modules())
        try:
            self.network.set_grad_checkpointing(bool(stages) and is_exact)
        except (AssertionError, AttributeError):
            is_exact = False
        if not is_exact:
            super().set_grad_checkpointing(stages)

    def public_weights(self) -> dict[str, Tensor]:
        timm = import_package(self.name, "timm")
        model = self.name.removeprefix("timm/")
        if not timm.get_pretrained_cfg(model).has_weights:
            raise UserError(f"timm has no weights for {self.name}; train it, or set a file of weights")
        sizes = {} if self._size in (None, self.native.train_size) else {"img_size": self._size}
        channels = {} if self.data_config.in_channels == 3 else {"in_chans": self.data_config.in_channels}
        classes = {} if self.num_classes else {"num_classes": 0}
        with torch.random.fork_rng([]), downloading(self.name):
            try:
                network = timm.create_model(model, pretrained=True, **sizes, **channels, **classes)
            except RuntimeError as error:
                if "loading state_dict" not in first_line(error):
                    raise
                what = str(error).splitlines()[-1].strip().partition(": copying")[0]  # the last mismatch
                raise UserError(f"{self.public_description} does not fit: {what[:200]}") from None
        return network.state_dict()


def _images(clips: Tensor) -> Tensor:
    return clips.squeeze(2).contiguous(memory_format=torch.channels_last)


def native_data_config(cfg: Any) -> DataConfig:
    """Return the data config for a ``pretrained_cfg``. timm resizes with PIL, which antialiases."""
    size = cfg.input_size[-1]
    test_size = size if cfg.fixed_input_size else (cfg.test_input_size or cfg.input_size)[-1]
    crop = cfg.test_crop_pct or cfg.crop_pct
    sizes = {"train_size": size, "short_side": math.floor(test_size / crop), "test_size": test_size}
    pixels = {"mean": tuple(cfg.mean or IMAGENET_MEAN), "std": tuple(cfg.std or IMAGENET_STD)}
    filter = "bilinear-antialias" if cfg.interpolation == "bilinear" else "bicubic-antialias"
    return DataConfig(num_frames=1, stride=1, filter=filter, in_channels=cfg.input_size[0], **sizes, **pixels)


@torch.no_grad()
def _try(model: TimmNetwork, size: int) -> None:
    """Raise UserError if a forward pass fails for this image size, as in networks with windows or patches."""
    model.check(model.data_config.num_frames, size, size)
    image = torch.zeros(1, model.data_config.in_channels, size, size, device=next(model.parameters()).device)
    fault = f"{model.name} cannot take images of {size}x{size}, its own are of {model.native.train_size}"
    with one_line(fault, SIZE_ERRORS):
        model.eval()(image)
    model.train()


def _build(name: str, timm: Any, arguments: dict[str, Any], data_config: DataConfig) -> nn.Module:
    try:
        with one_line(f"timm cannot build {name} with {arguments}", SIZE_ERRORS):
            return timm.create_model(name.removeprefix("timm/"), **arguments)
    except TypeError as error:
        argument = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if argument and argument[1] == "img_size":
            raise UserError(f"{name} supports a single image size, not {data_config.train_size}") from None
        if not argument or argument[1] not in KEYS:
            raise
        refuse(name, KEYS[argument[1]], arguments[argument[1]], 3 if argument[1] == "in_chans" else "null")
