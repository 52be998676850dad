"""timm's ResNet-RS: available depths, data configs, download of weights, and export to timm."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from video_rs.data_config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from video_rs.errors import UserError
from video_rs.models.adapters.base import PREFIX
from video_rs.models.adapters.timm import create
from video_rs.models.presets import BLOCKS, PRESETS
from video_rs.models.weights.source import Source, read_public
from video_rs.models.weights.state_dict import to_timm

# Matches the presets that are equal to timm's resnetrs*. Other presets may have weights of the same shapes.
PATTERN = "resnet_rs_*"
DEPTHS = (50, 101, 152, 200, 270, 350, 420)


def read_timm(blocks: tuple[int, ...]) -> Source:
    """Return timm's public weights of the ResNet-RS with these blocks in each stage, with timm's names.

    Raises:
        ModuleNotFoundError: timm is missing.
        UserError: timm has no such network, or cannot be imported.
        MachineError: the weights could not be downloaded.
    """
    depth = next((depth for depth in DEPTHS if BLOCKS[depth] == tuple(blocks)), None)
    if depth is None:
        raise no_public_weights()
    with torch.device("meta"):  # only its public weights are needed
        network = create(f"timm/resnetrs{depth}")
    source = read_public(network)
    source.data_config = None  # timm's own: see timm_data_config
    return source


def no_public_weights() -> UserError:
    """Return the error for a network of the family without public weights."""
    return UserError(
        "there are no public weights of this network; timm has weights for resnet_rs_* and resnet3d_rs_* of depths "
        f"{', '.join(map(str, DEPTHS))} at width 1. Start from a file instead, such as one that "
        "tools/convert_tensorflow.py wrote"
    )


def timm_data_config(blocks: tuple[int, ...]) -> DataConfig:
    """Return the data config of timm's ResNet-RS weights with these blocks, apart from sizes.

    All depths except 200 are the EMAs of the TPU repository's checkpoints (timm's release v0.1-rs-weights,
    ``*_ema-*.pth``). They were trained with TensorFlow 1's bicubic resizing, which does not antialias, although timm
    itself resizes with antialiasing. Depth 200 was trained by timm (v0.1-tpu-weights, ``resnetrs200_c-*.pth``) with
    PIL's bicubic filter, which antialiases.
    """
    filter = "bicubic-antialias" if tuple(blocks) == BLOCKS[200] else "bicubic"
    return DataConfig(num_frames=1, stride=1, mean=IMAGENET_MEAN, std=IMAGENET_STD, filter=filter)


def export_to_timm(network: nn.Module, model_args: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Return the name, the options of ``timm.create_model`` and the state dict of a network in timm.

    Args:
        network: an image network of the family, or a network of timm.
        model_args: arguments of ``create_model`` for the network.

    Raises:
        UserError: timm has no such network.
    """
    name, width, data_config = model_args["name"], model_args.get("width", 1.0), network.data_config
    options: dict[str, Any] = {"num_classes": network.num_classes}
    if data_config.in_channels != 3:
        options["in_chans"] = data_config.in_channels
    if name.startswith("timm/"):
        known = network.network.pretrained_cfg
        if known.get("fixed_input_size") and data_config.train_size != known["input_size"][-1]:
            options["img_size"] = data_config.train_size
        state = {key.removeprefix(PREFIX): tensor for key, tensor in network.state_dict().items()}
        return name.removeprefix("timm/"), options, state
    depth = PRESETS[name].depth if name in PRESETS and name.startswith("resnet_rs_") else 0
    if depth not in DEPTHS or width != 1 or model_args.get("arch"):
        depths = ", ".join(map(str, DEPTHS))
        other = f" with {model_args['arch']}" if model_args.get("arch") else ""
        raise UserError(
            f"timm has resnet_rs_* of depths {depths} and width 1, it has no {name} of width {width:g}{other}"
        )
    return f"resnetrs{depth}", options, to_timm(network.state_dict())
