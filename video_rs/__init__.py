"""Video classification with 3D ResNet-RS; an image is a clip of one frame.

    import video_rs

    model = video_rs.create_model("resnet3d_rs_50", num_classes=8)  # [N, C, T, H, W] -> logits [N, 8]
    transform = video_rs.create_transform(**model.data_config, is_training=True)
    train = video_rs.VideoDataset("/data/mine", "train", transform)  # train[3] -> (clip, label)
    video_rs.fit(model, train, epochs=10, out="runs/mine")
    classifier = video_rs.load("runs/mine/best.pt")  # or .safetensors, https://..., hf-hub:owner/name
    classifier.predict("clip.mp4", top_k=5)

Importing this module does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from video_rs.data.transforms import create_transform
    from video_rs.data.video_dataset import VideoDataset
    from video_rs.inference.predict import load
    from video_rs.models.registry import create_model, list_models
    from video_rs.training.fit import fit

__version__ = "0.2.0.dev0"
__all__ = ["VideoDataset", "__version__", "create_model", "create_transform", "fit", "list_models", "load"]

_HOME = {
    "VideoDataset": "video_rs.data.video_dataset",
    "create_model": "video_rs.models.registry",
    "create_transform": "video_rs.data.transforms",
    "fit": "video_rs.training.fit",
    "list_models": "video_rs.models.registry",
    "load": "video_rs.inference.predict",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'video_rs' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
