"""The named networks: depth, layout, regularisation, data contract, and what others publish of them. Without torch.

Image networks, one for each depth and resolution that was published (Bello et al. 2021, arXiv 2103.07579):
``resnet_rs_*`` is the layout and the recipe of the released code (tensorflow/tpu, ``models/official/resnet``),
``garden_resnet_rs_*`` that of the TF Model Garden (tensorflow/models, ``official/vision``). The resolution is in the
name (``_i160``) where it isn't the largest with the depth's usual regularisation.
Video networks (Du et al. 2021, arXiv 2109.01696): ``garden_resnet3d_rs_*`` is the Model Garden's layout,
``resnet3d_rs_*`` ours, ``inflated_garden_resnet_rs_*`` what the Garden's image weights inflate into. All have the
regularisation of the one recipe that was released, R3D-RS-50's on Kinetics-400 (32 frames, every second one).
Depths 26, 300 and 400 occur in the scaling study of the first paper only and borrow the settings of a neighbour.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from video_rs.contract import IMAGENET_MEAN, IMAGENET_STD, DataContract
from video_rs.models.layout import (
    GARDEN_2D,
    GARDEN_3D,
    INFLATED_GARDEN_2D,
    R3D,
    R3D_G,
    RESNET_RS_2D,
    RESNET_RS_3D,
    SLOW_ONLY,
    Layout,
)

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

SOURCES = {"video_rs": "*", "timm": "resnet_rs_*", "tpu": "resnet_rs_*", "keras": "resnet_rs_*", "garden": "garden_*"}
"""Whose weights can be converted, and the presets that compute what their code does; others may agree in shapes."""

CENTER_CROP = 0.875
"""Side of the test crop over the short side of an image, in both image recipes."""

_TPU = "tensorflow/tpu resnet_rs/README.md"
_GARDEN = "tensorflow/models MODEL_GARDEN.md"
_TIMM = "timm results/results-imagenet.csv"
_COUNTED = "tf-models-official 2.20.0, its own networks counted"


@dataclass(frozen=True)
class Published:
    """An accuracy that others published, in per cent; none of them was reproduced here.

    Attributes:
        dataset: "ImageNet", "Kinetics-400" or "Kinetics-600".
        views: what a score is the mean of: crop size of images, frames x stride of videos.
        top1, top5: in per cent; top5 None where it was not given.
        source: repository and file.
    """

    dataset: str
    views: str
    top1: float
    top5: float | None
    source: str


@dataclass(frozen=True)
class Reference:
    """The size of the same network in somebody else's code.

    Attributes:
        parameters: trainable ones.
        gmacs: 10**9 multiply-accumulates of one forward pass of a training clip (an image, in image networks).
        source: whose code, and who counted.
        test_gmacs: the same for a test crop; None where that was not counted or has the same size.
    """

    parameters: int
    gmacs: float
    source: str
    test_gmacs: float | None = None


@dataclass(frozen=True)
class Preset:
    """A named network.

    Attributes:
        name, depth: "resnet3d_rs_50" and 50.
        blocks: bottlenecks by stage.
        layout: everything else about the architecture.
        num_classes: those of ImageNet (in the Model Garden with one for the background) or of Kinetics-400.
        dropout: rate before the classifier.
        drop_path: rate of the paper's rule, which gives the last stage this much.
        contract: default frames, resolution and normalisation.
        rand_augment: magnitude of RandAugment (2 layers) in its published recipe; None: it has none.
        published: accuracies, the first with this preset's own settings.
        reference: the size of the implementation it follows; None where there is none.
    """

    name: str
    depth: int
    blocks: tuple[int, ...]
    layout: Layout
    num_classes: int
    dropout: float
    drop_path: float
    contract: DataContract
    rand_augment: float | None = None
    published: tuple[Published, ...] = ()
    reference: Reference | None = None


class _Image(NamedTuple):
    """A row of the image networks: recipe, size, and what the TPU code and the Model Garden (top-1, top-5) reached."""

    name: str
    size: int
    dropout: float
    drop_path: float
    magnitude: float
    garden_magnitude: float
    parameters: int | None = None
    gmacs: float = 0.0
    top1: float = 0.0
    garden: tuple[float, float] | None = None

    @property
    def depth(self) -> int:
        return int(self.name.partition("_")[0])


_IMAGES = (
    # depth[_i size], size, dropout, drop path, RandAugment there and in the Garden, parameters, GMACs, top-1, Garden's
    _Image("26", 160, 0.25, 0.0, 10, 10),
    _Image("50", 160, 0.25, 0.0, 10, 10, 35_691_912, 2.279, 78.8, (79.1, 94.5)),
    _Image("101_i160", 160, 0.25, 0.0, 10, 15, 63_618_696, 4.182, 80.3, (80.2, 94.9)),
    _Image("101", 192, 0.25, 0.0, 15, 15, 63_618_696, 6.012, 81.2, (81.3, 95.6)),
    _Image("152_i192", 192, 0.25, 0.0, 15, 15, 86_621_576, 8.747, 82.0, (81.9, 95.8)),
    _Image("152_i224", 224, 0.25, 0.0, 15, 15, 86_621_576, 11.895, 82.2, (82.5, 96.1)),
    _Image("152", 256, 0.25, 0.0, 15, 15, 86_621_576, 15.528, 83.0, (83.1, 96.3)),
    _Image("200", 256, 0.25, 0.1, 15, 15, 93_209_992, 20.093, 83.4, (83.5, 96.6)),
    _Image("270", 256, 0.25, 0.1, 15, 15, 129_861_448, 26.950, 83.8, (83.6, 96.6)),
    _Image("300", 256, 0.25, 0.1, 15, 15),
    _Image("350", 256, 0.25, 0.1, 15, 15, 163_956_168, 34.377, 84.0, (83.7, 96.7)),
    _Image("350_i320", 320, 0.40, 0.1, 15, 15, 163_956_168, 53.684, 84.2, (84.2, 96.9)),
    _Image("400", 320, 0.40, 0.1, 15, 15),
    _Image("420", 320, 0.40, 0.1, 15, 15, 191_891_656, 63.942, 84.4),
)

_TIMM_TOP = {  # (resolution, top-1, top-5) of the weights that timm offers; those of 200 it trained itself
    "50": ((160, 77.858, 93.810), (224, 79.934, 94.972)),
    "101": ((192, 80.706, 95.240), (288, 82.288, 96.000)),
    "152": ((256, 82.900, 96.290), (320, 83.710, 96.614)),
    "200": ((256, 83.884, 96.762), (320, 84.448, 97.074)),
    "270": ((256, 83.596, 96.616), (352, 84.438, 96.972)),
    "350": ((288, 84.304, 96.942), (384, 84.710, 96.992)),
    "420": ((320, 84.240, 96.862), (416, 85.010, 97.110)),
}

_GARDEN_3D = {  # depth: parameters, GMACs of 32x224x224 and of 32x256x256
    50: (48_129_840, 88.02, 114.97),
    101: (84_969_520, 175.38, 229.06),
    152: (114_788_144, 256.16, 334.56),
    200: (121_376_560, 312.06, 407.58),
    270: (169_038_064, 425.52, None),
    300: (174_087_536, 455.12, None),
    350: (213_094_256, 547.61, None),
}

_PLAIN = {  # layout, frames, stride, dropout, parameters, GMACs of 224x224; no stochastic depth
    "garden_r3d_50": (R3D, 32, 2, 0.5, 32_491_728, 91.03),
    "garden_r3d_50g": (R3D_G, 64, 1, 0.2, 33_617_872, 99.25),
    "garden_slowonly_50": (SLOW_ONLY, 8, 8, 0.5, 32_454_096, 41.74),
    "garden_slowonly_50_16x4": (SLOW_ONLY, 16, 4, 0.5, 32_454_096, 83.48),
}

_K400, _K600 = "Kinetics-400", "Kinetics-600"
_KINETICS = {
    "garden_resnet3d_rs_50": [(_K400, "32x2, 10 clips x 3 crops", 78.2, 93.7, _GARDEN)],
    "garden_resnet3d_rs_101": [(_K400, "32x2", 79.5, 94.2, _GARDEN)],
    "garden_resnet3d_rs_152": [(_K400, "32x2", 79.9, 94.3, _GARDEN)],
    "garden_resnet3d_rs_200": [
        (_K400, "32x2", 80.4, 94.4, _GARDEN),
        (_K400, "48x2", 81.0, None, _GARDEN),
        (_K600, "32x2", 83.1, None, _GARDEN),
        (_K600, "48x2", 83.8, None, _GARDEN),
    ],
    "garden_r3d_50": [(_K400, "32x2", 77.0, 93.0, _GARDEN), (_K600, "32x2", 79.5, 94.8, _GARDEN)],
    "garden_r3d_50g": [(_K600, "250x1, 1 view", 78.7, 93.6, "tensorflow/models k600_3d-resnet50g.yaml")],
    "garden_slowonly_50": [(_K400, "8x8", 74.1, 91.4, _GARDEN), (_K600, "8x8", 77.3, 93.6, _GARDEN)],
    "garden_slowonly_50_16x4": [(_K400, "16x4", 75.6, 92.1, _GARDEN)],
}


def _image_contract(size: int, filter: str) -> DataContract:
    return DataContract(
        num_frames=1,
        stride=1,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        train_size=size,
        short_side=round(size / CENTER_CROP),
        test_size=size,
        filter=filter,
    )


def _image(row: _Image) -> Preset:
    timm = _TIMM_TOP.get(row.name, ())
    others = tuple(Published("ImageNet", f"{size}x{size}", top1, top5, _TIMM) for size, top1, top5 in timm)
    own = (Published("ImageNet", f"{row.size}x{row.size}", row.top1, None, _TPU),) if row.top1 else ()
    return Preset(
        f"resnet_rs_{row.name}",
        row.depth,
        BLOCKS[row.depth],
        RESNET_RS_2D,
        num_classes=1000,
        dropout=row.dropout,
        drop_path=row.drop_path,
        contract=_image_contract(row.size, "bicubic"),
        rand_augment=row.magnitude,
        published=own + others,
        reference=Reference(row.parameters, row.gmacs, _COUNTED) if row.parameters else None,
    )


def _garden_image(row: _Image) -> Preset:
    return Preset(
        f"garden_resnet_rs_{row.name}",
        row.depth,
        BLOCKS[row.depth],
        GARDEN_2D,
        num_classes=1001,
        dropout=row.dropout,
        drop_path=row.drop_path,
        contract=_image_contract(row.size, "bilinear"),
        rand_augment=row.garden_magnitude,
        published=(Published("ImageNet", f"{row.size}x{row.size}", *row.garden, _GARDEN),),
        # Counted with 1000 classes: one more has 2048 weights and a bias.
        reference=Reference(row.parameters + 2049, row.gmacs, _COUNTED),
    )


def _video(
    name: str,
    depth: int,
    layout: Layout,
    contract: DataContract | None = None,
    *,
    dropout: float = 0.5,
    drop_path: float = 0.1,
    reference: Reference | None = None,
) -> Preset:
    return Preset(
        name,
        depth,
        BLOCKS[depth],
        layout,
        num_classes=400,
        dropout=dropout,
        drop_path=drop_path,
        contract=contract or DataContract(),
        published=tuple(Published(*row) for row in _KINETICS.get(name, ())),
        reference=reference,
    )


def _garden_video(depth: int) -> Preset:
    parameters, gmacs, test_gmacs = _GARDEN_3D[depth]
    reference = Reference(parameters, gmacs, _COUNTED, test_gmacs)
    return _video(f"garden_resnet3d_rs_{depth}", depth, GARDEN_3D, reference=reference)


def _plain(name: str) -> Preset:
    layout, frames, stride, dropout, *size = _PLAIN[name]
    contract = DataContract(num_frames=frames, stride=stride)
    reference = Reference(*size, _COUNTED)
    return _video(name, 50, layout, contract, dropout=dropout, drop_path=0.0, reference=reference)


def _all() -> Iterator[Preset]:
    gardens = [row for row in _IMAGES if row.garden]
    yield from (_video(f"resnet3d_rs_{depth}", depth, RESNET_RS_3D) for depth in BLOCKS)
    yield from map(_image, _IMAGES)
    yield from map(_garden_image, gardens)
    yield from map(_garden_video, _GARDEN_3D)
    yield from map(_plain, _PLAIN)
    rgb = DataContract(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    for depth in sorted({row.depth for row in gardens}):
        yield _video(f"inflated_garden_resnet_rs_{depth}", depth, INFLATED_GARDEN_2D, rgb)


PRESETS = {preset.name: preset for preset in _all()}
"""All presets by name."""


def list_models(pattern: str = "*") -> list[str]:
    """The names of the networks that match a shell-style ``pattern``.

    Args:
        pattern: "garden_*_50": this family's. "timm/resnet5*" or "pytorchvideo/*": of that package, which is imported;
            timm's have the tags of their weights where the pattern has a dot ("timm/resnet50.*").

    Raises:
        UserError: the package is missing or broken.
    """
    if "/" in pattern:
        from video_rs.models import external

        return external.names(pattern)
    return [name for name in PRESETS if fnmatch.fnmatchcase(name, pattern)]
