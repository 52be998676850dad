"""The named networks: architecture, regularisation, data config, and what others publish of them. Without torch.

presets.csv has a row for each network, references.csv the sizes of the same networks in somebody else's code, and
published.csv accuracies, with their sources.

Image networks, one for each depth and resolution that was published (Bello et al. 2021, arXiv 2103.07579):
``resnet_rs_*`` is the architecture and the recipe of the released code (tensorflow/tpu, ``models/official/resnet``),
``garden_resnet_rs_*`` that of the TF Model Garden (tensorflow/models, ``official/vision``). The resolution is in the
name (``_i160``) where it isn't the largest with the depth's usual regularisation.
Video networks (Du et al. 2021, arXiv 2109.01696): ``garden_resnet3d_rs_*`` is the Model Garden's architecture,
``resnet3d_rs_*`` ours, ``inflated_garden_resnet_rs_*`` what the Garden's image weights inflate into. All have the
regularisation of the one recipe that was released, R3D-RS-50's on Kinetics-400 (32 frames, every second one).
Depths 26, 300 and 400 occur in the scaling study of the first paper only and borrow the settings of a neighbour.
"""

from __future__ import annotations

import csv
import fnmatch
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from video_rs.data_config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from video_rs.models import architecture as architectures
from video_rs.models.architecture import GARDEN_2D, INFLATED_GARDEN_2D, Architecture

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

CENTER_CROP = 0.875
"""Side of the test crop over the short side of an image, in both image recipes."""


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
        test_gmacs: the same for a test crop; None where that was not counted or has the same size.
        source: whose code, and who counted. The Model Garden's image networks were counted with 1000 classes; the one
            for the background has 2049 more parameters, which are added.
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
        blocks: bottlenecks by stage.
        architecture: everything else about the architecture.
        num_classes: those of ImageNet (in the Model Garden with one for the background) or of Kinetics-400.
        dropout: rate before the classifier.
        drop_path: rate of the paper's rule, which gives the last stage this much.
        data_config: default frames, resolution and normalisation.
        rand_augment: magnitude of RandAugment (2 layers) in its published recipe; None: it has none.
        published: accuracies, the first with this preset's own settings.
        reference: the size of the implementation it follows; None where there is none.
    """

    name: str
    depth: int
    blocks: tuple[int, ...]
    architecture: Architecture
    num_classes: int
    dropout: float
    drop_path: float
    data_config: DataConfig
    rand_augment: float | None = None
    published: tuple[Published, ...] = ()
    reference: Reference | None = None


def read_rows(file: str) -> list[dict[str, str]]:
    """Read a table beside this module."""
    with open(Path(__file__).with_name(file), newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _data_config(architecture: Architecture, frames: int, stride: int, size: int) -> DataConfig:
    if frames > 1:
        pixels = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if architecture == INFLATED_GARDEN_2D else {}
        return DataConfig(num_frames=frames, stride=stride, train_size=size, **pixels)
    return DataConfig(
        num_frames=1,
        stride=1,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        train_size=size,
        short_side=round(size / CENTER_CROP),
        test_size=size,
        filter="bilinear" if architecture == GARDEN_2D else "bicubic",
    )


def _preset(row: dict[str, str], published: Sequence[Published], reference: Reference | None) -> Preset:
    architecture, depth = getattr(architectures, row["architecture"]), int(row["depth"])
    return Preset(
        row["name"],
        depth,
        BLOCKS[depth],
        architecture,
        num_classes=int(row["classes"]),
        dropout=float(row["dropout"]),
        drop_path=float(row["drop_path"]),
        data_config=_data_config(architecture, int(row["frames"]), int(row["stride"]), int(row["size"])),
        rand_augment=_number(row["rand_augment"]),
        published=tuple(published),
        reference=reference,
    )


def _read() -> dict[str, Preset]:
    published, references = defaultdict(list), {}
    for row in read_rows("published.csv"):
        accuracy = float(row["top1"]), _number(row["top5"])
        published[row["name"]].append(Published(row["dataset"], row["views"], *accuracy, row["source"]))
    for row in read_rows("references.csv"):
        gmacs = float(row["gmacs"]), _number(row["test_gmacs"])
        references[row["name"]] = Reference(int(row["parameters"]), *gmacs, row["source"])
    presets = [_preset(row, published[row["name"]], references.get(row["name"])) for row in read_rows("presets.csv")]
    return {preset.name: preset for preset in presets}


PRESETS = _read()
"""All presets by name."""


def list_models(pattern: str = "*") -> list[str]:
    """The names of the networks that match a shell-style ``pattern``.

    Args:
        pattern: "garden_*_50": this family's. "timm/resnet5*" or "pytorchvideo/*": of that package, which is imported;
            timm's have the tags of their weights where the pattern has a dot ("timm/resnet50.*").

    Raises:
        ModuleNotFoundError: the package is missing.
        UserError: it is broken.
    """
    if "/" in pattern:
        from video_rs.models.adapters import base as external

        return external.names(pattern)
    return [name for name in PRESETS if fnmatch.fnmatchcase(name, pattern)]
