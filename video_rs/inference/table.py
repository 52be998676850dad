"""Compute a table over a whole dataset, with workers, batches over files and several ranks. A killed call resumes."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from hashlib import sha1
from pathlib import Path
from typing import Any

from torch import Tensor

from video_rs.data.chunk_dataset import ChunkDataset
from video_rs.data.loader import ViewLoader
from video_rs.data.sources.records import Records
from video_rs.distributed.world import World
from video_rs.errors import UserError
from video_rs.inference.parts import Table, open_parts
from video_rs.inference.rows import FileRows, compute_rows


def compute_table(
    compute: Callable[[Tensor], Tensor],
    dataset: ChunkDataset,
    out: str | Path,
    write: Callable[[Table], Any],
    *,
    settings: Mapping[str, Any],
    batch_size: int = 8,
    pool: str = "mean",
    workers: int = 0,
    timeout: float = 0.0,
    world: World | None = None,
    overwrite: bool = False,
    progress: Callable[[int], Callable[[int], Any]] | None = None,
    on_rows: Callable[[FileRows], Any] = lambda rows: None,
) -> Table | None:
    """Compute the rows of all files of a dataset, and write them to a file.

    Finished rows are kept in ``<out>.parts``. After a kill, the same call computes only the missing rows, also with
    another number of ranks or workers, and tries unreadable files again. The folder is deleted when `out` is complete.

    Args:
        compute: returns the outputs of views, ``[n, T, H, W, C] -> [n, D]``.
        dataset: the clips of all files.
        out: the file.
        write: called on rank 0 with the complete table; writes `out`.
        settings: plain values that the rows depend on. Parts with other settings are refused.
        batch_size: number of views in a forward pass.
        pool: see :func:`video_rs.inference.rows.compute_rows`.
        workers, timeout: see :func:`video_rs.data.loader.clip_loader`.
        world: the ranks. Each of them reads a part of the files.
        overwrite: replace `out` if it exists.
        progress: called on rank 0 with the number of files left for this rank; returns a function that advances the
            progress.
        on_rows: called with the rows of each file of this rank.

    Returns:
        All rows on rank 0; None on other ranks.

    Raises:
        UserError: see :func:`video_rs.inference.parts.open_parts`; or no file can be read.
        MachineError: the storage fails, or many consecutive files hang.
    """
    world = world or World()
    with open_parts(out, {**settings, "files": digest(dataset.records)}, world, overwrite=overwrite) as parts:
        left = [index for index in range(len(dataset)) if index not in parts.done]
        loader = ViewLoader(
            dataset, workers=workers, timeout=timeout, rank=world.rank, world_size=world.size, indices=left
        )
        advance = progress(len(loader)) if progress and world.is_main and left else lambda count: None
        with world.together("the forward passes", heartbeats=True):
            for rows in compute_rows(compute, loader, batch_size=batch_size, pool=pool, on_chunk=world.heartbeat):
                parts.add(rows)
                on_rows(rows)
                advance(1)
            parts.flush()
        reasons = world.gather(parts.reasons, "the unreadable files", on_main=True)
        table = None
        if world.is_main:
            table = parts.table(len(dataset), dict(ChainMap(*reasons)))
            if not table.scored.any():
                parts.remove()
                index, reason = min(table.reasons.items())
                raise UserError(
                    f"none of the {len(dataset)} files can be used; the first, {dataset.records.name(index)}: {reason}"
                )
            write(table)
            parts.remove()
    return table


def digest(records: Records) -> str:
    """Return the number of files, and 12 digits of a hash of their paths, segments and labels."""
    found = sha1(records.packed_paths())
    found.update(records.fingerprint().encode())
    return f"{len(records)} ({found.hexdigest()[:12]})"
