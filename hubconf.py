"""The networks for ``torch.hub``: one entry point for every name of ``video_rs.list_models()``, and two for the rest.

    torch.hub.load(repository, "resnet3d_rs_50", num_classes=10)
    torch.hub.load(repository, "create_model", "timm/resnet50")
    torch.hub.load(repository, "load", "runs/k400_rs50/best.pt").predict("clip.mp4")

The repository is ``owner/name`` on GitHub, or with ``source="local"`` a folder.
"""

from video_rs.inference.predict import load
from video_rs.models.presets import PRESETS as _PRESETS
from video_rs.models.registry import create_model

__all__ = ["create_model", "load", *_PRESETS]
dependencies = ["torch", "torchvision", "numpy", "av", "PIL", "safetensors", "rich"]


def _entry(name: str):
    def entry(pretrained: bool = False, **options):
        return create_model(name, pretrained=pretrained, **options)

    preset = _PRESETS[name]
    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = (
        f"The network {name}, by default with {preset.num_classes} classes and fresh weights.\n\n"
        "    pretrained: start from public weights, where there are any.\n"
        "    options: of create_model, such as num_classes, in_channels and drop_path.\n"
    )
    return entry


globals().update({name: _entry(name) for name in _PRESETS})
