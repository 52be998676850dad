"""Hold out a validation split from the training files."""

import os
import re
from hashlib import sha1
from pathlib import Path

import numpy as np

from video_rs.data.sources.records import Records

KINETICS_NAME = re.compile(r"(?P<source>.{11})_\d{6}_\d{6}")  # <youtube id>_<start>_<end>, in seconds
UCF_NAME = re.compile(r"(?P<source>.+_g\d+)_c\d+")  # v_<class>_g<group>_c<clip>
# <video>_<class>_<visible body part>_<camera motion>_np<people>_<viewpoint>_<quality>_<clip>
HMDB_NAME = re.compile(r"(?P<source>.+)_[fhlu]_(?:cm|nm)_np\d_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+")


def split_off(records: Records, fraction: float) -> tuple[Records, Records]:
    """Split a dataset into a training and a validation part.

    Files cut from one source video (``records.sources``, else :func:`source_of`) stay together. The fraction is
    therefore only approximate, and at least one source of each class stays in the training part. The split depends only
    on names, not on their order, the machine or the seed of the run, so runs can be compared. A file with several
    classes counts for the first one; files without classes are treated as a class.

    Args:
        records: the dataset.
        fraction: fraction of each class in the validation part.
    """
    keys = records.sources
    if keys is None:
        keys = np.fromiter((source_key(source_of(records.path(i))) for i in range(len(records))), np.uint64)
    source = np.unique(keys, return_inverse=True)[1]  # number of the source of each file, ordered by key
    labels = records.labels + 1  # 0 is the class of files without a label
    num_classes = 1 + int(labels.max(initial=0))
    # a pair is a source and a class, with the number of files in `counts`; pairs are sorted by source
    pairs, counts = np.unique(source * num_classes + labels, return_counts=True)
    pair_source, pair_class = np.divmod(pairs, num_classes)
    first = np.searchsorted(pair_source, np.arange(pair_source.max(initial=-1) + 2))  # first pair of each source
    left = np.bincount(pair_class, minlength=num_classes)  # number of sources of each class in the training part
    to_val, decided = np.zeros((2, len(first)), bool)
    for class_pairs in np.split(np.argsort(pair_class, kind="stable"), np.cumsum(left)[:-1]):
        class_sources = pair_source[class_pairs]
        wanted = max(1, round(fraction * int(counts[class_pairs].sum()))) if fraction > 0 else 0
        wanted -= int(counts[class_pairs][to_val[class_sources]].sum())
        for pair in class_pairs[~decided[class_sources]]:
            if wanted <= 0:
                break
            number = pair_source[pair]
            classes = pair_class[first[number] : first[number + 1]]
            if counts[pair] < 2 * wanted and (left[classes] > 1).all():
                to_val[number] = True
                wanted -= int(counts[pair])
                left[classes] -= 1
        decided[class_sources] = True
    mask = to_val[source]
    train, val = (records.subset(np.flatnonzero(each)) for each in (~mask, mask))
    for name in ("num_missing", "missing", "empty_folders", "coverage", "notes"):
        setattr(train, name, getattr(records, name))
    val.held_out = True
    return train, val


def source_key(source: str) -> int:
    """Return a 64-bit hash of the name of a source video."""
    return int.from_bytes(sha1(source.encode(errors="surrogateescape")).digest()[:8], "big")


def source_of(path: str) -> str:
    """Return the name of the source video of a clip, or the name of the file if it matches no known format."""
    return named_source(path) or "/".join(Path(path).parts[-2:])


def named_source(path: str) -> str | None:
    """Return the source video in the name of a clip.

    It is the YouTube id in Kinetics, the group in UCF101, and the name without tags in HMDB51; None for other names.
    """
    stem = os.path.splitext(os.path.basename(path))[0]
    match = next(filter(None, (name.fullmatch(stem) for name in (KINETICS_NAME, UCF_NAME, HMDB_NAME))), None)
    return match["source"] if match else None


def source_keys(records: Records) -> np.ndarray:
    """Return the source of each file as uint64 ``[N]``. Files of one source video have equal keys, in any split.

    If the source is not known, it is the file itself, or the target of a symbolic link.
    """
    if records.sources is not None:
        return records.sources
    paths = (records.path(i) for i in range(len(records)))
    return np.fromiter((source_key(named_source(path) or os.path.realpath(path)) for path in paths), np.uint64)
