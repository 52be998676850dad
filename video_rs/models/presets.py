"""The named networks: architecture, regularisation, data config, cost, accuracies. This module does not import torch.

presets.csv has a row for each network, with its cost as ``video_rs.models.cost`` counts it. references.csv has the
sizes of the networks in the reference implementations, and published.csv has accuracies with their sources.

Image networks, one for each published depth and resolution (Bello et al. 2021, arXiv 2103.07579):
``resnet_rs_*`` has the architecture and the recipe of the released code (tensorflow/tpu, ``models/official/resnet``),
``garden_resnet_rs_*`` those of the TF Model Garden (tensorflow/models, ``official/vision``). The name includes the
resolution (``_i160``), except for the largest one with the usual regularisation of the depth.
Video networks (Du et al. 2021, arXiv 2109.01696): ``garden_resnet3d_rs_*`` has the Model Garden's architecture,
``resnet3d_rs_*`` ours, and ``inflated_garden_resnet_rs_*`` the one for the Garden's inflated image weights. All use the
regularisation of the only released recipe, R3D-RS-50 on Kinetics-400 (32 frames with stride 2).
Depths 26, 300 and 400 occur only in the scaling study of the first paper and use the settings of a similar depth.
"""

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from video_rs.data_config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from video_rs.models import architecture as architectures
from video_rs.models.architecture import GARDEN_2D, INFLATED_GARDEN_2D, Architecture

# Number of bottlenecks in each stage, by depth.
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

# Size of the test crop relative to the short side of an image, in both image recipes.
CENTER_CROP = 0.875


@dataclass(frozen=True)
class Cost:
    """The cost of one sample.

    Attributes:
        parameters: number of trainable parameters.
        macs: multiply-accumulates of one forward pass of one training clip or image.
        activation_bytes: see ``video_rs.models.cost.activation_bytes``.
    """

    parameters: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True)
class Published:
    """An accuracy published by others. None was reproduced here.

    Attributes:
        dataset: "ImageNet", "Kinetics-400" or "Kinetics-600".
        views: crop size for images, frames x stride for videos.
        top1, top5: accuracy in percent; top5 is None if it was not published.
        source: repository and file.
    """

    dataset: str
    views: str
    top1: float
    top5: float | None
    source: str


@dataclass(frozen=True)
class Reference:
    """The size of the same network in a reference implementation.

    Attributes:
        parameters: number of trainable parameters.
        gmacs: 10**9 multiply-accumulates of one forward pass of a training clip or image.
        test_gmacs: the same for a test crop; None if it was not counted or has the same size.
        source: the code, and the origin of the counts. The Model Garden's image networks were counted with 1000
            classes; the 2049 parameters of the background class are added.
    """

    parameters: int
    gmacs: float
    test_gmacs: float | None
    source: str


@dataclass(frozen=True)
class Preset:
    """A named network.

    Attributes:
        name, depth: "resnet3d_rs_50" and 50.
        blocks: number of bottlenecks in each stage.
        architecture: all other fields of the architecture.
        num_classes: number of classes of ImageNet (with a background class in the Model Garden) or Kinetics-400.
        dropout: dropout rate before the classifier.
        drop_path: rate of stochastic depth in the last stage, with the paper's rule.
        data_config: default frames, resolution and normalisation.
        cost: cost of one training clip or image.
        rand_augment: magnitude of RandAugment (2 layers) in the published recipe; None for no RandAugment.
        published: published accuracies, the first one with the settings of this preset.
        reference: size of the reference implementation; None if there is none.
    """

    name: str
    depth: int
    blocks: tuple[int, ...]
    architecture: Architecture
    num_classes: int
    dropout: float
    drop_path: float
    data_config: DataConfig
    cost: Cost
    rand_augment: float | None = None
    published: tuple[Published, ...] = ()
    reference: Reference | None = None


def read_rows(file: Path) -> list[dict[str, str]]:
    """Read a csv file with a header."""
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _data_config(architecture: Architecture, frames: int, stride: int, size: int) -> DataConfig:
    pixels = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if frames > 1:
        pixels = pixels if architecture == INFLATED_GARDEN_2D else {}
        return DataConfig(num_frames=frames, stride=stride, train_size=size, **pixels)
    test = {"short_side": round(size / CENTER_CROP), "test_size": size}
    filter = "bilinear" if architecture == GARDEN_2D else "bicubic"
    return DataConfig(num_frames=1, stride=1, train_size=size, filter=filter, **pixels, **test)


def _read() -> dict[str, Preset]:
    folder, published, references, presets = Path(__file__).parent, defaultdict(tuple), {}, {}
    for row in read_rows(folder / "published.csv"):
        accuracy = Published(row["dataset"], row["views"], float(row["top1"]), _number(row["top5"]), row["source"])
        published[row["name"]] += (accuracy,)
    for row in read_rows(folder / "references.csv"):
        gmacs = float(row["gmacs"]), _number(row["test_gmacs"])
        references[row["name"]] = Reference(int(row["parameters"]), *gmacs, row["source"])
    for row in read_rows(folder / "presets.csv"):
        name, depth, architecture = row["name"], int(row["depth"]), getattr(architectures, row["architecture"])
        presets[name] = Preset(
            name,
            depth,
            BLOCKS[depth],
            architecture,
            num_classes=int(row["classes"]),
            dropout=float(row["dropout"]),
            drop_path=float(row["drop_path"]),
            data_config=_data_config(architecture, int(row["frames"]), int(row["stride"]), int(row["size"])),
            cost=Cost(int(row["parameters"]), int(row["macs"]), int(row["activation_bytes"])),
            rand_augment=_number(row["rand_augment"]),
            published=published[name],
            reference=references.get(name),
        )
    return presets


PRESETS = _read()
"""All presets by name."""
