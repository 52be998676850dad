"""Rendezvous of the processes of a run through a key-value store.

torchrun uses one store for all its restarts, with the keys of earlier processes, and its agents on different machines
count restarts differently. Therefore each process draws a random name, and all continue once every process has seen all
names.
"""

import json
import time
import uuid
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from video_rs.distributed import launcher
from video_rs.errors import MachineError, UserError, first_line

# torchrun's store exists before it starts the ranks: a rank that does not reach it has lost its torchrun.
TORCHRUN_SECONDS = 15.0


def meet(rank: int, size: int, host: str, port: int, timeout: float) -> Any:
    """Wait for all processes of this start and return their common store, hosted by torchrun or rank 0.

    Raises:
        UserError: the port is in use.
        MachineError: the store is unreachable, or ranks did not arrive within ``timeout`` seconds. The message names
            them.
    """
    try:
        return _meet(rank, size, host, port, timeout)
    except dist.DistNetworkError:
        if launcher.is_torchrun():
            raise
        return _meet(rank, size, host, port, timeout)  # the first store was that of an earlier start, and has closed


def _meet(rank: int, size: int, host: str, port: int, timeout: float) -> Any:
    """See :func:`meet`. Raise ``DistNetworkError`` if the store closes."""
    store = dist.PrefixStore("video_rs", _connect(rank, size, host, port, timeout))
    name, end = uuid.uuid4().hex, time.monotonic() + timeout
    store.set(f"here/{rank}", name)
    while (group := _group(store, rank, size, name)) is None:
        if time.monotonic() > end:
            late = ", ".join(map(str, _absent(store, rank, size)))
            raise MachineError(
                f"rank {rank} of {size}: rank {late} did not arrive at {host}:{port} within {timeout:g} s "
                "(train.peer_timeout); see its log, and check that it can reach that address"
            )
        time.sleep(0.05)
    return dist.PrefixStore(group, store)


def _connect(rank: int, size: int, host: str, port: int, timeout: float) -> Any:
    if launcher.is_torchrun():
        owner, hosting, limit = "torchrun", False, min(timeout, TORCHRUN_SECONDS)
    else:
        owner, hosting, limit = "rank 0", rank == 0, timeout
    try:
        store = dist.TCPStore(host, port, None, hosting, timedelta(seconds=limit), wait_for_workers=False)
        store.set_timeout(timedelta(seconds=timeout))
        return store
    except RuntimeError as error:
        if hosting and "in use" in str(error).lower():
            raise UserError(f"port {port} of {host} is in use; set MASTER_PORT to another") from None
        raise MachineError(
            f"rank {rank} of {size}: cannot reach {host}:{port} ({first_line(error)}); check that {owner} still runs "
            "there"
        ) from error


def _group(store: Any, rank: int, size: int, name: str) -> str | None:
    """Return the name of rank 0 once every rank has found itself in rank 0's list; until then None.

    Rank 0 rewrites the list until all ranks have acknowledged it. A list of an earlier rank 0 contains no name of a new
    process, and a new rank 0 waits for the acknowledgement of every new process.
    """
    if rank == 0:
        store.set("list", json.dumps([_get(store, f"here/{other}") for other in range(size)]))
        if _absent(store, rank, size):
            return None
        store.set(f"complete/{name}", "")
        return name
    names = json.loads(_get(store, "list") or "[]")
    if names[rank : rank + 1] != [name]:
        return None
    store.set(f"seen/{names[0]}/{rank}", "")
    return names[0] if store.check([f"complete/{names[0]}"]) else None


def _absent(store: Any, rank: int, size: int) -> list[int]:
    """Return the ranks that have not acknowledged the list; rank 0 if no list contains this process."""
    names = json.loads(_get(store, "list") or "[]")
    if names[rank : rank + 1] != [_get(store, f"here/{rank}")]:
        return [other for other in range(size) if not _get(store, f"here/{other}")] or [0]
    return [other for other in range(1, size) if other != rank and not store.check([f"seen/{names[0]}/{other}"])]


def _get(store: Any, key: str) -> str:
    """Return the value of a key, or an empty string."""
    return store.get(key).decode() if store.check([key]) else ""
