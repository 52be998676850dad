"""How the processes of a run find each other: a store of keys and values, in which each leaves its name.

torchrun keeps one store through all its restarts, with the names of processes that are gone; and its machines do not
count restarts alike. So each process draws a name of its own, and they go on once all have seen each other's.
"""

from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from video_rs.distributed import launcher
from video_rs.errors import MachineError, UserError, first_line


def meet(rank: int, size: int, host: str, port: int, timeout: float) -> Any:
    """The store of the processes that are there now, once all are. Rank 0 has it, unless torchrun does.

    Raises:
        UserError: the port is in use.
        MachineError: the store cannot be reached, or some have not come in ``timeout`` seconds; the message names them.
    """
    store = dist.PrefixStore("video_rs", _connect(rank, size, host, port, timeout))
    name, end = uuid.uuid4().hex, time.monotonic() + timeout
    store.set(f"here/{rank}", name)
    while (group := _group(store, rank, size, name)) is None:
        if time.monotonic() > end:
            late = ", ".join(map(str, _absent(store, rank, size)))
            raise MachineError(
                f"rank {rank} waited {timeout:g} s (train.peer_timeout) at {host}:{port}, and of {size} processes rank "
                f"{late} did not come: see what they said, and whether they can reach that address"
            )
        time.sleep(0.05)
    return dist.PrefixStore(group, store)


def _connect(rank: int, size: int, host: str, port: int, timeout: float) -> Any:
    hosting = rank == 0 and not launcher.is_torchrun()
    try:
        return dist.TCPStore(host, port, None, hosting, timedelta(seconds=timeout), wait_for_workers=False)
    except RuntimeError as error:
        if hosting and "in use" in str(error).lower():
            raise UserError(f"port {port} of {host} is in use: set MASTER_PORT to another") from None
        raise MachineError(
            f"rank {rank} of {size} cannot reach {host}:{port} ({first_line(error)}): does rank 0 run there?"
        ) from error


def _group(store: Any, rank: int, size: int, name: str) -> str | None:
    """The name of rank 0, once all processes are in its list; rank 0 writes it anew until each has found itself there.

    A name of rank 0 that is gone is in no list with a new process in it, and a new rank 0 lets nobody go on before all
    new processes have answered it.
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
    """The ranks of whom the list's writer has no sign; rank 0, where it has written none with this process."""
    names = json.loads(_get(store, "list") or "[]")
    if names[rank : rank + 1] != [_get(store, f"here/{rank}")]:
        return [other for other in range(size) if not _get(store, f"here/{other}")] or [0]
    return [other for other in range(1, size) if other != rank and not store.check([f"seen/{names[0]}/{other}"])]


def _get(store: Any, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""
