"""``prepare_dataset --shards``: the prepared videos of OUT packed into OUT/shards."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from video_rs.cli.common import counter

if TYPE_CHECKING:
    from video_rs.data.sources.records import Records
    from video_rs.data.tools.shard_writer import Sample

FOLDER = "shards"


def pack(out: Path, splits: Mapping[str, Records], target: Mapping[str, str], megabytes: int) -> None:
    """Writes the shards of all splits, and class_names.txt beside them.

    Args:
        out: the prepared dataset.
        splits: the records of its source.
        target: where the copy of each source lies, relative to `out`; of those that have one.
        megabytes: most, of the members of a shard.

    Raises:
        UserError, MachineError: as of ``shard_writer.plan`` and ``write``.
    """
    from video_rs.data.tools.shard_writer import member_names, plan, remove_others, write

    folder, names = out / FOLDER, member_names(target.values())
    _write_names(folder, next(iter(splits.values())).class_names)
    samples = {
        split: [_sample(out, records, i, target, names) for i in _prepared(records, target)]
        for split, records in splits.items()
    }
    shards = plan(folder, samples, megabytes * 1_000_000)
    remove_others(folder, shards)
    write(shards, counter(sum(len(shard.samples) for shard in shards), "pack", "videos"))
    size = sum(shard.num_bytes for shard in shards) / 1e6
    print(f"{len(shards)} shards in {folder}: {size:.1f} MB")
    print(f"{out / 'videos'} may be deleted if only the shards are used; to pack anew would then take encoding anew")


def _write_names(folder: Path, class_names: Sequence[str]) -> None:
    """Class numbers stand in the shards: those of other classes must not stay."""
    from video_rs.data.tools.shard_writer import remove_others
    from video_rs.files import atomic_write

    file, text = folder / "class_names.txt", "".join(f"{name}\n" for name in class_names)
    if not file.exists() or file.read_bytes() != text.encode():
        remove_others(folder, ())
        with atomic_write(file, "w") as handle:
            handle.write(text)


def _prepared(records: Records, target: Mapping[str, str]) -> list[int]:
    """The first record of each file that has a copy: a list may name one twice."""
    numbers: dict[str, int] = {}
    for i in range(len(records)):
        if records.path(i) in target:
            numbers.setdefault(records.path(i), i)
    return list(numbers.values())


def _sample(out: Path, records: Records, i: int, target: Mapping[str, str], names: Mapping[str, str]) -> Sample:
    from video_rs.data.tools.shard_writer import Sample

    copy = target[records.path(i)]
    if records.multi_label:
        content = "json", json.dumps(records.label_set(i).tolist())
    else:
        content = "cls", str(records.label(i))
    source = None if records.sources is None else int(records.sources[i])
    return Sample(os.path.join(out, copy), names[copy], ";".join(records.label_names(i)), content, source)
