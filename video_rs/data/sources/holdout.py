"""A validation split made of a share of the training files."""

from __future__ import annotations

import os
import re
from hashlib import sha1
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from video_rs.data.sources.records import Records

KINETICS_NAME = re.compile(r"(?P<source>.{11})_\d{6}_\d{6}")  # <youtube id>_<start>_<end>, in seconds
UCF_NAME = re.compile(r"(?P<source>.+_g\d+)_c\d+")  # v_<class>_g<group>_c<clip>
# <video>_<class>_<visible body part>_<camera motion>_np<people>_<viewpoint>_<quality>_<clip>
HMDB_NAME = re.compile(r"(?P<source>.+)_[fhlu]_(?:cm|nm)_np\d_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+")
_NAMES = (KINETICS_NAME, UCF_NAME, HMDB_NAME)


def split_off(records: Records, fraction: float) -> tuple[Records, Records]:
    """Two parts of a dataset: all but `fraction` of every class, and that fraction.

    Files cut from one source video (``records.sources``, else :func:`source_of`) stay together, so that the fraction is
    met only as nearly as whole sources allow, and the last source of a class stays in the first part. Which go where
    depends on their names alone: not on their order, the machine or the seed of a run, so that runs can be compared and
    averaged. A file of several classes counts for the one written first; those without any are a class of their own.

    Args:
        records: the dataset.
        fraction: of each class in the second part.
    """
    keys = records.sources
    if keys is None:
        keys = np.fromiter((source_key(source_of(records.path(i))) for i in range(len(records))), np.uint64)
    source = np.unique(keys, return_inverse=True)[1]  # a number per file, in the order of the digests
    labels = records.labels + 1  # 0 is the class of the files without a label
    classes = 1 + int(labels.max(initial=0))
    # a pair is a source and a class that it has files in, `counts` of them; sorted by source
    pairs, counts = np.unique(source * classes + labels, return_counts=True)
    of_source, of_class = np.divmod(pairs, classes)
    first = np.searchsorted(of_source, np.arange(of_source.max(initial=-1) + 2))  # pair of each source
    left = np.bincount(of_class, minlength=classes)  # sources of each class in the first part
    to_val, decided = np.zeros((2, len(first)), bool)
    for mine in np.split(np.argsort(of_class, kind="stable"), np.cumsum(left)[:-1]):
        groups = of_source[mine]
        wanted = max(1, round(fraction * int(counts[mine].sum()))) if fraction > 0 else 0
        wanted -= int(counts[mine][to_val[groups]].sum())
        for pair in mine[~decided[groups]]:
            if wanted <= 0:
                break
            group = of_source[pair]
            others = of_class[first[group] : first[group + 1]]
            if counts[pair] < 2 * wanted and (left[others] > 1).all():
                to_val[group] = True
                wanted -= int(counts[pair])
                left[others] -= 1
        decided[groups] = True
    mask = to_val[source]
    train, val = (records.subset(np.flatnonzero(each)) for each in (~mask, mask))
    for name in ("num_missing", "missing", "empty_folders", "coverage"):
        setattr(train, name, getattr(records, name))
    val.held_out = True
    return train, val


def source_key(source: str) -> int:
    """A number for a source video: 8 bytes of a digest tell millions apart, and are not an object each."""
    return int.from_bytes(sha1(source.encode(errors="surrogateescape")).digest()[:8], "big")


def source_of(path: str) -> str:
    """The source video of a clip: the id in a Kinetics or Diving48 file name, the group in a UCF101 one, all but the
    tags in an HMDB51 one, else the file itself."""
    stem = os.path.splitext(os.path.basename(path))[0]
    match = next(filter(None, (name.fullmatch(stem) for name in _NAMES)), None)
    return match["source"] if match else "/".join(Path(path).parts[-2:])
