"""The named networks: depth, layout, regularisation and data contract. Nothing here imports torch.

Image networks: the released configs of Bello et al. 2021 (arXiv 2103.07579). Where a depth was published at several
resolutions, the one given is the largest with the regularisation given.
Video networks: the published Kinetics-400 recipe of R3D-RS-50 (Du et al. 2021, arXiv 2109.01696; 32 frames, every
second one). Those of the other depths were not published, so they share it.
Depths 26, 300 and 400 occur in the scaling study of the first paper only and borrow the settings of a neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

from video_rs.contract import IMAGENET_MEAN, IMAGENET_STD, DataContract
from video_rs.models.layout import RESNET_RS_2D, RESNET_RS_3D, Layout

BLOCKS = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    270: (4, 29, 53, 4),
    300: (4, 36, 54, 4),
    350: (4, 36, 72, 4),
    400: (6, 48, 72, 6),
    420: (4, 44, 87, 4),
}
"""Bottlenecks by stage, by depth."""

_IMAGE_RECIPES = {  # depth: (resolution, dropout, drop path)
    26: (160, 0.25, 0.0),
    50: (160, 0.25, 0.0),
    101: (192, 0.25, 0.0),
    152: (256, 0.25, 0.0),
    200: (256, 0.25, 0.1),
    270: (256, 0.25, 0.1),
    300: (256, 0.25, 0.1),
    350: (256, 0.25, 0.1),
    400: (320, 0.4, 0.1),
    420: (320, 0.4, 0.1),
}
_CENTER_CROP = 0.875  # of the short side


@dataclass(frozen=True)
class Preset:
    """A named network.

    Attributes:
        name, depth: "resnet3d_rs_50" and 50.
        blocks: bottlenecks by stage.
        layout: everything else about the architecture.
        num_classes: of the data set it was published for.
        dropout: rate before the classifier.
        drop_path: rate of the paper's rule, which gives the last stage this much.
        contract: default frames, resolution and normalisation.
    """

    name: str
    depth: int
    blocks: tuple[int, ...]
    layout: Layout
    num_classes: int
    dropout: float
    drop_path: float
    contract: DataContract


def _image(depth: int) -> Preset:
    size, dropout, drop_path = _IMAGE_RECIPES[depth]
    contract = DataContract(
        num_frames=1,
        stride=1,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        train_size=size,
        short_side=round(size / _CENTER_CROP),
        test_size=size,
        filter="bicubic",
    )
    return Preset(f"resnet_rs_{depth}", depth, BLOCKS[depth], RESNET_RS_2D, 1000, dropout, drop_path, contract)


def _video(depth: int) -> Preset:
    return Preset(f"resnet3d_rs_{depth}", depth, BLOCKS[depth], RESNET_RS_3D, 400, 0.5, 0.1, DataContract())


PRESETS = {preset.name: preset for make in (_video, _image) for preset in map(make, BLOCKS)}


def list_models() -> list[str]:
    """The names that ``create_model`` knows."""
    return list(PRESETS)
