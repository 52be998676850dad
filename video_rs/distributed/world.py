"""The processes of a run: joint start, shared errors and detection of lost processes.

Each process has a :class:`World`. With a single process its methods do nothing, so callers need no special case. Every
wait has a timeout, whose error message contains this rank and the operation.
"""

import contextlib
import functools
import hashlib
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import video_rs
from video_rs.distributed import launcher
from video_rs.distributed.device import claim_device
from video_rs.distributed.rendezvous import meet
from video_rs.errors import PeerFailed, PeersLost, UserError, VideoRSError, first_line
from video_rs.hub import format_redacted

_LOST = re.compile(
    "timed out|time-?out|closed by peer|reset by peer|connection refused|broken pipe|nccl|gloo", re.IGNORECASE
)


@dataclass
class World:
    """This process and the other processes of a run.

    Attributes:
        rank: rank of this process, from 0.
        local_rank: rank of this process on its machine, from 0.
        size: number of processes.
        local_size: number of processes on this machine.
        timeout: seconds to wait for other ranks.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1
    timeout: float = 600.0
    _store: Any = field(default=None, repr=False)
    _host: Any = field(default=None, repr=False)  # process group for values on the host
    _waits: int = field(default=0, repr=False)  # number of waits with heartbeats so far
    _last_heartbeat: float = field(default=-math.inf, repr=False)

    @property
    def is_main(self) -> bool:
        """True for rank 0, which writes files and prints."""
        return self.rank == 0

    def agree(self, flags: Sequence[int], what: str) -> list[int]:
        """Return the maximum of each flag over all ranks."""
        if self.size == 1:
            return [int(flag) for flag in flags]
        tensor = torch.tensor([int(flag) for flag in flags])
        self._arrive(what)
        with self.guard(what):
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._host)
        return tensor.tolist()

    def gather(self, value: Any, what: str, on_main: bool = False) -> list[Any]:
        """Gather picklable values from all ranks, in order of rank. With ``on_main``, other ranks than 0 get []."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size if self.is_main or not on_main else []
        self._arrive(what)
        with self.guard(what):
            if on_main:
                dist.gather_object(value, values or None, group=self._host)
            else:
                dist.all_gather_object(values, value, group=self._host)
        return values

    def broadcast_(self, tensors: Iterable[Tensor], what: str) -> None:
        """Replace tensors, on any device, by those of rank 0."""
        if self.size == 1:
            return
        self._arrive(what)
        with self.guard(what), torch.no_grad():
            for tensor in tensors:
                on_host = tensor.detach().cpu().contiguous()
                dist.broadcast(on_host, 0, group=self._host)
                tensor.copy_(on_host)

    @contextlib.contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Run a block that waits for other ranks. Raise PeersLost if the connection to one is lost."""
        try:
            yield
        except RuntimeError as error:  # the base class of torch.distributed's errors
            is_lost = isinstance(error, dist.DistError) or _LOST.search(str(error))
            if self.size == 1 or not is_lost or type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise PeersLost(
                f"rank {self.rank} of {self.size}: lost contact with other ranks in {what} ({first_line(error)}"
                f"{self._missing(what)}); see their logs, then restart to resume"
            ) from error

    def heartbeat(self) -> None:
        """Send a heartbeat to the other ranks, at most once a second."""
        if self._store and time.monotonic() > self._last_heartbeat + 1:
            self._last_heartbeat = time.monotonic()
            with self._publishing("a heartbeat"):
                self._store.add(f"alive/{self.rank}", 1)

    @contextlib.contextmanager
    def together(self, what: str, heartbeats: bool = False) -> Iterator[None]:
        """Run a block on all ranks, and fail on all ranks if it fails on one.

        The failing rank with the lowest number raises its error; other ranks raise ``PeerFailed``. Nested blocks report
        an error once. ``PeersLost`` is raised immediately, without informing other ranks.

        Args:
            what: the operation, for messages.
            heartbeats: a rank may take any amount of time if it sends a :meth:`heartbeat` within each timeout.
        """
        failure: VideoRSError | None = None
        try:
            yield
        except VideoRSError as error:
            if self.size == 1 or isinstance(error, (PeerFailed, PeersLost)) or error.is_shared:
                raise
            failure = error
        if heartbeats and self._store:
            self._wait_for_all(what)
        outcome = failure and (str(failure), failure.exit_code)
        for rank, failed in enumerate(self.gather(outcome, what)):
            if failed and rank == self.rank:
                failure.is_shared = True
                raise failure
            if failed:
                raise PeerFailed(rank, *failed)

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1 and dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
        self._store = self._host = None  # frees the port

    def _wait_for_all(self, what: str) -> None:
        """Wait until all ranks have arrived. Time out if none sends a heartbeat."""
        self._waits += 1
        self._arrive(what)
        with self.guard(what):
            self._store.add(f"waits/{self._waits}", 1)
            beats, since = None, time.monotonic()
            while self._store.add(f"waits/{self._waits}", 0) < self.size:
                found = [self._store.add(f"alive/{rank}", 0) for rank in range(self.size)]
                if found != beats:
                    beats, since = found, time.monotonic()
                if time.monotonic() > since + self.timeout:
                    raise RuntimeError(f"timed out: no heartbeat for {self.timeout:g} s")
                time.sleep(0.1)

    def _arrive(self, what: str) -> None:
        """Publish the current operation of this rank for the error messages of other ranks."""
        if self._store:
            with self._publishing(what):
                self._store.set(f"at/{self.rank}", what)

    @contextlib.contextmanager
    def _publishing(self, what: str) -> Iterator[None]:
        """Run a block that writes to the store. Raise PeersLost if torchrun hosts the store and has exited."""
        try:
            yield
        except RuntimeError:  # rank 0 hosts the store: its loss is detected later
            if launcher.is_torchrun():
                raise PeersLost(f"rank {self.rank}: torchrun has ended, in {what}; restart to resume") from None

    def _missing(self, what: str) -> str:
        """Return a text on the ranks at another operation, if the store can still be read."""
        places: dict[int, str] = {}
        if not self._store:
            return ""
        with contextlib.suppress(RuntimeError):
            self._store.set_timeout(timedelta(seconds=2))
            for rank in range(self.size):
                places[rank] = self._store.get(f"at/{rank}").decode() if self._store.check([f"at/{rank}"]) else "start"
        return "".join(f"; rank {rank} was in {place}" for rank, place in places.items() if place != what)


def start_world(device: torch.device | str = "cpu", timeout: float = 600.0) -> World:
    """Join the other processes if torchrun or a SLURM step started several, and initialize the device.

    Args:
        device: ``cpu`` (gloo), ``cuda`` (NCCL for tensors on it, gloo otherwise) or ``xla`` (XLA and gloo).
        timeout: seconds to wait for other ranks, at the start and later.

    Raises:
        UserError: a variable of the launcher is missing or invalid, the port is in use, or there are too few GPUs.
        MachineError: other ranks did not arrive in time; the message names them.
    """
    variables = launcher.variables()
    if launcher.processes() == 1:
        claim_device(device)
        return World(timeout=timeout)
    rank, size, local = (int(variables[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    world = World(rank, local, size, int(variables.get("LOCAL_WORLD_SIZE", 1)), timeout)
    claim_device(device, rank, size, local, world.local_size)
    with world.guard("start"):
        world._store = meet(rank, size, variables["MASTER_ADDR"], int(variables["MASTER_PORT"]), timeout)
        limit = timedelta(seconds=timeout)
        backend = "cpu:gloo,cuda:nccl" if torch.device(device).type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", world._store), rank=rank, world_size=size, timeout=limit
        )
        world._host = dist.new_group(backend="gloo", timeout=limit)
    return world


def check_same(world: World, values: Mapping[str, Any]) -> None:
    """Raise UserError on all ranks if config keys, data or code of a rank differ from those of rank 0.

    Args:
        values: the values to compare, by name. Mappings are compared key by key.
    """
    flat = {}
    for name, value in values.items():
        flat |= {f"{name} {key}": v for key, v in value.items()} if isinstance(value, Mapping) else {name: value}
    ranks = world.gather(flat, "the comparison of configs")
    with world.together("the comparison of configs"):
        for rank, theirs in enumerate(ranks) if world.is_main else ():
            if differing := {name for name in flat.keys() | theirs.keys() if flat.get(name) != theirs.get(name)}:
                name = min(differing)
                ours, other = map(format_redacted, (flat.get(name), theirs.get(name)))
                raise UserError(
                    f"{name} is {ours} for rank 0 and {other} for rank {rank}: start all ranks with the same "
                    "config, data and code"
                )


@functools.cache
def code_version() -> str:
    """Return the versions of this package and of torch, and a digest of this package's source."""
    digest = hashlib.sha256()
    folder = Path(video_rs.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{video_rs.__version__}, torch {torch.__version__}, source {digest.hexdigest()[:12]}"
