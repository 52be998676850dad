"""3D ResNet-RS video classification: train, test and predict; images are clips of one frame.

    import video_rs

    model = video_rs.create_model("resnet3d_rs_50", num_classes=400)  # [N, 3, T, H, W] -> logits [N, 400]
    classifier = video_rs.load("runs/k400_rs50/best.pt")  # or .safetensors, https://..., hf-hub:owner/name
    classifier.predict("clip.mp4", top_k=5)

Nothing here imports torch before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from video_rs.data.dataset import VideoDataset
    from video_rs.data.transforms import create_transform
    from video_rs.inference.predict import load
    from video_rs.models.registry import create_model, list_models
    from video_rs.training.fit import fit

__version__ = "0.2.0.dev0"
__all__ = ["VideoDataset", "__version__", "create_model", "create_transform", "fit", "list_models", "load"]

_HOME = {
    "VideoDataset": "video_rs.data.dataset",
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
